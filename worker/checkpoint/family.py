"""What differs between model families in a prompt and in an answer. Knows no torch and no weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from worker.core.contract import Coordinates

Seconds = float
VIDEO_SPAN = "<|vision_start|><|video_pad|><|vision_end|>"


@dataclass(frozen=True, kw_only=True)
class Family:
    """How a family writes media into its prompt and coordinates into its answers.

    video_text: from the time of each temporal patch to the text that stands for the whole video, with a
    `<|video_pad|>` for each span (widened to that span's tokens later). is_video_timed: a span for each temporal
    patch, behind its time; else one span for the video, and positions from its seconds per temporal patch.
    coordinates: what the numbers of a box in an answer count.
    """

    video_text: Callable[[list[Seconds]], str]
    is_video_timed: bool
    coordinates: Coordinates
    image_pad: str = "<|image_pad|>"
    video_pad: str = "<|video_pad|>"
    video_placeholder: str = VIDEO_SPAN


def patch_times(times: Sequence[Seconds], temporal: int) -> list[Seconds]:
    """Mean of the first and the last frame's time in each temporal patch; the last frame fills the last patch up."""
    padded = [*times, *[times[-1]] * (-len(times) % temporal)]
    return [(padded[index] + padded[index + temporal - 1]) / 2 for index in range(0, len(padded), temporal)]


def timed_spans(times: list[Seconds]) -> str:
    """A span for each temporal patch, behind its time."""
    return "".join(f"<{time:.1f} seconds>{VIDEO_SPAN}" for time in times)


def one_span(_: list[Seconds]) -> str:
    """One span for the whole video."""
    return VIDEO_SPAN
