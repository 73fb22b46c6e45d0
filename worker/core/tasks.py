"""Task presets: what each asks the model, in English and Chinese, the form of its answer, and what it takes.

To add one, give it a row in `TASKS` and its reading in `worker.parsers.results`. The words name what the families'
own cookbooks name (`bbox_2d`, `point_2d`, JSON, mm:ss.ff): models were trained on those.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from worker.core.safe_json import JsonObject
from worker.core.value import Value

TaskName = Literal["caption", "ocr", "ocr_layout", "detect", "point", "count", "extract", "video_events", "compare"]
Language = Literal["en", "zh"]


class TaskCall(Value):
    """A preset as a request asks for it. labels: what is looked for; fields: the JSON schema of what is extracted, as
    JSON."""

    name: TaskName
    labels: tuple[str, ...] = Field((), repr=False)
    fields: str | None = Field(None, repr=False)
    language: Language = "en"


@dataclass(frozen=True)
class Task:
    """A preset. prompts: by language; `labelled` where labels are given, with `{labels}` in them. takes: of the fields
    beside `task`. schema: of the answer, None where it is text. reads_objects: its answer has places, which say in
    which of several pictures or videos they are, and when. min_images, min_videos: of the request. result: an example
    of the typed output."""

    about: str
    prompts: Mapping[Language, str]
    result: JsonObject
    labelled: Mapping[Language, str] = field(default_factory=dict)
    takes: tuple[str, ...] = ()
    schema: JsonObject | None = None
    reads_objects: bool = False
    min_images: int = 0
    min_videos: int = 0


_BOX = '[{"bbox_2d": [x1, y1, x2, y2], "label": "…"}]'
_POINT = '[{"point_2d": [x, y], "label": "…"}]'
# What the words of tasks with places say as well: in which picture or video, and when.
_WHICH: Mapping[Language, str] = {
    "en": ' Add "{kind}": the number of the {kind}, counted from 1.',
    "zh": '请加上 "{kind}"：{name}的编号，从1开始。',
}
_WHEN: Mapping[Language, str] = {
    "en": """ Add "time": when it is seen in the video, in 'mm:ss.ff'.""",
    "zh": '请加上 "time"：它在视频中出现的时间（mm:ss.ff）。',
}
# What a picture is called, and a video instead.
_VIDEO_WORDS: Mapping[Language, tuple[tuple[str, str], ...]] = {
    "en": (("in the image", "in the video"),),
    "zh": (("图中", "视频中"),),
}

_INTEGER = {"type": "integer", "minimum": 0}


def _list_of(**properties: JsonObject) -> JsonObject:
    item = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    return {"type": "array", "items": item}


def _numbers(count: int) -> JsonObject:
    return {"type": "array", "items": _INTEGER, "minItems": count, "maxItems": count}


_TEXT: JsonObject = {"type": "string"}
_CLOCK: JsonObject = {"type": "string", "pattern": r"^\d\d:\d\d\.\d\d$"}

TASKS: Mapping[TaskName, Task] = {
    "caption": Task(
        about="Describes the picture or video in a sentence or two",
        prompts={"en": "Describe the picture.", "zh": "描述这张图片。"},
        result={"caption": "A red circle at the left and a blue star at the top."},
    ),
    "ocr": Task(
        about="All text, as it is read",
        prompts={
            "en": "Read all the text in the image. Output the text alone, line by line, in reading order.",
            "zh": "读出图中的所有文字，按阅读顺序逐行输出，只输出文字内容。",
        },
        result={"text": "Total\n12.40", "lines": ["Total", "12.40"]},
    ),
    "ocr_layout": Task(
        about="Each line of text with its place",
        prompts={
            "en": "Spot all the text in the image, line by line. Report each line in JSON: "
            '[{"bbox_2d": [x1, y1, x2, y2], "text_content": "…"}].',
            "zh": '检测并识别图中的所有文字行，以JSON格式输出：[{"bbox_2d": [x1, y1, x2, y2], "text_content": "…"}]。',
        },
        result={"text": "Total", "lines": [{"text": "Total", "object": 0}]},
        schema=_list_of(bbox_2d=_numbers(4), text_content=_TEXT),
        reads_objects=True,
    ),
    "detect": Task(
        about="Boxes around objects, of the labels where they are given",
        prompts={
            "en": f"Locate every object in the image. Report bbox coordinates in JSON: {_BOX}.",
            "zh": f"定位图中的每个物体，以JSON格式输出边界框坐标：{_BOX}。",
        },
        labelled={
            "en": "Locate every instance that belongs to the following categories: {labels}. Report bbox coordinates "
            f"in JSON: {_BOX}.",
            "zh": "定位图中属于以下类别的所有物体：{labels}。以JSON格式输出边界框坐标：" + f"{_BOX}。",
        },
        result={"count": 2, "labels": {"cup": 2}},
        takes=("labels",),
        schema=_list_of(bbox_2d=_numbers(4), label=_TEXT),
        reads_objects=True,
    ),
    "point": Task(
        about="A point on each object, of the labels where they are given",
        prompts={
            "en": f"Point to every object in the image. Report point coordinates in JSON: {_POINT}.",
            "zh": f"用点标出图中的每个物体，以JSON格式输出点坐标：{_POINT}。",
        },
        labelled={
            "en": f"Point to every instance of: {{labels}}. Report point coordinates in JSON: {_POINT}.",
            "zh": "用点标出图中的所有：{labels}。以JSON格式输出点坐标：" + f"{_POINT}。",
        },
        result={"count": 1, "labels": {"handle": 1}},
        takes=("labels",),
        schema=_list_of(point_2d=_numbers(2), label=_TEXT),
        reads_objects=True,
    ),
    "count": Task(
        about="How many there are, of one label or of all objects",
        prompts={"en": "How many objects are there?", "zh": "图中有多少个物体？"},
        labelled={"en": "How many of these are there: {labels}?", "zh": "图中有多少个{labels}？"},
        result={"count": 3},
        takes=("labels",),
        schema=_INTEGER,
    ),
    "extract": Task(
        about="The values of your fields, by a JSON schema",
        prompts={
            "en": "Extract these fields from the image, as JSON. Write null where a value cannot be read and null is "
            "allowed: {fields}",
            "zh": "从图中提取以下字段，以JSON格式输出；无法读出且允许null的字段写null：{fields}",
        },
        result={"number": "A-17", "total": 12.4},
        takes=("fields",),
    ),
    "video_events": Task(
        about="What happens in a video, and when",
        prompts={
            "en": "Localize the events in the video. Report each in JSON with its start and end in 'mm:ss.ff': "
            '[{"start": "mm:ss.ff", "end": "mm:ss.ff", "description": "…"}].',
            "zh": "定位视频中的事件，以JSON格式输出每个事件的开始和结束时间（mm:ss.ff）："
            '[{"start": "mm:ss.ff", "end": "mm:ss.ff", "description": "…"}]。',
        },
        result={"events": [{"start": 1.5, "end": 3.0, "description": "A circle moves to the left.", "video": 0}]},
        schema=_list_of(start=_CLOCK, end=_CLOCK, description=_TEXT),
        min_videos=1,
    ),
    "compare": Task(
        about="What differs between two pictures or more",
        prompts={
            "en": "Compare the pictures: what is the same, and what differs? Name each as Picture 1, Picture 2 …",
            "zh": "比较这些图片：有哪些相同，有哪些不同？请用“图片1”“图片2”……来称呼每张图片。",
        },
        result={"text": "Picture 2 has a star more.", "images": [1]},
        min_images=2,
    ),
}


@dataclass(frozen=True)
class MediaCounts:
    """Of a request, whatever order they are in."""

    images: int = 1
    videos: int = 0


ONE_IMAGE = MediaCounts()


def prompt_of(call: TaskCall, counts: MediaCounts = ONE_IMAGE) -> str:
    """The preset's words for what a request asks."""
    task = TASKS[call.name]
    words = task.labelled[call.language] if call.labels else task.prompts[call.language]
    if task.reads_objects and counts.videos:
        for of_picture, of_video in _VIDEO_WORDS[call.language]:
            words = words.replace(of_picture, of_video)
        words += _WHEN[call.language]
    if task.reads_objects and max(counts.images, counts.videos) > 1:
        kind, name = ("video", "视频") if counts.videos else ("image", "图片")
        words += _WHICH[call.language].replace("{kind}", kind).replace("{name}", name)
    joined = ("、" if call.language == "zh" else ", ").join(call.labels)
    return words.replace("{labels}", joined).replace("{fields}", call.fields or "")


