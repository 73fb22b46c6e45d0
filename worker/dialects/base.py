"""What a dialect is, and what the bodies of all dialects share.

A dialect owns everything about itself: its route, what it takes and gives, how it streams, how it says an error. The
HTTP server and OpenAPI are derived from it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol, assert_never

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field

from worker.core.contract import (
    Answer,
    ChatRequest,
    Counted,
    Meta,
    ModelCard,
    ModelQuery,
    Reply,
    Silence,
    StreamEvent,
)
from worker.core.errors import MediaError, WorkerError
from worker.core.gathering import Gathered
from worker.core.safe_json import JsonObject

Chunk = JsonObject | str
Refusal = Callable[[WorkerError, bool], list[Chunk]]

JSON_TYPE = "application/json"
FORM_TYPE = "multipart/form-data"
MAX_TEXT_CHARS = 500_000
MAX_MESSAGES = 512


class Writer(Protocol):
    """Writes one stream. It may keep state from event to event."""

    def feed(self, event: StreamEvent) -> list[Chunk]:
        """What the client receives for this event, in order."""
        ...

    def flush(self) -> list[Chunk]:
        """What is still held back when the last event has been fed."""
        ...

    def fail(self, error: WorkerError) -> list[Chunk]:
        """What ends a stream that failed, in order."""
        ...


@dataclass(frozen=True)
class Upload:
    """A route that takes a form with a file in it. field: the file's."""

    field: str


@dataclass(frozen=True)
class HttpError:
    """An error as an HTTP route says it."""

    status: int
    body: JsonObject


class Fault(BaseModel):
    """Why a request failed: a sentence for people, a code for programs."""

    model_config = ConfigDict(defer_build=True)

    detail: str
    code: str


def plain_error(error: WorkerError, declared_type: str | None = None) -> HttpError:
    """`{"detail", "code"}` with the error's own status."""
    return HttpError(error.status, {"detail": error.message, "code": error.code})


def upload_error(error: WorkerError, declared_type: str | None = None) -> HttpError:
    """The same; a file of the wrong kind is a bad request to the clients of upload routes."""
    return HttpError(400 if error.status == 415 else error.status, plain_error(error).body)


def status_without_media(error: WorkerError) -> int:
    """The status for clients that know no errors of media: what can never be used is a bad request, and they do not try
    again."""
    return 400 if isinstance(error, MediaError) and error.status < 500 else error.status


def job_error(error: WorkerError, is_stream: bool) -> list[Chunk]:
    """What ends a job that failed, where the dialect has no form of its own for it."""
    return [{"error": error.as_json()}]


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """One language of requests and answers. All its functions are pure: no I/O, no clock, no torch.

    name: for metrics, and for the job API's `dialect` field; is_named: whether that field may name it. claims: whether
    an input that names no route is this dialect's. about: one line for OpenAPI. parse: the body to a request; raises
    InputError. reply: the whole answer. writer: of one stream, None where there is none. refuse: what ends a job that
    failed, told whether the body asked for a stream.

    route: its HTTP path, and the `route` of the job API; None: it reads what no other dialect does. method, has_tail:
    of the HTTP route; with a tail the path ends with a name, which is the body's `tail`. is_openai: the platform's
    OpenAI route leads here too. upload: the body is a form with a file. http_error: an error as the route says it, told
    the type that an uploaded file was declared as.

    body, reply_model, tail_reply_model, fault: what OpenAPI shows. stream_type: the media type of the stream. example:
    of a body.
    """

    name: str
    about: str
    parse: Callable[[JsonObject], ChatRequest | ModelQuery]
    reply: Callable[[Reply], Chunk]
    writer: Callable[[Meta], Writer] | None = None
    refuse: Refusal = job_error
    is_named: bool = True
    claims: Callable[[JsonObject], bool] = lambda _: False

    route: str | None = None
    method: Literal["GET", "POST"] = "POST"
    has_tail: bool = False
    is_openai: bool = False
    upload: Upload | None = None
    http_error: Callable[[WorkerError, str | None], HttpError] = plain_error

    body: type[BaseModel] | None = None
    reply_model: type[BaseModel] | None = None
    tail_reply_model: type[BaseModel] | None = None
    fault: type[BaseModel] = Fault
    stream_type: str | None = None
    example: JsonObject | None = field(default=None, repr=False)

    @property
    def content_type(self) -> str:
        """Of the HTTP route's body."""
        return JSON_TYPE if self.upload is None else FORM_TYPE


