"""Pictures with the boxes and points of an answer drawn on them, and the objects cut out. Knows no model."""

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from PIL import Image, ImageDraw, ImageFont

from worker.core.contract import MediaInfo
from worker.core.errors import ResultTooLarge
from worker.core.opened import RGB, Opened, Picture
from worker.core.outcome import Box, DetectedObject, Drawing, DrawnPicture, Outcome, Outputs, PictureFormat

MAX_CROPS = 64
MAX_DRAWN = 32
SPARE_BYTES = 65_536  # of a reply, for all that is no picture
OBJECT_BYTES = 512  # and for each object
BASE64 = 4 / 3
# Fast ones: a reply waits for them.
ENCODING: dict[PictureFormat, dict[str, int]] = {
    "jpeg": {"quality": 88},
    "png": {"compress_level": 3},
    "webp": {"quality": 88, "method": 2},
}
MAX_TRIES = 8
MAX_LABEL_CHARS = 32
# Colours that are told apart on light and on dark, one a label; dark ones have white writing.
PALETTE = ("#ffb000", "#dc267f", "#00a6d6", "#3fb618", "#ff5a1f", "#785ef0", "#00c2a8", "#ffe14d")
_WHITE_ON = ("#dc267f", "#785ef0")
_Rect = tuple[float, float, float, float]


@dataclass(frozen=True)
class _Sheet:
    """A picture to draw on. places: numbers of the objects on it."""

    image: int
    rgb: RGB
    info: MediaInfo
    places: tuple[int, ...]
    time: float | None = None


def drawn(
    media: Sequence[Opened], infos: Sequence[MediaInfo], outputs: Outputs, outcomes: Sequence[Outcome], max_bytes: int
) -> tuple[Outcome, ...]:
    """The outcomes with the pictures that are wanted back, together at most `max_bytes` in base64: they are made
    smaller until they fit. Raises ResultTooLarge."""
    sheets = [_sheets(media, infos, outcome.objects or ()) for outcome in outcomes]
    crops = [_cropped(media, infos, outcome.objects or ()) for outcome in outcomes]
    count = sum(len(each) for each in sheets) * (outputs.annotate is not None)
    count += sum(len(each) for each in crops) * (outputs.crops is not None)
    if not count:
        return tuple(outcomes)
    spare = SPARE_BYTES + OBJECT_BYTES * sum(len(outcome.objects or ()) for outcome in outcomes)
    room = int((max_bytes - spare) / BASE64 / count)
    return tuple(
        outcome.model_copy(
            update={
                "annotated": tuple(_annotated(sheet, outcome.objects or (), outputs.annotate, room) for sheet in own)
                if outputs.annotate
                else (),
                "crops": tuple(_crop(rgb, place, outputs.crops, room) for rgb, place in cut) if outputs.crops else (),
            }
        )
        for outcome, own, cut in zip(outcomes, sheets, crops, strict=True)
    )


def _sheets(media: Sequence[Opened], infos: Sequence[MediaInfo], objects: Sequence[DetectedObject]) -> list[_Sheet]:
    """Each picture, also without an object, and each frame of a video that has one."""
    sheets = []
    for image, (opened, info) in enumerate(zip(media, infos, strict=True)):
        here = [number for number, found in enumerate(objects) if found.image == image and found.is_valid]
        if isinstance(opened, Picture):
            sheets.append(_Sheet(image, opened.rgb, info, tuple(here)))
            continue
        for at, time in enumerate(info.times[: len(opened.frames)]):
            on_frame = tuple(number for number in here if objects[number].frame_time == time)
            if on_frame:
                sheets.append(_Sheet(image, opened.frames[at], info, on_frame, time))
    return sheets[:MAX_DRAWN]


def _annotated(sheet: _Sheet, objects: Sequence[DetectedObject], drawing: Drawing, max_bytes: int) -> DrawnPicture:
    canvas = _limited(Image.fromarray(sheet.rgb), drawing)
    while True:
        picture = canvas.copy()
        _draw(picture, [(number, objects[number]) for number in sheet.places], sheet.info)
        data = _encoded(picture, drawing)
        if len(data) <= max_bytes:
            size = {"width": picture.width, "height": picture.height}
            return DrawnPicture(image=sheet.image, format=drawing.format, time=sheet.time, data=data, **size)
        canvas = _smaller(canvas, len(data), max_bytes)


def _cropped(
    media: Sequence[Opened], infos: Sequence[MediaInfo], objects: Sequence[DetectedObject]
) -> list[tuple[RGB, tuple[int, int]]]:
    """Of each box its pixels, with the number of the picture and of the object."""
    found = []
    for number, each in enumerate(objects):
        if each.image is None or each.box is None or not each.is_valid:
            continue
        opened, info = media[each.image], infos[each.image]
        if isinstance(opened, Picture):
            rgb = opened.rgb
        else:
            at = info.times.index(each.frame_time) if each.frame_time in info.times else 0
            rgb = opened.frames[min(at, len(opened.frames) - 1)]
        left, top, right, bottom = _on(each.box, info, rgb.shape[1], rgb.shape[0])
        columns = slice(math.floor(left), max(math.floor(left) + 1, math.ceil(right)))
        rows = slice(math.floor(top), max(math.floor(top) + 1, math.ceil(bottom)))
        found.append((rgb[rows, columns], (each.image, number)))
    return found[:MAX_CROPS]


