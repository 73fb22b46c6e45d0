"""The worker's own dialect: `prompt` with pictures and videos, or `messages`.

{"prompt": "What is this?", "image": "https://…"}  ->  {"id", "model", "text", "finish_reason", "usage"}
"""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from worker.core.contract import (
    Answer,
    ChatRequest,
    Choice,
    Done,
    Message,
    Meta,
    Piece,
    Role,
    Start,
    StreamEvent,
    Text,
    Usage,
)
from worker.core.errors import InputInvalid, RouteUnknown, WorkerError
from worker.core.safe_json import JsonObject
from worker.dialects.base import MAX_MESSAGES, BoundedText, Chunk, Dialect, answers_only
from worker.dialects.constraint_fields import ConstraintFields, only_one
from worker.dialects.media_fields import MAX_FORMS, MediaForm, VideoControls, VideoForm, image, seen_as, video
from worker.dialects.media_report import cost_report, media_report
from worker.dialects.messages import Turn, conversation, spoken
from worker.dialects.outcome_report import objects_report, outcome_report
from worker.dialects.output_fields import OutputFields, asked
from worker.dialects.sampling_fields import SamplingFields, logprobs
from worker.dialects.tool_fields import CallWriter, ToolFields
from worker.dialects.validation import validated


class NativeMessage(Turn):
    """A turn by the model's own roles."""

    role: Role


class NativeBody(SamplingFields, ToolFields, ConstraintFields, OutputFields):
    """What a native request may say."""

    prompt: BoundedText | None = Field(None, repr=False)
    system: BoundedText | None = Field(None, repr=False)
    image: MediaForm | None = None
    images: Annotated[list[MediaForm], Field(max_length=MAX_FORMS, fail_fast=True)] = []
    video: VideoForm | None = None
    videos: Annotated[list[VideoForm], Field(max_length=MAX_FORMS, fail_fast=True)] = []
    messages: list[NativeMessage] | None = Field(None, min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    stream: bool = False
    strict_media: bool | None = None
    enable_thinking: bool | None = None


def _parse(body: JsonObject) -> ChatRequest:
    """Raises InputInvalid, RouteUnknown."""
    if "route" in body:
        raise RouteUnknown(where="route")
    form = validated(NativeBody, body)
    said = asked(form, conversation(_messages(form)))
    messages = said.messages
    if form.strict_media is not None:
        messages = tuple(seen_as(turn, VideoControls(strict_media=form.strict_media)) for turn in messages)
    constraint = only_one((*form.constraints(), *said.forms))
    return ChatRequest(
        messages=messages,
        sampling=form.sampling(constraint, reports_confidence=said.outputs.confidence),
        **form.limits(),
        outputs=said.outputs,
        stream=form.stream,
        tools=form.offered(),
        template=() if form.enable_thinking is None else (("enable_thinking", form.enable_thinking),),
    )


def _messages(form: NativeBody) -> tuple[Message, ...]:
    if form.messages is not None:
        extra = [name for name in ("prompt", "system", "image", "images", "video", "videos") if getattr(form, name)]
        if extra:
            raise InputInvalid(where=extra[0], detail="cannot be combined with messages: put it into a message")
        return tuple(spoken(form.messages))
    if form.prompt is None and form.task is None:
        raise InputInvalid(where="input", detail="needs prompt (a string), messages (a list) or task (a preset's name)")
    pictures = [] if form.image is None else [image(form.image, "image")]
    pictures += [image(picture, f"images[{index}]") for index, picture in enumerate(form.images)]
    videos = [] if form.video is None else [video(form.video, "video")]
    videos += [video(clip, f"videos[{index}]") for index, clip in enumerate(form.videos)]
    user = Message(role="user", parts=(*pictures, *videos, Text(text=form.prompt or "")))
    if form.system is None:
        return (user,)
    return (Message(role="system", parts=(Text(text=form.system),)), user)


def _shape(answer: Answer) -> JsonObject:
    """`text` is the first answer; where `n` asked for several, `choices` has all, and what is beside their texts is
    there alone."""
    texts = [_choice(choice, answer.meta, index) for index, choice in enumerate(answer.choices)]
    reports = [outcome_report(choice.outcome) for choice in answer.choices]
    head = {"id": answer.meta.id, "model": answer.meta.model, "model_code": answer.meta.code, **texts[0]}
    choices = [{**text, **report} for text, report in zip(texts, reports, strict=True)]
    return {
        **head,
        **(reports[0] if len(choices) == 1 else {"choices": choices}),
        **media_report(answer.media),
        "usage": _usage(answer.usage),
        "timing": answer.timing,
        **cost_report(answer.cost),
        **_cold_start(answer.cold_start),
    }


def _cold_start(phases: Mapping[str, float] | None) -> JsonObject:
    return {} if phases is None else {"cold_start": phases}


def _choice(choice: Choice, meta: Meta, index: int) -> JsonObject:
    shown: JsonObject = {"text": choice.text, "finish_reason": choice.reason}
    if choice.reasoning:
        shown["reasoning"] = choice.reasoning
    if choice.tool_calls:
        shown["tool_calls"] = CallWriter(meta).written(choice.tool_calls, index)
    if choice.logprobs:
        shown["logprobs"] = logprobs(choice.logprobs)
    return shown


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "image_tokens": usage.image_tokens,
        "video_tokens": usage.video_tokens,
        "cached_tokens": usage.cached_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
    }


