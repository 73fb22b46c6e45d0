"""A video file's bytes to the frames that the model sees, each at the size at which it sees it.

Two passes over the bytes in memory: the first reads packets alone, which tells every frame's time; the second decodes
what is wanted and what that depends on. FFmpeg is never given a path or an address, and no demuxer or decoder but the
ones named here.
"""

import io
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import av
import numpy as np

from worker.contract import RGB, Clip
from worker.errors import (
    MediaCorrupt,
    MediaDecodeTimeout,
    MediaDimensions,
    MediaUnsupportedType,
    MediaVideoNoFrames,
    MediaVideoTooLong,
)
from worker.media.sniff import VideoFormat
from worker.settings import Settings

DECODERS = frozenset({"h264", "hevc", "vp8", "vp9", "libvpx", "libvpx-vp9", "av1", "libdav1d", "mpeg4"})
WORKING_FRAMES = 24  # that a decoder keeps at full size, at most, beside the one being converted
BYTES_PER_PIXEL = 3
_MAX_STREAMS = 32
Shrink = Callable[[RGB, int], RGB]


@dataclass(frozen=True)
class Packets:
    """What the first pass says. times: of each frame in order of presentation, in seconds from the first; stamps: the
    same in the file's own units; keys: which of them can be decoded without others."""

    width: int
    height: int
    times: tuple[float, ...]
    stamps: tuple[int, ...]
    keys: tuple[int, ...]

    @property
    def decode_bytes(self) -> int:
        """About how much memory decoding takes, beside the frames that are kept."""
        return self.width * self.height * BYTES_PER_PIXEL * WORKING_FRAMES


def read_packets(data: bytes, form: VideoFormat, settings: Settings) -> Packets:
    """Raises MediaUnsupportedType, MediaCorrupt, MediaDimensions, MediaVideoTooLong, MediaVideoNoFrames."""
    with _opened(data, form, settings) as (container, stream):
        width, height = stream.codec_context.width, stream.codec_context.height
        _check_sides(width, height, settings)
        found: list[tuple[int, bool]] = []
        for packet in container.demux(stream):
            if packet.size == 0 or packet.is_discard:
                continue
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is None:
                raise MediaCorrupt()
            found.append((stamp, packet.is_keyframe))
            if len(found) > settings.max_video_packets:
                raise MediaVideoTooLong(detail=f"more than {settings.max_video_packets} frames")
        if not found:
            raise MediaVideoNoFrames()
        found.sort()
        unit = float(stream.time_base)
    times = tuple((stamp - found[0][0]) * unit for stamp, _ in found)
    if times[-1] > settings.max_video_s:
        raise MediaVideoTooLong(detail=f"{times[-1]:.0f} s, at most {settings.max_video_s:g} s")
    keys = tuple(stamp for stamp, is_key in found if is_key)
    return Packets(width, height, times, tuple(stamp for stamp, _ in found), keys)


def decode(
    data: bytes, form: VideoFormat, packets: Packets, chosen: Sequence[int], settings: Settings, shrink: Shrink
) -> Clip:
    """The chosen frames, upright, through `shrink` (which is told how many there are) one at a time.

    Raises MediaParamInvalid, MediaCorrupt, MediaDimensions, MediaDecodeTimeout, MediaVideoNoFrames.
    """
    count = len(chosen) + len(chosen) % 2
    kept: dict[int, RGB] = {}
    deadline = time.monotonic() + settings.video_decode_timeout_s
    wanted = {packets.stamps[index] for index in chosen}
    with _opened(data, form, settings) as (container, stream):
        for frame in _decoded(container, stream, wanted, packets.keys):
            if time.monotonic() > deadline:
                raise MediaDecodeTimeout()
            if frame.pts in wanted and frame.pts not in kept:
                kept[frame.pts] = shrink(_upright(frame, packets), count)
                if len(kept) == len(wanted):
                    break
    seen = [index for index in chosen if packets.stamps[index] in kept]
    if not seen:
        raise MediaVideoNoFrames()
    return Clip(
        frames=tuple(kept[packets.stamps[index]] for index in seen),
        fps=None,
        times=tuple(packets.times[index] for index in seen),
        is_sized=True,
    )


def _decoded(container: Any, stream: Any, wanted: set[int], keys: tuple[int, ...]) -> Iterator[Any]:
    """Frames as they come. What nothing wanted depends on is left out: whole groups of pictures, and frames that no
    other one refers to."""
    context = stream.codec_context
    starts = _starts(sorted(wanted), keys)
    is_skipping = False
    for packet in container.demux(stream):
        if packet.size == 0:
            break
        stamp = packet.pts if packet.pts is not None else packet.dts
        if packet.is_keyframe:
            was_skipping, is_skipping = is_skipping, stamp not in starts
            if is_skipping and not was_skipping:
                yield from context.decode(None)  # what it still holds back may be wanted
                context.flush_buffers()
        if is_skipping or packet.is_discard:
            continue
        context.skip_frame = "DEFAULT" if stamp in wanted else "NONREF"
        yield from context.decode(packet)
    yield from context.decode(None)


def _starts(wanted: list[int], keys: tuple[int, ...]) -> set[int]:
    """The key frames that wanted frames are decoded from; all frames before the first key belong to it."""
    places = np.searchsorted(np.asarray(keys), np.asarray(wanted), side="right") - 1
    return {keys[max(0, place)] for place in places.tolist()} if keys else set()


def _upright(frame: Any, packets: Packets) -> RGB:
    """(height, width, 3), turned as the file says."""
    if (frame.width, frame.height) != (packets.width, packets.height):
        raise MediaDimensions(detail="the frames' size changes in the middle")
    pixels: RGB = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def _check_sides(width: int, height: int, settings: Settings) -> None:
    if width < 1 or height < 1:
        raise MediaCorrupt()
    if width * height > settings.max_video_frame_pixels or max(width, height) > settings.max_video_side:
        most = f"{settings.max_video_frame_pixels} pixels and {settings.max_video_side} a side"
        raise MediaDimensions(detail=f"{width}x{height}, at most {most}")


@contextmanager
def _opened(data: bytes, form: VideoFormat, settings: Settings) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream; whatever FFmpeg says against the bytes is MediaCorrupt."""
    options = {
        "protocol_whitelist": "none",
        "format_whitelist": form,
        "codec_whitelist": ",".join(sorted(DECODERS)),
        "max_streams": str(_MAX_STREAMS),
    }
    # FFmpeg decodes a frame of some streams to learn their form, whatever their sides: not beyond ours.
    while_opening = [{"max_pixels": str(settings.max_video_frame_pixels)}] * _MAX_STREAMS
    try:
        with av.open(  # type: ignore[call-overload]  # its stubs say that these are strings
            io.BytesIO(data), mode="r", format=form.split(",")[0], options=options, stream_options=while_opening
        ) as container:
            stream = next((one for one in container.streams.video if not _is_cover(one)), None)
            if stream is None:
                raise MediaVideoNoFrames(detail="there is no video stream")
            if stream.codec_context is None or stream.codec_context.name not in DECODERS:
                raise MediaUnsupportedType(detail="a codec that is not read: H.264, HEVC, VP8, VP9, AV1 and MPEG-4 are")
            stream.codec_context.options = {"max_pixels": str(settings.max_video_frame_pixels)}
            stream.codec_context.thread_count = 1
            yield container, stream
    except (av.FFmpegError, OSError, ValueError, MemoryError):
        raise MediaCorrupt() from None


def _is_cover(stream: Any) -> bool:
    """Whether it is a picture on the cover of a music file."""
    return bool(stream.disposition & stream.disposition.attached_pic)