class StreamWriter:
    """A writer without state. `chunks`: what the client receives for an event; `refuse`: the dialect's."""

    def __init__(self, meta: Meta, chunks: Callable[[StreamEvent, Meta], list[Chunk]], refuse: Refusal) -> None:
        self._meta, self._chunks, self._refuse = meta, chunks, refuse

    def feed(self, event: StreamEvent) -> list[Chunk]:
        return self._chunks(event, self._meta)

    def flush(self) -> list[Chunk]:
        return []

    def fail(self, error: WorkerError) -> list[Chunk]:
        return self._refuse(error, True)


class PlainWriter:
    """Writes a whole answer: all events gathered, as one reply."""

    def __init__(self, meta: Meta, reply: Callable[[Reply], Chunk], refuse: Refusal) -> None:
        self._meta, self._reply, self._refuse = meta, reply, refuse
        self._gathered = Gathered()

    def feed(self, event: StreamEvent) -> list[Chunk]:
        self._gathered.feed(event)
        return []

    def flush(self) -> list[Chunk]:
        """Raises InternalError where the events ended without a Done."""
        return [self._reply(self._gathered.answer(self._meta))]

    def fail(self, error: WorkerError) -> list[Chunk]:
        return self._refuse(error, False)


def answers_only(shape: Callable[[Answer], Chunk]) -> Callable[[Reply], Chunk]:
    """The `reply` of a dialect whose requests end in an answer and in nothing else."""

    def reply(outcome: Reply) -> Chunk:
        match outcome:
            case Answer():
                return shape(outcome)
            case Counted() | ModelCard() | Silence():
                raise AssertionError(f"{type(outcome).__name__} is no outcome of this dialect's requests")
            case _:
                assert_never(outcome)

    return reply


def counts_only(shape: Callable[[Counted], Chunk]) -> Callable[[Reply], Chunk]:
    """The `reply` of a dialect whose requests end in a count and in nothing else."""

    def reply(outcome: Reply) -> Chunk:
        match outcome:
            case Counted():
                return shape(outcome)
            case Answer() | ModelCard() | Silence():
                raise AssertionError(f"{type(outcome).__name__} is no outcome of this dialect's requests")
            case _:
                assert_never(outcome)

    return reply


def cards_only(shape: Callable[[ModelCard], JsonObject]) -> Callable[[Reply], Chunk]:
    """The `reply` of a dialect whose requests ask about what is served and about nothing else."""

    def reply(outcome: Reply) -> Chunk:
        match outcome:
            case ModelCard():
                return shape(outcome)
            case Answer() | Counted() | Silence():
                raise AssertionError(f"{type(outcome).__name__} is no outcome of this dialect's requests")
            case _:
                assert_never(outcome)

    return reply


class Body(BaseModel):
    """A part of an outside body: every field is known, of its own type, and finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)


class ReplyBody(BaseModel):
    """A reply as OpenAPI shows it; nothing is validated against it while serving."""

    model_config = ConfigDict(defer_build=True)


def string_or_list(tag: str, told: str) -> Discriminator:
    """Of a union of a string, tagged `<string>`, and a list with the tag. told: what it must be."""

    def kind_of(value: object) -> str | None:
        return "<string>" if isinstance(value, str) else tag if isinstance(value, list) else None

    return Discriminator(kind_of, custom_error_type="own_string_or_list", custom_error_message=told)


def without_nulls(value: object) -> object:
    """Clients that dump their objects write null for what is not there."""
    return {name: one for name, one in value.items() if one is not None} if isinstance(value, dict) else value


def _whole(value: object) -> object:
    """JSON knows one kind of number: 512.0 is as whole as 512."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
BoundedText = Annotated[str, Field(max_length=MAX_TEXT_CHARS)]