def listed() -> list[JsonObject]:
    """The presets, as `GET /v1/tasks` lists them."""
    return [
        {
            "id": name,
            "object": "task",
            "about": task.about,
            "prompts": dict(task.prompts),
            "options": [*task.takes, "language"],
            "example": _example(name, task),
            "result": task.result,
        }
        for name, task in TASKS.items()
    ]


def _example(name: TaskName, task: Task) -> JsonObject:
    body: JsonObject = {"task": name}
    if task.min_videos:
        body["video"] = "https://example.org/clip.mp4"
    elif task.min_images > 1:
        body["images"] = [f"https://example.org/{number}.png" for number in range(1, task.min_images + 1)]
    else:
        body["image"] = "https://example.org/shapes.png"
    if "labels" in task.takes:
        body["labels"] = ["cup"]
    if "fields" in task.takes:
        body["fields"] = {"type": "object", "properties": {"number": {"type": "string"}}, "required": ["number"]}
    return body


def schema_of(call: TaskCall, counts: MediaCounts = ONE_IMAGE) -> JsonObject | None:
    """Of the answer to the preset's words, where it has one."""
    if call.fields is not None:
        found: JsonObject = json.loads(call.fields)
        return found
    task = TASKS[call.name]
    if task.schema is None or not task.reads_objects:
        return task.schema
    where: JsonObject = {}
    if max(counts.images, counts.videos) > 1:
        number = {"type": "integer", "minimum": 1, "maximum": max(counts.images, counts.videos)}
        where["video" if counts.videos else "image"] = number
    if counts.videos:
        where["time"] = _CLOCK
    return _list_of(**where, **task.schema["items"]["properties"])
