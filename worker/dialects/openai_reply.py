"""Replies, chunks and errors of OpenAI's Chat Completions."""

import json
from dataclasses import dataclass
from typing import Literal

from worker.core.contract import (
    Answer,
    Choice,
    Done,
    Meta,
    Piece,
    Start,
    StreamEvent,
    TokenLogprob,
    Usage,
)
from worker.core.errors import WorkerError
from worker.core.safe_json import Json, JsonObject
from worker.dialects.base import Chunk, HttpError, ReplyBody, status_without_media
from worker.dialects.chat_vl import TokenUsage, token_usage
from worker.dialects.media_report import own_reason, work_report
from worker.dialects.outcome_report import objects_report, outcome_report
from worker.dialects.sampling_fields import logprobs
from worker.dialects.sse import data_event
from worker.dialects.tool_fields import CallWriter

_CHUNK = "chat.completion.chunk"
END = "data: [DONE]\n\n"
# The API's own codes for ours.
_CODES = {
    "MODEL_NOT_FOUND": "model_not_found",
    "PROMPT_TOO_LONG": "context_length_exceeded",
}
# The API knows no end by time.
REASONS = {"stop": "stop", "length": "length", "time": "length", "tool_calls": "tool_calls", "repetition": "stop"}
# Those that the API does not tell apart.


class OpenAIFault(ReplyBody):
    """The error object of the OpenAI API."""

    class Error(ReplyBody):
        """What is wrong, and where."""

        message: str
        type: Literal["invalid_request_error", "server_error"]
        param: str | None
        code: str
        worker_code: str

    error: Error


class ChatChoice(ReplyBody):
    """One of the answers."""

    class AssistantMessage(ReplyBody):
        """The answer's words."""

        role: Literal["assistant"]
        content: str | None
        refusal: None
        reasoning_content: str | None = None
        reasoning: str | None = None
        tool_calls: list[JsonObject] | None = None

    index: int
    message: AssistantMessage
    logprobs: JsonObject | None
    finish_reason: Literal["stop", "length", "tool_calls"]
    stop_reason: str | int | None
    worker_finish_reason: Literal["time", "repetition"] | None = None
    objects: list[JsonObject] | None = None
    objects_status: JsonObject | None = None
    result: Json = None
    annotated: list[JsonObject] | None = None
    crops: list[JsonObject] | None = None
    drawing_error: JsonObject | None = None
    confidence: JsonObject | None = None


class ChatUsage(TokenUsage):
    """Tokens, and those of pictures, of videos, and known before."""

    prompt_tokens_details: dict[str, int]
    completion_tokens_details: dict[str, int]


class OpenAIReply(ReplyBody):
    """The API's chat completion, and `response` beside it."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: ChatUsage
    response: str
    media: list[JsonObject] | None = None
    timing: dict[str, float]
    cost: dict[str, float] | None = None


def shape(answer: Answer) -> JsonObject:
    """The API's object, and `response` beside it for the clients of an older service on the same route."""
    choices = [
        {
            "index": index,
            "message": _message(choice, answer.meta, index),
            "logprobs": _logprobs(choice.logprobs),
            "finish_reason": REASONS[choice.reason],
            "stop_reason": choice.stop,
            **own_reason(choice.reason),
            **outcome_report(choice.outcome),
        }
        for index, choice in enumerate(answer.choices)
    ]
    head = head_of(answer.meta, "chat.completion")
    words = {"choices": choices, "usage": chat_usage(answer.usage), "response": answer.choices[0].text}
    return {**head, **words, **work_report(answer)}


def _message(choice: Choice, meta: Meta, index: int) -> JsonObject:
    """No words beside calls, or behind a thought that did not end, are null."""
    has_more = bool(choice.tool_calls or choice.reasoning)
    message: JsonObject = {"role": "assistant", "content": choice.text or (None if has_more else ""), "refusal": None}
    if choice.reasoning:
        message |= _reasoning(choice.reasoning)
    if choice.tool_calls:
        message["tool_calls"] = CallWriter(meta).written(choice.tool_calls, index)
    return message


def _reasoning(text: str) -> JsonObject:
    """By DeepSeek's and Qwen's name, and by that of vLLM's newer versions and OpenRouter."""
    return {"reasoning_content": text, "reasoning": text}


