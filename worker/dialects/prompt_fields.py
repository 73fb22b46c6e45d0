"""What a body may say about how its prompt is made, by vLLM's names: how pictures and videos are seen, and what the
chat template is told."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import BeforeValidator, ConfigDict

from worker.core.contract import Frames, Media, Message, TemplateValue
from worker.core.errors import InputInvalid
from worker.dialects.base import Body, without_nulls
from worker.dialects.media_fields import (
    NumFrames,
    ProcessorFields,
    Rate,
    VideoControls,
    seen_as,
    with_first_frames,
)
from worker.dialects.sampling_fields import Effort, TemplateVariables


class MediaIo(Body):
    """vLLM's `media_io_kwargs`: how video files are read. num_frames: -1 for as many as there are."""

    class Video(Body):
        model_config = ConfigDict(extra="ignore")

        fps: Rate | None = None
        num_frames: Annotated[NumFrames | None, BeforeValidator(lambda value: None if value == -1 else value)] = None

    model_config = ConfigDict(extra="ignore")

    video: Annotated[Video | None, BeforeValidator(without_nulls)] = None


class PromptFields(Body):
    """Beside a body's messages."""

    mm_processor_kwargs: Annotated[ProcessorFields | None, BeforeValidator(without_nulls)] = None
    media_io_kwargs: Annotated[MediaIo | None, BeforeValidator(without_nulls)] = None
    strict_media: bool | None = None
    chat_template_kwargs: TemplateVariables | None = None
    enable_thinking: bool | None = None

    def seen(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """The messages, their pictures and videos seen as the body says. Raises InputInvalid, MediaParamInvalid."""
        for defaults in self._seeing():
            messages = tuple(seen_as(turn, defaults) for turn in messages)
        self._check_frames_chosen(messages)
        count = None
        if self.media_io_kwargs is not None and self.media_io_kwargs.video is not None:
            count = self.media_io_kwargs.video.num_frames
        return messages if count is None else tuple(with_first_frames(turn, count) for turn in messages)

    def variables(self, effort: Effort | None = None) -> tuple[tuple[str, TemplateValue], ...]:
        """What the chat template is told: fields of its own names, and what `chat_template_kwargs` says, which takes
        precedence."""
        named: dict[str, TemplateValue | None] = {"enable_thinking": self.enable_thinking, "reasoning_effort": effort}
        if effort == "none":
            named = {"enable_thinking": False if self.enable_thinking is None else self.enable_thinking}
        given = {name: value for name, value in named.items() if value is not None}
        return tuple({**given, **(self.chat_template_kwargs or {})}.items())

    def _seeing(self) -> Iterator[VideoControls]:
        """What the body says of all pictures and videos, what takes precedence first."""
        if self.mm_processor_kwargs is not None:
            yield self.mm_processor_kwargs.controls()
        video = None if self.media_io_kwargs is None else self.media_io_kwargs.video
        if video is not None:
            yield VideoControls(fps=video.fps, nframes=video.num_frames)
        if self.strict_media is not None:
            yield VideoControls(strict_media=self.strict_media)

    def _check_frames_chosen(self, messages: tuple[Message, ...]) -> None:
        """Without sampling there is no telling which frames of a file are meant. Raises InputInvalid."""
        if self.mm_processor_kwargs is None or self.mm_processor_kwargs.do_sample_frames is not False:
            return
        media = [part for turn in messages for part in turn.parts if isinstance(part, Media) and part.kind == "video"]
        if any(not isinstance(video.source, Frames) and video.controls.nframes is None for video in media):
            raise InputInvalid(
                where="mm_processor_kwargs.do_sample_frames",
                detail="false needs the number of frames: write num_frames beside it, or send the frames themselves",
            )
