"""Deadlines end what waits, and can be brought forward while it does."""

import asyncio
import time

import pytest

from worker.core.deadline import Deadline
from worker.core.errors import DeadlineExceeded


async def wait_for_ever(deadline: Deadline) -> None:
    async with deadline.watch():
        await asyncio.Event().wait()


def test_what_waits_ends_at_the_deadline() -> None:
    with pytest.raises(DeadlineExceeded):
        asyncio.run(wait_for_ever(Deadline(time.monotonic())))


def test_a_deadline_brought_forward_ends_what_already_waits() -> None:
    async def run() -> None:
        deadline = Deadline()
        waiting = asyncio.create_task(wait_for_ever(deadline))
        await asyncio.sleep(0)
        assert not deadline.has_passed
        deadline.bring_forward(time.monotonic())
        await waiting

    with pytest.raises(DeadlineExceeded):
        asyncio.run(run())


def test_a_deadline_is_never_put_off() -> None:
    deadline = Deadline(5.0)
    deadline.bring_forward(9.0)
    assert deadline.at == 5.0


def test_what_is_done_in_time_is_left_alone() -> None:
    async def run() -> str:
        async with Deadline(time.monotonic() + 3600).watch():
            return "done"

    assert asyncio.run(run()) == "done"


def test_a_cancel_inside_stays_a_cancel() -> None:
    async def run() -> None:
        waiting = asyncio.create_task(wait_for_ever(Deadline(time.monotonic() + 3600)))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(run())
