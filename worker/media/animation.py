"""An animated picture (GIF, WebP, APNG) as a video: its frames by their times, each at the model's size.

Two passes, as for video files: the first tells every frame's time, the second keeps what is chosen. Frames build on
those before them, so both decode all up to the last that is wanted.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

from worker.core.errors import (
    MediaCorrupt,
    MediaDecodeTimeout,
    MediaDimensions,
    MediaError,
    MediaUnsupportedType,
    MediaVideoTooLong,
)
from worker.core.opened import RGB, Clip, Source
from worker.core.settings import Settings
from worker.media import color
from worker.media.picture import BROKEN, bounded, check_size, pixels_of
from worker.media.sniff import SniffResult
from worker.media.still import opened, prepared
from worker.media.video import Shrink

MOVING = ("GIF", "WEBP", "PNG")
UNSAID_S = 0.1  # that a frame without a duration is shown, as browsers do
LEAST_S = 0.011  # shorter ones are shown for UNSAID_S


@dataclass(frozen=True)
class Times:
    """When each frame is shown, in seconds from the first; sides in pixels."""

    width: int
    height: int
    times: tuple[float, ...]

    @property
    def decode_bytes(self) -> int:
        """About how much memory decoding takes, beside the frames that are kept."""
        return self.width * self.height * 30


def read_times(data: bytes, found: SniffResult, settings: Settings) -> Times:
    """Raises MediaUnsupportedType where nothing moves, MediaCorrupt, MediaDimensions, MediaVideoTooLong."""
    at, times = 0.0, []
    size = (0, 0)
    for image in _shown(data, found, settings):
        size = image.size
        times.append(at)
        at += _duration(image)
        if len(times) > settings.max_video_packets:
            raise MediaVideoTooLong(detail=f"more than {settings.max_video_packets} frames (MAX_VIDEO_PACKETS)")
        if at > settings.max_video_s:
            raise MediaVideoTooLong(detail=f"more than {settings.max_video_s:g} s (MAX_VIDEO_S)")
    if len(times) < 2:
        raise MediaUnsupportedType(detail=f"this is {found.name} of one frame, not a video: send it as an image")
    return Times(*size, tuple(times))


def decode(
    data: bytes,
    found: SniffResult,
    read: Times,
    chosen: Sequence[int],
    settings: Settings,
    shrink: Shrink,
    profile: color.Profile | None = None,
) -> Clip:
    """The chosen frames through `shrink`; profile: of their colors, where they are not sRGB's. Raises
    MediaParamInvalid, MediaCorrupt, MediaDecodeTimeout, and what `read_times` does."""
    count = len(chosen) + len(chosen) % 2
    kept: dict[int, RGB] = {}
    for index, image in enumerate(_shown(data, found, settings)):
        if index in chosen:
            kept[index] = shrink(_pixels(image, profile), count)
        if index == chosen[-1]:
            break
    return Clip(
        frames=tuple(kept[index] for index in chosen),
        fps=None,
        times=tuple(read.times[index] for index in chosen),
        is_sized=True,
        source=Source(read.height, read.width),
    )


def _shown(data: bytes, found: SniffResult, settings: Settings) -> Iterator[Image.Image]:
    """Frame after frame, each composed with those before it."""
    assert found.picture is not None
    deadline = time.monotonic() + settings.video_decode_timeout_s
    still = prepared(data, found.picture, is_moving=True)
    try:
        with bounded(settings), opened(still) as image:
            size = image.size
            check_size(*size, settings)
            index = 0
            while True:
                if time.monotonic() > deadline:
                    raise MediaDecodeTimeout()
                try:
                    image.seek(index)
                except EOFError:
                    return
                if image.size != size:  # a GIF grows with a frame that lies outside of it
                    raise MediaDimensions(detail="the size of its frames changes")
                image.load()
                yield image
                index += 1
    except MediaError:
        raise
    except BROKEN:
        raise MediaCorrupt() from None


def _pixels(image: Image.Image, profile: color.Profile | None) -> RGB:
    """(height, width, 3). Raises MediaCorrupt."""
    try:
        return pixels_of(image, None, profile)
    except BROKEN:
        raise MediaCorrupt() from None


def _duration(image: Image.Image) -> float:
    """Seconds; Pillow gives thousandths."""
    said = float(image.info.get("duration") or 0) / 1000
    return said if said >= LEAST_S else UNSAID_S
