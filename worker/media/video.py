"""A video file's bytes to the frames that the model sees, each at the size at which it sees it.

Two passes over the bytes in memory: the first reads packets alone, which tells every frame's time; the second decodes
what is wanted and what that depends on. FFmpeg is never given a path or an address, and no demuxer or decoder but the
ones named here.
"""

import io
import math
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import av
import numpy as np

from worker.core.contract import RGB, Clip, Source
from worker.core.errors import (
    MediaCorrupt,
    MediaDecodeTimeout,
    MediaDimensions,
    MediaUnsupportedType,
    MediaVideoNoFrames,
    MediaVideoTooLong,
)
from worker.core.settings import Settings
from worker.core.units import megapixels, of_pixels
from worker.media import ebml, iso_boxes, riff
from worker.media.picture import RGB_BYTES
from worker.media.sniff import VideoFormat

DECODERS = frozenset({"h264", "hevc", "vp8", "vp9", "libvpx", "libvpx-vp9", "av1", "libdav1d", "mpeg4"})
WORKING_FRAMES = 24  # that a decoder keeps at full size, at most, beside the one being converted
ORIENTATIONS = (1, 8, 3, 6)  # EXIF's numbers, by quarters to be turned counterclockwise
SIDEWAYS = (6, 8)
INDEX_ENTRIES_PER_FRAME = 16  # of all streams together: an index of a film with several sounds has some
CODED_MARGIN = 128  # that a coded frame's sides may have beyond those that the file announces
LEAST_CODED_PIXELS = 2**18
_MAX_STREAMS = 32
Shrink = Callable[[RGB, int], RGB]


@dataclass(frozen=True)
class Packets:
    """What the first pass says, of each frame in order of presentation. times: in seconds from the first; stamps: the
    same in the file's own units; places: its packet's number in the file; is_key: whether it is decoded without others.
    """

    width: int
    height: int
    times: tuple[float, ...]
    stamps: tuple[int, ...]
    places: tuple[int, ...]
    is_key: tuple[bool, ...]

    @property
    def decode_bytes(self) -> int:
        """About how much memory decoding takes, beside the frames that are kept."""
        return max(self.width * self.height, LEAST_CODED_PIXELS) * RGB_BYTES * WORKING_FRAMES


def read_packets(data: bytes, form: VideoFormat, settings: Settings) -> Packets:
    """Raises MediaUnsupportedType, MediaCorrupt, MediaDimensions, MediaTooLarge, MediaVideoTooLong, MediaVideoNoFrames,
    MediaDecodeTimeout."""
    deadline = time.monotonic() + settings.video_decode_timeout_s
    refuse_large_index(data, form, settings)
    with opened(data, form, settings) as (container, stream):
        width, height = stream.codec_context.width, stream.codec_context.height
        _check_sides(width, height, settings)
        found: list[tuple[int, int, bool]] = []
        for packet in container.demux(stream):
            _check_time(deadline)
            if packet.size == 0 or packet.is_discard:
                continue
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is None:
                raise MediaCorrupt()
            found.append((stamp, len(found), packet.is_keyframe))
            if len(found) > settings.max_video_packets:
                raise MediaVideoTooLong(detail=f"more than {settings.max_video_packets} frames (MAX_VIDEO_PACKETS)")
        if not found:
            raise MediaVideoNoFrames()
        found.sort()
        unit = float(stream.time_base)
    stamps, places, is_key = zip(*found, strict=True)
    times = tuple((stamp - stamps[0]) * unit for stamp in stamps)
    if times[-1] > settings.max_video_s:
        raise MediaVideoTooLong(detail=f"{times[-1]:.0f} s, limit {settings.max_video_s:g} s (MAX_VIDEO_S)")
    return Packets(width, height, times, stamps, places, is_key)


def decode(
    data: bytes, form: VideoFormat, packets: Packets, chosen: Sequence[int], settings: Settings, shrink: Shrink
) -> Clip:
    """The chosen frames, upright, through `shrink` (which is told how many there are) one at a time.

    Raises MediaParamInvalid, MediaCorrupt, MediaDimensions, MediaDecodeTimeout, MediaVideoNoFrames.
    """
    count, orientation = len(chosen) + len(chosen) % 2, 1
    kept: dict[int, RGB] = {}
    deadline = time.monotonic() + settings.video_decode_timeout_s
    wanted = {packets.stamps[index] for index in chosen}
    with opened(data, form, settings) as (container, stream):
        for frame in decoded_frames(container, stream, wanted, spans_of(packets, chosen), deadline):
            if frame.pts in wanted and frame.pts not in kept:
                orientation = ORIENTATIONS[_turns(frame)]
                kept[frame.pts] = shrink(_upright(frame, packets), count)
                if len(kept) == len(wanted):
                    break
    seen = [index for index in chosen if packets.stamps[index] in kept]
    if not seen:
        raise MediaVideoNoFrames()
    height, width = packets.height, packets.width
    return Clip(
        frames=tuple(kept[packets.stamps[index]] for index in seen),
        fps=None,
        times=tuple(packets.times[index] for index in seen),
        is_sized=True,
        source=Source(width, height, orientation) if orientation in SIDEWAYS else Source(height, width, orientation),
    )


def refuse_large_index(data: bytes, form: VideoFormat, settings: Settings) -> None:
    """What a demuxer would keep of the file's index is bounded before it reads that. Raises MediaTooLarge,
    MediaUnsupportedType, MediaCorrupt."""
    limit = settings.max_video_packets * INDEX_ENTRIES_PER_FRAME
    match form:
        case "mov,mp4,m4a,3gp,3g2,mj2":
            iso_boxes.refuse_large_index(data, limit)
        case "matroska,webm":
            ebml.refuse_large_index(data)
        case "avi":
            riff.refuse_large_index(data, limit)
        case "mpegts":
            pass  # it has none


