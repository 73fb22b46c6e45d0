"""OpenAI Chat Completions, as the platform's OpenAI route carries it: `openai_route` and `openai_input`.

Fields of the API that change an answer and are not built yet are refused unless they ask for nothing;
fields that are unknown are ignored and named in the log.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from worker.core.contract import (
    MAX_MESSAGES,
    Answer,
    ChatRequest,
    Done,
    MaxTokens,
    Meta,
    Piece,
    Role,
    Start,
    StreamEvent,
    TokenLogprob,
    Usage,
)
from worker.core.errors import InputInvalid, InputNotObject, RouteUnknown, WorkerError
from worker.dialects import fields
from worker.dialects.fields import Body, Content, SamplingFields, TemplateVariables, VideoControls

ROUTE = "/v1/chat/completions"
MAX_NAMES_LOGGED = 20

_NOTHING_ASKED: dict[str, tuple[Any, ...]] = {
    "response_format": (None, {"type": "text"}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
}
# An OpenAI client names its model. The clients of an older service on this route cannot, and count on these.
_FLAT = {"max_tokens": 512, "temperature": 0.7, "top_p": 0.9}
_ROLES: dict[str, Role] = {"developer": "system"}
_REASONS = {"stop": "stop", "length": "length", "time": "length"}  # the API knows no end by time


class OpenAIMessage(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None
    function_call: None = None
    audio: None = None

    model_config = ConfigDict(extra="ignore")  # the client sends back its own reply, `refusal` and all


class StreamOptions(Body):
    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


class OpenAIBody(SamplingFields):
    """What is honoured of a Chat Completions body."""

    model_config = ConfigDict(extra="ignore")

    messages: list[OpenAIMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    model: str | None = None
    max_completion_tokens: MaxTokens | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    mm_processor_kwargs: VideoControls | None = None
    chat_template_kwargs: TemplateVariables | None = None


_HONOURED = frozenset(OpenAIBody.model_fields)


def speaks(body: dict[str, Any]) -> bool:
    return "openai_route" in body or body.get("route") == ROUTE


def parse(body: dict[str, Any]) -> ChatRequest:
    """Raises InputInvalid, InputNotObject, RouteUnknown."""
    given = _given(body)
    _refuse_unbuilt(given)
    chat = fields.validated(OpenAIBody, given)
    if chat.max_completion_tokens is not None:
        chat = chat.model_copy(update={"max_tokens": chat.max_completion_tokens})
    if chat.model is None:
        chat = chat.model_copy(update={name: own for name, own in _FLAT.items() if getattr(chat, name) is None})
    messages = fields.conversation(
        fields.message(_ROLES.get(message.role, message.role), message.content, f"messages[{index}].content")  # type: ignore[arg-type]
        for index, message in enumerate(chat.messages)
    )
    if chat.mm_processor_kwargs is not None:
        messages = tuple(fields.seen_as(message, chat.mm_processor_kwargs) for message in messages)
    return ChatRequest(
        messages=messages,
        template=tuple((chat.chat_template_kwargs or {}).items()),
        sampling=chat.sampling(),
        max_seconds=chat.max_seconds,
        stream=chat.stream or False,
        include_usage=chat.stream_options is not None and chat.stream_options.include_usage,
        model=chat.model,
        ignored=_ignored(given),
    )


def _given(body: dict[str, Any]) -> dict[str, Any]:
    """The API's own body, from the platform's OpenAI route or from ours."""
    if "openai_route" not in body:
        return fields.routed(body)
    if body["openai_route"] != ROUTE:
        raise RouteUnknown(where="openai_route")
    for name in body.keys() - {"openai_route", "openai_input"}:
        raise fields.no_such_field(name)
    given = body.get("openai_input")
    if not isinstance(given, dict):
        raise InputNotObject(where="openai_input")
    return given


def _ignored(given: dict[str, Any]) -> tuple[str, ...]:
    names = {fields.shown_name(name) for name in given.keys() - _HONOURED - _NOTHING_ASKED.keys()}
    known = OpenAIMessage.model_fields.keys()
    names |= {f"messages[].{fields.shown_name(name)}" for one in given["messages"] for name in one.keys() - known}
    options = given.get("stream_options") or {}
    names |= {
        f"stream_options.{fields.shown_name(name)}" for name in options.keys() - StreamOptions.model_fields.keys()
    }
    return tuple(sorted(names)[:MAX_NAMES_LOGGED])


def _refuse_unbuilt(given: dict[str, Any]) -> None:
    for name, harmless in _NOTHING_ASKED.items():
        if name in given and given[name] not in harmless:
            raise InputInvalid(where=name, detail="this worker does not support this value yet")


def reply(answer: Answer) -> dict[str, Any]:
    """The API's object, and `response` beside it for the clients of an older service on the same route."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": said.text, "refusal": None},
            "logprobs": _logprobs(said.logprobs),
            "finish_reason": _REASONS[said.reason],
        }
        for index, said in enumerate(answer.said)
    ]
    head = _head(answer.meta, "chat.completion")
    return {**head, "choices": choices, "usage": _usage(answer.usage), "response": answer.said[0].text}


def chunks(event: StreamEvent, meta: Meta) -> list[dict[str, Any] | str]:
    """Server-sent events; the platform writes strings through as they are."""
    match event:
        case Start():
            opening = {"role": "assistant", "content": ""}
            return ["".join(_sse(_chunk(meta, opening, index)) for index in range(meta.num_answers))]
        case Piece():
            return [_sse(_chunk(meta, {"content": event.text}, event.index, logprobs=_logprobs(event.logprobs)))]
        case Done():
            text = "".join(
                _sse(_chunk(meta, {}, index, _REASONS[reason])) for index, reason in enumerate(event.reasons)
            )
            if meta.include_usage:
                text += _sse({**_head(meta, "chat.completion.chunk"), "choices": [], "usage": _usage(event.usage)})
            return [text + "data: [DONE]\n\n"]


def _logprobs(tokens: tuple[TokenLogprob, ...]) -> dict[str, Any] | None:
    return {"content": fields.logprobs(tokens), "refusal": None} if tokens else None


def refusal(error: WorkerError, body: dict[str, Any]) -> list[dict[str, Any] | str]:
    shown = {"error": as_openai(error)}
    given = body.get("openai_input", body.get("body"))
    if isinstance(given, dict) and given.get("stream") is True:
        return [_sse(shown) + "data: [DONE]\n\n"]
    return [{"error": json.dumps(shown)}]


def as_openai(error: WorkerError) -> dict[str, Any]:
    """The error object of the API: message, type, param, code."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    code = "model_not_found" if error.code == "MODEL_NOT_FOUND" else error.code
    return {"message": error.message, "type": kind, "param": error.where, "code": code}


def _head(meta: Meta, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{meta.id}", "object": kind, "created": meta.created, "model": meta.model}


def _chunk(
    meta: Meta, delta: dict[str, str], index: int, reason: str | None = None, logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
    chunk = {**_head(meta, "chat.completion.chunk"), "choices": [choice]}
    return {**chunk, "usage": None} if meta.include_usage else chunk


def _usage(used: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": used.prompt_tokens,
        "completion_tokens": used.completion_tokens,
        "total_tokens": used.total_tokens,
        "prompt_tokens_details": {
            "image_tokens": used.image_tokens,
            "video_tokens": used.video_tokens,
            "cached_tokens": used.cached_tokens,
        },
    }


def _sse(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
