"""A video file's bytes to packets and decoded frames. FFmpeg is never given a path or an address, and no demuxer or
decoder but the ones named here.

A frame is known by the number of its packet in the file: presentation times may be missing, or occur twice.
"""

import io
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import av

from worker.core.errors import MediaCorrupt, MediaDecodeTimeout, MediaUnsupportedType, MediaVideoNoFrames
from worker.core.settings import Settings
from worker.media import ebml, iso_boxes, riff
from worker.media.codec_names import DECODERS, unsupported_codec
from worker.media.sniff import VideoFormat

INDEX_ENTRIES_PER_FRAME = 16  # of all streams together: an index of a film with several sounds has some
CODED_MARGIN = 128  # that a coded frame's sides may have beyond those that the file announces
LEAST_CODED_PIXELS = 2**18
DEFAULT_RATE = 25.0  # of a file that says nothing of its times; FFmpeg's
_MAX_STREAMS = 32
_JUMP_S, _BACK_S = 10.0, 0.1  # ffmpeg's `-dts_delta_threshold`, and how far back it lets a clock go
_PROJECTION = b"\x76\x70"  # Matroska's element of how a track is turned
_HEAD_BYTES = 2**16  # in which the head of a file is
_HIDING = ("vp8", "vp9", "mpeg4", "msmpeg4v3", "msmpeg4v2", "vc1", "wmv3")
_TELLING_DURATION = ("matroska,webm", "flv", "asf", "ogg")
_MOST_GAP_S = 30 * 3600  # between times of one film: ffmpeg's `-dts_error_threshold`
_SHORT_OF = 0.1  # of the duration that is told, and a second, that a film may be
_WITHOUT_HEADER = ("mpeg", "flv")
_RESTARTING = ("mpegts", "mpeg")  # formats whose clock may start again in the middle of a file
Span = range


@dataclass(frozen=True)
class Place:
    """A packet: its number in the file. pts, dts: in the stream's units, continuous where the file's clock restarts;
    is_shown: whether its frame is, or is decoded only for others."""

    number: int
    pts: int | None
    dts: int | None
    is_key: bool
    is_shown: bool
    is_damaged: bool