def _check_time(deadline: float) -> None:
    """Raises MediaDecodeTimeout."""
    if time.monotonic() > deadline:
        raise MediaDecodeTimeout()


def decoded_frames(
    container: Any, stream: Any, wanted: set[int], spans: list[range], deadline: float = math.inf
) -> Iterator[Any]:
    """Frames as they come. What nothing wanted depends on is left out: packets outside of the spans, and frames within
    them that no other one refers to. Raises MediaDecodeTimeout."""
    context = stream.codec_context
    left, place, has_begun = list(reversed(spans)), -1, False
    is_av1 = context.codec.canonical_name == "av1"  # a packet may show a frame that came hidden in an earlier one
    for packet in container.demux(stream):
        _check_time(deadline)
        if packet.size == 0 or packet.is_discard:
            continue
        place += 1
        if place == left[-1].stop:
            yield from context.decode(None)  # what it still holds back
            context.flush_buffers()
            left.pop()
            has_begun = False
            if not left:
                return
        if place not in left[-1]:
            continue
        has_begun = True
        stamp = packet.pts if packet.pts is not None else packet.dts
        context.skip_frame = "DEFAULT" if stamp in wanted or is_av1 else "NONREF"
        yield from context.decode(packet)
    if has_begun:
        yield from context.decode(None)


def spans_of(packets: Packets, chosen: Sequence[int]) -> list[range]:
    """The packets to decode for the chosen frames, by number: from the last key frame before each of them, both in the
    file and on the screen, to its own. A frame shown before a key frame may lie behind it in the file."""
    keys = [at for at, is_key in enumerate(packets.is_key) if is_key]
    needed = []
    for index in set(chosen):
        place = packets.places[index]
        before = (packets.places[at] for at in reversed(keys[: bisect_right(keys, index)]))
        needed.append((next((first for first in before if first <= place), 0), place + 1))
    spans: list[range] = []
    for first, end in sorted(needed):
        if spans and first <= spans[-1].stop:
            spans[-1] = range(spans[-1].start, max(end, spans[-1].stop))
        else:
            spans.append(range(first, end))
    return spans


def _upright(frame: Any, packets: Packets) -> RGB:
    """(height, width, 3), turned as the file says."""
    if (frame.width, frame.height) != (packets.width, packets.height):
        raise MediaDimensions(detail="the size of its frames changes")
    pixels: RGB = frame.to_ndarray(format="rgb24")
    turns = _turns(frame)
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def _turns(frame: Any) -> int:
    """Quarters that it is to be turned by, counterclockwise."""
    turns: int = round(frame.rotation / 90) % 4
    return turns


def _check_sides(width: int, height: int, settings: Settings) -> None:
    if width < 1 or height < 1:
        raise MediaCorrupt()
    if width * height > settings.max_video_frame_pixels or max(width, height) > settings.max_video_side:
        most = f"{megapixels(settings.max_video_frame_pixels)} (MAX_VIDEO_FRAME_PIXELS), longest side"
        detail = f"frames of {of_pixels(width, height)}, limit {most} {settings.max_video_side} (MAX_VIDEO_SIDE)"
        raise MediaDimensions(detail=detail)


@contextmanager
def opened(data: bytes, form: VideoFormat, settings: Settings) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream; whatever FFmpeg says against the bytes is MediaCorrupt."""
    options = {
        "protocol_whitelist": "none",
        "format_whitelist": form,
        "codec_whitelist": ",".join(sorted(DECODERS)),
        "max_streams": str(_MAX_STREAMS),
    }
    # FFmpeg decodes a frame of some streams to learn their form, whatever their sides: not beyond ours.
    while_opening = [{"max_pixels": str(settings.max_video_frame_pixels)}] * _MAX_STREAMS
    seconds = settings.video_decode_timeout_s
    try:
        with av.open(  # type: ignore[call-overload]  # its stubs say that these are strings
            io.BytesIO(data),
            mode="r",
            format=form.split(",")[0],
            options=options,
            stream_options=while_opening,
            timeout=seconds,
        ) as container:
            stream = next((candidate for candidate in container.streams.video if not _is_cover(candidate)), None)
            if stream is None:
                raise MediaVideoNoFrames(detail="the file has no video stream")
            if stream.codec_context is None or stream.codec_context.name not in DECODERS:
                raise MediaUnsupportedType(detail="its codec is not among H.264, HEVC, VP8, VP9, AV1 and MPEG-4")
            for other in container.streams:
                if other is not stream:
                    other.discard = av.stream.Discard.all  # their packets are not even inflated
            stream.codec_context.options = {"max_pixels": str(_coded_pixels(stream, settings))}
            stream.codec_context.thread_count = 1
            yield container, stream
    except (av.FFmpegError, OSError, ValueError, MemoryError):
        raise MediaCorrupt() from None


def _coded_pixels(stream: Any, settings: Settings) -> int:
    """The most that a frame may have: what the file announces and the memory is counted by, or our own limit. Small
    films may have a quarter of a mebipixel: some decoders ask for more than they show."""
    width: int = stream.codec_context.width + CODED_MARGIN
    height: int = stream.codec_context.height + CODED_MARGIN
    return min(settings.max_video_frame_pixels, max(width * height, LEAST_CODED_PIXELS))


def _is_cover(stream: Any) -> bool:
    """Whether it is a picture on the cover of a music file."""
    return bool(stream.disposition & stream.disposition.attached_pic)
