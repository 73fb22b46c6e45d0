"""THE path of a request: choose a dialect, parse, open media, generate, reply. Both doors go through here.

Streaming is the only path: a plain answer is the stream, gathered.
"""

import asyncio
import contextlib
import json
import logging
import math
import time
import weakref
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from worker.core.contract import (
    Answer,
    ChatRequest,
    Done,
    Event,
    FinishReason,
    Media,
    Message,
    Meta,
    Opened,
    Piece,
    Said,
    Start,
    Talk,
    Text,
    TokenLogprob,
    Upload,
    Usage,
)
from worker.core.deadline import Deadline
from worker.core.errors import InternalError, MediaError, ModelNotFound, PromptTooLong, ResultTooLarge, WorkerError
from worker.core.safe_json import safe
from worker.core.settings import Settings
from worker.core.timeline import Timeline
from worker.dialects import JSON, Dialect, choose, name_of, native
from worker.history.history import History, Turn, within
from worker.metrics import Metrics

log = logging.getLogger(__name__)


class Generates(Protocol):
    """An engine as this module sees it."""

    @property
    def model_name(self) -> str: ...

    @property
    def model_code(self) -> str: ...

    @property
    def max_model_len(self) -> int: ...

    async def weigh(self, request: ChatRequest, media: Sequence[Opened]) -> tuple[int, tuple[int, ...]]: ...

    def generate(
        self, request: ChatRequest, media: Sequence[Opened], deadline: Deadline
    ) -> AsyncGenerator[Event, None]: ...


class Opens(Protocol):
    """What turns references to pictures and videos into pixels."""

    async def open(self, items: Sequence[Media]) -> tuple[Opened, ...]: ...

    async def read(self, items: Sequence[Media]) -> tuple[bytes, ...]: ...


Tell = Callable[[str], None]
Ended = TypeVar("Ended", Answer, Done)


def _tell_nobody(phase: str) -> None:
    pass


def refusal(body: object, error: WorkerError) -> list[Any]:
    """What the client receives where nothing serves."""
    dialect: Dialect = native
    shown: dict[str, Any] = {}
    with contextlib.suppress(WorkerError):
        dialect, shown = choose(body)
    return list(dialect.refusal(error, shown))


