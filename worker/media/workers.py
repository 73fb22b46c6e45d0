"""Where decoding runs, and the memory that it may take: on threads, or in child processes.

Three parts of DECODE_MEMORY_BYTES are taken in one order, so that requests cannot deadlock: `pixels`, of what media
become, once for a request and until it ends; `files`, of encoded bytes, until they are decoded; `memory`, of a decoder
at work.
"""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from worker.core.errors import MediaDecodeTimeout, MediaDimensions
from worker.core.settings import MIB, Settings
from worker.core.threads import tellable
from worker.media.budget import Budget, Share
from worker.media.handing_over import NICE
from worker.media.isolate import Children, Use

T = TypeVar("T")
SMALL_BYTES = 24 * MIB  # of a decoder at work on what is no more than a picture of two million pixels


class Workers:
    """Runs work for any number of requests at once. Close it when done."""

    def __init__(self, settings: Settings) -> None:
        total, places = settings.decode_memory_bytes, settings.prepare_threads
        self.memory = Budget(total // 2, reserve=total // 32, small=min(SMALL_BYTES, total // 32))
        self.files = Budget(total // 4, reserve=total // 32, small=total // 256, per_owner=total // 16)
        self.pixels = Budget(total // 4, reserve=total // 32, small=total // 128)
        self._timeout_s = settings.decode_timeout_s
        # Large work has no more places than there are processors, and leaves one to small work.
        self._places = Budget(places, reserve=min(places - 1, max(1, places - len(os.sched_getaffinity(0)))))
        self._small_threads = ThreadPoolExecutor(places, thread_name_prefix="media")
        self._large_threads = ThreadPoolExecutor(places, thread_name_prefix="large media", initializer=_go_behind)
        self._children: Children | None = None
        if settings.isolates_media:
            self._children = Children()

    def close(self) -> None:
        self._small_threads.shutdown()
        self._large_threads.shutdown()
        if self._children is not None:
            self._children.close()

    def _pool(self, is_small: bool) -> ThreadPoolExecutor:
        return self._small_threads if is_small else self._large_threads

    def check_memory(self, num_bytes: int) -> None:
        """Raises MediaDimensions where work of so many bytes could never run."""
        if num_bytes > self.memory.largest:
            raise MediaDimensions(detail="decoding it needs more memory than DECODE_MEMORY_BYTES allows")

    async def decode(
        self,
        num_bytes: int,
        work: Callable[..., T],
        *arguments: Any,
        owner: object = None,
        timeout_s: float | None = None,
    ) -> T:
        """Run `work` on a stranger's bytes, in a child process where the settings say so. Raises MediaDecodeTimeout,
        and what `work` does."""
        children = self._children
        if children is None:
            return await self.run(num_bytes, work, *arguments, owner=owner, timeout_s=timeout_s)
        uses: list[Use] = []
        has_left = threading.Event()

        def on_use(use: Use) -> None:
            uses.append(use)
            if has_left.is_set():
                use.kill()

        seconds = timeout_s or self._timeout_s
        is_small = num_bytes <= SMALL_BYTES
        async with self.memory.held(num_bytes, owner), self._places.held(1, owner, is_small=is_small):
            order = partial(children.run, work, arguments, num_bytes, seconds, on_use, is_small=is_small)
            running = self._pool(is_small).submit(tellable, order)
            try:
                return await asyncio.wrap_future(running)
            except asyncio.CancelledError:
                has_left.set()
                for use in uses:
                    use.kill()
                raise

    async def run(
        self,
        num_bytes: int,
        work: Callable[..., T],
        *arguments: Any,
        owner: object = None,
        timeout_s: float | None = None,
    ) -> T:
        """Run `work` on a thread when one and the memory are free; both are held until it has really ended. Raises
        MediaDecodeTimeout, and what `work` does.

        The clock starts when the thread does. A thread cannot be stopped: after a timeout or a cancel it works on,
        and what it holds stays held.
        """
        is_small = num_bytes <= SMALL_BYTES
        held = [await self.memory.take(min(num_bytes, self.memory.largest), owner)]
        try:
            held.append(await self._places.take(1, owner, is_small=is_small))
        except asyncio.CancelledError:
            held[0].give()
            raise
        running = self._pool(is_small).submit(tellable, work, *arguments)
        running.add_done_callback(_giving(held))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(running), timeout_s or self._timeout_s)
        except TimeoutError:
            raise MediaDecodeTimeout() from None


def _go_behind() -> None:
    """This thread, and those that it starts, run at a lower priority."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


def _giving(shares: list[Share]) -> Callable[[Future[Any]], None]:
    """Gives them back on this loop, whatever thread calls it."""
    loop = asyncio.get_running_loop()

    def give(_: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed
            for share in shares:
                loop.call_soon_threadsafe(share.give)

    return give
