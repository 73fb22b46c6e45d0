"""When each frame of a video file is shown, and which packets it takes to decode it.

Reading packets alone tells that of most files. Where they do not (no presentation times, a beginning inside of a group
of pictures, damage), every frame is decoded once, without its pixels, to see which come out and in what order.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from worker.core.errors import MediaCorrupt, MediaDecodeTimeout, MediaDimensions, MediaVideoNoFrames, MediaVideoTooLong
from worker.core.media_warnings import MediaWarning, warning
from worker.core.settings import Settings
from worker.core.units import megapixels, of_pixels
from worker.media.demux import LEAST_CODED_PIXELS, Film, Place, Span, opened, refuse_large_index
from worker.media.endings import announced_end
from worker.media.picture import RGB_BYTES
from worker.media.sniff import VideoFormat

WORKING_FRAMES = 24  # that a decoder keeps at full size, at most, beside the one being converted
GROWTH = 4  # how many times the pixels that it announces a film may have where its frames become larger
GROWN_PIXELS = 1920 * 1088  # that a small film may grow to
EXAMINING_SHARE = 0.5  # of the time for a video, to decode it once before it is seen
_MOST_PIXEL_SHAPE = 8  # wider or higher pixels than that are a mistake


@dataclass(frozen=True)
class Packets:
    """What is known of a film before it is decoded, of each frame in order of presentation.

    height, width: of the coded frames; pixel_shape: width of a pixel by its height. times: in seconds from the first;
    places: the number of the frame's packet in the file. keys: packets decoded without others, each with its time.
    most_pixels: of its largest frame, where that was seen. frames_lost: that cannot be decoded; frames_damaged: that
    come out with errors; num_packets: all that should come out. is_truncated: the file ends before its end; is_unclear:
    only decoding tells which frames there are, and in what order; is_examined: every frame has been decoded once.
    """

    height: int
    width: int
    times: tuple[float, ...] = ()
    places: tuple[int, ...] = ()
    keys: tuple[tuple[int, float], ...] = ()
    pixel_shape: float = 1.0
    most_pixels: int = 0
    frames_lost: int = 0
    frames_damaged: int = 0
    num_packets: int = 0
    is_truncated: bool = False
    is_unclear: bool = False
    is_examined: bool = False
    notes: tuple[MediaWarning, ...] = ()

    @property
    def decode_bytes(self) -> int:
        """About how much memory decoding takes, beside the frames that are kept."""
        return _working_bytes(max(self.width * self.height, self.most_pixels))

    @property
    def examining_bytes(self) -> int:
        """The same for `examine`, whose frames may be larger than announced."""
        return _working_bytes(_grown(self.width * self.height))

    @property
    def is_damaged(self) -> bool:
        """Whether anything of the file is missing, as far as it has been looked at."""
        return self.is_truncated or self.frames_lost > 0 or self.frames_damaged > 0

    @property
    def warnings(self) -> tuple[MediaWarning, ...]:
        """What the report says of the file, whatever is seen of it."""
        found = list(self.notes)
        if self.frames_lost:
            found.append(warning("VIDEO_FRAMES_LOST", count=self.frames_lost, total=self.num_packets))
        if self.frames_damaged:
            found.append(warning("VIDEO_FRAMES_DAMAGED", count=self.frames_damaged))
        if self.is_truncated:
            found.append(warning("VIDEO_TRUNCATED"))
        return tuple(found)

    @property
    def shown_size(self) -> tuple[int, int]:
        """Height and width of a frame whose pixels are square; neither side is smaller than the coded one."""
        if self.pixel_shape >= 1:
            return self.height, round(self.width * self.pixel_shape)
        return round(self.height / self.pixel_shape), self.width


def _working_bytes(pixels: int) -> int:
    return max(pixels, LEAST_CODED_PIXELS) * RGB_BYTES * WORKING_FRAMES


def _grown(pixels: int) -> int:
    return max(pixels * GROWTH, GROWN_PIXELS)


@dataclass(frozen=True)
class _Pace:
    """unit: of a stream's times, in seconds; rate: frames a second, as far as the file says."""

    unit: float
    rate: float

    @property
    def step(self) -> float:
        """Units from a frame to the next."""
        return 1 / self.rate / self.unit


