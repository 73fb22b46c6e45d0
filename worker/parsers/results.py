"""The typed result of a task preset, from an answer's text and its objects."""

import contextlib
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, assert_never

from worker.core.contract import MediaInfo
from worker.core.outcome import DetectedObject
from worker.core.safe_json import Json, JsonObject
from worker.core.tasks import TaskName
from worker.parsers.json_call import JsonEnd, loaded
from worker.parsers.objects import seconds_of

START_KEYS = ("start", "start_time", "begin", "from", "time", "timestamp")
END_KEYS = ("end", "end_time", "to", "until")
WHAT_KEYS = ("description", "event", "caption", "label", "sentence", "activity", "text")
_FENCE = re.compile(r"```[\w+-]*+[ \t]*\n?((?:(?!```).)*+)", re.DOTALL)  # up to its end, or the text's
_FENCE_LINE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[ \t]*$", re.MULTILINE)
_COUNT = re.compile(r"\d{1,3}(?:,\d{3})++(?!\d)|\d+")
MAX_DIGITS = 9  # of a count
_FLAT = re.compile(r"\{[^{}]*+\}")  # an object without another in it
_SENTENCE_END = re.compile(r"(?<=[!?。！？\n])|(?<=\.)(?!\d)")
_CLOCK = r"\d+:\d+(?::\d+)?(?:\.\d+)?"
_NUMBER = r"\d+(?:\.\d+)?"
_SECONDS = r"\s*(?:seconds?|s\b|秒)"
# A time, or the first of two: `2 to 3 s`, `00:01 - 00:02`. It is looked for where a number begins, not at each digit.
_TIME = re.compile(
    rf"(?<!\d)(?:({_CLOCK})|({_NUMBER}){_SECONDS}|({_NUMBER})(?=\s*(?:to|until|and|-|–|到|至)\s*{_NUMBER}{_SECONDS}))"
)
_ORDINALS = {"first": 1, "second": 2, "third": 3, "fourth": 4, "一": 1, "二": 2, "三": 3, "四": 4}
_BOTH = re.compile(r"\bboth\b|\bneither\b|两张|都|一样|\bnone of\b", re.IGNORECASE)
_NAMED = re.compile(r"(?:picture|image|photo|图片?|图像)\s*#?(\d{1,3})|第(\d{1,3})张", re.IGNORECASE)
_ORDINAL = re.compile(r"\b(first|second|third|fourth)\b|第([一二三四])[张个]", re.IGNORECASE)


class NotInFormError(ValueError):
    """The text has not the form that the task asked for."""


def result_of(name: TaskName, text: str, objects: Sequence[DetectedObject], media: Sequence[MediaInfo]) -> Json:
    """Raises NotInFormError."""
    match name:
        case "caption":
            return {"caption": text.strip()}
        case "ocr":
            lines = _unfenced(text).splitlines()
            return {"text": "\n".join(lines), "lines": [line.strip() for line in lines if line.strip()]}
        case "ocr_layout":
            found = [{"text": each.label or "", "object": index} for index, each in enumerate(objects)]
            return {"text": "\n".join(str(line["text"]) for line in found), "lines": found}
        case "detect" | "point":
            valid = [each for each in objects if each.is_valid]
            return {"count": len(valid), "labels": dict(Counter(each.label or "" for each in valid))}
        case "count":
            return _count(text)
        case "extract":
            return _extracted(text)
        case "video_events":
            return {"events": _events(text, media)}
        case "compare":
            return {"text": text.strip(), "images": _named_pictures(text, media)}
        case _:
            assert_never(name)


def _unfenced(text: str) -> str:
    """Without the fence around all of it, where there is one: fences within it stay."""
    body = text.strip()
    fences = list(_FENCE_LINE.finditer(body))
    if not fences or fences[0].start() > 0:
        return body
    depth = 0
    for fence in fences:  # one with a language opens; one without closes what is open
        depth += 1 if fence.group(1) or depth == 0 else -1
        if depth == 0:
            inside = body[fences[0].end() : fence.start()]
            return inside.strip() if fence.end() == len(body) else body
    return body[fences[0].end() :].strip()  # it was cut off


def _value(text: str) -> Any:
    """What the JSON in an answer says: all of it, or what is in its first fence. None for none."""
    value = loaded(text.strip(), is_strict=False)
    if value is None and (fence := _FENCE.search(text)):
        value = loaded(fence.group(1).strip(), is_strict=False)
    return value


def _count(text: str) -> JsonObject:
    found = _COUNT.search(text)
    digits = "" if found is None else found.group().replace(",", "")
    if not digits or len(digits) > MAX_DIGITS:
        raise NotInFormError
    return {"count": int(digits)}


def _extracted(text: str) -> JsonObject:
    value = _value(text)
    if value is None and (begin := text.find("{")) >= 0:  # the first object, with words around it
        with contextlib.suppress(ValueError):
            end = JsonEnd().find(text[begin:])
            value = None if end is None else loaded(text[begin : begin + end], is_strict=False)
    if not isinstance(value, dict):
        raise NotInFormError
    return value


def _events(text: str, media: Sequence[MediaInfo]) -> list[JsonObject]:
    """JSON objects with a start, or sentences that name a time. Raises NotInFormError."""
    videos = [index for index, info in enumerate(media) if info.kind == "video"]
    video = videos[0] if len(videos) == 1 else None
    written = list(_objects_of(_value(text))) or [loaded(each, is_strict=False) for each in _FLAT.findall(text)]
    events = [event for fields in written if (event := _event(fields, video))]
    if not events and "{" not in text:
        events = [event for sentence in _SENTENCE_END.split(text) if (event := _told(sentence, video))]
    if not events and ("{" in text or _TIME.search(text)):
        raise NotInFormError
    return events


def _objects_of(value: Any) -> list[JsonObject]:
    """The objects of a list, or of the list that is an object's only one."""
    if isinstance(value, dict):
        lists = [each for each in value.values() if isinstance(each, list)]
        value = lists[0] if len(lists) == 1 and not any(key in value for key in START_KEYS) else [value]
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _event(fields: Any, video: int | None) -> JsonObject | None:
    if not isinstance(fields, dict):
        return None
    start, end = (_first_time(fields, keys) for keys in (START_KEYS, END_KEYS))
    if start is None:
        return None
    what = next((fields[key] for key in WHAT_KEYS if isinstance(fields.get(key), str)), "")
    return {"start": start, "end": end, "description": what, "video": video}


def _first_time(fields: JsonObject, keys: Sequence[str]) -> float | None:
    values: list[Any] = [fields[key] for key in keys if key in fields]
    return next((at for value in values if (at := seconds_of(value)) is not None), None)


def _told(sentence: str, video: int | None) -> JsonObject | None:
    found = (seconds_of(clock or plain or first) for clock, plain, first in _TIME.findall(sentence))
    times = [at for at in found if at is not None]
    if not times:
        return None
    end = times[1] if len(times) > 1 else None
    return {"start": times[0], "end": end, "description": sentence.strip(), "video": video}


def _named_pictures(text: str, media: Sequence[MediaInfo]) -> list[int]:
    """Which of the pictures the answer names, as places among the request's media."""
    pictures = [index for index, info in enumerate(media) if info.kind == "image"]
    if _BOTH.search(text):
        return pictures
    numbers = [int(one or other) for one, other in _NAMED.findall(text)]
    numbers += [_ORDINALS[(one or other).lower()] for one, other in _ORDINAL.findall(text)]
    return sorted({pictures[number - 1] for number in numbers if 1 <= number <= len(pictures)})