class Film:
    """A file that FFmpeg has opened, and the one stream of it that is seen."""

    def __init__(
        self,
        container: Any,
        stream: Any,
        form: VideoFormat,
        deadline: float,
        *,
        num_streams: int,
        may_be_mirrored: bool,
    ) -> None:
        self._container, self.stream, self._form, self._deadline = container, stream, form, deadline
        self.unit = float(stream.time_base)
        # AVI has decoding times alone; of a stream with B-frames FFmpeg makes presentation times in that same order.
        self._is_unordered = form == "avi" and bool(stream.codec_context.has_b_frames)
        self.num_errors = 0  # packets that could not be decoded
        self.is_broken_off = False  # reading failed before the end
        self.num_streams = num_streams
        codec = stream.codec_context.codec.canonical_name
        self.is_av1 = codec == "av1"
        self.may_be_mirrored = may_be_mirrored
        self.has_hidden_frames = codec in _HIDING  # packets whose frame is not shown
        self._clock = _Clock(self.unit) if form in _RESTARTING else None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width that the file announces."""
        return self.stream.codec_context.height, self.stream.codec_context.width

    @property
    def pixel_shape(self) -> float:
        """Width of a pixel by its height; 1 where nothing is said."""
        return float(self.stream.sample_aspect_ratio or 1)

    @property
    def rate(self) -> float:
        """Frames a second, as far as the file says."""
        rate = self.stream.guessed_rate or self.stream.average_rate
        return float(rate) if rate and rate > 0 else DEFAULT_RATE

    def ends_before(self, last_s: float) -> bool:
        """Whether it tells a duration that goes on behind its last frame. Of files of one stream alone: sound may be
        longer than a film."""
        told = self._container.duration
        if self._form not in _TELLING_DURATION or not told or len(self._container.streams) != 1:
            return False
        is_short: bool = last_s + 1 < told / av.time_base * (1 - _SHORT_OF)
        return is_short

    @property
    def has_restarted(self) -> bool:
        """Whether its clock has, in what was read."""
        return self._clock is not None and self._clock.has_restarted

    def packets(self) -> Iterator[tuple[Place, Any]]:
        """Packets in the file's order, up to where it can be read. Raises MediaDecodeTimeout."""
        number, first = 0, None
        demuxed = self._container.demux(self.stream)
        while True:
            self.check_time()
            try:
                packet = next(demuxed)
            except StopIteration:
                return
            except (av.error.MemoryError, av.error.ExitError):
                raise
            except av.FFmpegError:
                self.is_broken_off = True
                return
            if packet.size == 0:
                continue
            pts, dts = None if self._is_unordered else packet.pts, packet.dts
            if self._clock is not None:
                pts, dts = self._clock.continued(pts, dts, packet.duration)
            if pts is not None:
                first = pts if first is None else first
                pts = None if abs(pts - first) * self.unit > _MOST_GAP_S else pts  # damage
            yield Place(number, pts, dts, packet.is_keyframe, not packet.is_discard, packet.is_corrupt), packet
            number += 1

    def frames(self, spans: Sequence[Span] | None = None, wanted: frozenset[int] | None = None) -> Iterator[Any]:
        """Decoded frames; `pts` of each is the number of its packet. spans: of packets to decode, the rest is left out;
        wanted: within them, frames that no other one refers to are left out unless they are among these. Packets that
        cannot be decoded are counted and passed over. Raises MediaDecodeTimeout."""
        context = self.stream.codec_context
        left = None if spans is None else list(reversed(spans))
        has_begun = False
        for place, packet in self.packets():
            if left is not None:
                if place.number == left[-1].stop:
                    yield from self._decoded(None)  # what it still holds back
                    context.flush_buffers()
                    left.pop()
                    has_begun = False
                    if not left:
                        return
                if place.number not in left[-1]:
                    continue
            has_begun = True
            # A packet of AV1 may show a frame that came hidden in an earlier one.
            is_whole = wanted is None or place.number in wanted or self.is_av1
            context.skip_frame = "DEFAULT" if is_whole else "NONREF"
            packet.pts = place.number
            yield from self._decoded(packet)
        if has_begun:
            yield from self._decoded(None)

    def _decoded(self, packet: Any) -> list[Any]:
        try:
            frames: list[Any] = self.stream.codec_context.decode(packet)
            return frames
        except (av.error.MemoryError, av.error.ExitError):
            raise
        except (av.FFmpegError, ValueError):
            self.num_errors += 1
            return []

    def check_time(self) -> None:
        """Raises MediaDecodeTimeout."""
        if time.monotonic() > self._deadline:
            raise MediaDecodeTimeout()


class _Clock:
    """Makes the clock of a transport stream continuous where it starts again, as the ffmpeg program does."""

    def __init__(self, unit: float) -> None:
        self._jump, self._back = _JUMP_S / unit, _BACK_S / unit
        self._offset = 0
        self._next: int | None = None
        self.has_restarted = False

    def continued(self, pts: int | None, dts: int | None, duration: int | None) -> tuple[int | None, int | None]:
        known = dts if dts is not None else pts
        if known is None:
            return pts, dts
        if self._next is not None:
            ahead = known + self._offset - self._next
            if ahead > self._jump or ahead < -self._back:
                self._offset -= ahead
                self.has_restarted = True
        self._next = known + self._offset + (duration or 0)
        return _shifted(pts, self._offset), _shifted(dts, self._offset)


def _shifted(stamp: int | None, offset: int) -> int | None:
    return None if stamp is None else stamp + offset


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
        case _:
            pass  # they have none that a demuxer keeps


