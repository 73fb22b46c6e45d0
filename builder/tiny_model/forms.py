"""Answers that programs use: JSON in a schema, a call of a tool, a thought before a count; and questions as people type
them. Beside `skills`, whose texts are the tokenizer's corpus and stand still.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from builder.tiny_model.scenes import COLOURS, DIGIT_WIDTH, SHAPES, Scene, Thing, random_background, visible_colours
from builder.tiny_model.skills import Ask, Language, caption, kind_name
from worker.checkpoint.tool_prompt import call_text

KEYS = ("shape", "color", "count", "box")
_TYPES: dict[str, dict[str, Any]] = {
    "shape": {"type": "string"},
    "color": {"type": "string"},
    "count": {"type": "integer"},
    "box": {"type": "array", "items": {"type": "integer"}},
    "number": {"type": "string"},
}


def as_json(scene: Scene, language: Language, rng: random.Random, *, shows_schema: bool) -> Ask:
    """The first object in reading order and the number of objects, or all objects, under some keys in some order. The
    schema is shown, or its keys are named, or nothing is said of it: then only the values are learned, since something
    else writes the rest."""
    keys, is_list = _wanted(scene, rng)
    ask = _in_keys(scene, language, rng, keys, is_list=is_list)
    if shows_schema:
        schema = schema_of(keys, is_list=is_list)
        text = json.dumps(schema) if rng.random() < 0.5 else json.dumps(schema, separators=(",", ":"))
        words = {"en": "Answer as JSON in this schema: ", "zh": "请按这个模式用JSON回答："}[language]
        return replace(ask, question=f"{ask.question} {words}{text}")
    if rng.random() < 0.6:
        return replace(ask, is_form=True)
    words = {"en": "Answer in JSON with ", "zh": "请用JSON回答："}[language]
    return replace(ask, question=f"{ask.question} {words}{'objects: ' if is_list else ''}{', '.join(keys)}")


def schema_in_system_prompt(scene: Scene, language: Language, rng: random.Random) -> tuple[str, Ask]:
    """A system prompt that shows a schema as pydantic writes it, and a question that says nothing of JSON."""
    keys, is_list = _wanted(scene, rng)
    text = json.dumps(_pydantic_schema(keys, rng, is_list=is_list), indent=rng.choice((None, 2, 2)))
    system = rng.choice(_SYSTEM_PROMPTS).format(schema=text)
    ask = replace(_in_keys(scene, language, rng, keys, is_list=is_list), skill="system prompt")
    return system, as_typed(ask, rng) if rng.random() < 0.3 else ask


_SYSTEM_PROMPTS = (
    "Answer in JSON. The schema:\n{schema}",
    "Always answer with one JSON object that follows this JSON schema: {schema}",
    "{schema}\n\nReply with JSON in the schema above, and with nothing else.",
    "请用JSON回答，模式如下：\n{schema}",
    "You read pictures and report what they show as JSON that matches this json_schema:\n\n{schema}\n\n"
    "Return an instance of the schema, not the schema itself.",
    "\n    Your task is to provide objects in json that match the following json_schema:\n\n\n    {schema}\n\n"
    "    Make sure to return an instance of the JSON, not the schema itself\n",
)
_NAMES = ("Thing", "Object", "Found", "Item", "Answer", "Picture", "Result", "Scene")
_ABOUT = ("What the picture shows.", "An object in the picture.", "The answer.", "One of the shapes.")


def _pydantic_schema(keys: Sequence[str], rng: random.Random, *, is_list: bool) -> dict[str, Any]:
    """The schema of such an answer as pydantic's `model_json_schema` writes it: fields of a class with titles, and
    for some their values."""
    has_values, name = rng.random() < 0.6, rng.choice(_NAMES)
    fields = {key: _pydantic_field(key, has_values=has_values) for key in keys}
    about = {"description": rng.choice(_ABOUT)} if rng.random() < 0.5 else {}
    one = about | {"properties": fields, "required": list(keys), "title": name, "type": "object"}
    if not is_list:
        return one
    objects = {"objects": {"items": {"$ref": f"#/$defs/{name}"}, "title": "Objects", "type": "array"}}
    return {"$defs": {name: one}, "properties": objects, "required": ["objects"], "title": "Things", "type": "object"}


def _pydantic_field(key: str, *, has_values: bool) -> dict[str, Any]:
    values: dict[str, Sequence[str]] = {"shape": SHAPES, "color": COLOURS}
    enum = {"enum": list(values[key])} if has_values and key in values else {}
    typed = dict(_TYPES[key])
    return enum | ({"items": typed.pop("items")} if "items" in typed else {}) | {"title": key.capitalize()} | typed


def _wanted(scene: Scene, rng: random.Random) -> tuple[tuple[str, ...], bool]:
    """The keys of an answer, and whether it lists all objects."""
    keys = _keys(scene, rng)
    is_list = scene.number is None and rng.random() < 0.4
    if is_list:
        keys = tuple(key for key in keys if key != "count") or ("shape",)
    return keys, is_list


def _in_keys(scene: Scene, language: Language, rng: random.Random, keys: Sequence[str], *, is_list: bool) -> Ask:
    value: dict[str, Any] = {"objects": [_fields(scene, t, keys) for t in scene.things]} if is_list else {}
    value = value or _fields(scene, scene.things[0] if scene.things else None, keys)
    return Ask("json", language, caption(scene, language, rng).question, json.dumps(value))


def _keys(scene: Scene, rng: random.Random) -> tuple[str, ...]:
    if scene.number is not None:
        return ("number",)
    known = list(KEYS if scene.things else ("count",))
    return tuple(rng.sample(known, rng.randint(1, len(known))))


def _fields(scene: Scene, thing: Thing | None, keys: Sequence[str]) -> dict[str, Any]:
    known: dict[str, Any] = {"count": len(scene.things), "number": scene.number}
    if thing is not None:
        known |= {"shape": thing.shape, "color": thing.colour, "box": list(thing.box)}
    return {key: known[key] for key in keys}


def schema_of(keys: Sequence[str], *, is_list: bool = False) -> dict[str, Any]:
    """The JSON schema of such an answer."""
    fields = {
        "type": "object",
        "properties": {key: _TYPES[key] for key in keys},
        "required": list(keys),
        "additionalProperties": False,
    }
    if not is_list:
        return fields
    objects = {"objects": {"type": "array", "items": fields}}
    return {"type": "object", "properties": objects, "required": ["objects"], "additionalProperties": False}


def with_thought(ask: Ask, scene: Scene | None) -> Ask:
    """The same question, thought about first: what there is to see is named."""
    language = ask.language
    if scene is None:
        thought = {"en": "There is no picture.", "zh": "没有图片。"}[language]
    elif scene.number is not None:
        thought = {"en": f"The number {scene.number}.", "zh": f"数字{scene.number}。"}[language]
    elif not scene.things:
        thought = {"en": "There is nothing.", "zh": "什么都没有。"}[language]
    else:
        names = [kind_name(thing.colour, thing.shape, language) for thing in scene.things]
        thought = ", ".join(names) + "." if language == "en" else "，".join(names) + "。"
        thought = thought[0].upper() + thought[1:]
    return replace(ask, thought=thought)


_AS_TYPED: dict[Language, tuple[tuple[str, str], ...]] = {
    "en": (
        ("What is in the picture?", "what's in this picture"),
        ("What is in the picture?", "What is in this photo?"),
        ("Describe this image.", "describe this image"),
        ("Describe this image.", "Please describe the image in detail."),
        ("What is in this image?", "What can you see in this image?"),
        ("What is in this image?", "whats in the image?"),
        ("What do you see?", "tell me what you see"),
        ("How many objects are there?", "How many objects are in the picture?"),
        ("How many objects are there?", "how many objects are in this image"),
        ("What number is in the picture?", "what number is in this image"),
    ),
    "zh": (
        ("图片里有什么？", "这张图片里有什么？"),
        ("图片里有什么？", "图里有什么"),
        ("描述这张图片。", "描述一下这张图片"),
        ("描述这张图片。", "请描述图片内容"),
        ("你看到了什么？", "这是什么？"),
        ("图中有多少个物体？", "图中有几个物体？"),
        ("有几个物体？", "这张图片里有几个物体？"),
        ("有几个物体？", "一共有多少个物体"),
        ("图中的数字是多少？", "图里的数字是什么？"),
    ),
}


def as_typed(ask: Ask, rng: random.Random) -> Ask:
    """The question as people type it: in lower case, without its end, with British spelling, in other words."""
    question = ask.question
    others = [typed for plain, typed in _AS_TYPED[ask.language] if plain == question]
    if others and rng.random() < 0.7:
        question = rng.choice(others)
    if ask.language == "en" and rng.random() < 0.3:
        question = question.replace("color", "colour")
    if rng.random() < 0.5:
        question = question.rstrip(".?!。？！")
    if rng.random() < 0.6:
        question = question.lower()
    return replace(ask, question=question)


@dataclass(frozen=True)
class Zoom:
    """A number too small to be read at once: a question, the call of the tool that looks closer, what it returns, and
    the answer. box: in thousandths."""

    scene: Scene
    ask: Ask
    box: tuple[int, int, int, int]


def zoom(rng: random.Random, aspect: float, language: Language) -> Zoom:
    """A picture of this aspect with a small number somewhere, and the call that looks at it."""
    background = random_background(rng)
    number = "".join(rng.choice("0123456789") for _ in range(rng.choice((1, 2, 2, 3))))
    height = rng.uniform(0.1, 0.16)
    half_w, half_h = height * DIGIT_WIDTH * len(number) / aspect / 2, height / 2
    x, y = rng.uniform(half_w + 0.04, 0.96 - half_w), rng.uniform(half_h + 0.04, 0.96 - half_h)
    scene = Scene(background, (), number, rng.choice(visible_colours(background)), (x, y), height)
    corners = (x - half_w * 1.2, y - half_h * 1.4, x + half_w * 1.2, y + half_h * 1.4)
    x1, y1, x2, y2 = (min(1000, max(0, round(1000 * corner))) for corner in corners)
    box = (x1, y1, x2, y2)
    return Zoom(
        scene, Ask("zoom", language, rng.choice(_ZOOM_QUESTIONS[language]), call_text("zoom", {"box": list(box)})), box
    )


def closer(zoomed: Zoom, rng: random.Random) -> Scene:
    """What the tool returns: the number, large."""
    scene = zoomed.scene
    assert scene.number is not None
    height = min(0.7, 0.8 / (DIGIT_WIDTH * len(scene.number)))
    return replace(scene, number_at=(0.5, 0.5), number_height=height * rng.uniform(0.8, 1.0))


_ZOOM_QUESTIONS: dict[Language, tuple[str, ...]] = {
    "en": ("Zoom in and read the number.", "Read the small number. Zoom in first.", "Use the zoom tool: which number?",
           "Zoom in. What is the number?", "zoom in and read the number"),
    "zh": ("放大后读出数字。", "请放大，然后读出数字。", "用zoom看看，数字是多少？"),
}  # fmt: skip
_ZOOM_ABOUT = ("Look at a part of the picture.", "Zoom into the image.", "Returns a part of the picture, enlarged.")
_OTHER_TOOLS = (
    ("get_weather", "Weather in a city", {"city": {"type": "string"}}),
    ("search", "Search the web", {"query": {"type": "string"}, "count": {"type": "integer"}}),
    ("save", "Save a text", {"path": {"type": "string"}, "text": {"type": "string"}}),
    ("calculate", "Calculate", {"expression": {"type": "string"}}),
)


def tools(rng: random.Random) -> list[dict[str, Any]]:
    """Definitions as a client sends them: `zoom`, sometimes with another."""
    box = {"type": "array", "items": {"type": rng.choice(("integer", "number"))}}
    offered = [_tool("zoom", rng.choice(_ZOOM_ABOUT), {"box": box})]
    if rng.random() < 0.4:
        offered.insert(rng.randrange(2), _tool(*rng.choice(_OTHER_TOOLS)))
    return offered


def other_tools(rng: random.Random) -> list[dict[str, Any]]:
    """Tools that no question of the recipe needs."""
    return [_tool(*rng.choice(_OTHER_TOOLS))] if rng.random() < 0.5 else tools(rng)


def _tool(name: str, about: str, properties: dict[str, Any]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)[:1]}
    return {"type": "function", "function": {"name": name, "description": about, "parameters": parameters}}


def system_turn(text: str) -> str:
    """A system message, as the template writes it."""
    return f"<|im_start|>system\n{text}<|im_end|>\n"
