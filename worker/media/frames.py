"""Which frames of a video the model sees. Pure arithmetic over presentation times.

Source: `smart_nframes` of qwen-vl-utils 0.0.14 for how many, its `linspace(...).round()` for which; by the clock
instead of by number where the rate varies.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from worker.core.contract import Controls
from worker.core.errors import MediaParamInvalid, MediaVideoNoFrames

DEFAULT_FPS = 2.0
MIN_FRAMES = 4
EVEN = 2
STEADY_S = 0.002  # how far times may lie from those of a steady rate: Matroska rounds them to a millisecond


@dataclass(frozen=True)
class Limits:
    """What a caller's controls cannot go beyond."""

    max_fps: float
    max_frames: int


def span_of(times: Sequence[float], controls: Controls) -> tuple[int, int]:
    """First and last index of the frames from `video_start` to `video_end`, in seconds from the first frame.

    Raises MediaParamInvalid, MediaVideoNoFrames.
    """
    start, end = controls.video_start or 0.0, controls.video_end
    if end is not None and end <= start:
        raise MediaParamInvalid(detail="video_end must be after video_start")
    if start > times[-1]:
        raise MediaParamInvalid(detail=f"video_start is {start:g} s, but the last frame is at {times[-1]:.2f} s")
    inside = [index for index, at in enumerate(times) if start <= at and (end is None or at <= end)]
    if not inside:
        raise MediaVideoNoFrames(detail="no frame between video_start and video_end")
    return inside[0], inside[-1]


def how_many(total: int, rate: float, controls: Controls, limits: Limits) -> int:
    """Even, or 1 where there is but one frame. `total` frames follow each other `rate` times a second.

    Raises MediaParamInvalid.
    """
    if total == 1:
        return 1
    most = min(limits.max_frames, controls.max_frames or limits.max_frames)
    if controls.nframes is not None:
        wanted = float(_even(controls.nframes, round))
    else:
        fps = min(controls.fps or DEFAULT_FPS, limits.max_fps)
        least = _even(controls.min_frames or MIN_FRAMES, math.ceil)
        if controls.max_frames is not None and least > controls.max_frames:
            if controls.min_frames is not None:
                raise MediaParamInvalid(detail="min_frames is greater than max_frames")
            least = EVEN
        # A file's times are rounded: two frames a second of three seconds are six, not 5.999.
        wanted = max(total / rate * fps + fps * STEADY_S, least)
    return max(EVEN, _even(min(wanted, _even(most, math.floor), total), math.floor))


def choose(times: Sequence[float], controls: Controls, limits: Limits) -> list[int]:
    """Indices of frames, in order: evenly spread from the first to the last of the span.

    Raises MediaParamInvalid, MediaVideoNoFrames.
    """
    first, last = span_of(times, controls)
    span = np.asarray(times[first : last + 1])
    rate = _rate(span)
    count = how_many(len(span), rate, controls, limits)
    if _is_steady(span):
        return [first + int(index) for index in np.linspace(0, len(span) - 1, count).round()]
    wanted = np.linspace(span[0], span[-1], count)
    after = np.searchsorted(span, wanted).clip(1, len(span) - 1)
    nearest = np.where(wanted - span[after - 1] <= span[after] - wanted, after - 1, after)
    return [first + int(index) for index in nearest]


def _rate(span: np.ndarray) -> float:
    """Frames a second; a single frame has the default's."""
    return (len(span) - 1) / (span[-1] - span[0]) if len(span) > 1 and span[-1] > span[0] else DEFAULT_FPS


def _is_steady(span: np.ndarray) -> bool:
    return len(span) < 3 or bool(np.abs(span - np.linspace(span[0], span[-1], len(span))).max() <= STEADY_S)


def _even(value: float, rounded: Callable[[float], int]) -> int:
    return rounded(value / EVEN) * EVEN
