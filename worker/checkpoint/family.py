"""What differs between model families in a prompt and in an answer. Knows no torch and no weights."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from worker.checkpoint.preprocessor import PreprocessorConfig
from worker.core.contract import Coordinates

Seconds = float


@dataclass(frozen=True)
class VisionTokens:
    """The tokens that stand for media, by the names that a checkpoint's tokenizer has for them."""

    image_pad: str = "<|image_pad|>"
    video_pad: str = "<|video_pad|>"
    start: str = "<|vision_start|>"
    end: str = "<|vision_end|>"

    @property
    def video_span(self) -> str:
        """What a template writes for a video."""
        return f"{self.start}{self.video_pad}{self.end}"


VISION_TOKENS = VisionTokens()  # as every published checkpoint names them
VIDEO_SPAN = VISION_TOKENS.video_span


@dataclass(frozen=True)
class CardSampling:
    """The sampling that a family's model cards advise, by the names of generation_config.json. thinking: of
    checkpoints whose prompts open a thought."""

    plain: Mapping[str, float]
    thinking: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Family:
    """How a family writes media into its prompt and coordinates into its answers.

    video_text: from the time of each temporal patch to the text that stands for the whole video, with a
    `<|video_pad|>` for each span (widened to that span's tokens later). is_video_timed: a span for each temporal
    patch, behind its time; else one span for the video, and positions from its seconds per temporal patch.
    tokens_per_second: positions of a second of such a video where the checkpoint does not say it; None: a temporal
    patch is one position. coordinates: what the numbers of a box in an answer count. pixel_rules: those of a checkpoint
    without a preprocessor's file. template: the family's chat template, for a checkpoint that has only the text-only
    one beside it; None where the family has several.
    """

    video_text: Callable[[list[Seconds]], str]
    is_video_timed: bool
    coordinates: Coordinates
    tokens_per_second: float | None = None
    pixel_rules: PreprocessorConfig | None = None
    template: str | None = None
    card_sampling: CardSampling = field(default=CardSampling({}, {}))


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
