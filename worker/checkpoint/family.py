"""What differs between the model families, in one place: a row for each `model_type` that is served."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Seconds = float


@dataclass(frozen=True)
class Family:
    """How a family writes media into its prompt, and what its rope index wants to know.

    video_text: from the time of each temporal patch to the text that stands for the whole video, with a
    `<|video_pad|>` for each span (widened to that span's tokens later). is_video_timed: a span for each temporal
    patch, behind its time; else one span for the video, and positions from its seconds per temporal patch.
    """

    image_pad: str
    video_pad: str
    video_placeholder: str
    video_text: Callable[[list[Seconds]], str]
    is_video_timed: bool


def patch_times(times: Sequence[Seconds], temporal: int) -> list[Seconds]:
    """Mean of the first and the last frame's time in each temporal patch; the last frame fills the last patch up."""
    at = [*times, *[times[-1]] * (-len(times) % temporal)]
    return [(at[index] + at[index + temporal - 1]) / 2 for index in range(0, len(at), temporal)]


_SPAN = "<|vision_start|><|video_pad|><|vision_end|>"


def _timed_spans(times: list[Seconds]) -> str:
    return "".join(f"<{time:.1f} seconds>{_SPAN}" for time in times)


TIMED = Family("<|image_pad|>", "<|video_pad|>", _SPAN, _timed_spans, is_video_timed=True)
ONE_SPAN = Family("<|image_pad|>", "<|video_pad|>", _SPAN, lambda _: _SPAN, is_video_timed=False)

FAMILIES: dict[str, Family] = {
    "qwen3_vl": TIMED,
    "qwen3_vl_moe": TIMED,
    "qwen3_5": TIMED,
    "qwen3_5_moe": TIMED,
    "qwen2_5_vl": ONE_SPAN,
}