def read_packets(data: bytes, form: VideoFormat, settings: Settings) -> Packets:
    """What packets tell. Raises MediaUnsupportedType, MediaCorrupt, MediaDimensions, MediaTooLarge, MediaVideoTooLong,
    MediaVideoNoFrames, MediaDecodeTimeout."""
    refuse_large_index(data, form, settings)
    with opened(data, form, settings) as film:
        _check_sides(*film.size, settings)
        found: list[Place] = []
        for place, _ in film.packets():
            found.append(place)
            if len(found) > settings.max_video_packets:
                raise MediaVideoTooLong(detail=f"more than {settings.max_video_packets} frames (MAX_VIDEO_PACKETS)")
        if not any(place.is_shown for place in found):
            raise MediaCorrupt() if film.is_broken_off else MediaVideoNoFrames()
        is_truncated = film.is_broken_off or announced_end(data, form) > len(data)
        is_truncated = is_truncated or film.ends_before(_last_time(found) * film.unit)
        packets = Packets(
            *film.size, pixel_shape=_pixel_shape(film), is_truncated=is_truncated, notes=_notes(film, found)
        )
        pace = _Pace(film.unit, film.rate)
    shown = [place for place in found if place.is_shown]
    if None not in (place.pts for place in shown):
        shown.sort(key=lambda place: (place.pts or 0, place.number))
    packets = replace(packets, is_unclear=_is_unclear(found), num_packets=len(shown))
    return _timed(packets, [place.number for place in shown], found, pace, settings)


def examine(data: bytes, form: VideoFormat, packets: Packets, settings: Settings) -> Packets:
    """The same film with the frames that really come out, after everything was decoded, for as long as there is time;
    what lies behind that is believed. Raises what `read_packets` does."""
    with opened(data, form, settings) as film:
        found = [place for place, _ in film.packets()]
        pace = _Pace(film.unit, film.rate)
    order: list[int] = []
    num_damaged = most_pixels = 0
    pixels = _grown(packets.height * packets.width)
    timeout_s = settings.video_decode_timeout_s * EXAMINING_SHARE
    is_cut_short = False
    with opened(data, form, settings, max_pixels=pixels, is_fast=True, timeout_s=timeout_s) as film:
        try:
            for frame in film.frames():
                order.append(frame.pts)
                num_damaged += frame.is_corrupt
                most_pixels = max(most_pixels, frame.width * frame.height)
        except MediaDecodeTimeout:
            is_cut_short = True
        num_errors, has_hidden_frames = film.num_errors, film.has_hidden_frames
    shown = {place.number for place in found if place.is_shown}
    order = [number for number in dict.fromkeys(order) if number in shown]
    if is_cut_short:
        last = max(order, default=-1)
        order += sorted(number for number in shown if number > last)
    if not order:
        raise MediaCorrupt() if num_errors else MediaVideoNoFrames()
    is_lossy = num_errors > 0 or num_damaged > 0 or not has_hidden_frames
    lost = len(shown) - len(order) if is_lossy else 0
    num_damaged = max(num_damaged, sum(place.is_damaged for place in found) - lost)
    packets = replace(
        packets, most_pixels=most_pixels, frames_lost=max(0, lost), frames_damaged=num_damaged, is_examined=True
    )
    return _timed(packets, order, found, pace, settings)


def spans_of(packets: Packets, chosen: Sequence[int]) -> list[Span]:
    """The packets to decode for the chosen frames: from the last key frame before each of them, both in the file and on
    the screen, to its own. A frame shown before a key frame may lie behind it in the file."""
    first_places = [place for place, _ in packets.keys]
    needed = []
    for index in set(chosen):
        place, at = packets.places[index], packets.times[index]
        before = reversed(packets.keys[: bisect_right(first_places, place)])
        needed.append((next((first for first, shown_at in before if shown_at <= at), 0), place + 1))
    spans: list[Span] = []
    for first, end in sorted(needed):
        if spans and first <= spans[-1].stop:
            spans[-1] = range(spans[-1].start, max(end, spans[-1].stop))
        else:
            spans.append(range(first, end))
    return spans


def _is_unclear(found: Sequence[Place]) -> bool:
    """Whether packets alone do not tell which frames are shown, and in what order."""
    stamps = [place.pts for place in found if place.is_shown]
    first = found[0]
    if None in stamps or len(set(stamps)) < len(stamps) or any(place.is_damaged for place in found):
        return True
    return not first.is_key or any(place.pts is not None and place.pts < (first.pts or 0) for place in found)


