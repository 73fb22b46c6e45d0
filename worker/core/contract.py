"""The language spoken inside: one request, its parts, and the events that answer it.

Every value is frozen. Dialects make a `ChatRequest`; the engine answers with `Piece` … `Done`. This module
knows no dialect, no network and no model.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

MAX_TEXT_CHARS = 500_000
MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_MESSAGES = 512
MAX_TOKENS_CEILING = 1_000_000
MAX_ANSWERS = 16
MAX_LIKELY = 20
MAX_BIASES = 1024
MAX_SECONDS_CEILING = 604_800  # a week, the longest that the platform lets a job run

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "time"]
Kind = Literal["image", "video"]


class Value(BaseModel):
    """A frozen value; fields are validated where it is made."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


class Url(Value):
    """An http(s) address, not yet checked."""

    url: str = Field(repr=False)


class Inline(Value):
    """A data URI or bare base64, not yet decoded."""

    data: str = Field(repr=False)


class Upload(Value):
    """The bytes of a file that came with the request."""

    data: bytes = Field(repr=False)


class Frames(Value):
    """Pictures that make a video, `fps` of them a second (None takes the checkpoint's rate), or each at its own of the
    `times` in seconds."""

    frames: tuple[Url | Inline | Upload, ...]
    fps: float | None = None
    times: tuple[float, ...] | None = None


class Controls(Value):
    """How a picture or video is to be seen; None takes the checkpoint's or the worker's own.

    Sides and pixels are of one picture or frame, total_pixels of all temporal patches of a video. fps and nframes say
    how many frames of a video file are seen, video_start and video_end (seconds) of which part.
    """

    min_pixels: int | None = None
    max_pixels: int | None = None
    resized_height: int | None = None
    resized_width: int | None = None
    total_pixels: int | None = None
    fps: float | None = None
    nframes: int | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    video_start: float | None = None
    video_end: float | None = None


AS_IT_IS = Controls.model_construct()


class Text(Value):
    """Words in a message."""

    text: str = Field(repr=False)


class Media(Value):
    """A picture or video in a message; `where` is its place in the request, for error messages."""

    kind: Kind
    source: Url | Inline | Upload | Frames
    where: str
    controls: Controls = AS_IT_IS


class Message(Value):
    """One turn of the conversation, its parts in the order in which the model reads them."""

    role: Role
    parts: tuple[Text | Media, ...]