class ChunkWriter:
    """Server-sent events; the platform writes strings through as they are. Calls are numbered as they come."""

    def __init__(self, meta: Meta) -> None:
        self._meta = meta
        self._calls = CallWriter(meta)
        self._usage = UsageSoFar(meta)

    def feed(self, event: StreamEvent) -> list[Chunk]:
        meta = self._meta
        match event:
            case Start():
                opening = {"role": "assistant", "content": ""}
                chunks = [self._chunk(opening, index, event.usage) for index in range(meta.num_answers)]
                return ["".join(data_event(chunk) for chunk in chunks)]
            case Piece():
                chunk = self._chunk(self._delta(event), event.index, event.usage, _logprobs(event.logprobs))
                if event.objects:
                    chunk["choices"][0]["objects"] = objects_report(event.objects)
                return [data_event(chunk)]
            case Done():
                chunks = [self._chunk({}, index, event.usage) for index in range(len(event.reasons))]
                return [last_events(chunks, event, meta, head_of(meta, _CHUNK))]

    def _chunk(
        self, delta: JsonObject, index: int, usage: Usage | None, logprobs: JsonObject | None = None
    ) -> JsonObject:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
        chunk = {**head_of(self._meta, _CHUNK), "choices": [choice]}
        return self._usage.put_into(chunk, usage)

    def _delta(self, piece: Piece) -> JsonObject:
        delta: JsonObject = _reasoning(piece.reasoning) if piece.reasoning else {}
        if piece.text or not (piece.reasoning or piece.tool_calls):
            delta["content"] = piece.text
        if piece.tool_calls:
            delta["tool_calls"] = self._calls.numbered(piece.tool_calls, piece.index)
        return delta

    def flush(self) -> list[Chunk]:
        return []

    def fail(self, error: WorkerError) -> list[Chunk]:
        return FAULTS.refuse(error, True)


def _logprobs(tokens: tuple[TokenLogprob, ...]) -> JsonObject | None:
    return {"content": logprobs(tokens), "refusal": None} if tokens else None


@dataclass(frozen=True)
class Faults:
    """Errors as OpenAI's routes say them. prompt: the field that is at fault where a prompt is too long."""

    prompt: str

    def refuse(self, error: WorkerError, is_stream: bool) -> list[Chunk]:
        """What ends a job that failed: the API's error object, as an event where the body asked for a stream."""
        shown = self.shown(error)
        return [data_event(shown) + END] if is_stream else [{"error": json.dumps(shown)}]

    def http_error(self, error: WorkerError, _: str | None) -> HttpError:
        """The API's error object."""
        return HttpError(status_without_media(error), self.shown(error))

    def shown(self, error: WorkerError) -> JsonObject:
        """The error object of the API: message, type, param, code; and our own code, where the API has its own."""
        params = {"MODEL_NOT_FOUND": "model", "PROMPT_TOO_LONG": self.prompt}
        told = {
            "message": error.message,
            "type": "invalid_request_error" if error.status < 500 else "server_error",
            "param": error.where or params.get(error.code),
            "code": _CODES.get(error.code, error.code),
            "worker_code": error.code,
        }
        return {"error": told}


FAULTS = Faults(prompt="messages")


def head_of(meta: Meta, kind: str, prefix: str = "chatcmpl") -> JsonObject:
    """The first fields of an object of the API. prefix: of its id."""
    head = {"id": f"{prefix}-{meta.id}", "object": kind, "created": meta.created, "model": meta.model}
    return {**head, "system_fingerprint": meta.fingerprint}


def chat_usage(usage: Usage) -> JsonObject:
    details = {name: getattr(usage, name) for name in ("image_tokens", "video_tokens", "cached_tokens")}
    return {
        **token_usage(usage),
        "prompt_tokens_details": details,
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def last_events(chunks: list[JsonObject], done: Done, meta: Meta, head: JsonObject) -> str:
    """The end of a stream. chunks: one for each answer, which are told why it ended; head: of another one, for the
    usage where it was asked for."""
    for index, (chunk, reason) in enumerate(zip(chunks, done.reasons, strict=True)):
        own = {**own_reason(reason), **outcome_report(done.outcome_of(index))}
        chunk["choices"][0] |= {"finish_reason": REASONS[reason], "stop_reason": done.stop_of(index), **own}
    chunks[-1] |= work_report(done)
    if meta.include_usage:
        chunks.append({**head, "choices": [], "usage": chat_usage(done.usage)})
    return "".join(data_event(chunk) for chunk in chunks) + END


class UsageSoFar:
    """`usage` in the chunks of a stream, where the request asked for it: null in all but the last, or the tokens so
    far, which never become fewer though the pieces of several answers overtake each other."""

    def __init__(self, meta: Meta) -> None:
        self._meta = meta
        self._latest: Usage | None = None

    def put_into(self, chunk: JsonObject, usage: Usage | None) -> JsonObject:
        """The chunk with what is known by now."""
        if not self._meta.include_usage:
            return chunk
        if usage is not None and (self._latest is None or usage.completion_tokens > self._latest.completion_tokens):
            self._latest = usage
        known = self._latest if self._meta.continuous_usage else None
        return {**chunk, "usage": None if known is None else chat_usage(known)}
