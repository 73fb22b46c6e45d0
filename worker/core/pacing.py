"""The pieces of an answer at a pace that a client and the platform can take.

The first piece is passed on at once, then what has gathered in an interval, or for as long as the consumer was busy;
the longer the answer, the rarer and larger the pieces. Without an interval each piece is passed on as it is. Knows no
engine: it paces any stream of events.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence

from worker.core.contract import Done, Event, Piece

INTERVAL_GROWTH = 1.03  # at each piece
MAX_INTERVALS = 5  # where the growth ends, in first intervals
MAX_PIECE_LOGPROBS = 100  # the platform refuses large chunks
MAX_PIECE_CHARS = 50_000


async def paced(events: AsyncGenerator[Event, None], interval_s: float) -> AsyncGenerator[Event, None]:
    """The same events, pieces joined. Closing it, or the end of the task that consumes it, closes `events`.

    Raises what `events` raises, behind what came before.
    """
    loop = asyncio.get_running_loop()
    buffer = _Buffer(gathers=interval_s > 0)
    pump = asyncio.create_task(buffer.fill(events))
    consumer = asyncio.current_task()
    assert consumer is not None

    # A task that is cancelled while its consumer is busy never comes back into this generator: `finally` is not enough.
    def stop(_: object) -> None:
        pump.cancel()

    consumer.add_done_callback(stop)
    next_at, longest_s = loop.time(), MAX_INTERVALS * interval_s
    try:
        while not buffer.is_spent:
            gathered = await buffer.take(next_at)
            next_at = loop.time() + interval_s
            interval_s = min(interval_s * INTERVAL_GROWTH, longest_s)
            for event in joined(gathered):
                yield event
        await pump  # raises what ended the stream
    finally:
        consumer.remove_done_callback(stop)
        pump.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({pump})


class _Buffer:
    """Events between the task that takes them from the engine and the consumer. gathers: False where the consumer takes
    one before the next is asked for."""

    def __init__(self, *, gathers: bool) -> None:
        self._gathers = gathers
        self._events: list[Event] = []
        self._was_taken = asyncio.Event()
        self._has_events = asyncio.Event()
        self._has_ended = asyncio.Event()

    @property
    def is_spent(self) -> bool:
        """Whether no event is left and none will come."""
        return self._has_ended.is_set() and not self._events

    async def fill(self, events: AsyncGenerator[Event, None]) -> None:
        try:
            async with contextlib.aclosing(events):
                async for event in events:
                    self._events.append(event)
                    self._was_taken.clear()
                    self._has_events.set()
                    if isinstance(event, Done):
                        self._has_ended.set()
                    elif not self._gathers:
                        await self._was_taken.wait()
        finally:
            self._has_ended.set()
            self._has_events.set()

    async def take(self, not_before: float) -> list[Event]:
        """All that has come: at least one event, and not before a time of the loop unless the stream has ended. Empty
        where the stream ended without another event."""
        await self._has_events.wait()
        if self._gathers:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(not_before):
                    await self._has_ended.wait()
        taken, self._events = self._events, []
        self._was_taken.set()
        if not self._has_ended.is_set():
            self._has_events.clear()
        return taken


def joined(events: Sequence[Event]) -> list[Event]:
    """The events with neighbouring pieces of each answer joined, as far as a chunk may hold them."""
    result: list[Event] = []
    latest: dict[int, int] = {}  # each answer's latest place in `result`
    for event in events:
        place = latest.get(event.index) if isinstance(event, Piece) else None
        previous = result[place] if place is not None else None
        if isinstance(event, Piece) and isinstance(previous, Piece) and not _is_full(previous):
            result[latest[event.index]] = _concatenated(previous, event)
            continue
        if isinstance(event, Piece):
            latest[event.index] = len(result)
        result.append(event)
    return result


def _is_full(piece: Piece) -> bool:
    return len(piece.logprobs) >= MAX_PIECE_LOGPROBS or len(piece.text) >= MAX_PIECE_CHARS


def _concatenated(first: Piece, second: Piece) -> Piece:
    added = {"text": first.text + second.text, "logprobs": first.logprobs + second.logprobs, "usage": second.usage}
    return first.model_copy(update=added)
