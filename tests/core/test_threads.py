"""Whatever ends work on a thread or in a child ends the wait for it."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from worker.core.threads import WorkFailedError, on_thread


class Panic(BaseException):
    """What a library written in Rust raises."""


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (StopIteration(), WorkFailedError),
        (StopAsyncIteration(), WorkFailedError),
        (GeneratorExit(), WorkFailedError),
        (asyncio.CancelledError(), WorkFailedError),
        (SystemExit(1), WorkFailedError),
        (KeyboardInterrupt(), WorkFailedError),
        (Panic(), WorkFailedError),
        (ValueError("x"), ValueError),
        (MemoryError(), MemoryError),
    ],
)
def test_every_exception_arrives(raised: BaseException, seen: type[Exception]) -> None:
    def work() -> None:
        raise raised

    async def wait() -> None:
        with ThreadPoolExecutor(1) as pool:
            await asyncio.wait_for(on_thread(pool, work), 10)

    with pytest.raises(seen):
        asyncio.run(wait())
