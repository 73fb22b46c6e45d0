"""Writes the generated parts of docs/: tables of settings, errors and modules, examples, the tiny model's album.

A generated part stands between `<!-- begin NAME -->` and `<!-- end NAME -->`.
"""

import base64
import io
import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from builder import architecture, costs, dependencies, models
from builder.tiny_model import skills
from builder.tiny_model.evaluate import Case, generate, request
from builder.tiny_model.scenes import Scene, draw, jpeg, random_clip, random_number, random_scene
from worker.core import error_table, media_warnings, settings
from worker.core.opened import Clip, Picture
from worker.models.loading import LoadedModel, load
from worker.prompt.builder import PromptBuilder

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CASES = ROOT / "tests" / "cases"
# Where the examples of an API format stand, if not on the page of the worker's own.
PAGES = {
    "openai_completions": "other-apis.md",
    "openai_responses": "other-apis.md",
    "openai_responses_count": "other-apis.md",
    "anthropic_messages": "other-apis.md",
    "anthropic_count": "other-apis.md",
    "tokenize": "other-apis.md",
    "vllm_job": "coming-from-worker-vllm.md",
}
ALBUM_SEED = 2024


def write(page: Path, name: str, content: str) -> None:
    """Put `content` between the page's marks of this name."""
    text = page.read_text(encoding="utf-8")
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"{page.name} has no part named {name}")
    page.write_text(pattern.sub(lambda _: begin + content + end, text), encoding="utf-8")


def example(path: Path) -> str:
    """A case of the tests as documentation: its input and what comes out."""
    case = json.loads(path.read_text(encoding="utf-8"))
    shown = [f"{case['about']}\n", _block({"input": case["input"]}), "\nOutput, one value per chunk:\n"]
    return "\n".join([*shown, *(_output(output) for output in case["outputs"])]) + "\n"


def _output(output: Any) -> str:
    return f"```\n{output.rstrip()}\n```" if isinstance(output, str) else _block(output)


def _block(value: Any) -> str:
    return f"```json\n{json.dumps(value, indent=2, ensure_ascii=False)}\n```"


def album() -> str:
    """Pictures from a fixed seed beside the embedded model's answers; the pictures go to docs/pictures/."""
    limits = settings.load({"DEVICE": "cpu", "MODEL_CODE": "transformers"})
    model = load(limits)
    builder = PromptBuilder(model.spec, limits)
    rng = random.Random(ALBUM_SEED)
    rows = ["| picture | question | answer | true answer |", "|---|---|---|---|"]
    for index in range(6):
        width, height = rng.choice(((240, 240), (320, 200), (200, 320), (480, 360)))
        scene = random_scene(rng, width / height, 1 + index % 3)
        image = _save(scene, width, height, rng, f"scene{index}")
        asks = [skills.caption(scene, "en", rng), skills.count(scene, "zh", rng), skills.locate(scene, "en", rng)]
        rows += _rows(model, builder, f"scene{index}", image, asks)
    for index in range(3):
        width, height = rng.choice(((240, 160), (320, 240)))
        scene = random_number(rng, width / height, 2 + index)
        image = _save(scene, width, height, rng, f"number{index}")
        rows += _rows(model, builder, f"number{index}", image, [skills.number(scene, "en", rng)])
    for index in range(2):
        clip = random_clip(rng, 1.0, 6)
        frames = [draw(frame, 128, 128, rng) for frame in clip.frames]
        strip = Image.new("RGB", (128 * 6 + 5 * 4, 128), "white")
        for at, frame in enumerate(frames):
            strip.paste(frame, (at * 132, 0))
        strip.save(DOCS / "pictures" / f"clip{index}.png")
        shown = Clip(tuple(np.array(frame) for frame in frames), clip.fps)
        ask = skills.motion(clip, skills.LANGUAGES[index], rng)
        rows += [_row(f"clip{index}.png", ask, _said(model, builder, Case(ask, (shown,))))]
    return "\n".join(rows) + "\n"


def _save(scene: Scene, width: int, height: int, rng: random.Random, name: str) -> Image.Image:
    image = jpeg(draw(scene, width, height, rng), 85)
    image.save(DOCS / "pictures" / f"{name}.png")
    return image


def _rows(
    model: LoadedModel, builder: PromptBuilder, name: str, image: Image.Image, asks: list[skills.Ask]
) -> list[str]:
    picture = Picture(np.array(image))
    answers = [_said(model, builder, Case(ask, (picture,))) for ask in asks]
    return [_row(f"{name}.png", ask, answer) for ask, answer in zip(asks, answers, strict=True)]


def _said(model: LoadedModel, builder: PromptBuilder, case: Case) -> str:
    return generate(model, builder.build(request(case), case.opened))


def _row(file: str, ask: skills.Ask, answer: str) -> str:
    cells = (ask.question, answer, ask.answer)
    return (
        f"| ![](pictures/{file}) | " + " | ".join(cell.replace("\n", " ").replace("|", "\\|") for cell in cells) + " |"
    )


def write_test_input() -> None:
    """test_input.json: a drawn picture as a JPEG in base64, and a question."""
    rng = random.Random(ALBUM_SEED)
    scene = random_scene(rng, 1.25, 2)
    buffer = io.BytesIO()
    draw(scene, 300, 240, rng).save(buffer, "JPEG", quality=80)
    picture = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    body = {"input": {"prompt": "What is in the picture?", "image": picture}}
    (ROOT / "test_input.json").write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    (DOCS / "pictures" / "test_input.jpg").write_bytes(buffer.getvalue())


def first_run() -> str:
    """What the handler prints for test_input.json, with the total of the cold start alone."""
    command = [sys.executable, "handler.py"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300).stdout
    printed = re.search(r"^\{\n.*?^\}$", output, re.DOTALL | re.MULTILINE)
    if printed is None:
        raise ValueError("the handler printed no JSON")
    answer = json.loads(printed.group())
    answer["cold_start"] = {"total": answer["cold_start"]["total"]}
    return _block(answer) + "\n"


def main() -> None:
    write(DOCS / "settings.md", "settings", settings.table())
    write(DOCS / "modules.md", "modules", architecture.modules())
    write(DOCS / "errors.md", "errors", error_table.table())
    write(DOCS / "api.md", "warnings", media_warnings.table())
    write(DOCS / "models.md", "checkpoints", models.checkpoints())
    write(DOCS / "models.md", "cards", models.cards())
    write(DOCS / "costs.md", "prices", costs.price_table())
    write(DOCS / "costs.md", "costs", costs.table())
    write(DOCS / "architecture.md", "dependencies", dependencies.table())
    for path in sorted(CASES.glob("*/*.json")):
        write(DOCS / PAGES.get(path.parent.name, "api.md"), f"{path.parent.name}/{path.stem}", example(path))
    (DOCS / "pictures").mkdir(exist_ok=True)
    write_test_input()
    write(ROOT / "README.md", "run", first_run())
    write(DOCS / "tiny_model.md", "album", album())


if __name__ == "__main__":
    main()
