"""Decoding in child processes: what crashes, hangs or eats memory there takes nothing else with it.

A child does one thing at a time and is used again; one that crashed or ran out of time is replaced by a new one.
Children come from a server process that has imported what they need, so that a new one takes milliseconds.
"""

import asyncio
import multiprocessing
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

from worker.core.errors import MediaCorrupt, MediaDecodeTimeout
from worker.core.threads import tellable

T = TypeVar("T")


class Children:
    """Up to `count` child processes, each with `memory_bytes` beside what it has at its beginning. modules: what they
    have imported already. Close it when done."""

    def __init__(self, count: int, memory_bytes: int, modules: list[str]) -> None:
        self._memory_bytes = memory_bytes
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(modules)
        self._idle = [self._child() for _ in range(count)]
        self._all = set(self._idle)

    def close(self) -> None:
        for child in self._all:
            _kill(child)

    async def run(self, work: Callable[..., T], arguments: tuple[Any, ...], timeout_s: float) -> T:
        """What `work` returns or raises. There must be an idle child. Raises MediaDecodeTimeout, and MediaCorrupt where
        the child crashed."""
        child = self._idle.pop()
        is_lost = False
        try:
            return await asyncio.wait_for(asyncio.wrap_future(child.submit(tellable, work, *arguments)), timeout_s)
        except TimeoutError:
            is_lost = True
            raise MediaDecodeTimeout() from None
        except BrokenProcessPool:
            is_lost = True
            raise MediaCorrupt(detail="it could not be decoded") from None
        except (asyncio.CancelledError, GeneratorExit):
            is_lost = True
            raise
        finally:
            if is_lost:
                self._all.discard(child)
                _kill(child)
                child = self._child()
                self._all.add(child)
            self._idle.append(child)

    def _child(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, self._context, initializer=_limit, initargs=(self._memory_bytes,))


def _kill(child: ProcessPoolExecutor) -> None:
    """End its process now; waits for nothing."""
    processes = list((child._processes or {}).values())
    for process in processes:
        process.kill()
    child.shutdown(wait=False, cancel_futures=True)


def _limit(memory_bytes: int) -> None:
    """In the child: no more memory than this, no files, no core."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
