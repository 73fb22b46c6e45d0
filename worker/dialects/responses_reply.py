"""Replies, events and errors of OpenAI's Responses."""

from typing import Literal

from worker.core.contract import Answer, Done, Meta, Piece, Start, StreamEvent, Usage
from worker.core.errors import WorkerError
from worker.core.safe_json import JsonObject
from worker.core.tools import ToolCall
from worker.dialects.base import Chunk, ReplyBody
from worker.dialects.media_report import own_reason, work_report
from worker.dialects.openai_reply import Faults
from worker.dialects.sampling_fields import logprobs_of
from worker.dialects.sse import named_event
from worker.dialects.tool_fields import CallWriter

FAULTS = Faults(prompt="input")
# What the API says of a request that said nothing.
_DEFAULTS: JsonObject = {
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "default",
    "store": False,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": None,
    "truncation": "disabled",
    "user": None,
}


class ResponsesReply(ReplyBody):
    """The API's response; what the request said is repeated in further fields."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    background: Literal[False]
    error: None
    incomplete_details: dict[str, str] | None
    model: str
    output: list[JsonObject]
    usage: JsonObject
    store: Literal[False]
    media: list[JsonObject] | None = None
    timing: dict[str, float]
    cost: dict[str, float] | None = None
    worker_finish_reason: Literal["time", "repetition"] | None = None


class ResponsesCount(ReplyBody):
    """The tokens of an input."""

    object: Literal["response.input_tokens"]
    input_tokens: int


class _Items:
    """Items of one response's output, with their ids."""

    def __init__(self, meta: Meta) -> None:
        self._meta = meta
        self._calls = CallWriter(meta)
        self._num_items = 0

    def _id(self, prefix: str) -> str:
        self._num_items += 1
        return f"{prefix}_{self._meta.id}_{self._num_items - 1}"

    def thought(self) -> JsonObject:
        return {"id": self._id("rs"), "type": "reasoning", "status": "in_progress", "summary": [], "content": []}

    def message(self) -> JsonObject:
        head = {"id": self._id("msg"), "type": "message", "status": "in_progress"}
        return {**head, "role": "assistant", "content": []}

    def call(self, call: ToolCall) -> JsonObject:
        [written] = self._calls.written([call], 0)
        head = {"id": self._id("fc"), "type": "function_call", "status": "completed", "call_id": written["id"]}
        return {**head, "name": call.name, "arguments": call.arguments}


def _text_part(text: str, tokens: list[JsonObject]) -> JsonObject:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": tokens}


def shape(answer: Answer) -> JsonObject:
    """The API's object: what its stream ends with."""
    [choice], writer = answer.choices, EventWriter(answer.meta)
    for piece in choice.pieces:
        writer.values(piece)
    work = {"media": answer.media, "timing": answer.timing, "cost": answer.cost}
    done = Done(reasons=(choice.reason,), usage=answer.usage, **work)
    response: JsonObject = writer.values(done)[-1]["response"]
    return response


def _response(meta: Meta, status: str, output: list[JsonObject], usage: Usage | None = None) -> JsonObject:
    head = {
        "id": f"resp_{meta.id}",
        "object": "response",
        "created_at": meta.created,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "model": meta.model,
        "output": output,
    }
    return {**head, **_DEFAULTS, **meta.echo, "usage": None if usage is None else _usage(usage)}


def _usage(usage: Usage) -> JsonObject:
    details = {name: getattr(usage, name) for name in ("cached_tokens", "image_tokens", "video_tokens")}
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cache_write_tokens": 0, **details},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }


