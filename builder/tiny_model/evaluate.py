"""Exact match of the tiny model on held-out pictures, by skill and language, through transformers' `generate`."""

import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from builder.tiny_model import forms, skills, small_talk
from builder.tiny_model.batches import random_size
from builder.tiny_model.scenes import Scene, draw, jpeg, random_clip, random_number, random_scene
from worker.core.contract import ChatRequest, Kind, Media, Message, Role, Text, Url
from worker.core.opened import Clip, Opened, Picture
from worker.core.safe_json import JsonObject
from worker.core.settings import load as load_settings
from worker.core.tags import CALL, CALL_END
from worker.core.tools import Tool, Tools
from worker.models.hf.runner import module_of
from worker.models.loading import LoadedModel, load
from worker.models.pixel_values import pixel_values
from worker.prompt.builder import PromptBuilder
from worker.prompt.patches import grids
from worker.prompt.types import Prompt

MARKS = {"caption": 0.98, "count": 0.98, "number": 0.95, "boxes": 0.95, "motion": 0.95}
IOU = 0.75
ZOOM_IOU = 0.5
_MAX_NEW_TOKENS = 160


@dataclass(frozen=True)
class Case:
    """A question about something drawn from a seed that training never used.

    shown: what stands right before the question. before: earlier turns, each with what was shown in it. system: the
    message before all turns. thinks: a thought comes first. tools: those that are offered. is_result: what is shown
    last is what a tool returned.
    """

    ask: skills.Ask
    shown: tuple[Opened, ...] = ()
    before: tuple[tuple[tuple[Opened, ...], skills.Ask], ...] = ()
    system: str = ""
    thinks: bool = False
    tools: tuple[JsonObject, ...] = ()
    is_result: bool = False

    @property
    def opened(self) -> list[Opened]:
        """All that is shown, in order."""
        return [*(each for shown, _ in self.before for each in shown), *self.shown]


def cases(seed: int, per_cell: int, only: str | None = None) -> Iterator[Case]:
    """`per_cell` cases for each skill (or for the one named) and language."""
    rng = random.Random(seed)
    wanted = Counter({(s, lang): per_cell for s in SKILLS for lang in skills.LANGUAGES if only in (None, s)})
    while wanted.total():
        skill, language = next(cell for cell, left in wanted.items() if left)
        case = SKILLS[skill](language, rng)
        if wanted[case.ask.skill, language] > 0:
            wanted[case.ask.skill, language] -= 1
            yield case


def _of_scene(skill: skills.PictureSkill, is_number: bool = False):  # type: ignore[no-untyped-def]
    def make(language: skills.Language, rng: random.Random) -> Case:
        width, height = random_size(rng)
        if is_number:
            scene = random_number(rng, width / height, rng.choice((1, 2, 3, 4)))
        else:
            scene = random_scene(rng, width / height, rng.choice((1, 1, 2, 2, 3, 4)))
        return Case(skill(scene, language, rng), (Picture(_photo(scene, width, height, rng)),))

    return make


def _of_clip(skill: skills.ClipSkill, late: bool = False):  # type: ignore[no-untyped-def]
    def make(language: skills.Language, rng: random.Random) -> Case:
        clip = random_clip(rng, 1.0, rng.choice((4, 6, 8)), late=late)
        frames = tuple(np.array(draw(frame, 128, 128, rng)) for frame in clip.frames)
        times = tuple(clip.begin + index / clip.fps for index in range(len(frames)))
        return Case(skill(clip, language, rng), (Clip(frames, clip.fps, times),))

    return make


def _talk(language: skills.Language, rng: random.Random) -> Case:
    return Case(small_talk.small_talk(language, rng))


def _some_scene(rng: random.Random) -> tuple[Scene, Picture]:
    width, height = random_size(rng)
    scene = random_scene(rng, width / height, rng.choice((1, 1, 2, 2, 3, 4)))
    return scene, Picture(_photo(scene, width, height, rng))


def _compare(language: skills.Language, rng: random.Random) -> Case:
    (first, one), (second, two) = _some_scene(rng), _some_scene(rng)
    return Case(skills.compare(first, second, language, rng), (one, two))


def _follow_up(language: skills.Language, rng: random.Random) -> Case:
    scene, picture = _some_scene(rng)
    before, ask = skills.follow_up(scene, language, rng)
    return Case(ask, (), (((picture,), before),))


def _earlier(language: skills.Language, rng: random.Random) -> Case:
    (first, one), (second, two) = _some_scene(rng), _some_scene(rng)
    before, ask = skills.earlier(first, second, language, rng)
    return Case(ask, (), (((one,), skills.count(first, language, rng)), ((two,), before)))


