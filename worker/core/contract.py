"""The values of a request, from the dialect that read it to the dialect that answers it.

Every value is frozen. Dialects make a `ChatRequest`; an engine answers with `Piece` … `Done`. Knows no dialect, no
network and no model.
"""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from worker.core.media_warnings import MediaWarning
from worker.core.outcome import NO_OUTPUTS, DetectedObject, Outcome, Outputs
from worker.core.safe_json import JsonObject
from worker.core.sampling import Sampling
from worker.core.tools import ToolCall, Tools
from worker.core.value import Value

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "time", "tool_calls", "repetition"]
Kind = Literal["image", "video"]
# What the numbers of a box count in an answer's text: thousandths of the source, or pixels of the resized picture.
Coordinates = Literal["thousandths", "resized_pixels"]
Color = Literal["srgb", "as_is"]
Cached = Literal["features", "prefix"]
TemplateValue = str | bool | int | float
Stop = str | int


class Url(Value):
    """An http(s) address, not yet checked."""

    url: str = Field(repr=False)


class Inline(Value):
    """A data URI or bare base64, not yet decoded."""

    data: str = Field(repr=False)


class Upload(Value):
    """The bytes of a file that came with the request."""

    data: bytes = Field(repr=False)


File = Url | Inline | Upload


class Frames(Value):
    """Pictures that make a video, `fps` of them a second (None takes the checkpoint's rate), or each at its own of the
    `times` in seconds."""

    frames: tuple[File, ...]
    fps: float | None = None
    times: tuple[float, ...] | None = None


class Controls(Value):
    """How a picture or video is to be seen; None takes the checkpoint's or the worker's own. Sides and pixels are of
    one picture or frame, total_pixels of all temporal patches of a video. fps and nframes say how many frames of a
    video file are seen, video_start and video_end (seconds) of which part. strict_media: damage is refused instead of
    seen as far as it can be; color: a picture's color profile is applied, or not. shortest_edge, longest_edge: the
    least and most pixels by the name of the processors' `size`: of a picture, and of what the family's video processor
    bounds, a frame or all of them."""

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
    strict_media: bool | None = None
    color: Color | None = None
    shortest_edge: int | None = None
    longest_edge: int | None = None


NO_CONTROLS = Controls.model_construct()


class Text(Value):
    """Words in a message."""

    text: str = Field(repr=False)


class Media(Value):
    """A picture or video in a message; `where` is its place in the request, for error messages. keeps_size: a picture
    is decoded at its own size, whatever the model's, or at a large one."""

    kind: Kind
    source: File | Frames
    where: str
    controls: Controls = NO_CONTROLS
    keeps_size: bool = False


class Message(Value):
    """One turn of the conversation, its parts in the order in which the model reads them. reasoning, tool_calls: what
    an assistant thought before its words, and called after them; the role `tool` has a call's result."""

    role: Role
    parts: tuple[Text | Media, ...]
    reasoning: str | None = Field(None, repr=False)
    tool_calls: tuple[ToolCall, ...] = ()


class ConversationRef(Value):
    """The conversation that a bot's message belongs to and that the worker remembers. key: which; content: the
    message's own words; at: when it was said, in seconds by its client's clock, None: when it came."""

    key: str
    content: str = Field(repr=False)
    at: float | None = None
    is_group: bool = False


