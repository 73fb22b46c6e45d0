"""What differs between the model families, in one place: a row for each `model_type` that is served."""

from collections.abc import Callable
from dataclasses import dataclass

Seconds = float


@dataclass(frozen=True)
class Family:
    """How a family writes media into its prompt.

    video_text: from the time of each temporal patch to the text that stands for the whole video, one
    `<|video_pad|>` for each temporal patch (it is widened to that patch's tokens later).
    """

    image_pad: str
    video_pad: str
    video_placeholder: str
    video_text: Callable[[list[Seconds]], str]


def patch_times(num_frames: int, fps: float, temporal: int) -> list[Seconds]:
    """Mean of the first and the last frame's time in each temporal patch; the last frame fills the last patch up."""
    at = [min(index, num_frames - 1) / fps for index in range(num_frames + -num_frames % temporal)]
    return [(at[index] + at[index + temporal - 1]) / 2 for index in range(0, len(at), temporal)]


def _timed_spans(times: list[Seconds]) -> str:
    """Qwen3-VL: every temporal patch is a span of its own, behind its time."""
    return "".join(f"<{time:.1f} seconds><|vision_start|><|video_pad|><|vision_end|>" for time in times)


QWEN3_VL = Family(
    image_pad="<|image_pad|>",
    video_pad="<|video_pad|>",
    video_placeholder="<|vision_start|><|video_pad|><|vision_end|>",
    video_text=_timed_spans,
)

FAMILIES: dict[str, Family] = {"qwen3_vl": QWEN3_VL}