class Service:
    """Answers requests with one engine. `clock` gives seconds since 1970. `timeline`: of the start, told with the
    first answer."""

    def __init__(
        self,
        engine: Generates,
        opener: Opens,
        settings: Settings,
        clock: Callable[[], float] = time.time,
        timeline: Timeline | None = None,
    ) -> None:
        self._engine = engine
        self._opener = opener
        self._settings = settings
        self._clock = clock
        self._timeline = timeline
        self.metrics = Metrics()
        self.history = History(settings)
        self._stop_at = math.inf
        self._running: weakref.WeakSet[Deadline] = weakref.WeakSet()

    def stop_by(self, at: float) -> None:
        """Bring every running and coming request to its end by `at`, in seconds of `time.monotonic()`."""
        self._stop_at = at
        for deadline in self._running:
            deadline.bring_forward(at)

    async def answer(
        self,
        body: object,
        request_id: str,
        max_seconds: float = math.inf,
        tell: Tell = _tell_nobody,
        fail: Callable[[WorkerError], None] = lambda _: None,
        is_bounded: bool = False,
    ) -> AsyncGenerator[Any, None]:
        """What the client receives, in order: one reply, or chunks; for a failure, its dialect's last words. Safe JSON.

        `max_seconds` is the caller's own limit, beside the request's. `tell` hears the phases of the request, `fail`
        why it failed, before its last words come. `is_bounded`: what the platform would refuse for its size fails.
        """
        dialect: Dialect = native
        shown: dict[str, Any] = {}
        came_at = time.monotonic()
        deadline = Deadline(min(self._stop_at, came_at + min(self._settings.max_job_s, max_seconds)))
        self._running.add(deadline)
        try:
            dialect, shown = choose(body)
            request = dialect.parse(shown)
            if request.max_seconds is not None:
                deadline.bring_forward(came_at + request.max_seconds)
            async with aclosing(self._run(dialect, request, request_id, deadline, tell)) as outputs:
                num_bytes = 0
                async for output in outputs:
                    value = safe(output)
                    if is_bounded:
                        num_bytes = self._within(num_bytes, len(json.dumps(value)))
                    yield value
            self.metrics.ended(name_of(dialect), "ok")
            return
        except (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit):
            log.info("left by its client", extra={"request": request_id})
            self.metrics.ended(name_of(dialect), "left")
            raise
        except WorkerError as error:
            failure = error
            log.info("failed: %s", error.code, extra={"request": request_id, "code": error.code})
        except BaseException:  # a panic in a library written in Rust is no Exception
            failure = InternalError()
            log.exception("failed: %s", failure.code, extra={"request": request_id, "code": failure.code})
        self.metrics.ended(name_of(dialect), failure.code)
        fail(failure)
        for output in dialect.refusal(failure, shown):
            yield output

    def _within(self, before: int, size: int) -> int:
        """The bytes of an answer with those of another chunk. Raises ResultTooLarge."""
        is_chunk_too_large = before > 0 and size > self._settings.max_chunk_bytes
        if is_chunk_too_large or before + size > self._settings.max_result_bytes:
            raise ResultTooLarge()
        return before + size

    async def _run(
        self, dialect: Dialect, request: ChatRequest, request_id: str, deadline: Deadline, tell: Tell
    ) -> AsyncGenerator[JSON, None]:
        if request.ignored:
            log.info("ignored: %s", ", ".join(request.ignored), extra={"request": request_id})
        if request.model not in (None, self._engine.model_name):
            raise ModelNotFound(where="model")
        meta = Meta(
            id=request_id,
            model=self._engine.model_name,
            code=self._engine.model_code,
            created=int(self._clock()),
            is_named=request.model is not None,
            include_usage=request.include_usage,
            num_answers=request.sampling.n,
        )
        if not request.messages:
            yield dialect.reply(Answer(meta=meta, said=(), usage=Usage(prompt_tokens=0, completion_tokens=0)))
            return
        if self._settings.log_prompts:
            log.info("asked", extra={"request": request_id, "messages": _legible(request)})
        if self._timeline is not None:
            self._timeline.end("waiting for a request")
        phases = _Phases()
        media: tuple[Opened, ...] = ()
        talk = request.talk
        if request.media:
            tell("opening media")
        if talk is not None:
            async with deadline.watch():
                heard = await self._remembered(request, talk)
            if not self._is_spoken_to(talk):
                yield dialect.reply(Answer(meta=meta, said=(), usage=Usage(prompt_tokens=0, completion_tokens=0)))
                return
            async with deadline.watch():
                request, media = await self._in_their_light(heard)
        elif request.media:
            async with deadline.watch():
                media = await self._opener.open(request.media)
        if media:
            phases.end("media")
        tell("reading the prompt")
        async with aclosing(self._engine.generate(request, media, deadline)) as events:
            if not request.stream:
                try:
                    answer = await _gather(events, meta)
                except Exception:
                    if talk is not None:  # who asked is told, and asks again
                        await self.history.forget(talk.key, heard.turn)
                    raise
                answer = self._with_cold_start(answer, request_id)
                phases.end("answer")
                if talk is not None:
                    await self.history.reply(talk.key, heard.turn, answer.said[0].text, answer.usage.completion_tokens)
                phases.note("first token", answer.first_token_s)
                self._end(request_id, answer.usage, [said.reason for said in answer.said], phases)
                yield dialect.reply(answer)
                return
            has_started = False
            async for event in events:
                if not has_started:
                    phases.end("first text")
                if isinstance(event, Done):
                    event = self._with_cold_start(event, request_id)
                    phases.end("answer")
                    phases.note("first token", event.first_token_s)
                    self._end(request_id, event.usage, event.reasons, phases)
                for happened in (event,) if has_started else (Start(), event):
                    for chunk in dialect.chunks(happened, meta):
                        yield chunk
                has_started = True

    def _is_spoken_to(self, talk: Talk) -> bool:
        """Whether a message is one that the bot answers."""
        is_named = self._settings.bot_name.casefold() in talk.content.casefold()
        return not talk.is_group or self._settings.group_reply == "always" or is_named

    async def _remembered(self, request: ChatRequest, talk: Talk) -> "_Heard":
        """Remember a bot's message. Raises MediaError, PromptTooLong: then nothing is remembered."""
        [message] = request.messages
        async with self.history.in_order(talk.key):
            # What is remembered must open later too: its bytes are read once, opened, and only then kept.
            images = await self._opener.read(request.media)
            sources = iter([Upload(data=image) for image in images])
            parts = tuple(
                part.model_copy(update={"source": next(sources)}) if isinstance(part, Media) else part
                for part in message.parts
            )
            prompt = self._settings.bot_prompt
            system = (Message(role="system", parts=(Text(text=prompt),)),) if prompt else ()
            own = request.model_copy(update={"messages": (*system, message.model_copy(update={"parts": parts}))})
            media = await self._opener.open(own.media)
            tokens, image_tokens = await self._engine.weigh(own, media)
            if tokens > self._room(request):
                raise PromptTooLong(detail=f"the message alone has {tokens} tokens, at most {self._room(request)}")
            text = "".join(part.text for part in parts if isinstance(part, Text))
            words = tokens - sum(image_tokens)
            turn, earlier = await self.history.add(talk.key, text, words, images, image_tokens, talk.at)
            return _Heard(own, media, tokens, turn, earlier)

    def _room(self, request: ChatRequest) -> int:
        """Tokens that a prompt may have beside the request's answer."""
        return self._engine.max_model_len - (request.sampling.max_tokens or 0)

    async def _in_their_light(self, heard: "_Heard") -> tuple[ChatRequest, tuple[Opened, ...]]:
        """A bot's message behind as much of what was said before as there is room for, with all media opened."""
        own, media = heard.own, heard.media
        settings, room = self._settings, self._room(own)
        num_images = min(settings.history_images, settings.max_images - len(own.media))
        max_tokens = min(settings.history_tokens, room - heard.tokens)
        turns = within(heard.earlier, settings.history_turns, max_tokens, num_images)
        *system, message = own.messages
        while turns:
            before = await self.history.messages(turns)
            whole = own.model_copy(update={"messages": (*system, *before, message)})
            try:
                seen = (*await self._opener.open(whole.media[: len(whole.media) - len(media)]), *media)
                if (await self._engine.weigh(whole, seen))[0] <= room:
                    return whole, seen
            except MediaError as error:
                log.warning("the history has pictures that cannot be opened again: %s", error.code)
                return own, media
            turns = turns[1 + len(turns) // 8 :]
        return own, media

    def _with_cold_start(self, ended: Ended, request_id: str) -> Ended:
        """The first answer alone says where the time of the start went."""
        timeline, self._timeline = self._timeline, None
        if timeline is None:
            return ended
        if ended.first_token_at is not None:
            timeline.end("first token", ended.first_token_at)
        timeline.end("rest of the first answer")
        log.info("first answer", extra={"request": request_id, "seconds": timeline.report})
        return ended.model_copy(update={"cold_start": timeline.report})

    def _end(self, request_id: str, usage: Usage, reasons: Sequence[FinishReason], phases: "_Phases") -> None:
        """The one line of an answer, and its part in the metrics. In a stream `answer` includes its client's time."""
        facts = {"finish_reasons": list(reasons), "usage": usage.model_dump(), "seconds": phases.seconds}
        log.info("answered", extra={"request": request_id, **facts})
        self.metrics.answered(usage, phases.seconds)


@dataclass(frozen=True)
class _Heard:
    """A bot's message that is remembered. own: it alone, behind the bot's system message, with its media opened and its
    `tokens`; turn: what a reply to it belongs to; earlier: what was said before."""

    own: ChatRequest
    media: tuple[Opened, ...]
    tokens: int
    turn: int
    earlier: Sequence[Turn]


class _Phases:
    """Seconds of a request's phases, for its line in the log."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.monotonic()

    def end(self, phase: str) -> None:
        now = time.monotonic()
        self.seconds[phase] = round(now - self._since, 3)
        self._since = now

    def note(self, phase: str, seconds: float | None) -> None:
        """A phase that was measured elsewhere."""
        if seconds is not None:
            self.seconds[phase] = round(seconds, 3)


def _legible(request: ChatRequest) -> list[str]:
    """The words of a request, with `[image]` and `[video]` in the places of the media."""
    return [
        f"{message.role}: "
        + " ".join(part.text if isinstance(part, Text) else f"[{part.kind}]" for part in message.parts)
        for message in request.messages
    ]


async def _gather(events: AsyncGenerator[Event, None], meta: Meta) -> Answer:
    texts: dict[int, list[str]] = defaultdict(list)
    logprobs: dict[int, list[TokenLogprob]] = defaultdict(list)
    async for event in events:
        match event:
            case Piece():
                texts[event.index].append(event.text)
                logprobs[event.index] += event.logprobs
            case Done():
                said = tuple(
                    Said(text="".join(texts[index]), reason=reason, logprobs=tuple(logprobs[index]))
                    for index, reason in enumerate(event.reasons)
                )
                return Answer(
                    meta=meta,
                    said=said,
                    usage=event.usage,
                    seen=event.seen,
                    first_token_s=event.first_token_s,
                    first_token_at=event.first_token_at,
                )
    raise InternalError()
