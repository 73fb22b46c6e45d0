"""Objects in an answer's text, in pixels of the upright source: the model's frame, the resize and EXIF undone.

A family's boxes count thousandths of the source, or pixels of the resized picture, each axis by itself
(`MediaInfo.coordinates`); the worker adds no padding, so there is no offset.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from worker.core.contract import MediaInfo
from worker.core.outcome import DetectedObject, Point, Problem
from worker.core.safe_json import JsonObject
from worker.parsers.object_scan import (
    BOX_3D_KEY,
    BOX_KEYS,
    MAX_LABEL_CHARS,
    MAX_OBJECTS,
    POINT_KEYS,
    ObjectScan,
    Written,
)

LABEL_KEYS = (
    *("label", "name", "class", "category", "text_content", "text", "content", "ref", "title", "caption"),
    *("description", "object", "type", "tag"),
)
PICTURE_KEYS = ("image", "picture", "image_index", "image_id", "image_number", "picture_index")
VIDEO_KEYS = ("video", "video_index")
TIME_KEYS = ("time", "timestamp", "time_s", "seconds")
THOUSAND = 1000
_NO_NUMBERS: list[tuple[float, ...]] = [()]
MAX_SHARED_CHARS = 200  # of the attributes that each of several places of one JSON object is given
_LARGEST = 1e7
_NUMBERS = re.compile(r"-?\d+(?:\.\d+)?")
_CLOCK = re.compile(r"(?:(\d+):)?(\d+):(\d+(?:\.\d+)?)")
_SECONDS = re.compile(r"(\d+(?:\.\d+)?)\s*(?:s|sec|seconds|秒)?", re.IGNORECASE)
# From a point of the upright picture, width and height to the point of the stored frame, by EXIF's orientation.
_STORED: dict[int, Callable[[float, float, float, float], Point]] = {
    2: lambda x, y, w, h: (w - x, y),  # noqa: ARG005
    3: lambda x, y, w, h: (w - x, h - y),
    4: lambda x, y, w, h: (x, h - y),  # noqa: ARG005
    5: lambda x, y, w, h: (y, x),  # noqa: ARG005
    6: lambda x, y, w, h: (y, w - x),  # noqa: ARG005
    7: lambda x, y, w, h: (h - y, w - x),
    8: lambda x, y, w, h: (h - y, x),  # noqa: ARG005
}


class ObjectParser:
    """The objects of one answer, as its text comes. media: the request's, in order.

    Pictures are counted from 1, unless one of the answer's objects is in picture 0 and all numbers fit that. Where that
    is known late, the `objects` at the end say another picture of earlier ones than what was told before.
    """

    def __init__(self, media: Sequence[MediaInfo]) -> None:
        self._scan = ObjectScan()
        self._media = media
        self._numbers: set[int] = set()  # of pictures, as the answer has them
        self._counts_from = 1
        self._is_told_otherwise = False
        self._written: list[Written] = []
        self.objects: list[DetectedObject] = []

    @property
    def num_broken(self) -> int:
        return self._scan.num_broken

    @property
    def is_whole(self) -> bool:
        """After `finish`."""
        return self._scan.is_whole

    def push(self, text: str) -> list[DetectedObject]:
        """Those that are whole with this text."""
        return self._placed(self._scan.push(text))

    def finish(self) -> list[DetectedObject]:
        """Those that the end makes certain."""
        last = self._placed(self._scan.finish())
        if self._is_told_otherwise:
            self.objects = self._objects(self._written)[:MAX_OBJECTS]
        return last

    def _placed(self, found: list[Written]) -> list[DetectedObject]:
        if len(self._media) > 1:
            self._count(found)
        placed = self._objects(found)[: MAX_OBJECTS - len(self.objects)]
        self._written += found
        self.objects += placed
        return placed

    def _count(self, found: list[Written]) -> None:
        for written in found:
            fields = written.fields or {}
            named = [fields[key] for key in (*PICTURE_KEYS, *VIDEO_KEYS) if key in fields]
            # A name, `Picture 1`, is the chat template's, which counts from 1.
            self._numbers.update(
                len(self._media) if isinstance(name, str) and not name.isdecimal() else number
                for name in named
                if (number := _ordinal(name)) is not None
            )
        counts_from = 0 if 0 in self._numbers and max(self._numbers) < len(self._media) else 1
        self._is_told_otherwise |= counts_from != self._counts_from and bool(self.objects)
        self._counts_from = counts_from

    def _objects(self, found: list[Written]) -> list[DetectedObject]:
        return [each for written in found for each in _objects(written, self._media, self._counts_from)]


def _objects(written: Written, media: Sequence[MediaInfo], counts_from: int) -> Iterator[DetectedObject]:
    """Those of one place in the text: a JSON object may have several boxes or points."""
    if written.fields is None:
        image = 0 if len(media) == 1 else None
        yield _placed(written.label or None, image, None, [written.numbers], media, {})
        return
    fields = dict(written.fields)
    boxes, points = _groups(_popped(fields, BOX_KEYS), 4), _groups(_popped(fields, POINT_KEYS), 2)
    image, time = _image(fields, media, counts_from), None
    if image is not None and media[image].kind == "video":
        time = _time(fields)
    label = _label(fields)
    places = _together(boxes, points)
    if not places and BOX_3D_KEY in fields:
        yield DetectedObject(label=label, image=image, attributes=fields)
        return
    for number, place in enumerate(places or [_NO_NUMBERS]):
        yield _placed(label, image, time, place, media, fields)
        if number == 0 and len(places) > 1:  # what belongs to all of them is not said thousands of times
            label = label[:MAX_LABEL_CHARS] if label else label
            fields = fields if len(str(fields)) <= MAX_SHARED_CHARS else {}


def _together(boxes: list[tuple[float, ...]], points: list[tuple[float, ...]]) -> list[list[tuple[float, ...]]]:
    """The places of each object: as many points as boxes are points of those; one that is no numbers is left out where
    the other is some."""
    if any(boxes) and not any(points):
        points = []
    if any(points) and not any(boxes):
        boxes = []
    if len(boxes) == len(points):
        return [[box, point] for box, point in zip(boxes, points, strict=True)]
    return [[place] for place in (*boxes, *points)]


def _popped(fields: JsonObject, keys: Sequence[str]) -> Any:
    """The value of the first of the keys that is there; none of them is left."""
    found = [fields.pop(key) for key in keys if key in fields]
    return next((value for value in found if value is not None), None)


def _groups(value: Any, size: int) -> list[tuple[float, ...]]:
    """The numbers of boxes (4) or points (2), however they are nested; one that is not numbers is empty."""
    if value is None:
        return []
    flat = _flat(value)
    is_nested = isinstance(value, list) and bool(value) and all(isinstance(each, list) for each in value)
    if flat is None or not flat or len(flat) % size or (len(flat) > size and not is_nested):
        return [()]
    return [tuple(flat[at : at + size]) for at in range(0, len(flat), size)]


def _flat(value: Any) -> list[float] | None:
    """The numbers in it, None where there is something else."""
    if isinstance(value, str):
        return [float(number) for number in _NUMBERS.findall(value)]
    if isinstance(value, bool) or not isinstance(value, int | float | list):
        return None
    if not isinstance(value, list):
        return [float(value)] if abs(value) <= _LARGEST else None
    parts = [_flat(each) for each in value]
    return None if any(part is None for part in parts) else [number for part in parts if part for number in part]


def _image(fields: JsonObject, media: Sequence[MediaInfo], counts_from: int) -> int | None:
    """Which one is meant. Models count pictures and videos each by themselves."""
    videos = [index for index, info in enumerate(media) if info.kind == "video"]
    pictures = [index for index, info in enumerate(media) if info.kind == "image"]
    named = _popped(fields, VIDEO_KEYS) if videos else None
    among = videos if named is not None else pictures or videos
    if named is None:
        named = _popped(fields, PICTURE_KEYS)
    number = _ordinal(named)
    if number is None:
        is_said_by_time = len(videos) == 1 and any(key in fields for key in TIME_KEYS)
        return 0 if len(media) == 1 else videos[0] if is_said_by_time else None
    if len(media) == 1 and number == 0:
        return 0
    return among[number - counts_from] if 0 <= number - counts_from < len(among) else None


def _ordinal(named: Any) -> int | None:
    if isinstance(named, str):
        found = re.findall(r"\d+", named[:64])
        return int(found[0]) if len(found) == 1 and len(found[0]) < 6 else None
    return int(named) if isinstance(named, int | float) and not isinstance(named, bool) and abs(named) < 1e6 else None


def _label(fields: JsonObject) -> str | None:
    for key in LABEL_KEYS:
        if isinstance(fields.get(key), str):
            return str(fields.pop(key))
    for key, value in fields.items():
        if isinstance(value, str):
            return str(fields.pop(key))
    number = next((key for key in LABEL_KEYS if isinstance(fields.get(key), int | float)), None)
    return None if number is None else str(fields.pop(number))


def _time(fields: JsonObject) -> float | None:
    key = next((key for key in TIME_KEYS if seconds_of(fields.get(key)) is not None), None)
    return None if key is None else seconds_of(fields.pop(key))


def seconds_of(value: Any) -> float | None:
    """A time in a video, as models write it: seconds, `mm:ss.ff`, `hh:mm:ss`. None where it is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value) if 0 <= value <= _LARGEST else None
    if not isinstance(value, str) or len(value) > 32:
        return None
    text = value.strip().strip("<>").strip()
    if clock := _CLOCK.fullmatch(text):
        hours, minutes, seconds = (float(part or 0) for part in clock.groups())
        return round(hours * 3600 + minutes * 60 + seconds, 3)
    plain = _SECONDS.fullmatch(text)
    return float(plain.group(1)) if plain else None


