"""Shares: in turns among requests, a reserve for small work, whole after every kind of leaving."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from worker.media.budget import Budget, Share


async def settle() -> None:
    for _ in range(6):
        await asyncio.sleep(0)


class Queue:
    """Who has been given what, in order."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.given: list[str] = []
        self.shares: dict[str, Share] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def asks(self, name: str, size: int, owner: object = None) -> None:
        async def take() -> None:
            self.shares[name] = await self.budget.take(size, owner)
            self.given.append(name)

        self.tasks[name] = asyncio.create_task(take())
        await settle()

    async def gives(self, *names: str) -> None:
        for name in names:
            self.shares.pop(name).give()
        await settle()


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def test_nobody_passes_one_that_waits_for_room() -> None:
    async def test() -> None:
        queue = Queue(Budget(10))
        for name, size in (("a", 8), ("b", 5), ("c", 1)):
            await queue.asks(name, size)
        assert queue.given == ["a"]
        await queue.gives("a")
        assert queue.given == ["a", "b", "c"]
        await queue.gives("b", "c")
        assert queue.budget.free == 10

    run(test())


def test_requests_take_turns() -> None:
    async def test() -> None:
        queue, first, second = Queue(Budget(1)), object(), object()
        await queue.asks("held", 1)
        for name in ("a1", "a2", "a3"):
            await queue.asks(name, 1, first)
        for name in ("b1", "b2"):
            await queue.asks(name, 1, second)
        for name in ("held", "a1", "b1", "a2", "b2", "a3"):
            await queue.gives(name)
        assert queue.given == ["held", "a1", "b1", "a2", "b2", "a3"]

    run(test())


def test_small_work_has_a_reserve_and_does_not_keep_large_work_waiting() -> None:
    async def test() -> None:
        queue = Queue(Budget(10, reserve=2, small=1))
        await queue.asks("large", 8)
        await queue.asks("larger", 8)
        for name in ("s1", "s2", "s3"):
            await queue.asks(name, 1)
        assert queue.given == ["large", "s1", "s2"]
        await queue.gives("s1")
        assert queue.given[3:] == ["s3"]
        await queue.gives("large")
        assert queue.given[4:] == ["larger"]
        await queue.gives("larger")
        for number in range(10):
            await queue.asks(f"t{number}", 1)
        assert len(queue.given) == 5 + 8  # nobody else waits: small work takes all there is

    run(test())


def test_one_request_holds_a_part_at_most() -> None:
    async def test() -> None:
        queue, greedy, other = Queue(Budget(4, per_owner=2)), object(), object()
        for name in ("a1", "a2", "a3"):
            await queue.asks(name, 1, greedy)
        await queue.asks("b1", 1, other)
        assert queue.given == ["a1", "a2", "b1"]
        await queue.gives("a1")
        assert queue.given[3:] == ["a3"]

    run(test())


def test_a_share_can_shrink() -> None:
    async def test() -> None:
        queue = Queue(Budget(10))
        await queue.asks("a", 9)
        await queue.asks("b", 5)
        queue.shares["a"].shrink(20)
        assert queue.budget.free == 1
        queue.shares["a"].shrink(3)
        await settle()
        assert queue.given == ["a", "b"]
        queue.shares["a"].give()
        queue.shares["a"].give()
        await queue.gives("b")
        assert queue.budget.free == 10
        async with queue.budget.held(99) as share:
            assert share.size == 10
        assert queue.budget.free == 10

    run(test())


@pytest.mark.parametrize("owner", [None, "somebody"])
@pytest.mark.parametrize("size", [1, 10])
@pytest.mark.parametrize("when", ["waiting", "given"])
def test_whoever_is_cancelled_holds_nothing(when: str, size: int, owner: object) -> None:
    async def test() -> None:
        queue = Queue(Budget(12, reserve=2, small=1, per_owner=12))
        await queue.asks("held", 10)
        for name in ("s1", "s2"):
            await queue.asks(name, 1)
        await queue.asks("victim", size, owner)
        await queue.asks("later", size, owner)
        if when == "given":  # in the same turn of the loop
            for name in ("held", "s1", "s2"):
                queue.shares.pop(name).give()
        queue.tasks["victim"].cancel()
        if when == "waiting":
            for name in ("held", "s1", "s2"):
                queue.shares.pop(name).give()
        await settle()
        assert queue.given[-1] == "later"
        await queue.gives("later")
        assert queue.budget.free == 12

    run(test())