class ChatRequest(Value):
    """A whole request: what is said, how to answer, and in which form. max_seconds: from its arrival to its end;
    max_gpu_seconds, max_cost_usd: of the device's time, and of its price. outputs: what is answered beside the text.
    counts_only: the prompt is built and counted, and the model is not run. conversation: the one message continues a
    conversation that is remembered. template: further variables of the chat template. ignored: fields of the body that
    change nothing here, for the log. caller: whose key it came with, where there are several; cache_salt: what the
    caller itself keeps its users apart by. opens_turn: the prompt ends where the assistant's turn begins;
    continues_last: it ends within the last message, and the answer is the rest of it. is_raw: the texts are the whole
    prompt, control tokens and all, and no chat template is applied. include_usage: a stream ends with it,
    continuous_usage: each of its chunks has it. echo: what the dialect's reply repeats of the body."""

    messages: tuple[Message, ...]
    sampling: Sampling = Sampling.model_construct()
    max_seconds: float | None = None
    max_gpu_seconds: float | None = None
    max_cost_usd: float | None = None
    outputs: Outputs = NO_OUTPUTS
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    counts_only: bool = False
    model: str | None = None
    ignored: tuple[str, ...] = ()
    conversation: ConversationRef | None = None
    template: tuple[tuple[str, TemplateValue], ...] = ()
    caller: str = ""
    cache_salt: str = Field("", repr=False)
    tools: Tools = Tools.model_construct()
    opens_turn: bool = True
    continues_last: bool = False
    is_raw: bool = False
    echo: JsonObject = Field({}, repr=False)

    @property
    def media(self) -> tuple[Media, ...]:
        """All pictures and videos, in the order of the prompt."""
        return tuple(part for message in self.messages for part in message.parts if isinstance(part, Media))

    @property
    def texts(self) -> tuple[str, ...]:
        """All words of the messages, and those of the tools and their calls, which are JSON."""
        words = [part.text for message in self.messages for part in message.parts if isinstance(part, Text)]
        words += [message.reasoning for message in self.messages if message.reasoning is not None]
        words += [
            word for message in self.messages for call in message.tool_calls for word in (call.name, call.arguments)
        ]
        return (*words, *(tool.definition for tool in self.tools.offered))


class ModelQuery(Value):
    """A request that asks which model is served, or about the one that it names. topic: what else it asks about."""

    model: str | None = None
    topic: str = ""


class MediaInfo(Value):
    """A picture or video as the model saw it. where: its place in the request; width, height: of the resized picture;
    times: seconds of a video's frames. source_width, source_height: upright, before resizing; orientation: EXIF's
    number of how the source is stored; coordinates: what the model's boxes count. frames_lost: frames of a video that
    cannot be decoded; truncated: it ends before its last frame; warnings: why what was seen is not just what is stored.
    type: detected, as `image/png`; num_bytes: of the file; fetch_s, decode_s, preprocess_s: seconds of its reading,
    decoding and resizing; cached: what of it an earlier request had computed, its features or its place in a prompt.
    """

    where: str
    kind: Kind
    width: int
    height: int
    tokens: int
    times: tuple[float, ...] = ()
    source_width: int = 0
    source_height: int = 0
    orientation: int = 1
    coordinates: Coordinates = "thousandths"
    frames_lost: int = 0
    truncated: bool = False
    warnings: tuple[MediaWarning, ...] = ()
    type: str = ""
    num_bytes: int = 0
    fetch_s: float = 0.0
    decode_s: float = 0.0
    preprocess_s: float = 0.0
    cached: Cached | None = None


class Usage(Value):
    """Tokens of one request. Image, video and cached tokens are part of the prompt's; cached ones were computed for an
    earlier request that began alike. Reasoning tokens are part of the completion's."""

    prompt_tokens: int
    completion_tokens: int
    image_tokens: int = 0
    video_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Meta(Value):
    """What is known of an answer before its first word. code: whose model code runs the model; created: in seconds
    since 1970; fingerprint: of the engine, see `EngineInfo`; the rest is the request's."""

    id: str
    model: str
    code: str
    created: int
    fingerprint: str = ""
    include_usage: bool = False
    continuous_usage: bool = False
    num_answers: int = 1
    echo: JsonObject = Field({}, repr=False)


class Start(Value):
    """The first event of the answer is about to be sent. usage: so far, where the engine tells it."""

    usage: Usage | None = None


@dataclass(frozen=True)
class TokenAlternative:
    """A token that could stand in a place. text: as far as it is whole characters; logprob: natural logarithm of the
    model's own probability, before temperature and the rest."""

    text: str
    bytes: bytes
    logprob: float