def _placed(
    label: str | None,
    image: int | None,
    time: float | None,
    places: Sequence[tuple[float, ...]],
    media: Sequence[MediaInfo],
    attributes: JsonObject,
) -> DetectedObject:
    """A box of four numbers, or a point of two, or one of each, on its picture."""
    if any(len(numbers) not in (2, 4) or max(map(abs, numbers)) > _LARGEST for numbers in places):
        return DetectedObject(label=label, image=image, time=time, problem="not_numbers", attributes=attributes)
    if image is None:
        relative = tuple(number for numbers in places for number in numbers)
        return DetectedObject(
            label=label, image=None, relative=relative, problem="image_unknown", attributes=attributes
        )
    info = media[image]
    on_picture = [_Place(numbers, info) for numbers in places]
    return DetectedObject(
        label=label,
        image=image,
        time=time,
        frame_time=_nearest(time, info.times),
        is_clipped=any(place.is_clipped for place in on_picture),
        problem=next((place.problem for place in on_picture if place.problem), None),
        attributes=attributes,
        **{name: value for place in on_picture for name, value in place.fields.items()},
    )


class _Place:
    """A box or a point in its picture. fields: of a DetectedObject."""

    def __init__(self, numbers: Sequence[float], info: MediaInfo) -> None:
        width, height = info.source_width or info.width, info.source_height or info.height
        sides = (width, height, width, height)[: len(numbers)]
        scaled = _in_source(numbers, info, width, height)
        ordered = [side for pair in zip(sorted(scaled[::2]), sorted(scaled[1::2]), strict=True) for side in pair]
        clipped = [_hundredths(min(max(number, 0), side)) for number, side in zip(ordered, sides, strict=True)]
        self.is_clipped = any(abs(before - after) > 0.006 for before, after in zip(ordered, clipped, strict=True))
        self.problem = _problem(ordered, clipped, width, height)
        norm = [round(number / side, 6) for number, side in zip(clipped, sides, strict=True)]
        stored = _stored(clipped, info.orientation, width, height)
        shape = "box" if len(numbers) == 4 else "point"
        self.fields: dict[str, Any] = {shape: tuple(clipped), f"{shape}_norm": tuple(norm)}
        if stored is not None:
            self.fields[f"{shape}_stored"] = tuple(stored)


