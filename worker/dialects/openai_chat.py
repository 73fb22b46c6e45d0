"""OpenAI Chat Completions, as the platform's OpenAI route carries it: `openai_route` and `openai_input`.

Fields of the API that change an answer and are not built yet are refused unless they ask for nothing;
fields that are unknown are ignored and named in the log.
"""

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from worker.core.contract import (
    Answer,
    ChatRequest,
    Done,
    Meta,
    Piece,
    Role,
    Start,
    StreamEvent,
    TokenLogprob,
    Usage,
)
from worker.core.errors import InputInvalid, WorkerError
from worker.core.safe_json import JsonObject
from worker.dialects.base import MAX_MESSAGES, Body, Chunk, Dialect, HttpError, ReplyBody, StreamWriter, answers_only
from worker.dialects.chat_vl import TokenUsage, token_usage
from worker.dialects.media_fields import NumFrames, Rate, VideoControls, seen_as, with_first_frames
from worker.dialects.media_report import media_report
from worker.dialects.messages import Content, conversation, message
from worker.dialects.sampling_fields import MaxTokens, SamplingFields, TemplateVariables, logprobs
from worker.dialects.validation import shown_name, validated

MAX_NAMES_LOGGED = 20

_NOTHING_ASKED: dict[str, tuple[Any, ...]] = {
    "response_format": (None, {"type": "text"}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    **dict.fromkeys(("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs"), (None,)),
}
# An OpenAI client names its model. The clients of an older service on this route cannot, and count on these.
_FLAT = {"max_tokens": 512, "temperature": 0.7, "top_p": 0.9}
_ROLES: dict[str, Role] = {"developer": "system", "system": "system", "user": "user", "assistant": "assistant"}
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


class MediaIo(Body):
    """vLLM's `media_io_kwargs`: how video files are read. num_frames: -1 for as many as there are."""

    class Video(Body):
        model_config = ConfigDict(extra="ignore")

        fps: Rate | None = None
        num_frames: Annotated[NumFrames | None, BeforeValidator(lambda value: None if value == -1 else value)] = None

    model_config = ConfigDict(extra="ignore")

    video: Video | None = None


class OpenAIBody(SamplingFields):
    """What is honoured of a Chat Completions body."""

    model_config = ConfigDict(extra="ignore")

    messages: list[OpenAIMessage] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    model: str | None = None
    max_completion_tokens: MaxTokens | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    mm_processor_kwargs: VideoControls | None = None
    media_io_kwargs: MediaIo | None = None
    strict_media: bool | None = None
    chat_template_kwargs: TemplateVariables | None = None


_HONOURED = frozenset(OpenAIBody.model_fields)


class OpenAIFault(ReplyBody):
    """The error object of the OpenAI API."""

    class Error(ReplyBody):
        """What is wrong, and where."""

        message: str
        type: Literal["invalid_request_error", "server_error"]
        param: str | None
        code: str

    error: Error


class ChatChoice(ReplyBody):
    """One of the answers."""

    class AssistantMessage(ReplyBody):
        """The answer's words."""

        role: Literal["assistant"]
        content: str
        refusal: None

    index: int
    message: AssistantMessage
    logprobs: JsonObject | None
    finish_reason: Literal["stop", "length"]


class ChatUsage(TokenUsage):
    """Tokens, and those of pictures, of videos, and known before."""

    prompt_tokens_details: dict[str, int]


class OpenAIReply(ReplyBody):
    """The API's chat completion, and `response` beside it."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: ChatUsage
    response: str
    media: list[JsonObject] | None = None


def _parse(body: JsonObject) -> ChatRequest:
    """Raises InputInvalid, MediaParamInvalid."""
    _refuse_unbuilt(body)
    chat = validated(OpenAIBody, body)
    if chat.max_completion_tokens is not None:
        chat = chat.model_copy(update={"max_tokens": chat.max_completion_tokens})
    if chat.model is None:
        chat = chat.model_copy(update={name: flat for name, flat in _FLAT.items() if getattr(chat, name) is None})
    messages = conversation(
        message(_ROLES[turn.role], turn.content, f"messages[{index}].content")
        for index, turn in enumerate(chat.messages)
    )
    for defaults in _seeing(chat):
        messages = tuple(seen_as(turn, defaults) for turn in messages)
    if chat.media_io_kwargs is not None and chat.media_io_kwargs.video is not None:
        count = chat.media_io_kwargs.video.num_frames
        messages = messages if count is None else tuple(with_first_frames(turn, count) for turn in messages)
    return ChatRequest(
        messages=messages,
        template=tuple((chat.chat_template_kwargs or {}).items()),
        sampling=chat.sampling(),
        max_seconds=chat.max_seconds,
        stream=chat.stream or False,
        include_usage=chat.stream_options is not None and chat.stream_options.include_usage,
        model=chat.model,
        ignored=_ignored(body),
    )


def _seeing(chat: OpenAIBody) -> Iterator[VideoControls]:
    """What the body says of all pictures and videos, what takes precedence first."""
    if chat.mm_processor_kwargs is not None:
        yield chat.mm_processor_kwargs
    video = None if chat.media_io_kwargs is None else chat.media_io_kwargs.video
    if video is not None:
        yield VideoControls(fps=video.fps, nframes=video.num_frames)
    if chat.strict_media is not None:
        yield VideoControls(strict_media=chat.strict_media)


def _ignored(body: JsonObject) -> tuple[str, ...]:
    names = {shown_name(name) for name in body.keys() - _HONOURED - _NOTHING_ASKED.keys()}
    known = OpenAIMessage.model_fields.keys()
    names |= {f"messages[].{shown_name(name)}" for turn in body["messages"] for name in turn.keys() - known}
    options = body.get("stream_options") or {}
    names |= {f"stream_options.{shown_name(name)}" for name in options.keys() - StreamOptions.model_fields.keys()}
    return tuple(sorted(names)[:MAX_NAMES_LOGGED])


def _refuse_unbuilt(body: JsonObject) -> None:
    for name, harmless in _NOTHING_ASKED.items():
        if name in body and body[name] not in harmless:
            raise InputInvalid(where=name, detail="this value is not supported yet: leave the field out")


def _shape(answer: Answer) -> JsonObject:
    """The API's object, and `response` beside it for the clients of an older service on the same route."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": _logprobs(choice.logprobs),
            "finish_reason": _REASONS[choice.reason],
        }
        for index, choice in enumerate(answer.choices)
    ]
    head = _head(answer.meta, "chat.completion")
    words = {"choices": choices, "usage": _usage(answer.usage), "response": answer.choices[0].text}
    return {**head, **words, **media_report(answer.media)}


