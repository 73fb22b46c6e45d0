"""Events from the engine's thread to the coroutine that waits for them."""

import asyncio
import contextlib
from collections import deque

from worker.core.contract import Event, Piece
from worker.core.errors import WorkerError


class EventBridge:
    """Events of one request. Made on the event loop that takes them. wakes_for_pieces: False where nobody needs a piece
    before the end: then the loop is left alone until then."""

    def __init__(self, *, wakes_for_pieces: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._wakes_for_pieces = wakes_for_pieces
        self._events: deque[Event | WorkerError] = deque()
        self._ready = asyncio.Event()

    def emit(self, event: Event | WorkerError) -> None:
        """From any thread."""
        self._events.append(event)
        if self._wakes_for_pieces or not isinstance(event, Piece):
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody is left to hear it
                self._loop.call_soon_threadsafe(self._ready.set)

    async def take(self) -> list[Event | WorkerError]:
        """All that has come, once there is something to be told."""
        await self._ready.wait()
        self._ready.clear()
        return [self._events.popleft() for _ in range(len(self._events))]