def _may_be_mirrored(data: bytes, form: VideoFormat) -> bool:
    """Whether it has a display matrix that the angle of a frame does not tell."""
    if form == "matroska,webm":
        return _PROJECTION in data[:_HEAD_BYTES]
    return form.startswith("mov") and iso_boxes.has_display_matrix(data)


@contextmanager
def opened(
    data: bytes,
    form: VideoFormat,
    settings: Settings,
    *,
    max_pixels: int = 0,
    is_fast: bool = False,
    timeout_s: float | None = None,
) -> Iterator[Film]:
    """The file and its stream; whatever FFmpeg says against the bytes is MediaCorrupt.

    max_pixels: that a frame may have where they grow in mid-film, at least. is_fast: the pixels are not needed.
    """
    options = {
        "protocol_whitelist": "none",
        "format_whitelist": form,
        "codec_whitelist": ",".join(sorted(DECODERS)),
        "max_streams": str(_MAX_STREAMS),
    }
    # FFmpeg decodes a frame of some streams to learn their form, whatever their sides: not beyond ours. Where it learns
    # of streams while it reads, PyAV 18 takes no such options: what that frame takes is bounded by the child process.
    while_opening = [{"max_pixels": str(settings.max_video_frame_pixels)}] * _MAX_STREAMS
    if form in _WITHOUT_HEADER:
        while_opening = []
    seconds = timeout_s or settings.video_decode_timeout_s
    try:
        with av.open(  # type: ignore[call-overload]  # its stubs say that these are strings
            io.BytesIO(iso_boxes.readable(data) if form.startswith("mov") else data),
            mode="r",
            format=form.split(",")[0],
            options=options,
            stream_options=while_opening,
            timeout=seconds,
        ) as container:
            films = [stream for stream in container.streams.video if not _is_thumbnail(stream)]
            stream = _chosen(films)
            for other in container.streams:
                if other is not stream:
                    other.discard = av.stream.Discard.all  # their packets are not even inflated
            pixels = min(settings.max_video_frame_pixels, max(_coded_pixels(stream), max_pixels))
            context = stream.codec_context
            context.options = {"max_pixels": str(pixels), **(_FAST if is_fast else {})}
            context.thread_count = 1
            deadline, may_be_mirrored = time.monotonic() + seconds, _may_be_mirrored(data, form)
            yield Film(container, stream, form, deadline, num_streams=len(films), may_be_mirrored=may_be_mirrored)
    except (av.FFmpegError, OSError, ValueError, MemoryError):
        raise MediaCorrupt() from None


_FAST = {"skip_loop_filter": "all", "skip_idct": "all"}


def _chosen(films: Sequence[Any]) -> Any:
    """The stream that a player shows: one that can be decoded, the default one, the largest. Raises MediaVideoNoFrames,
    MediaUnsupportedType."""
    if not films:
        raise MediaVideoNoFrames(detail="the file has no video stream")
    known = [stream for stream in films if stream.codec_context is not None]
    decodable = [stream for stream in known if stream.codec_context.name in DECODERS]
    if not decodable:
        raise MediaUnsupportedType(detail=unsupported_codec([stream.codec_context.name for stream in known]))
    return max(decodable, key=lambda stream: (_is_default(stream), stream.width * stream.height, -stream.index))


def _is_default(stream: Any) -> bool:
    return bool(stream.disposition & stream.disposition.default)


def _is_thumbnail(stream: Any) -> bool:
    """Whether it is a picture on the cover of a music file, or the pictures that a player's timeline shows."""
    kinds = stream.disposition.attached_pic | stream.disposition.timed_thumbnails | stream.disposition.still_image
    return bool(stream.disposition & kinds)


def _coded_pixels(stream: Any) -> int:
    """The most that a frame may have: what the file announces and the memory is counted by. Small films may have a
    quarter of a mebipixel: some decoders ask for more than they show."""
    width: int = stream.codec_context.width + CODED_MARGIN
    height: int = stream.codec_context.height + CODED_MARGIN
    return max(width * height, LEAST_CODED_PIXELS)
