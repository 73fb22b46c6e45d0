"""Pictures with the boxes and points of an answer drawn on them, and the objects cut out. Knows no model."""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import numpy.typing as npt
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
MAX_SIDE: dict[PictureFormat, int] = {"jpeg": 65_500, "webp": 16_383}  # what the format has room for
MAX_LABEL_CHARS = 32
FEW_LABELS = 200  # of a picture; with more, each goes to the best corner of its box
# Colours that are told apart on light and on dark, one a label; dark ones have white writing.
PALETTE = ("#ffb000", "#dc267f", "#00a6d6", "#3fb618", "#ff5a1f", "#785ef0", "#00c2a8", "#ffe14d")
_WHITE_ON = ("#dc267f", "#785ef0")
_Rect = tuple[float, float, float, float]


def _as_it_is(_: Image.Image) -> None:
    pass


@dataclass(frozen=True)
class _Wanted:
    """A picture that is wanted back. draw: on it, at the size at which it is sent; the rest as in `DrawnPicture`."""

    image: int
    rgb: RGB
    drawing: Drawing
    draw: Callable[[Image.Image], None] = _as_it_is
    object: int | None = None
    time: float | None = None


def drawn(
    media: Sequence[Opened], infos: Sequence[MediaInfo], outputs: Outputs, outcomes: Sequence[Outcome], max_bytes: int
) -> tuple[Outcome, ...]:
    """The outcomes with the pictures that are wanted back, together at most `max_bytes` in base64: they are made
    smaller until they fit. Raises ResultTooLarge."""
    of_each = [
        [
            *(_annotated(media, infos, outcome.objects or (), outputs.annotate) if outputs.annotate else ()),
            *(_crops(media, infos, outcome.objects or (), outputs.crops) if outputs.crops else ()),
        ]
        for outcome in outcomes
    ]
    count = sum(map(len, of_each))
    if not count:
        return tuple(outcomes)
    spare = SPARE_BYTES + OBJECT_BYTES * sum(len(outcome.objects or ()) for outcome in outcomes)
    room = int((max_bytes - spare) / BASE64 / count)
    return tuple(
        _with_pictures(outcome, [_encoded(picture, room) for picture in wanted])
        for outcome, wanted in zip(outcomes, of_each, strict=True)
    )


def _with_pictures(outcome: Outcome, pictures: Sequence[DrawnPicture]) -> Outcome:
    annotated = tuple(picture for picture in pictures if picture.object is None)
    crops = tuple(picture for picture in pictures if picture.object is not None)
    return outcome.model_copy(update={"annotated": annotated, "crops": crops})


def _annotated(
    media: Sequence[Opened], infos: Sequence[MediaInfo], objects: Sequence[DetectedObject], drawing: Drawing
) -> list[_Wanted]:
    """Each picture, also without an object, and each frame of a video that has one."""
    wanted = []
    for image, (opened, info) in enumerate(zip(media, infos, strict=True)):
        here = [(number, found) for number, found in enumerate(objects) if found.image == image and found.is_valid]
        if isinstance(opened, Picture):
            wanted.append(_Wanted(image, opened.rgb, drawing, partial(_draw, objects=here, info=info)))
            continue
        for frame, time in zip(opened.frames, info.times, strict=False):
            if on_frame := [(number, found) for number, found in here if found.frame_time == time]:
                draw = partial(_draw, objects=on_frame, info=info)
                wanted.append(_Wanted(image, frame, drawing, draw, time=time))
    return wanted[:MAX_DRAWN]


def _crops(
    media: Sequence[Opened], infos: Sequence[MediaInfo], objects: Sequence[DetectedObject], drawing: Drawing
) -> list[_Wanted]:
    """Of each box its pixels."""
    wanted = []
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
        rows, columns = _pixels(top, bottom, rgb.shape[0]), _pixels(left, right, rgb.shape[1])
        wanted.append(_Wanted(each.image, rgb[rows, columns], drawing, object=number))
    return wanted[:MAX_CROPS]


def _pixels(low: float, high: float, side: int) -> slice:
    """Those that a box touches, one at least."""
    first = min(math.floor(low), side - 1)
    return slice(first, max(first + 1, math.ceil(high)))


