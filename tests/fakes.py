"""Stand-ins by interface: an engine that says what it is told, an opener that sees nothing, pictures in bytes."""

import asyncio
import base64
import io
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from worker.core.contract import ChatRequest, Done, Event, FinishReason, Media, MediaInfo, Piece, Stop, Usage
from worker.core.deadline import Deadline
from worker.core.engine_protocol import EngineInfo, EngineState, EngineStats, TokenCounts
from worker.core.errors import WorkerError
from worker.core.opened import Opened, Picture
from worker.core.outcome import Outcome, Outputs

USAGE = Usage(prompt_tokens=20, completion_tokens=3, image_tokens=16)


@dataclass
class FakeEngine:
    """Says `pieces`, then ends; or fails with `error` after them."""

    pieces: Sequence[str] = ("A ", "cat.")
    reason: FinishReason = "stop"
    stop: Stop | None = None
    usage: Usage = USAGE
    error: Exception | None = None
    media: tuple[MediaInfo, ...] = ()
    asked: list[ChatRequest] = field(default_factory=list)
    num_closed: int = 0
    max_model_len: int = 4096
    state: EngineState = "ready"

    @property
    def info(self) -> EngineInfo:
        return EngineInfo("tiny-qwen3-vl", "native", self.max_model_len, fingerprint="fp_0123456789")

    def stats(self) -> EngineStats:
        return EngineStats()

    async def count_tokens(self, request: ChatRequest, media: Sequence[Opened]) -> TokenCounts:
        info = MediaInfo(where="", kind="image", width=64, height=64, tokens=16)
        return TokenCounts(10 * len(request.messages) + 16 * len(media), (info,) * len(media))

    def on_death(self, callback: Callable[[], None]) -> None:
        pass

    def close(self) -> None:
        pass

    async def generate(
        self,
        request: ChatRequest,
        media: Sequence[Opened],
        deadline: Deadline,
        on_usage: Callable[[Usage], None] = lambda _: None,
    ) -> AsyncGenerator[Event, None]:
        self.asked.append(request)
        try:
            for index, piece in enumerate(self.pieces):
                usage = self.usage.model_copy(update={"completion_tokens": index + 1})
                yield Piece(text=piece, media=self.media, usage=usage)
            if self.error is not None:
                raise self.error
            yield Done(reasons=(self.reason,), stops=(self.stop,), usage=self.usage, media=self.media)
        finally:
            self.num_closed += 1
            on_usage(self.usage)


@dataclass
class FakeOpener:
    """Opens everything as one grey picture, or fails."""

    error: WorkerError | None = None
    opened: list[Media] = field(default_factory=list)

    @asynccontextmanager
    async def room(self, items: Sequence[Media], more_images: int = 0) -> AsyncIterator["FakeOpener"]:
        yield self

    def settle(self, opened: Sequence[Opened]) -> None:
        pass

    async def open(self, items: Sequence[Media]) -> tuple[tuple[Opened, ...], ...]:
        if self.error is not None:
            raise self.error
        self.opened += items
        return tuple((Picture(np.full((8, 8, 3), 128, np.uint8)),) for _ in items)

    async def drawn(self, media: Sequence[Opened], outputs: Outputs, done: Done, max_bytes: int) -> tuple[Outcome, ...]:
        return done.outcomes

    async def read(self, items: Sequence[Media]) -> tuple[bytes, ...]:
        if self.error is not None:
            raise self.error
        return tuple(repr(item.source).encode() for item in items)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """The picture as a file."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def as_base64(image: Image.Image, form: str = "PNG", **options: Any) -> str:
    return base64.b64encode(encoded(image, form, **options)).decode()


async def cancelled_while_delivering(events: AsyncIterator[Event]) -> None:
    """A task that reads these events is cancelled while it hands on the first, as the platform's SDK does it."""
    has_piece = asyncio.Event()

    async def consume() -> None:
        async for _ in events:
            has_piece.set()
            await asyncio.Event().wait()  # a delivery that never ends

    task = asyncio.create_task(consume())
    await has_piece.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