@dataclass(frozen=True)
class TokenLogprob:
    """The token that was chosen, and the likeliest ones in order."""

    chosen: TokenAlternative
    top: tuple[TokenAlternative, ...]


class Piece(Value):
    """The next piece of an answer: never half a character, never a part of a stop string. index: which answer of `n`.
    logprobs: of the tokens that are new, where they were asked for. usage: of all answers so far. An engine's pieces
    have text alone, and say with opens_thought whether the prompt ends within a thought, and with media what was seen;
    `worker.parsers` tells reasoning, calls and objects from it."""

    text: str
    index: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    opens_thought: bool = False
    media: tuple[MediaInfo, ...] = ()
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    objects: tuple[DetectedObject, ...] = ()
    usage: Usage | None = None


class Work(Value):
    """Where an engine's seconds for a request went. queue_s: until the first of it was computed; preprocess_s: its
    prompt's making; vision_s: of the passes of the vision tower that it took part in; prefill_s: the rest up to its
    first token; decode_s: from there to its end. gpu_seconds: its share of the time in which the device was busy."""

    preprocess_s: float = 0.0
    queue_s: float = 0.0
    vision_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    gpu_seconds: float = 0.0


class Done(Value):
    """The end of all answers. reasons: one for each of `n`; stops: the stop string, or the id of the request's
    `stop_token_ids`, that ended each, in the same order; usage: of all together, the prompt counted once; media: the
    pictures and videos, in order; first_token_s: the engine's seconds to the first token; first_token_at: when it
    came, on the clock of `time.monotonic`; work: what it took of the engine; cold_start: seconds of the start's phases,
    with the worker's first answer; timing: seconds of this request, by name; cost: of the device's time, an estimate;
    outcomes: of each answer, beside its text, where there is anything."""

    reasons: tuple[FinishReason, ...]
    stops: tuple[Stop | None, ...] = ()
    usage: Usage
    media: tuple[MediaInfo, ...] = ()
    first_token_s: float | None = None
    first_token_at: float | None = None
    work: Work | None = None
    cold_start: dict[str, float] | None = None
    timing: dict[str, float] = {}
    cost: dict[str, float] = {}
    outcomes: tuple[Outcome, ...] = ()

    def stop_of(self, index: int) -> Stop | None:
        """What ended one of the answers; an engine may tell it of none."""
        return self.stops[index] if self.stops else None

    def outcome_of(self, index: int) -> Outcome | None:
        """What one of the answers carries beside its text, if anything."""
        return self.outcomes[index] if self.outcomes else None


Event = Piece | Done
StreamEvent = Start | Piece | Done


class Choice(Value):
    """One of the answers to a request. reasoning: what the model thought before it; stop: see `Done`. pieces: the same
    in the order in which it came."""

    text: str
    reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] = ()
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    stop: Stop | None = None
    pieces: tuple[Piece, ...] = Field((), repr=False)
    outcome: Outcome | None = None


class Answer(Value):
    """A finished answer: the stream, gathered."""

    meta: Meta
    choices: tuple[Choice, ...]
    usage: Usage
    media: tuple[MediaInfo, ...] = ()
    cold_start: dict[str, float] | None = None
    timing: dict[str, float] = {}
    cost: dict[str, float] = {}


class Counted(Value):
    """A prompt that was built and not run: its tokens, and its pictures and videos as the model would see them.
    max_model_len: the context length; tokens: their ids."""

    meta: Meta
    prompt_tokens: int
    max_model_len: int
    tokens: tuple[int, ...] = ()
    media: tuple[MediaInfo, ...] = ()


class ModelCard(Value):
    """The model that is served. is_named: whether the request asked for it by its name; max_model_len: its context
    length here; topic: the request's."""

    model: str
    created: int
    is_named: bool
    max_model_len: int
    topic: str = ""


class Silence(Value):
    """The message was for others: it is remembered, and not answered."""


Reply = Answer | Counted | ModelCard | Silence
