"""The wanted frames of a video file as the model sees them: upright, of one shape, each at the size at which it is
seen."""

import gc
from collections.abc import Callable, Sequence
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType

from worker.core.errors import MediaCorrupt, MediaVideoNoFrames
from worker.core.media_warnings import Code, MediaWarning, warning
from worker.core.opened import RGB, Clip, Source
from worker.core.settings import Settings
from worker.media import tone_map
from worker.media.demux import opened
from worker.media.orientation import MIRRORED, SIDEWAYS, UPRIGHT, of_matrix, upright
from worker.media.packets import Packets, examine, read_packets, spans_of
from worker.media.sniff import VideoFormat

__all__ = ["Packets", "Shrink", "decode", "examine", "read_packets"]
MAPPED_PIXELS = 2**21  # of a frame, at the most, that are mapped: no model sees more of one
Shrink = Callable[[RGB, int], RGB]


def decode(
    data: bytes,
    form: VideoFormat,
    packets: Packets,
    chosen: Sequence[int],
    settings: Settings,
    shrink: Shrink,
    is_coded_shape: bool = False,
) -> Clip:
    """The chosen frames, upright, through `shrink` (which is told how many there are) one at a time; those that cannot
    be decoded are left out. is_coded_shape: pixels that are not square stay as they are coded.

    Raises MediaParamInvalid, MediaCorrupt, MediaDecodeTimeout, MediaVideoNoFrames.
    """
    count = len(chosen) + len(chosen) % 2
    kept: dict[int, RGB] = {}
    num_damaged = 0
    wanted = frozenset(packets.places[index] for index in chosen)
    with opened(data, form, settings, max_pixels=packets.most_pixels) as film:
        frames = _Frames(packets, is_coded_shape=is_coded_shape, may_be_mirrored=film.may_be_mirrored)
        for frame in film.frames(spans_of(packets, chosen), wanted):
            num_damaged += frame.is_corrupt
            if frame.pts in wanted and frame.pts not in kept:
                kept[frame.pts] = shrink(frames.upright(frame), count)
                if len(kept) == len(wanted):
                    break
        frame = None
        if frames.has_looked:  # a frame whose side data were looked at is in a circle with them (PyAV 18)
            gc.collect()
        num_errors = film.num_errors + num_damaged
    seen = [index for index in chosen if packets.places[index] in kept]
    if not seen:
        raise MediaCorrupt() if num_errors else MediaVideoNoFrames()
    lost = packets.frames_lost or (0 if packets.is_examined else max(num_errors, len(wanted) - len(kept)))
    if lost and not packets.is_examined:
        frames.warn("VIDEO_FRAMES_LOST", count=lost, total=packets.num_packets)
    height, width = frames.size
    return Clip(
        frames=tuple(kept[packets.places[index]] for index in seen),
        fps=None,
        times=tuple(packets.times[index] for index in seen),
        is_sized=True,
        source=Source(
            *((width, height) if frames.orientation in SIDEWAYS else (height, width)),
            orientation=frames.orientation,
            warnings=(*packets.warnings, *frames.warnings),
            frames_lost=lost,
            is_truncated=packets.is_truncated,
        ),
    )


class _Frames:
    """Decoded frames to upright pixels of one size, and what the report says of that. size: height and width of all,
    before they are turned."""

    def __init__(self, packets: Packets, *, is_coded_shape: bool, may_be_mirrored: bool) -> None:
        self._coded = packets.height, packets.width
        self._shape = 1 if is_coded_shape else packets.pixel_shape
        self.size = self._coded if is_coded_shape else packets.shown_size
        self.orientation = UPRIGHT
        self.has_looked = False
        self._rotation: int | None = None
        self._may_be_mirrored = may_be_mirrored
        self._warnings: dict[Code, MediaWarning] = {}
        if self.size != self._coded:
            self.warn("VIDEO_PIXELS_STRETCHED", stored=_sides(self._coded), shown=_sides(self.size))

    @property
    def warnings(self) -> tuple[MediaWarning, ...]:
        return tuple(self._warnings.values())

    def warn(self, code: Code, **numbers: int | str) -> None:
        self._warnings[code] = warning(code, **numbers)

    def upright(self, frame: Any) -> RGB:
        """(height, width, 3), turned as the file says."""
        if frame.rotation != self._rotation:
            if frame.rotation or self._may_be_mirrored:
                self.has_looked, self.orientation = True, _orientation(frame)
            else:
                self.orientation = UPRIGHT
            self._rotation = frame.rotation
        if self.orientation in MIRRORED:
            self.warn("VIDEO_MIRRORED")
        return upright(self._of_one_size(frame), self.orientation)

    def _of_one_size(self, frame: Any) -> RGB:
        if (frame.height, frame.width) == self._coded:
            if self.size == self._coded:
                return self._pixels(frame)
            return _resized(self._pixels(frame), *self.size)
        self.warn("VIDEO_SIZE_CHANGES", size=_sides(self.size))
        height, width = self.size
        shown_width = float(frame.width * self._shape)
        scale = min(height / frame.height, width / shown_width)
        inner = max(1, round(frame.height * scale)), max(1, round(shown_width * scale))
        canvas = np.zeros((height, width, 3), np.uint8)
        top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
        canvas[top : top + inner[0], left : left + inner[1]] = _resized(self._pixels(frame), *inner)
        return canvas

    def _pixels(self, frame: Any) -> RGB:
        curve = tone_map.CURVES.get(int(frame.color_trc))
        if curve is None:
            rgb: RGB = frame.to_ndarray(format="rgb24")
            return rgb
        self.warn("VIDEO_TONE_MAPPED", curve=curve)
        part = min(1.0, (MAPPED_PIXELS / (frame.width * frame.height)) ** 0.5)
        height, width = round(frame.height * part), round(frame.width * part)
        smaller: RGB = frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA").to_ndarray()
        shown = tone_map.mapped(smaller, curve)
        return shown if part == 1 else _resized(shown, frame.height, frame.width)


def _resized(rgb: RGB, height: int, width: int) -> RGB:
    frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
    return frame.reformat(width=width, height=height, interpolation="BICUBIC").to_ndarray().astype(np.uint8, copy=False)


def _orientation(frame: Any) -> int:
    """Of the frame's display matrix: nine numbers."""
    try:
        matrix = bytes(frame.side_data[SideDataType.DISPLAYMATRIX])
    except KeyError:
        return UPRIGHT
    return of_matrix(np.frombuffer(matrix, np.int32, 9).tolist())


def _sides(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"
