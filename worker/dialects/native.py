"""The worker's own dialect: `prompt` with pictures and videos, or `messages`.

{"prompt": "What is this?", "image": "https://…"}  ->  {"id", "model", "text", "finish_reason", "usage"}
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from worker.core.contract import (
    MAX_MESSAGES,
    Answer,
    BoundedText,
    ChatRequest,
    Done,
    Message,
    Meta,
    Piece,
    Said,
    Seen,
    Start,
    StreamEvent,
    Text,
    Usage,
)
from worker.core.errors import InputInvalid, RouteUnknown, WorkerError
from worker.dialects import fields
from worker.dialects.fields import Body, Content, MediaForm, SamplingFields, VideoForm


class NativeMessage(Body):
    role: Literal["system", "user", "assistant"]
    content: Content


class NativeBody(SamplingFields):
    """What a native request may say."""

    prompt: BoundedText | None = Field(None, repr=False)
    system: BoundedText | None = Field(None, repr=False)
    image: MediaForm | None = None
    images: Annotated[list[MediaForm], Field(max_length=fields.MAX_FORMS)] = []
    video: VideoForm | None = None
    videos: Annotated[list[VideoForm], Field(max_length=fields.MAX_FORMS)] = []
    messages: list[NativeMessage] | None = Field(None, min_length=1, max_length=MAX_MESSAGES)
    stream: bool = False


def speaks(body: dict[str, Any]) -> bool:
    """The native dialect is what remains when no other speaks."""
    return True


def parse(body: dict[str, Any]) -> ChatRequest:
    """Raises InputInvalid, RouteUnknown."""
    if "route" in body:
        raise RouteUnknown(where="route")
    native = fields.validated(NativeBody, body)
    return ChatRequest(
        messages=fields.conversation(_messages(native)),
        sampling=native.sampling(),
        max_seconds=native.max_seconds,
        stream=native.stream,
    )


def _messages(body: NativeBody) -> tuple[Message, ...]:
    if body.messages is not None:
        extra = [name for name in ("prompt", "system", "image", "images", "video", "videos") if getattr(body, name)]
        if extra:
            raise InputInvalid(where=extra[0], detail="cannot stand beside messages")
        return tuple(
            fields.message(message.role, message.content, f"messages[{index}].content")
            for index, message in enumerate(body.messages)
        )
    if body.prompt is None:
        raise InputInvalid(where="input", detail="prompt or messages is required")
    pictures = [] if body.image is None else [fields.image(body.image, "image")]
    pictures += [fields.image(form, f"images[{index}]") for index, form in enumerate(body.images)]
    videos = [] if body.video is None else [fields.video(body.video, "video")]
    videos += [fields.video(form, f"videos[{index}]") for index, form in enumerate(body.videos)]
    user = Message(role="user", parts=(*pictures, *videos, Text(text=body.prompt)))
    if body.system is None:
        return (user,)
    return (Message(role="system", parts=(Text(text=body.system),)), user)


def reply(answer: Answer) -> dict[str, Any]:
    """`text` is the first answer; where `n` asked for several, `choices` has all."""
    first, *others = choices = [_choice(said) for said in answer.said]
    head = {"id": answer.meta.id, "model": answer.meta.model, "model_code": answer.meta.code, **first}
    more = {"choices": choices} if others else {}
    return {**head, **more, **_seen(answer.seen), "usage": usage(answer.usage), **_cold_start(answer.cold_start)}


def _cold_start(phases: dict[str, float] | None) -> dict[str, Any]:
    return {} if phases is None else {"cold_start": phases}


def _seen(seen: tuple[Seen, ...]) -> dict[str, Any]:
    """How the model saw the request's pictures and videos: sides in pixels, tokens, seconds of the frames."""
    if not seen:
        return {}
    return {"media": [one.model_dump(mode="json", exclude_defaults=True) for one in seen]}


def _choice(said: Said) -> dict[str, Any]:
    choice: dict[str, Any] = {"text": said.text, "finish_reason": said.reason}
    if said.logprobs:
        choice["logprobs"] = fields.logprobs(said.logprobs)
    return choice


def usage(used: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": used.prompt_tokens,
        "completion_tokens": used.completion_tokens,
        "total_tokens": used.total_tokens,
        "image_tokens": used.image_tokens,
        "video_tokens": used.video_tokens,
        "cached_tokens": used.cached_tokens,
    }


def chunks(event: StreamEvent, meta: Meta) -> list[dict[str, Any] | str]:
    match event:
        case Start():
            return []
        case Piece():
            return [_piece(event, meta)]
        case Done():
            end: dict[str, Any] = {"id": meta.id, "model": meta.model, "model_code": meta.code, "text": ""}
            end["finish_reason"] = event.reasons[0]
            if len(event.reasons) > 1:
                end["finish_reasons"] = list(event.reasons)
            return [{**end, **_seen(event.seen), "usage": usage(event.usage), **_cold_start(event.cold_start)}]


def _piece(event: Piece, meta: Meta) -> dict[str, Any]:
    piece: dict[str, Any] = {"text": event.text}
    if meta.num_answers > 1:
        piece["index"] = event.index
    if event.logprobs:
        piece["logprobs"] = fields.logprobs(event.logprobs)
    return piece


def refusal(error: WorkerError, body: dict[str, Any]) -> list[dict[str, Any] | str]:
    """A failed job's last words. A stream first says why, since the platform keeps `error` from streams."""
    last: list[dict[str, Any] | str] = [{"error": error.as_json()}]
    if body.get("stream") is not True:
        return last
    return [{"type": "failed", "detail": {"code": error.code, "message": error.message}}, *last]
