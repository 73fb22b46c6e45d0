"""When a request must be over, wherever it waits: on the event loop or in the engine's thread."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from worker.core.errors import DeadlineExceeded


class Deadline:
    """at: seconds of `time.monotonic()`. It can be brought forward while the request runs; threads may read it."""

    def __init__(self, at: float = math.inf) -> None:
        self.at = at
        self._timeout: asyncio.Timeout | None = None
        self._grace = 0.0

    @property
    def has_passed(self) -> bool:
        return time.monotonic() >= self.at

    def bring_forward(self, at: float) -> None:
        """Be over earlier than was said. Call it on the loop that watches."""
        if at < self.at:
            self.at = at
            if self._timeout is not None:
                self._timeout.reschedule(self._loop_time())

    @asynccontextmanager
    async def watch(self, grace: float = 0.0) -> AsyncIterator[None]:
        """Whatever is awaited inside ends with DeadlineExceeded, `grace` seconds after the deadline. Not nested."""
        self._grace = grace
        try:
            async with asyncio.timeout_at(self._loop_time()) as self._timeout:
                yield
        except TimeoutError:
            raise DeadlineExceeded() from None
        finally:
            self._timeout = None

    def _loop_time(self) -> float | None:
        """The deadline on the loop's own clock, which need not be `time.monotonic()`."""
        if math.isinf(self.at):
            return None
        return asyncio.get_running_loop().time() + self.at + self._grace - time.monotonic()
