"""OpenAI's older Completions: a prompt that is continued as it is, without a chat template."""

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from worker.core.contract import (
    Answer,
    ChatRequest,
    Done,
    Message,
    Meta,
    Piece,
    Start,
    StreamEvent,
    Text,
    TokenLogprob,
    Usage,
)
from worker.core.errors import InputInvalid, WorkerError
from worker.core.safe_json import JsonObject
from worker.dialects.base import BoundedText, Chunk, Dialect, ReplyBody, answers_only
from worker.dialects.constraint_fields import only_one
from worker.dialects.media_report import own_reason, work_report
from worker.dialects.openai_fields import OpenAIFields, refuse_unbuilt
from worker.dialects.openai_reply import (
    REASONS,
    ChatUsage,
    Faults,
    OpenAIFault,
    UsageSoFar,
    chat_usage,
    head_of,
    last_events,
)
from worker.dialects.sampling_fields import MAX_ALTERNATIVES
from worker.dialects.sse import data_event
from worker.dialects.validation import validated

MAX_TOKENS = 16  # the API's default
FAULTS = Faults(prompt="prompt")
_KIND = "text_completion"


def _one(value: object) -> object:
    """The prompt; of a list, the only one in it."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        return value[0]
    if isinstance(value, list):
        raise PydanticCustomError("own_prompt", "must be one text: send each prompt, and no token ids, as a request")
    return value


class CompletionBody(OpenAIFields):
    """What is honoured of a Completions body."""

    prompt: Annotated[BoundedText, Field(min_length=1), BeforeValidator(_one)] = Field(repr=False)


class CompletionChoice(ReplyBody):
    """One of the answers."""

    text: str
    index: int
    logprobs: JsonObject | None
    finish_reason: Literal["stop", "length"]
    stop_reason: str | int | None
    worker_finish_reason: Literal["time", "repetition"] | None = None


class CompletionReply(ReplyBody):
    """The API's text completion."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: ChatUsage
    timing: dict[str, float]
    cost: dict[str, float] | None = None


def parse_completion(body: JsonObject) -> ChatRequest:
    """A Completions body as a request. Raises InputInvalid."""
    refuse_unbuilt(body, taken=("add_special_tokens",))  # these families put none before a prompt
    if body.get("suffix"):
        raise InputInvalid(where="suffix", detail="is not supported: the model writes what follows a prompt")
    form = validated(CompletionBody, with_chat_logprobs(body))
    if form.max_tokens is None:
        form = form.model_copy(update={"max_tokens": MAX_TOKENS})
    return ChatRequest(
        messages=(Message(role="user", parts=(Text(text=form.prompt),)),),
        is_raw=True,
        sampling=form.sampling(only_one(form.forms())),
        **form.limits(),
        stream=form.stream or False,
        include_usage=form.includes_usage,
        continuous_usage=form.continues_usage,
        model=form.model,
        ignored=form.ignored(body),
    )


def with_chat_logprobs(body: JsonObject) -> JsonObject:
    """This API's `logprobs` is how many likely tokens to name. Raises InputInvalid."""
    count = body.get("logprobs")
    if not isinstance(count, int) or isinstance(count, bool):
        return body
    if not 0 <= count <= MAX_ALTERNATIVES:
        raise InputInvalid(where="logprobs", detail=f"must be from 0 to {MAX_ALTERNATIVES}")
    return {**body, "logprobs": True, "top_logprobs": count}


def completion(answer: Answer) -> JsonObject:
    """The API's object."""
    choices = [
        {
            "text": choice.text,
            "index": index,
            "logprobs": _Logprobs().told(choice.logprobs),
            "finish_reason": REASONS[choice.reason],
            "stop_reason": choice.stop,
            **own_reason(choice.reason),
        }
        for index, choice in enumerate(answer.choices)
    ]
    head = head_of(answer.meta, _KIND, "cmpl")
    return {**head, "choices": choices, "usage": chat_usage(answer.usage), **work_report(answer)}


class _Logprobs:
    """Log-probabilities as this API writes them, with the place of each token in the text so far."""

    def __init__(self) -> None:
        self._num_chars = 0

    def told(self, tokens: Iterable[TokenLogprob]) -> JsonObject | None:
        shown: JsonObject = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token in tokens:
            shown["tokens"].append(token.chosen.text)
            shown["token_logprobs"].append(token.chosen.logprob)
            shown["top_logprobs"].append({other.text: other.logprob for other in (*token.top, token.chosen)})
            shown["text_offset"].append(self._num_chars)
            self._num_chars += len(token.chosen.text)
        return shown if shown["tokens"] else None


class CompletionWriter:
    """The API's stream: each chunk is an object with the next words."""

    def __init__(self, meta: Meta) -> None:
        self._meta = meta
        self._logprobs = [_Logprobs() for _ in range(meta.num_answers)]
        self._usage = UsageSoFar(meta)

    def feed(self, event: StreamEvent) -> list[Chunk]:
        match event:
            case Start():
                return []
            case Piece():
                return [data_event(self._chunk(event.index, event.text, event.usage, event.logprobs))]
            case Done():
                chunks = [self._chunk(index, "", event.usage) for index in range(len(event.reasons))]
                return [last_events(chunks, event, self._meta, head_of(self._meta, _KIND, "cmpl"))]

    def _chunk(self, index: int, text: str, usage: Usage | None, logprobs: tuple[TokenLogprob, ...] = ()) -> JsonObject:
        told = self._logprobs[index].told(logprobs)
        choice = {"text": text, "index": index, "logprobs": told, "finish_reason": None}
        chunk = {**head_of(self._meta, _KIND, "cmpl"), "choices": [choice]}
        return self._usage.put_into(chunk, usage)

    def flush(self) -> list[Chunk]:
        return []

    def fail(self, error: WorkerError) -> list[Chunk]:
        return FAULTS.refuse(error, True)


DIALECT = Dialect(
    name="openai_completions",
    about="OpenAI Completions: a prompt continued as it is",
    route="/v1/completions",
    is_openai=True,
    parse=parse_completion,
    reply=answers_only(completion),
    writer=CompletionWriter,
    refuse=FAULTS.refuse,
    http_error=FAULTS.http_error,
    body=CompletionBody,
    reply_model=CompletionReply,
    fault=OpenAIFault,
    stream_type="text/event-stream",
    example={"prompt": "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n", "max_tokens": 64},
)
