"""The language spoken inside: one request, its parts, and the events that answer it.

Every value is frozen. Dialects make a `ChatRequest`; the engine answers with `Piece` … `Done`. This module
knows no dialect, no network and no model.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

MAX_TEXT_CHARS = 500_000
MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_MESSAGES = 512
MAX_TOKENS_CEILING = 1_000_000

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length"]
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


class Frames(Value):
    """Pictures that make a video, `fps` of them a second; None takes the checkpoint's rate."""

    frames: tuple[Url | Inline, ...]
    fps: float | None = None


class Text(Value):
    """Words in a message."""

    text: str = Field(repr=False)


class Media(Value):
    """A picture or video in a message; `where` is its place in the request, for error messages."""

    kind: Kind
    source: Url | Inline | Frames
    where: str


class Message(Value):
    """One turn of the conversation, its parts in the order in which the model reads them."""

    role: Role
    parts: tuple[Text | Media, ...]


class Sampling(Value):
    """How tokens are chosen. None takes the checkpoint's default; temperature 0 is greedy."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = Field((), repr=False)


class ChatRequest(Value):
    """A whole request: what is said, how to answer, and in which form."""

    messages: tuple[Message, ...]
    sampling: Sampling = Sampling.model_construct()
    stream: bool = False
    include_usage: bool = False
    model: str | None = None
    ignored: tuple[str, ...] = ()

    @property
    def media(self) -> tuple[Media, ...]:
        """All pictures and videos, in the order of the prompt."""
        return tuple(part for message in self.messages for part in message.parts if isinstance(part, Media))


RGB = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    """An opened picture, upright. rgb: (height, width, 3)."""

    rgb: RGB


@dataclass(frozen=True)
class Clip:
    """An opened video: frames of one size, (height, width, 3) each, `fps` a second (None: the checkpoint's rate)."""

    frames: tuple[RGB, ...]
    fps: float | None


Opened = Picture | Clip


class Usage(Value):
    """Tokens of one request. Image and video tokens are part of the prompt's."""

    prompt_tokens: int
    completion_tokens: int
    image_tokens: int = 0
    video_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Meta(Value):
    """What is known of an answer before its first word. `created` is in seconds since 1970."""

    id: str
    model: str
    created: int
    include_usage: bool = False


class Start(Value):
    """The first event of the answer is about to be sent."""


class Piece(Value):
    """The next piece of the answer: never half a character, never a part of a stop string."""

    text: str


class Done(Value):
    """The end of an answer."""

    reason: FinishReason
    usage: Usage


class Answer(Value):
    """A finished answer: the stream, gathered."""

    meta: Meta
    text: str
    reason: FinishReason
    usage: Usage


Event = Piece | Done
StreamEvent = Start | Piece | Done

# What dialects share when they declare their own bodies.
BoundedText = Annotated[str, Field(max_length=MAX_TEXT_CHARS)]
MaxTokens = Annotated[int, Field(ge=1, le=MAX_TOKENS_CEILING)]
Temperature = Annotated[float, Field(ge=0, le=10)]
TopP = Annotated[float, Field(gt=0, le=1)]
TopK = Annotated[int, Field(ge=0, le=1_000_000)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**64)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