def _json(language: skills.Language, rng: random.Random) -> Case:
    while True:
        scene, picture = _some_scene(rng)
        ask = forms.as_json(scene, language, rng, shows_schema=rng.random() < 0.5)
        if not ask.is_form:
            return Case(ask, (picture,))


def _system_prompt(language: skills.Language, rng: random.Random) -> Case:
    scene, picture = _some_scene(rng)
    system, ask = forms.schema_in_system_prompt(scene, language, rng)
    return Case(ask, (picture,), system=system)


def _think(language: skills.Language, rng: random.Random) -> Case:
    scene, picture = _some_scene(rng)
    ask = skills.count(scene, language, rng)
    return Case(replace(ask, skill="think"), (picture,), thinks=True)


def _zoomed(language: skills.Language, rng: random.Random) -> tuple[forms.Zoom, Picture]:
    width, height = random_size(rng)
    zoom = forms.zoom(rng, width / height, language)
    return zoom, Picture(_photo(zoom.scene, width, height, rng))


def _zoom(language: skills.Language, rng: random.Random) -> Case:
    zoom, picture = _zoomed(language, rng)
    return Case(zoom.ask, (picture,), tools=tuple(forms.tools(rng)))


def _result(language: skills.Language, rng: random.Random) -> Case:
    zoom, picture = _zoomed(language, rng)
    closer = Picture(_photo(forms.closer(zoom, rng), 200, 160, rng))
    ask = skills.Ask("result", language, "", str(zoom.scene.number))
    return Case(ask, (closer,), (((picture,), zoom.ask),), tools=tuple(forms.tools(rng)), is_result=True)


def _typed(language: skills.Language, rng: random.Random) -> Case:
    scene, picture = _some_scene(rng)
    ask = rng.choice((skills.caption, skills.count))(scene, language, rng)
    return Case(replace(forms.as_typed(ask, rng), skill="typed"), (picture,))


SKILLS = {
    "caption": _of_scene(skills.caption),
    "count": _of_scene(skills.count),
    "number": _of_scene(skills.number, is_number=True),
    "boxes": _of_scene(skills.locate),
    "place": _of_scene(skills.is_there),
    "none": _of_scene(skills.is_there),
    "attribute": _of_scene(skills.attribute),
    "motion": _of_clip(skills.motion),
    "time": _of_clip(skills.last_time),
    "talk": _talk,
    "when": _of_clip(skills.when, late=True),
    "compare": _compare,
    "follow-up": _follow_up,
    "earlier": _earlier,
    "json": _json,
    "think": _think,
    "zoom": _zoom,
    "result": _result,
    "typed": _typed,
    "system prompt": _system_prompt,
}


def _photo(scene: Scene, width: int, height: int, rng: random.Random) -> np.ndarray:
    image: Image.Image = draw(scene, width, height, rng)
    return np.array(jpeg(image, rng.randint(40, 95)) if rng.random() < 0.5 else image)


def evaluate(folder: Path, seed: int, per_cell: int, show_wrong: bool) -> str:
    """A Markdown table; also what was wrong, where asked for."""
    settings = load_settings({"MODEL_PATH": str(folder), "DEVICE": "cpu", "MODEL_CODE": "transformers"})
    model = load(settings)
    builder = PromptBuilder(model.spec, settings)
    right: Counter[tuple[str, str]] = Counter()
    wrong = []
    total = per_cell * len(SKILLS) * len(skills.LANGUAGES)
    for case in tqdm(cases(seed, per_cell), total=total, mininterval=5):
        answer = generate(model, builder.build(request(case), case.opened))
        if is_right(case.ask, answer):
            right[case.ask.skill, case.ask.language] += 1
        else:
            wrong.append({**vars(case.ask), "said": answer})
    if show_wrong:
        print("\n".join(json.dumps(row, ensure_ascii=False) for row in wrong))
    return _table(right, per_cell)


def request(case: Case) -> ChatRequest:
    """The case as a conversation."""
    messages = [Message(role="system", parts=(Text(text=case.system),))] if case.system else []
    for shown, ask in case.before:
        messages += [_message(shown, ask), Message(role="assistant", parts=(Text(text=ask.answer),))]
    tools = [Tool(name=tool["function"]["name"], definition=json.dumps(tool)) for tool in case.tools]
    return ChatRequest(
        messages=(*messages, _message(case.shown, case.ask, "tool" if case.is_result else "user")),
        tools=Tools(offered=tuple(tools)),
        template=(("enable_thinking", True),) if case.thinks else (),
    )


