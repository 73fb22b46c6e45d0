"""Events from the engine's thread to the coroutine that waits for them."""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Iterable, Iterator

from worker.core.contract import Event, Piece
from worker.core.errors import WorkerError

_gathered = threading.local()  # by event loop, whom to wake


@contextlib.contextmanager
def woken_together() -> Iterator[None]:
    """Whoever is told something in here by this thread wakes at its end, all of an event loop at once: each time that a
    loop is woken costs both threads a system call and an exchange of the interpreter's lock."""
    events: dict[asyncio.AbstractEventLoop, list[asyncio.Event]] = {}
    _gathered.events = events
    try:
        yield
    finally:
        _gathered.events = None
        for loop, waiting in events.items():
            _wake(loop, waiting)


def _wake(loop: asyncio.AbstractEventLoop, waiting: Iterable[asyncio.Event]) -> None:
    def wake() -> None:
        for event in waiting:
            event.set()

    with contextlib.suppress(RuntimeError):  # the loop has closed: nobody is left to hear it
        loop.call_soon_threadsafe(wake)


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
            gathered = getattr(_gathered, "events", None)
            if gathered is None:
                _wake(self._loop, [self._ready])
            else:
                gathered.setdefault(self._loop, []).append(self._ready)

    async def take(self) -> list[Event | WorkerError]:
        """All that has come, once there is something to be told."""
        await self._ready.wait()
        self._ready.clear()
        return [self._events.popleft() for _ in range(len(self._events))]
