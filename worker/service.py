"""The path of a request: choose a dialect, parse, open media, generate, reply. RunPod's handler and the HTTP server
both go through here.

Streaming is the only path: a plain answer is the stream, gathered. Knows engines and media by their protocols alone.
"""

import asyncio
import json
import logging
import math
import time
import weakref
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from functools import partial

from worker.core.accounting import cost_of, timing_of, with_gpu_limit
from worker.core.contract import ChatRequest, Counted, Done, Event, Meta, ModelCard, ModelQuery, Silence, Start, Usage
from worker.core.deadline import Deadline
from worker.core.engine_protocol import Engine, EngineInfo, TokenCounts
from worker.core.errors import InternalError, ModelNotFound, ResultTooLarge, ServerError, WorkerError
from worker.core.media_protocol import MediaOpener, with_opened
from worker.core.opened import Opened
from worker.core.pacing import paced
from worker.core.phases import Phases, legible
from worker.core.safe_json import Json, has_more_values, safe
from worker.core.settings import Settings
from worker.core.threads import on_thread
from worker.core.timeline import Timeline
from worker.dialects.base import Chunk, Dialect, PlainWriter, Writer
from worker.dialects.table import DIALECTS, SALT, DialectTable
from worker.history.history import History
from worker.history.recall import Answering, Recall, owned
from worker.metrics import Metrics
from worker.parsers.events import EventParser
from worker.parsers.outcomes import OutcomeParser

log = logging.getLogger(__name__)
OnPhase = Callable[[str], None]
OnFailure = Callable[[WorkerError], None]
OnTokens = Callable[[int], None]
DRAWING_S = 1.0  # after a deadline, for the pictures of what was answered in time
MANY_VALUES = 1000  # of a body: validating them takes milliseconds, and is done off the event loop


def _ignore(_: object) -> None:
    pass


def _has_left(error: BaseException) -> bool:
    """Whether a request ends because its client has left or the process ends, not because something inside of it was
    cancelled."""
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is None or task.cancelling() > 0
    return isinstance(error, GeneratorExit | KeyboardInterrupt | SystemExit)


def _log_failure(failure: WorkerError, request_id: str, error: BaseException) -> None:
    """What its caller is told, and the reason, at a level that says whose fault it is; our own with their traces."""
    level = logging.ERROR if isinstance(failure, ServerError) and failure.status >= 500 else logging.WARNING
    facts = {"request": request_id, "code": failure.code, "where": failure.where, "reason": failure.reason}
    trace = None if error is failure else error
    shown = {name: value for name, value in facts.items() if value is not None}
    log.log(level, "failed: %s: %s", failure.code, failure.message, exc_info=trace, extra=shown)


def _meta(request: ChatRequest, request_id: str, info: EngineInfo, now: float) -> Meta:
    return Meta(
        id=request_id,
        model=info.model,
        code=info.code,
        created=int(now),
        fingerprint=info.fingerprint,
        include_usage=request.include_usage,
        continuous_usage=request.continuous_usage,
        num_answers=request.sampling.n,
        echo=request.echo,
    )


def _writer(request: ChatRequest, meta: Meta, dialect: Dialect) -> Writer:
    if request.stream and dialect.writer is not None:
        return dialect.writer(meta)
    return PlainWriter(meta, dialect.reply, dialect.refuse)


def _card(query: ModelQuery, info: EngineInfo, now: float) -> ModelCard:
    return ModelCard(
        model=info.model,
        created=int(now),
        is_named=bool(query.model),
        max_model_len=info.max_model_len,
        topic=query.topic,
    )


def _counted(meta: Meta, counts: TokenCounts, info: EngineInfo) -> Counted:
    return Counted(
        meta=meta,
        prompt_tokens=counts.prompt_tokens,
        max_model_len=info.max_model_len,
        tokens=counts.ids,
        media=counts.media,
    )


def refusal(body: object, error: WorkerError, dialects: DialectTable = DIALECTS) -> list[Chunk]:
    """What the client receives where nothing serves."""
    try:
        call = dialects.choose(body)
    except WorkerError:
        return dialects.default.refuse(error, False)
    return call.dialect.refuse(error, call.wants_stream)


@dataclass
class _Run:
    """One request on its way. writer: of its stream, once there is one."""

    id: str
    deadline: Deadline
    on_phase: OnPhase
    dialect: Dialect
    caller: str
    on_tokens: OnTokens = _ignore
    came_at: float = 0.0
    wants_stream: bool = False
    writer: Writer | None = None
    phases: Phases = field(default_factory=Phases)

    def last_words(self, error: WorkerError) -> list[Chunk]:
        return self.dialect.refuse(error, self.wants_stream) if self.writer is None else self.writer.fail(error)


