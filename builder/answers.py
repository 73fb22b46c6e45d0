"""Writes docs/answers.md's answers: each example of the page is asked the demonstration model, and shown below it.

python -m builder.answers
"""

import asyncio
import base64
import io
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from builder.tiny_model import scenes
from worker.core.settings import load
from worker.service import Service
from worker.startup.build import start

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "answers.md"
PICTURES = ROOT / "docs" / "pictures"
WIDTH, HEIGHT = 900, 600
MAX_SHOWN_CHARS = 40  # of a picture's data
_EXAMPLE = re.compile(
    r"<!-- example: (?P<fields>[a-z_ ]+) -->\n```json\n(?P<job>.*?)```\n"
    r'(?:\n```json title="answer"\n(?P<answer>.*?)```\n)?',
    re.DOTALL,
)


@dataclass(frozen=True)
class Example:
    """A job of the page, which fields of the reply it shows, and what it shows now."""

    job: dict[str, Any]
    fields: tuple[str, ...]
    shown: dict[str, Any] | None


def examples(page: str) -> Iterator[Example]:
    """Those of the page, in order."""
    for match in _EXAMPLE.finditer(page):
        answer = match["answer"]
        shown = None if answer is None else json.loads(answer)
        yield Example(json.loads(match["job"])["input"], tuple(match["fields"].split()), shown)


def shapes(seed: int = 0, num_things: int = 3) -> Image.Image:
    """The picture that the page asks about."""
    rng = random.Random(seed)
    scene = scenes.random_scene(rng, WIDTH / HEIGHT, num_things)
    return scenes.draw(scene, WIDTH, HEIGHT, rng)


def _clip() -> dict[str, Any]:
    clip = scenes.random_clip(random.Random(3), 1.0, 6, late=True)
    frames = [_as_uri(scenes.draw(scene, 128, 128, random.Random(0)), "PNG") for scene in clip.frames]
    return {"frames": frames, "fps": clip.fps}


def _as_uri(image: Image.Image, form: str = "JPEG") -> str:
    buffer = io.BytesIO()
    image.save(buffer, form, **({"quality": 92} if form == "JPEG" else {}))
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def with_media(job: dict[str, Any]) -> dict[str, Any]:
    """The job with the files behind the page's addresses, greedy."""
    text = json.dumps(job)
    for name, (seed, num_things) in {"shapes.jpg": (0, 3), "one.jpg": (2, 1)}.items():
        text = text.replace(f"https://example.org/{name}", _as_uri(shapes(seed, num_things)))
    body: dict[str, Any] = json.loads(text)
    if "video" in body:
        body["video"] = _clip()
    return {"temperature": 0, **body}


def answered(service: Service, job: dict[str, Any]) -> dict[str, Any]:
    """The reply to a job of the page."""

    async def run() -> list[Any]:
        return [output async for output in service.answer(with_media(job), "answers")]

    [reply] = asyncio.run(run())
    assert isinstance(reply, dict)
    return reply


def legible(value: Any) -> Any:
    """A reply's field with pictures cut short."""
    if isinstance(value, dict):
        return {name: legible(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [legible(inner) for inner in value]
    if isinstance(value, str) and value.startswith("data:image/"):
        return value[:MAX_SHOWN_CHARS] + "…"
    return value


def written(value: dict[str, Any]) -> str:
    """As the page shows it: a line for each field, and for each item of a list."""
    lines = []
    for name, inner in value.items():
        text = json.dumps(inner, ensure_ascii=False)
        if isinstance(inner, list) and inner and len(text) > 100:
            items = ",\n".join(f"    {json.dumps(item, ensure_ascii=False)}" for item in inner)
            text = f"[\n{items}\n  ]"
        lines.append(f'  "{name}": {text}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main() -> None:
    """Ask all examples of the page, and write their answers into it."""
    serving = start(load({"DEVICE": "cpu", "MODEL_ID": "tiny-qwen3-vl", "GPU_USD_PER_SECOND": "0.00031"}))
    page = PAGE.read_text(encoding="utf-8")
    shapes().save(PICTURES / "answers_shapes.jpg", quality=92)
    answered(serving.service, {"prompt": "Who are you?"})  # has the start's part in its cost

    def with_answer(match: re.Match[str]) -> str:
        reply = answered(serving.service, json.loads(match["job"])["input"])
        for picture in reply.get("annotated", [])[:1]:
            (PICTURES / "answers_annotated.jpg").write_bytes(base64.b64decode(picture["data"].partition(",")[2]))
        shown = {name: legible(reply[name]) for name in match["fields"].split()}
        head = f"<!-- example: {match['fields']} -->\n```json\n{match['job']}```\n"
        return f'{head}\n```json title="answer"\n{written(shown)}```\n'

    PAGE.write_text(_EXAMPLE.sub(with_answer, page), encoding="utf-8")
    serving.close_opener()
    serving.engine.close()


if __name__ == "__main__":
    main()