def _message(shown: tuple[Opened, ...], ask: skills.Ask, role: Role = "user") -> Message:
    kinds: list[Kind] = ["image" if isinstance(each, Picture) else "video" for each in shown]
    media = [Media(kind=kind, source=Url(url="memory:"), where="case") for kind in kinds]
    words = (Text(text=ask.question),) if ask.question else ()
    return Message(role=role, parts=(*media, *words))


def generate(model: LoadedModel, prompt: Prompt) -> str:
    """The greedy answer of transformers' own `generate`."""
    ids = generate_ids(model, prompt, _MAX_NEW_TOKENS)
    return model.spec.tokenizer.decode(ids)


@torch.inference_mode()
def generate_ids(model: LoadedModel, prompt: Prompt, max_new_tokens: int, **more: Any) -> list[int]:
    """The greedy tokens of transformers' own `generate`, the end token included; `more` is what a family asks for."""
    ids = torch.tensor([prompt.ids], device=model.device)
    config = module_of(model.runner).config
    kinds = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
    visual: dict[str, torch.Tensor | None] = {}
    for name, grid, patches in (
        ("pixel_values", "image_grid_thw", prompt.images),
        ("pixel_values_videos", "video_grid_thw", prompt.videos),
    ):
        if patches:
            visual[name] = pixel_values(patches, model.spec.preprocessor, model.device, model.dtype)
            visual[grid] = grids(patches)
    output = module_of(model.runner).generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=kinds,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        **visual,
        **more,
    )
    tokens: list[int] = output[0, ids.shape[1] :].tolist()
    return tokens


def is_right(ask: skills.Ask, answer: str) -> bool:
    """Boxes: same labels, each IoU at least 0.75. JSON: the same values, boxes likewise. A call: an IoU of at least
    0.5. What follows a thought, and everything else: the very text."""
    if ask.skill in ("json", "system prompt", "zoom"):
        wanted_value, found_value = (_value(_body(text)) for text in (ask.answer, answer))
        return _are_alike(wanted_value, found_value, ZOOM_IOU if ask.skill == "zoom" else IOU)
    if ask.skill == "think":
        return answer.partition("</think>\n\n")[2] == ask.answer
    if ask.skill != "boxes":
        return answer == ask.answer
    wanted, found = _boxes(ask.answer), _boxes(answer)
    if len(wanted) != len(found):
        return False
    pairs = zip(sorted(wanted), sorted(found), strict=True)
    return all(a[1] == b[1] and iou(a[0], b[0]) >= IOU for a, b in pairs)


def _body(text: str) -> str:
    """Of a call, or of JSON alone."""
    return text.removeprefix(f"{CALL}\n").removesuffix(f"\n{CALL_END}")


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _are_alike(wanted: Any, found: Any, at_least: float) -> bool:
    """The same JSON, but for boxes."""
    match wanted:
        case dict():
            return (
                isinstance(found, dict)
                and wanted.keys() == found.keys()
                and all(_are_alike(value, found[name], at_least) for name, value in wanted.items())
            )
        case [int(), int(), int(), int()]:
            is_box = isinstance(found, list) and len(found) == 4 and all(isinstance(side, int) for side in found)
            return is_box and iou(tuple(wanted), tuple(found)) >= at_least
        case list():
            return (
                isinstance(found, list)
                and len(wanted) == len(found)
                and all(_are_alike(one, other, at_least) for one, other in zip(wanted, found, strict=True))
            )
        case _:
            return bool(wanted == found)


def _boxes(text: str) -> list[tuple[tuple[int, ...], str]]:
    match = re.fullmatch(r"```json\n(.*)\n```", text, re.DOTALL)
    try:
        return [(tuple(row["bbox_2d"]), row["label"]) for row in json.loads(match[1])] if match else []
    except (ValueError, KeyError, TypeError):
        return []


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes x1, y1, x2, y2."""

    def area(box: Sequence[float]) -> float:
        return max(0, box[2] - box[0]) * max(0, box[3] - box[1])

    common = area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    union = area(a) + area(b) - common
    return common / union if union else 0.0


def _table(right: Counter[tuple[str, str]], per_cell: int) -> str:
    rows = [
        f"{per_cell} cases for each skill and language:",
        "",
        "| skill | English | Chinese | target |",
        "|---|---|---|---|",
    ]
    for skill in SKILLS:
        shares = [f"{right[skill, language] / per_cell:.1%}" for language in skills.LANGUAGES]
        mark = f"{MARKS[skill]:.0%}" if skill in MARKS else ""
        rows.append(f"| {skill} | {' | '.join(shares)} | {mark} |")
    return "\n".join(rows)