class Service:
    """Answers requests with one engine. `clock` gives seconds since 1970, `timer` those of `time.monotonic`.
    `timeline`: of the start, told with the first answer."""

    def __init__(
        self,
        engine: Engine,
        opener: MediaOpener,
        settings: Settings,
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.monotonic,
        timeline: Timeline | None = None,
        dialects: DialectTable = DIALECTS,
        history: History | None = None,
    ) -> None:
        self._engine = engine
        self._opener = opener
        self._settings = settings
        self._clock = clock
        self._timer = timer
        self._timeline = timeline
        self._dialects = dialects
        self.metrics = Metrics()
        self.history = history or History(settings)
        self._recall = Recall(self.history, engine, opener, settings)
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
        on_phase: OnPhase = _ignore,
        on_failure: OnFailure = _ignore,
        is_bounded: bool = False,
        caller: str = "",
        on_tokens: OnTokens = _ignore,
    ) -> AsyncGenerator[Json, None]:
        """What the client receives, in order: one reply, or chunks; for a failure, its dialect's last words. Safe JSON.

        `max_seconds` is the caller's own limit, beside the request's. `on_phase` hears the phases of the request,
        `on_failure` why it failed, before its last words come. `is_bounded`: what the platform would refuse for its
        size fails. `caller`: whose key the request came with; it is not to hear of others' prompts. `on_tokens` is
        called with the tokens of prompt and answer that were computed, also where the client leaves or it fails.
        """
        came_at = time.monotonic()
        deadline = Deadline(min(self._stop_at, came_at + min(self._settings.max_job_s, max_seconds)))
        self._running.add(deadline)
        run = _Run(request_id, deadline, on_phase, self._dialects.default, caller, on_tokens, self._timer())
        try:
            if has_more_values(body, MANY_VALUES):
                request = await on_thread(None, self._parsed, body, run)
            else:
                request = self._parsed(body, run)
            if isinstance(request, ChatRequest) and request.max_seconds is not None:
                deadline.bring_forward(came_at + request.max_seconds)
            async with aclosing(self._outputs(request, run)) as outputs:
                num_bytes = 0
                async for output in outputs:
                    value = safe(output)
                    if is_bounded:
                        num_bytes = self._within_limits(num_bytes, len(json.dumps(value)))
                    yield value
            self.metrics.ended(run.dialect.name, "ok")
            return
        # The border of a request: what fails inside is its own. A panic in a library written in Rust is no Exception.
        except BaseException as error:
            if _has_left(error):
                log.info("cancelled by the client", extra={"request": request_id})
                self.metrics.ended(run.dialect.name, "cancelled")
                raise
            failure = error if isinstance(error, WorkerError) else InternalError()
            _log_failure(failure, request_id, error)
        self.metrics.ended(run.dialect.name, failure.code)
        on_failure(failure)
        for chunk in run.last_words(failure):
            yield chunk

    def _parsed(self, body: object, run: _Run) -> ChatRequest | ModelQuery:
        """The request in the contract's terms. Raises InputError."""
        call = self._dialects.choose(body)
        run.dialect, run.wants_stream = call.dialect, call.wants_stream
        salt = call.cache_salt()
        request = call.dialect.parse(call.body())
        if not isinstance(request, ChatRequest):
            return request
        request = with_gpu_limit(request, self._settings.gpu_usd_per_second)
        if not (run.caller or salt):
            return request
        conversation = request.conversation and owned(request.conversation, run.caller, salt)
        return request.model_copy(update={"caller": run.caller, SALT: salt, "conversation": conversation})

    def _within_limits(self, before: int, size: int) -> int:
        """The bytes of an answer with those of another chunk. Raises ResultTooLarge."""
        is_chunk_too_large = before > 0 and size > self._settings.max_chunk_bytes
        if is_chunk_too_large or before + size > self._settings.max_result_bytes:
            raise ResultTooLarge()
        return before + size

    async def _outputs(self, request: ChatRequest | ModelQuery, run: _Run) -> AsyncGenerator[Chunk, None]:
        if isinstance(request, ChatRequest) and request.ignored:
            log.info("ignored: %s", ", ".join(request.ignored), extra={"request": run.id})
        if request.model not in (None, self._engine.info.model):
            raise ModelNotFound(where="model", detail=f"write {self._engine.info.model}")
        if isinstance(request, ModelQuery):
            yield run.dialect.reply(_card(request, self._engine.info, self._clock()))
            return
        if self._settings.log_prompts:
            log.info("asked", extra={"request": run.id, "messages": legible(request)})
        if self._timeline is not None:
            self._timeline.end("wait_for_request")
        async with aclosing(self._answered(request, run)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _answered(self, request: ChatRequest, run: _Run) -> AsyncGenerator[Chunk, None]:
        """The request's outcome. A message to the bot is remembered first, and answered in its conversation."""
        run.phases = Phases(self._timer)
        if request.media:
            run.on_phase("opening media")
        conversation, answering = request.conversation, None
        async with AsyncExitStack() as stack:
            async with run.deadline.watch():
                earlier = 0 if conversation is None else self._settings.history_images
                room = await stack.enter_async_context(self._opener.room(request.media, earlier))
            if conversation is None:
                request, media = await self._opened(request, run)
            else:
                async with run.deadline.watch():
                    remembered = await self._recall.remember(request, conversation)
                if not self._recall.is_addressed(conversation):
                    yield run.dialect.reply(Silence())
                    return
                async with run.deadline.watch():
                    request, media = await self._recall.with_history(remembered)
                answering = await stack.enter_async_context(self._recall.answering(conversation, remembered))
                del remembered
            room.settle(media)
            if media:
                run.phases.end("media")
            run.on_phase("reading the prompt")
            meta = _meta(request, run.id, self._engine.info, self._clock())
            if request.counts_only:
                counts = await self._engine.count_tokens(request, media)
                yield run.dialect.reply(_counted(meta, counts, self._engine.info))
                return
            chunks = self._generated(request, media, meta, run, answering)
            del media  # freed as soon as the engine has made a prompt of it
            async with aclosing(chunks):
                async for chunk in chunks:
                    yield chunk

    async def _opened(self, request: ChatRequest, run: _Run) -> tuple[ChatRequest, tuple[Opened, ...]]:
        if not request.media:
            return request, ()
        async with run.deadline.watch():
            return with_opened(request, await self._opener.open(request.media))

    async def _generated(
        self,
        request: ChatRequest,
        media: tuple[Opened, ...],
        meta: Meta,
        run: _Run,
        answering: Answering | None,
    ) -> AsyncGenerator[Chunk, None]:
        """The engine's events as the dialect's chunks; gathered they are its one reply."""
        writer = run.writer = _writer(request, meta, run.dialect)
        drawn_on = media if request.outputs.draws else ()
        events = self._engine.generate(request, media, run.deadline, partial(self._used, run))
        del media
        if request.stream:
            events = paced(events, self._settings.stream_interval_ms / 1000)
        parser, outcomes = EventParser(request), OutcomeParser(request)
        has_started = False
        async with aclosing(events):
            async for raw in events:
                if not has_started:
                    has_started = True
                    if request.stream:
                        run.phases.end("first_text")
                    for chunk in writer.feed(Start(usage=raw.usage)):
                        yield chunk
                for event in (each for split in parser.feed(raw) for each in outcomes.feed(split, raw.media)):
                    told: Event = event
                    if isinstance(event, Done):
                        told = self._ended(await self._drawn(event, request, drawn_on, run), run)
                    if answering is not None:
                        await answering.feed(told)
                    for chunk in writer.feed(told):
                        yield chunk
        for chunk in writer.flush():
            yield chunk

    def _used(self, run: _Run, usage: Usage) -> None:
        """Tokens count however the request ends: also those of an answer that its client has left."""
        self.metrics.used(usage)
        run.on_tokens(usage.total_tokens)

    def _ended(self, done: Done, run: _Run) -> Done:
        """The one line of an answer, and its part in the metrics. In a stream `answer` includes its client's time."""
        price, start = self._settings.gpu_usd_per_second, self._timeline
        done = self._with_cold_start(done, run)
        timing = timing_of(done, run.phases.seconds.get("media"), run.came_at, self._timer())
        done = done.model_copy(update={"timing": timing, "cost": cost_of(done, price, start)})
        run.phases.end("answer")
        run.phases.note("first_token", done.first_token_s)
        for phase in ("fetch", "media_decode", "preprocess", "queue", "vision", "prefill", "decode"):
            run.phases.note(phase, timing.get(f"{phase}_s"))
        seconds = run.phases.seconds
        facts = {"finish_reasons": list(done.reasons), "usage": done.usage.model_dump(), "seconds": seconds}
        log.info("answered", extra={"request": run.id, **facts, "cost": done.cost})
        self.metrics.answered(seconds)
        return done

    async def _drawn(self, done: Done, request: ChatRequest, media: tuple[Opened, ...], run: _Run) -> Done:
        """The end with the pictures that the request wants back. The answer is not lost where they cannot be made."""
        if not media:
            return done
        limits = self._settings
        room = limits.max_chunk_bytes if request.stream else limits.max_result_bytes
        try:
            async with run.deadline.watch(DRAWING_S):
                outcomes = await self._opener.drawn(media, request.outputs, done, room)
        except Exception as error:
            failure = error if isinstance(error, WorkerError) else InternalError()
            _log_failure(failure, run.id, error)
            problem = {"drawing_problem": (failure.code, failure.message)}
            outcomes = tuple(outcome.model_copy(update=problem) for outcome in done.outcomes)
        return done.model_copy(update={"outcomes": outcomes})

    def _with_cold_start(self, done: Done, run: _Run) -> Done:
        """The first answer alone says where the time of the start went."""
        timeline, self._timeline = self._timeline, None
        if timeline is None:
            return done
        if done.first_token_at is not None:
            timeline.end("first_token", done.first_token_at)
        timeline.end("rest_of_first_answer")
        log.info("first answer", extra={"request": run.id, "seconds": timeline.report})
        return done.model_copy(update={"cold_start": timeline.report})
