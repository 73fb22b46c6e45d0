"""Work on threads and in child processes, whose failure always reaches the coroutine that waits for it.

A future of asyncio refuses `StopIteration`: whoever awaits it waits for ever. `CancelledError` and `GeneratorExit`
from a thread would look as if the request's client had left, and `SystemExit` would end the event loop.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

T = TypeVar("T")


class WorkFailedError(RuntimeError):
    """Work ended by an exception that cannot be handed to a future; it is the cause."""


def tellable(work: Callable[..., T], *arguments: Any) -> T:
    """What `work` returns. Raises what it raises, and WorkFailedError for what a future would swallow."""
    try:
        return work(*arguments)
    except BaseException as error:
        if isinstance(error, Exception) and not isinstance(error, StopIteration | StopAsyncIteration):
            raise
        raise WorkFailedError(type(error).__name__) from error


async def on_thread(pool: Executor | None, work: Callable[..., T], *arguments: Any) -> T:
    """Run `work` on a thread of `pool`, None: of the loop's own. See `tellable`."""
    return await asyncio.get_running_loop().run_in_executor(pool, tellable, work, *arguments)
