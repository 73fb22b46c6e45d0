"""THE path of a request: choose a dialect, parse, open media, generate, reply. Both doors go through here.

Streaming is the only path: a plain answer is the stream, gathered.
"""

import logging
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any, Protocol

from worker.contract import Answer, ChatRequest, Done, Event, Media, Meta, Opened, Piece, Said, Start, TokenLogprob
from worker.dialects import JSON, Dialect, choose, native
from worker.errors import InternalError, ModelNotFound, WorkerError

log = logging.getLogger(__name__)


class Generates(Protocol):
    """An engine as this module sees it."""

    @property
    def model_name(self) -> str: ...

    def generate(self, request: ChatRequest, media: Sequence[Opened]) -> AsyncGenerator[Event, None]: ...


class Opens(Protocol):
    """What turns references to pictures and videos into pixels."""

    async def open(self, items: Sequence[Media]) -> tuple[Opened, ...]: ...


class Service:
    """Answers requests with one engine. `clock` gives seconds since 1970."""

    def __init__(self, engine: Generates, opener: Opens, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._opener = opener
        self._clock = clock

    async def answer(self, body: object, request_id: str) -> AsyncGenerator[JSON, None]:
        """What the client receives, in order: one reply, or chunks; for a failure, its dialect's last words."""
        dialect: Dialect = native
        shown: dict[str, Any] = {}
        try:
            dialect, shown = choose(body)
            request = dialect.parse(shown)
            async with aclosing(self._run(dialect, request, request_id)) as outputs:
                async for output in outputs:
                    yield output
            return
        except WorkerError as error:
            failure = error
            log.info("request %s failed: %s", request_id, error.code)
        except Exception:
            failure = InternalError()
            log.exception("request %s failed", request_id)
        for output in dialect.refusal(failure, shown):
            yield output

    async def _run(self, dialect: Dialect, request: ChatRequest, request_id: str) -> AsyncGenerator[JSON, None]:
        if request.ignored:
            log.info("request %s: ignored %s", request_id, ", ".join(request.ignored))
        if request.model not in (None, self._engine.model_name):
            raise ModelNotFound(where="model")
        media = await self._opener.open(request.media)
        meta = Meta(
            id=request_id,
            model=self._engine.model_name,
            created=int(self._clock()),
            include_usage=request.include_usage,
            num_answers=request.sampling.n,
        )
        async with aclosing(self._engine.generate(request, media)) as events:
            if not request.stream:
                yield dialect.reply(await _gather(events, meta))
                return
            has_started = False
            async for event in events:
                for happened in (event,) if has_started else (Start(), event):
                    for chunk in dialect.chunks(happened, meta):
                        yield chunk
                has_started = True


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
                return Answer(meta=meta, said=said, usage=event.usage)
    raise InternalError()