def _chunks(event: StreamEvent, meta: Meta) -> list[Chunk]:
    """Server-sent events; the platform writes strings through as they are."""
    match event:
        case Start():
            opening = {"role": "assistant", "content": ""}
            return ["".join(_sse(_chunk(meta, opening, index)) for index in range(meta.num_answers))]
        case Piece():
            return [_sse(_chunk(meta, {"content": event.text}, event.index, logprobs=_logprobs(event.logprobs)))]
        case Done():
            chunks = [_chunk(meta, {}, index, _REASONS[reason]) for index, reason in enumerate(event.reasons)]
            chunks[-1] |= media_report(event.media)
            text = "".join(_sse(chunk) for chunk in chunks)
            if meta.include_usage:
                text += _sse({**_head(meta, "chat.completion.chunk"), "choices": [], "usage": _usage(event.usage)})
            return [text + "data: [DONE]\n\n"]


def _logprobs(tokens: tuple[TokenLogprob, ...]) -> JsonObject | None:
    return {"content": logprobs(tokens), "refusal": None} if tokens else None


def refuse(error: WorkerError, is_stream: bool) -> list[Chunk]:
    """What ends a job that failed: the API's error object, as an event where the body asked for a stream."""
    shown = _error_object(error)
    return [_sse(shown) + "data: [DONE]\n\n"] if is_stream else [{"error": json.dumps(shown)}]


def http_error(error: WorkerError, declared_type: str | None) -> HttpError:
    """The API's error object with the error's own status."""
    return HttpError(error.status, _error_object(error))


def _error_object(error: WorkerError) -> JsonObject:
    """The error object of the API: message, type, param, code."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    code = "model_not_found" if error.code == "MODEL_NOT_FOUND" else error.code
    return {"error": {"message": error.message, "type": kind, "param": error.where, "code": code}}


def _head(meta: Meta, kind: str) -> JsonObject:
    return {"id": f"chatcmpl-{meta.id}", "object": kind, "created": meta.created, "model": meta.model}


def _chunk(
    meta: Meta, delta: dict[str, str], index: int, reason: str | None = None, logprobs: JsonObject | None = None
) -> JsonObject:
    choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
    chunk = {**_head(meta, "chat.completion.chunk"), "choices": [choice]}
    return {**chunk, "usage": None} if meta.include_usage else chunk


def _usage(usage: Usage) -> JsonObject:
    details = {name: getattr(usage, name) for name in ("image_tokens", "video_tokens", "cached_tokens")}
    return {**token_usage(usage), "prompt_tokens_details": details}


def _sse(value: JsonObject) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


_PICTURE = {"type": "image_url", "image_url": {"url": "https://example.org/shapes.png"}}
_QUESTION = {"type": "text", "text": "What is in the picture?"}
DIALECT = Dialect(
    name="openai_chat",
    about="OpenAI Chat Completions",
    route="/v1/chat/completions",
    is_openai=True,
    parse=_parse,
    reply=answers_only(_shape),
    writer=lambda meta: StreamWriter(meta, _chunks, refuse),
    refuse=refuse,
    http_error=http_error,
    body=OpenAIBody,
    reply_model=OpenAIReply,
    fault=OpenAIFault,
    stream_type="text/event-stream",
    example={"messages": [{"role": "user", "content": [_PICTURE, _QUESTION]}]},
)