class EventWriter:
    """The API's events, numbered, in order: each item is added, grows and is done before the next."""

    def __init__(self, meta: Meta) -> None:
        self._meta, self._items = meta, _Items(meta)
        self._number = 0
        self._output: list[JsonObject] = []
        self._text = ""
        self._tokens: list[JsonObject] = []
        self._is_open = False

    def feed(self, event: StreamEvent) -> list[Chunk]:
        values = self.values(event)
        return ["".join(named_event(value["type"], value) for value in values)] if values else []

    def values(self, event: StreamEvent) -> list[JsonObject]:
        """The API's events for one of the engine's, not yet written."""
        match event:
            case Start():
                return self._begun()
            case Piece():
                values = self._grown("reasoning", event.reasoning) if event.reasoning else []
                if event.text:
                    values += self._grown("message", event.text, logprobs_of(event.text, event.logprobs))
                return values + [value for call in event.tool_calls for value in self._called(call)]
            case Done():
                return self._ended(event)

    def _begun(self) -> list[JsonObject]:
        response = _response(self._meta, "in_progress", [])
        return [self._event(f"response.{kind}", response=response) for kind in ("created", "in_progress")]

    def _grown(self, kind: str, text: str, told: list[JsonObject] | None = None) -> list[JsonObject]:
        """More of the item that is open, or of a new one."""
        said = [] if self._is_open and self._output[-1]["type"] == kind else [*self._closed(), *self._opened(kind)]
        self._text += text
        at = self._at_part()
        if kind == "reasoning":
            return [*said, self._event("response.reasoning_text.delta", **at, delta=text)]
        self._tokens += told or []
        return [*said, self._event("response.output_text.delta", **at, delta=text, logprobs=told or [])]

    def _opened(self, kind: str) -> list[JsonObject]:
        item = self._items.thought() if kind == "reasoning" else self._items.message()
        self._output.append(item)
        self._is_open, self._text, self._tokens = True, "", []
        added = self._event("response.output_item.added", **self._at(), item=item)
        return [added, self._event("response.content_part.added", **self._at_part(), part=self._part())]

    def _closed(self, status: str = "completed") -> list[JsonObject]:
        """The end of the item that is open, if one is."""
        if not self._is_open:
            return []
        self._is_open = False
        item, at, part = self._output[-1], self._at_part(), self._part()
        self._output[-1] = item = {**item, "status": status, "content": [part]}
        if item["type"] == "reasoning":
            text = self._event("response.reasoning_text.done", **at, text=self._text)
        else:
            text = self._event("response.output_text.done", **at, text=self._text, logprobs=self._tokens)
        part_done = self._event("response.content_part.done", **at, part=part)
        return [text, part_done, self._event("response.output_item.done", **self._at(), item=item)]

    def _part(self) -> JsonObject:
        if self._output[-1]["type"] == "reasoning":
            return {"type": "reasoning_text", "text": self._text}
        return _text_part(self._text, list(self._tokens))

    def _called(self, call: ToolCall) -> list[JsonObject]:
        said, item = self._closed(), self._items.call(call)
        self._output.append(item)
        at = {"item_id": item["id"], **self._at()}
        added = {**item, "status": "in_progress", "arguments": ""}
        arguments = {"name": call.name, "arguments": call.arguments}
        return [
            *said,
            self._event("response.output_item.added", **self._at(), item=added),
            self._event("response.function_call_arguments.delta", **at, delta=call.arguments),
            self._event("response.function_call_arguments.done", **at, **arguments),
            self._event("response.output_item.done", **self._at(), item=item),
        ]

    def _ended(self, done: Done) -> list[JsonObject]:
        status = "incomplete" if done.reasons[0] in ("length", "time") else "completed"
        said = [] if self._output else self._opened("message")  # an answer without a word has a message, too
        said += self._closed(status)
        response = _response(self._meta, status, self._output, done.usage)
        response |= {**own_reason(done.reasons[0]), **work_report(done)}
        return [*said, self._event(f"response.{status}", response=response)]

    def _at(self) -> JsonObject:
        return {"output_index": len(self._output) - 1}

    def _at_part(self) -> JsonObject:
        return {"item_id": self._output[-1]["id"], **self._at(), "content_index": 0}

    def _event(self, kind: str, **fields: object) -> JsonObject:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **fields}

    def flush(self) -> list[Chunk]:
        return []

    def fail(self, error: WorkerError) -> list[Chunk]:
        """The response failed, and why; clients read one or the other."""
        code = "server_error" if error.status >= 500 else "invalid_prompt"
        told = {"code": code, "message": error.message, "worker_code": error.code}
        response = {**_response(self._meta, "failed", self._output), "error": told}
        failed = self._event("response.failed", response=response)
        return [named_event("response.failed", failed) + _error_event(error, self._number)]


def _error_event(error: WorkerError, number: int) -> str:
    shown = FAULTS.shown(error)["error"]
    told = {name: shown[name] for name in ("code", "message", "param", "worker_code")}
    return named_event("error", {"type": "error", "sequence_number": number, **told})


def refuse(error: WorkerError, is_stream: bool) -> list[Chunk]:
    """What ends a job that failed: the API's error object, as an event where the body asked for a stream."""
    return [_error_event(error, 0)] if is_stream else FAULTS.refuse(error, False)