def _in_source(numbers: Sequence[float], info: MediaInfo, width: int, height: int) -> list[float]:
    if info.coordinates == "thousandths":
        sides = (width / THOUSAND, height / THOUSAND)
    else:
        sides = (width / info.width, height / info.height)
    return [number * sides[index % 2] for index, number in enumerate(numbers)]


def _problem(ordered: Sequence[float], clipped: Sequence[float], width: int, height: int) -> Problem | None:
    """Of a box whose sides are in order, in pixels; clipped: as it is told."""
    if len(ordered) == 2:
        return None if 0 <= ordered[0] <= width and 0 <= ordered[1] <= height else "outside"
    left, top, right, bottom = ordered
    if left < right and top < bottom and not (left < width and top < height and right > 0 and bottom > 0):
        return "outside"
    return "empty" if clipped[0] >= clipped[2] or clipped[1] >= clipped[3] else None


def _stored(numbers: Sequence[float], orientation: int, width: int, height: int) -> list[float] | None:
    turn = _STORED.get(orientation)
    if turn is None:
        return None
    points = [turn(x, y, width, height) for x, y in zip(numbers[::2], numbers[1::2], strict=True)]
    columns, rows = sorted(x for x, _ in points), sorted(y for _, y in points)
    return [_hundredths(number) for pair in zip(columns, rows, strict=True) for number in pair]


def _nearest(time: float | None, times: Sequence[float]) -> float | None:
    if time is None or not times:
        return None
    return min(times, key=lambda at: abs(at - time))


def _hundredths(number: float) -> float:
    return math.floor(number * 100 + 0.5) / 100
