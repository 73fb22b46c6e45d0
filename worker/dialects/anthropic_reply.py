"""Replies, events and errors of Anthropic's Messages."""

import json
from typing import Literal

from worker.core.contract import Answer, Counted, Done, Meta, Piece, Start, Stop, StreamEvent, Usage
from worker.core.errors import WorkerError
from worker.core.safe_json import JsonObject
from worker.core.tools import ToolCall
from worker.dialects.base import Chunk, HttpError, ReplyBody, status_without_media
from worker.dialects.media_report import own_reason, work_report
from worker.dialects.sse import named_event
from worker.dialects.tool_fields import CallWriter

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "time": "max_tokens",
    "tool_calls": "tool_use",
    "repetition": "end_turn",
}
_NO_TOKENS = Usage(prompt_tokens=0, completion_tokens=0)


class AnthropicFault(ReplyBody):
    """The error object of the API."""

    class Error(ReplyBody):
        """What is wrong, and where."""

        type: str
        message: str
        param: str | None
        code: str

    type: Literal["error"]
    error: Error


class AnthropicReply(ReplyBody):
    """The API's message."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[JsonObject]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
    stop_sequence: str | None
    usage: JsonObject
    media: list[JsonObject] | None = None
    timing: dict[str, float]
    cost: dict[str, float] | None = None
    worker_finish_reason: Literal["time", "repetition"] | None = None


class AnthropicCount(ReplyBody):
    """The tokens of a prompt."""

    input_tokens: int


def shape(answer: Answer) -> JsonObject:
    """The API's object."""
    [choice], calls = answer.choices, CallWriter(answer.meta)
    content: list[JsonObject] = []
    for piece in choice.pieces:
        for kind, text in (("thinking", piece.reasoning), ("text", piece.text)):
            if text and content and content[-1]["type"] == kind:
                content[-1][kind] += text
            elif text:
                content.append(_thinking(text) if kind == "thinking" else {"type": "text", "text": text})
        content += [_tool_use(call, calls) for call in piece.tool_calls]
    content = content or [{"type": "text", "text": ""}]
    head = _head(answer.meta, content)
    ended = {**_ended(choice.reason, choice.stop), "usage": _usage(answer.usage)}
    return {**head, **ended, **own_reason(choice.reason), **work_report(answer)}


def _head(meta: Meta, content: list[JsonObject]) -> JsonObject:
    head = {"id": f"msg_{meta.id}", "type": "message", "role": "assistant", "model": meta.model}
    return {**head, "content": content}


def _thinking(text: str) -> JsonObject:
    """Nothing is signed: thinking that comes back is read as it is."""
    return {"type": "thinking", "thinking": text, "signature": ""}


def _tool_use(call: ToolCall, writer: CallWriter) -> JsonObject:
    [written] = writer.written([call], 0)
    return {"type": "tool_use", "id": written["id"], "name": call.name, "input": json.loads(call.arguments)}


def _ended(reason: str, stop: Stop | None) -> JsonObject:
    if reason == "stop" and isinstance(stop, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": stop}
    return {"stop_reason": _REASONS[reason], "stop_sequence": None}


def _usage(usage: Usage) -> JsonObject:
    """The API counts tokens that are read from a cache apart."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }


def count(counted: Counted) -> JsonObject:
    """The tokens of a prompt."""
    return {"input_tokens": counted.prompt_tokens}


class AnthropicEvents:
    """The API's events, in order: each block starts, grows and stops before the next."""

    def __init__(self, meta: Meta) -> None:
        self._meta = meta
        self._calls = CallWriter(meta)
        self._num_blocks = 0
        self._open: str | None = None  # the kind of the block that grows

    def feed(self, event: StreamEvent) -> list[Chunk]:
        match event:
            case Start():
                return [self._begun(event.usage or _NO_TOKENS)]
            case Piece():
                said = ""
                if event.reasoning:
                    said += self._grown("thinking", event.reasoning)
                if event.text:
                    said += self._grown("text", event.text)
                for call in event.tool_calls:
                    said += self._called(call)
                return [said] if said else []
            case Done():
                return [self._finished(event)]

    def _begun(self, usage: Usage) -> str:
        ended = {"stop_reason": None, "stop_sequence": None, "usage": _usage(usage)}
        message = {**_head(self._meta, []), **ended}
        return _event("message_start", message=message) + _event("ping")

    def _grown(self, kind: str, text: str) -> str:
        said = ""
        if self._open != kind:
            said = self._closed() + self._started(_thinking("") if kind == "thinking" else {"type": "text", "text": ""})
            self._open = kind
        return said + self._delta(f"{kind}_delta", **{kind: text})

    def _called(self, call: ToolCall) -> str:
        block = _tool_use(call, self._calls)
        said = self._closed() + self._started({**block, "input": {}})
        self._open = "tool_use"
        return said + self._delta("input_json_delta", partial_json=call.arguments) + self._closed()

    def _started(self, block: JsonObject) -> str:
        self._num_blocks += 1
        return _event("content_block_start", index=self._num_blocks - 1, content_block=block)

    def _delta(self, kind: str, **fields: str) -> str:
        return _event("content_block_delta", index=self._num_blocks - 1, delta={"type": kind, **fields})

    def _closed(self) -> str:
        """The end of the block that grows, if one does."""
        if self._open is None:
            return ""
        self._open = None
        return _event("content_block_stop", index=self._num_blocks - 1)

    def _finished(self, done: Done) -> str:
        said = self._closed() if self._num_blocks else self._grown("text", "") + self._closed()
        delta = _ended(done.reasons[0], done.stop_of(0))
        more = {**own_reason(done.reasons[0]), **work_report(done)}
        return said + _event("message_delta", delta=delta, usage=_usage(done.usage), **more) + _event("message_stop")

    def flush(self) -> list[Chunk]:
        return []

    def fail(self, error: WorkerError) -> list[Chunk]:
        return refuse(error, True)


def _event(kind: str, **fields: object) -> str:
    return named_event(kind, {"type": kind, **fields})


def refuse(error: WorkerError, is_stream: bool) -> list[Chunk]:
    """What ends a job that failed: the API's error object, as an event where the body asked for a stream."""
    shown = http_error(error, None).body
    return [named_event("error", shown)] if is_stream else [{"error": json.dumps(shown)}]


def http_error(error: WorkerError, _: str | None) -> HttpError:
    """The API's error object."""
    status = status_without_media(error)
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    message = f"prompt is too long: {error.message}" if error.code == "PROMPT_TOO_LONG" else error.message
    param = error.where or ("messages" if error.code == "PROMPT_TOO_LONG" else None)
    told = {"type": kind, "message": message, "param": param, "code": error.code}
    return HttpError(status, {"type": "error", "error": told})