def _timed(
    packets: Packets, order: Sequence[int], found: Sequence[Place], pace: "_Pace", settings: Settings
) -> Packets:
    """The frames of these packets, in order of presentation, at their times. Raises MediaVideoTooLong."""
    unit = pace.unit
    stamps = _stamps(order, found, pace)
    times = tuple((stamp - stamps[0]) * unit for stamp in stamps)
    if times[-1] > settings.max_video_s:
        raise MediaVideoTooLong(detail=f"{times[-1]:.0f} s, limit {settings.max_video_s:g} s (MAX_VIDEO_S)")
    at = dict(zip(order, times, strict=True))
    first = stamps[0] * unit
    keys = []
    for place in found:
        if place.is_key and place.number in at:
            keys.append((place.number, at[place.number]))
        elif place.is_key and not place.is_shown and place.pts is not None:
            keys.append((place.number, place.pts * unit - first))
    return replace(packets, times=times, places=tuple(order), keys=tuple(keys))


def _stamps(order: Sequence[int], found: Sequence[Place], pace: "_Pace") -> list[float]:
    """Presentation times in the stream's units, increasing: the file's where it has them, else between those; where it
    has none at all, decoding times in order, as nothing else tells the pace."""
    by_number: Mapping[int, Place] = {place.number: place for place in found}
    places = [by_number[number] for number in order]
    known = [place.pts for place in places]
    if all(stamp is None for stamp in known):
        decoding = sorted(place.dts for place in places if place.dts is not None)
        if len(set(decoding)) == len(places):
            return [float(stamp) for stamp in decoding]
        return [index * pace.step for index in range(len(places))]
    if None not in known and all(sooner < later for sooner, later in pairwise(known)):  # type: ignore[operator]
        return [float(stamp) for stamp in known if stamp is not None]
    return _between(known, pace.step)


def _between(known: Sequence[int | None], step: float) -> list[float]:
    """The known times that increase, and evenly between them those that are missing."""
    indices: list[int] = []
    stamps: list[float] = []
    for index, stamp in enumerate(known):
        if stamp is not None and (not stamps or stamp > stamps[-1]):
            indices.append(index)
            stamps.append(float(stamp))
    places = np.arange(len(known))
    times = np.interp(places, indices, stamps)
    times[: indices[0]] = stamps[0] - step * (indices[0] - places[: indices[0]])
    times[indices[-1] + 1 :] = stamps[-1] + step * (places[indices[-1] + 1 :] - indices[-1])
    return [float(at) for at in times]


def _pixel_shape(film: Film) -> float:
    shape = film.pixel_shape
    return shape if 1 / _MOST_PIXEL_SHAPE <= shape <= _MOST_PIXEL_SHAPE else 1.0


def _last_time(found: Sequence[Place]) -> int:
    return max((place.pts or 0 for place in found), default=0) - min((place.pts or 0 for place in found), default=0)


def _notes(film: Film, found: Sequence[Place]) -> tuple[MediaWarning, ...]:
    """What packets alone tell of what a player would not show as it is stored."""
    notes = []
    if film.num_streams > 1:
        notes.append(warning("VIDEO_STREAM_CHOSEN", count=film.num_streams))
    if film.has_restarted:
        notes.append(warning("VIDEO_CLOCK_RESTARTS"))
    if any(place.pts is None for place in found):
        notes.append(warning("VIDEO_TIMES_COUNTED"))
    hidden = sum(not place.is_shown for place in found)
    if hidden:
        notes.append(warning("VIDEO_TRIMMED", count=hidden))
    return tuple(notes)


def _check_sides(height: int, width: int, settings: Settings) -> None:
    if width < 1 or height < 1:
        raise MediaCorrupt()
    if width * height > settings.max_video_frame_pixels or max(width, height) > settings.max_video_side:
        most = f"{megapixels(settings.max_video_frame_pixels)} (MAX_VIDEO_FRAME_PIXELS), longest side"
        detail = f"frames of {of_pixels(width, height)}, limit {most} {settings.max_video_side} (MAX_VIDEO_SIDE)"
        raise MediaDimensions(detail=detail)