def _crop(rgb: RGB, place: tuple[int, int], drawing: Drawing, max_bytes: int) -> DrawnPicture:
    picture = _limited(Image.fromarray(rgb), drawing)
    while True:
        data = _encoded(picture, drawing)
        if len(data) <= max_bytes:
            image, number = place
            size = {"width": picture.width, "height": picture.height}
            return DrawnPicture(image=image, object=number, format=drawing.format, data=data, **size)
        picture = _smaller(picture, len(data), max_bytes)


def _limited(picture: Image.Image, drawing: Drawing) -> Image.Image:
    scale = 1.0 if drawing.max_side is None else min(1.0, drawing.max_side / max(picture.size))
    return picture if scale == 1 else _scaled(picture, scale)


def _smaller(picture: Image.Image, num_bytes: int, max_bytes: int) -> Image.Image:
    """Raises ResultTooLarge."""
    if max_bytes <= 0 or max(picture.size) < 16:
        raise ResultTooLarge(detail="annotate and crops: ask for fewer pictures, or for a smaller max_side")
    return _scaled(picture, min(0.9, math.sqrt(max_bytes / num_bytes)))


def _scaled(picture: Image.Image, scale: float) -> Image.Image:
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _encoded(picture: Image.Image, drawing: Drawing) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, drawing.format, **ENCODING[drawing.format])
    return buffer.getvalue()


def _on(box: Box, info: MediaInfo, width: int, height: int) -> _Rect:
    """A box of the source in pixels of a picture of another size."""
    across, down = width / (info.source_width or info.width), height / (info.source_height or info.height)
    return box[0] * across, box[1] * down, box[2] * across, box[3] * down


def _draw(picture: Image.Image, objects: Sequence[tuple[int, DetectedObject]], info: MediaInfo) -> None:
    """Boxes first, so that no line goes through a label; then the labels, none over another where there is room."""
    pen = ImageDraw.Draw(picture)
    mean_side = math.sqrt(picture.width * picture.height)
    line = max(2, round(mean_side / 260))
    font = ImageFont.load_default(size=min(max(11, min(mean_side / 34, min(picture.size) / 12)), 64))
    colors = _colors([found.label or "" for _, found in objects])
    rects: list[tuple[_Rect, str, str]] = []
    taken: list[_Rect] = []  # by points and labels
    for number, found in sorted(objects, key=lambda each: -_area(each[1])):
        color = colors[found.label or ""]
        if found.box is not None:
            rect = _on(found.box, info, *picture.size)
            pen.rectangle(rect, outline=color, width=line)
        else:
            assert found.point is not None
            x, y, *_ = _on((*found.point, *found.point), info, *picture.size)
            radius = line * 2.5
            rect = (x - radius, y - radius, x + radius, y + radius)
            pen.ellipse(rect, fill=color, outline="white", width=max(1, line // 2))
            taken.append(rect)
        rects.append((rect, _written(number, found), color))
    for rect, text, color in rects:
        place = label_place(pen, text, font, rect, picture.size, taken, line)
        taken.append(place)
        pen.rectangle(place, fill=color)
        pad = _pad(font)
        pen.text(
            (place[0] + pad, (place[1] + place[3]) / 2), text, font=font, anchor="lm",
            fill="white" if color in _WHITE_ON else "black",
        )  # fmt: skip


def _area(found: DetectedObject) -> float:
    return 0.0 if found.box is None else (found.box[2] - found.box[0]) * (found.box[3] - found.box[1])


def _colors(labels: Sequence[str]) -> dict[str, str]:
    return {label: PALETTE[index % len(PALETTE)] for index, label in enumerate(dict.fromkeys(labels))}


def _written(number: int, found: DetectedObject) -> str:
    """The label, or the object's number where the font, which has Latin letters, cannot write it."""
    label = (found.label or "").strip()
    if not label or any(ord(sign) > 0x24F and sign != "…" for sign in label) or not label.isprintable():
        return str(number)
    return label if len(label) <= MAX_LABEL_CHARS else label[: MAX_LABEL_CHARS - 1] + "…"


def _pad(font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> float:
    return max(2.0, float(getattr(font, "size", 11)) / 5)


def label_place(
    pen: ImageDraw.ImageDraw,
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    rect: _Rect,
    size: tuple[int, int],
    taken: Sequence[_Rect],
    line: int,
) -> _Rect:
    """Where the label goes: at a corner of the box, outside or inside, else as near as there is room; the place that
    covers the least of other labels where there is none."""
    pad = _pad(font)
    width = pen.textlength(text, font=font) + 2 * pad
    height = float(getattr(font, "size", 11)) + 2 * pad
    best, least = (0.0, 0.0, width, height), math.inf
    for left, top in _candidates(rect, width, height, line):
        x = min(max(left, 0), max(0, size[0] - width))
        y = min(max(top, 0), max(0, size[1] - height))
        place = (x, y, x + width, y + height)
        covered = sum(_overlap(place, other) for other in taken)
        if covered == 0:
            return place
        if covered < least:
            best, least = place, covered
    return best


def _candidates(rect: _Rect, width: float, height: float, line: int) -> Iterator[tuple[float, float]]:
    left, top, right, bottom = rect
    lefts, tops = (left, right - width), (top - height, top + line, bottom, bottom - height - line)
    yield from ((x, y) for y, x in product(tops, lefts))
    for step in range(1, 24):
        for sign in (-1, 1):
            yield left, top + sign * step * height
            yield left + sign * step * width / 2, top - height


def _overlap(one: _Rect, other: _Rect) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)