class PieceWriter:
    """Pieces as objects, then one with the end. Calls are numbered as they come."""

    def __init__(self, meta: Meta) -> None:
        self._meta = meta
        self._calls = CallWriter(meta)

    def feed(self, event: StreamEvent) -> list[Chunk]:
        match event:
            case Start():
                return []
            case Piece():
                return [self._piece(event)]
            case Done():
                return [_end(event, self._meta)]

    def _piece(self, event: Piece) -> JsonObject:
        piece: JsonObject = {"text": event.text}
        if self._meta.num_answers > 1:
            piece["index"] = event.index
        if event.reasoning:
            piece["reasoning"] = event.reasoning
        if event.tool_calls:
            piece["tool_calls"] = self._calls.written(event.tool_calls, event.index)
        if event.logprobs:
            piece["logprobs"] = logprobs(event.logprobs)
        if event.objects:
            piece["objects"] = objects_report(event.objects)
        return piece

    def flush(self) -> list[Chunk]:
        return []

    def fail(self, error: WorkerError) -> list[Chunk]:
        return _refuse(error, True)


def _end(event: Done, meta: Meta) -> JsonObject:
    end: JsonObject = {"id": meta.id, "model": meta.model, "model_code": meta.code, "text": ""}
    end["finish_reason"] = event.reasons[0]
    if len(event.reasons) > 1:
        end["finish_reasons"] = list(event.reasons)
    reports = [outcome_report(outcome) for outcome in event.outcomes]
    end |= {"outcomes": reports} if len(reports) > 1 else outcome_report(event.outcome_of(0))
    end |= {**media_report(event.media), "usage": _usage(event.usage), "timing": event.timing}
    return {**end, **cost_report(event.cost), **_cold_start(event.cold_start)}


def _refuse(error: WorkerError, is_stream: bool) -> list[Chunk]:
    """A failed job's last words. A stream first says why, since the platform keeps `error` from streams."""
    last: list[Chunk] = [{"error": error.as_json()}]
    if not is_stream:
        return last
    return [{"type": "failed", "detail": {"code": error.code, "message": error.message}}, *last]


DIALECT = Dialect(
    name="native",
    about="This worker's own form",
    parse=_parse,
    reply=answers_only(_shape),
    writer=PieceWriter,
    refuse=_refuse,
    body=NativeBody,
)
