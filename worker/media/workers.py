"""Where decoding runs: on threads, or in child processes, when a place and the memory for it are free."""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from worker.core.errors import MediaDecodeTimeout, MediaDimensions
from worker.core.settings import Settings
from worker.core.threads import tellable
from worker.media.budget import Budget
from worker.media.isolate import Children

T = TypeVar("T")


class Workers:
    """Runs work for any number of requests at once. modules: what child processes import before they begin. Close it
    when done."""

    def __init__(self, settings: Settings, modules: list[str]) -> None:
        self.memory = Budget(settings.decode_memory_bytes)
        self._timeout_s = settings.decode_timeout_s
        self._slots = Budget(settings.prepare_threads)
        self._threads = ThreadPoolExecutor(settings.prepare_threads, thread_name_prefix="media")
        self._children: Children | None = None
        if settings.media_isolate == "process":
            self._children = Children(settings.prepare_threads, settings.decode_memory_bytes, modules)

    def close(self) -> None:
        self._threads.shutdown()
        if self._children is not None:
            self._children.close()

    def check_memory(self, num_bytes: int) -> None:
        """Raises MediaDimensions where work of so many bytes could never run."""
        if num_bytes > self.memory.total:
            raise MediaDimensions(detail="decoding needs more memory than the worker may use")

    async def decode(
        self, num_bytes: int, work: Callable[..., T], *arguments: Any, timeout_s: float | None = None
    ) -> T:
        """Run `work` on a stranger's bytes, in a child process where the settings say so. Raises MediaDecodeTimeout,
        and what `work` does."""
        if self._children is None:
            return await self.run(num_bytes, work, *arguments, timeout_s=timeout_s)
        await self.memory.take(num_bytes)
        try:
            await self._slots.take(1)
            try:
                return await self._children.run(work, arguments, timeout_s or self._timeout_s)
            finally:
                self._slots.give(1)
        finally:
            self.memory.give(num_bytes)

    async def run(self, num_bytes: int, work: Callable[..., T], *arguments: Any, timeout_s: float | None = None) -> T:
        """Run `work` on a thread when one and the memory are free; both are held until it has really ended. Raises
        MediaDecodeTimeout, and what `work` does.

        The clock starts when the thread does. A thread cannot be stopped: after a timeout or a cancel it works on,
        and what it holds stays held.
        """
        await self.memory.take(num_bytes)
        try:
            await self._slots.take(1)
        except asyncio.CancelledError:
            self.memory.give(num_bytes)
            raise
        loop = asyncio.get_running_loop()

        def let_go(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has closed
                loop.call_soon_threadsafe(self.memory.give, num_bytes)
                loop.call_soon_threadsafe(self._slots.give, 1)

        running = self._threads.submit(tellable, work, *arguments)
        running.add_done_callback(let_go)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(running), timeout_s or self._timeout_s)
        except TimeoutError:
            raise MediaDecodeTimeout() from None