class Sampling(Value):
    """How tokens are chosen. None takes the checkpoint's default; temperature 0 is greedy.

    n: answers to the one prompt. logprobs: None for no log-probabilities, else how many of the likeliest tokens to
    name beside the chosen one. logit_bias: token ids with what is added to their logits.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop: Annotated[tuple[str, ...], Field(repr=False)] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    n: int = 1
    logprobs: int | None = None


class Talk(Value):
    """The conversation that a bot's message belongs to and that the worker remembers. key: which; content: the
    message's own words; at: when it was said, in seconds by its client's clock, None: when it came."""

    key: str
    content: str = Field(repr=False)
    at: float | None = None
    is_group: bool = False


class ChatRequest(Value):
    """A whole request: what is said, how to answer, and in which form. Without messages it asks about the model alone.
    max_seconds: from its arrival to its end; talk: the one message goes on with a conversation that is remembered;
    template: what the chat template is told besides."""

    messages: tuple[Message, ...]
    sampling: Sampling = Sampling.model_construct()
    max_seconds: float | None = None
    stream: bool = False
    include_usage: bool = False
    model: str | None = None
    ignored: tuple[str, ...] = ()
    talk: Talk | None = None
    template: tuple[tuple[str, str | bool | int | float], ...] = ()

    @property
    def media(self) -> tuple[Media, ...]:
        """All pictures and videos, in the order of the prompt."""
        return tuple(part for message in self.messages for part in message.parts if isinstance(part, Media))


RGB = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    """An opened picture, upright. rgb: (height, width, 3). sides: its true height and width, where it was decoded at a
    part of them."""

    rgb: RGB
    controls: Controls = AS_IT_IS
    sides: tuple[int, int] | None = None


@dataclass(frozen=True)
class Clip:
    """An opened video: frames of one size, (height, width, 3) each.

    times: seconds at which they are shown; without them, `fps` a second (None: the checkpoint's rate).
    is_sized: they have the size at which the model sees them.
    """

    frames: tuple[RGB, ...]
    fps: float | None
    times: tuple[float, ...] | None = None
    controls: Controls = AS_IT_IS
    is_sized: bool = False


Opened = Picture | Clip


class Seen(Value):
    """A picture or video as the model saw it. where: its place in the request; times: seconds of a video's frames."""

    where: str
    kind: Kind
    width: int
    height: int
    tokens: int
    times: tuple[float, ...] = ()


class Usage(Value):
    """Tokens of one request. Image, video and cached tokens are part of the prompt's; cached ones were computed for an
    earlier request that began alike."""

    prompt_tokens: int
    completion_tokens: int
    image_tokens: int = 0
    video_tokens: int = 0
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Meta(Value):
    """What is known of an answer before its first word. code: whose model code runs the model; created: in seconds
    since 1970; is_named: whether the request names its model."""

    id: str
    model: str
    code: str
    created: int
    is_named: bool = False
    include_usage: bool = False
    num_answers: int = 1


class Start(Value):
    """The first event of the answer is about to be sent."""


@dataclass(frozen=True)
class Likely:
    """A token that could stand in a place. text: as far as it is whole characters; logprob: natural logarithm of the
    model's own probability, before temperature and the rest."""

    text: str
    bytes: bytes
    logprob: float


@dataclass(frozen=True)
class TokenLogprob:
    """The token that was chosen, and the likeliest ones in order."""

    chosen: Likely
    top: tuple[Likely, ...]


class Piece(Value):
    """The next piece of an answer: never half a character, never a part of a stop string. index: which answer of `n`.
    logprobs: of the tokens that are new, where they were asked for."""

    text: str
    index: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()


class Done(Value):
    """The end of all answers. reasons: one for each of `n`; usage: of all together, the prompt counted once; seen: the
    pictures and videos, in order; first_token_s: the engine's seconds to the first token; first_token_at: when it
    came, on the clock of `time.monotonic`; cold_start: seconds of the start's phases, with the worker's first
    answer."""

    reasons: tuple[FinishReason, ...]
    usage: Usage
    seen: tuple[Seen, ...] = ()
    first_token_s: float | None = None
    first_token_at: float | None = None
    cold_start: dict[str, float] | None = None


class Said(Value):
    """One of the answers to a request."""

    text: str
    reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] = ()


class Answer(Value):
    """A finished answer: the stream, gathered."""

    meta: Meta
    said: tuple[Said, ...]
    usage: Usage
    seen: tuple[Seen, ...] = ()
    first_token_s: float | None = None
    first_token_at: float | None = None
    cold_start: dict[str, float] | None = None


Event = Piece | Done
StreamEvent = Start | Piece | Done


def _whole(value: object) -> object:
    """JSON knows one kind of number: 512.0 is as whole as 512."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


# What dialects share when they declare their own bodies.
Whole = Annotated[int, BeforeValidator(_whole)]
BoundedText = Annotated[str, Field(max_length=MAX_TEXT_CHARS)]
MaxTokens = Annotated[Whole, Field(ge=1, le=MAX_TOKENS_CEILING)]
MinTokens = Annotated[Whole, Field(ge=0, le=MAX_TOKENS_CEILING)]
Temperature = Annotated[float, Field(ge=0, le=10)]
TopP = Annotated[float, Field(gt=0, le=1)]
TopK = Annotated[Whole, Field(ge=0, le=1_000_000)]
MinP = Annotated[float, Field(ge=0, le=1)]
RepetitionPenalty = Annotated[float, Field(gt=0, le=10)]
AdditivePenalty = Annotated[float, Field(ge=-2, le=2)]
MaxSeconds = Annotated[float, Field(gt=0, le=MAX_SECONDS_CEILING)]
NumAnswers = Annotated[Whole, Field(ge=1, le=MAX_ANSWERS)]
NumLikely = Annotated[Whole, Field(ge=0, le=MAX_LIKELY)]
TokenIds = Annotated[list[Annotated[Whole, Field(ge=0)]], Field(max_length=MAX_STOPS)]
Seed = Annotated[Whole, Field(ge=-(2**63), lt=2**64)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