def _encoded(wanted: _Wanted, max_bytes: int) -> DrawnPicture:
    """The file, made smaller until it fits. Raises ResultTooLarge."""
    form = wanted.drawing.format
    canvas = _limited(Image.fromarray(wanted.rgb), wanted.drawing)
    while True:
        picture, buffer = canvas.copy(), io.BytesIO()
        wanted.draw(picture)
        picture.save(buffer, form, **ENCODING[form])
        if buffer.tell() <= max_bytes:
            return DrawnPicture(
                image=wanted.image,
                format=form,
                width=picture.width,
                height=picture.height,
                object=wanted.object,
                time=wanted.time,
                data=buffer.getvalue(),
            )
        canvas = _smaller(canvas, buffer.tell(), max_bytes)


def _limited(picture: Image.Image, drawing: Drawing) -> Image.Image:
    longest = max(picture.size)
    sides = (drawing.max_side or longest, MAX_SIDE.get(drawing.format, longest), longest)
    scale = min(sides) / longest
    return picture if scale == 1 else _scaled(picture, scale)


def _smaller(picture: Image.Image, num_bytes: int, max_bytes: int) -> Image.Image:
    """Raises ResultTooLarge."""
    if max_bytes <= 0 or max(picture.size) < 16:
        raise ResultTooLarge(detail="annotate and crops: ask for fewer pictures, or for a smaller max_side")
    return _scaled(picture, min(0.9, math.sqrt(max_bytes / num_bytes)))


def _scaled(picture: Image.Image, scale: float) -> Image.Image:
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


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
    taken, num_taken = np.empty((2 * len(objects), 4)), 0  # by points and labels
    for number, found in sorted(objects, key=lambda each: -_area(each[1])):
        color = colors[found.label or ""]
        rect: _Rect | None = None
        if found.box is not None:
            rect = _on(found.box, info, *picture.size)
            pen.rectangle(rect, outline=color, width=line)
        if found.point is not None:
            x, y, *_ = _on((*found.point, *found.point), info, *picture.size)
            radius = line * 2.5
            spot = (x - radius, y - radius, x + radius, y + radius)
            pen.ellipse(spot, fill=color, outline="white", width=max(1, line // 2))
            taken[num_taken], num_taken = spot, num_taken + 1
            rect = rect or spot
        if rect is not None:
            rects.append((rect, _written(number, found), color))
    searches = len(objects) <= FEW_LABELS
    for rect, text, color in rects:
        place = label_place(pen, text, font, rect, picture.size, taken[:num_taken], line, searches=searches)
        taken[num_taken], num_taken = place, num_taken + 1
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
    taken: npt.NDArray[np.float64],
    line: int,
    *,
    searches: bool = True,
) -> _Rect:
    """Where the label goes: at a corner of the box, outside or inside, else, where it `searches`, as near as there is
    room; the place that covers the least of what is taken, rectangles (n, 4), where there is none."""
    pad = _pad(font)
    width = pen.textlength(text, font=font) + 2 * pad
    height = float(getattr(font, "size", 11)) + 2 * pad
    corners = _at_corners(rect, width, height, line)
    candidates = [*corners, *_around(rect, width, height)] if searches else corners
    lefts, tops = np.array(candidates).T
    lefts = lefts.clip(0, max(0, size[0] - width))
    tops = tops.clip(0, max(0, size[1] - height))
    places = np.stack([lefts, tops, lefts + width, tops + height], 1)
    best = places[_covered(places, taken).argmin()]  # the first of those that cover the least
    return float(best[0]), float(best[1]), float(best[2]), float(best[3])


def _at_corners(rect: _Rect, width: float, height: float, line: int) -> list[tuple[float, float]]:
    left, top, right, bottom = rect
    lefts, tops = (left, right - width), (top - height, top + line, bottom, bottom - height - line)
    return [(x, y) for y, x in product(tops, lefts)]


def _around(rect: _Rect, width: float, height: float) -> Iterator[tuple[float, float]]:
    left, top, *_ = rect
    for step in range(1, 24):
        for sign in (-1, 1):
            yield left, top + sign * step * height
            yield left + sign * step * width / 2, top - height


def _covered(places: npt.NDArray[np.float64], taken: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Of each place (n, 4), how many square pixels of what is taken (m, 4) are below it."""
    ours, others = places[:, None], taken[None]
    widths = np.minimum(ours[..., 2], others[..., 2]) - np.maximum(ours[..., 0], others[..., 0])
    heights = np.minimum(ours[..., 3], others[..., 3]) - np.maximum(ours[..., 1], others[..., 1])
    covered: npt.NDArray[np.float64] = (widths.clip(0) * heights.clip(0)).sum(1)
    return covered
