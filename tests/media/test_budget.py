"""The byte-weighted gate: fair, and whole after every kind of leaving."""

import asyncio

import pytest

from worker.media.budget import Budget


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def holder(budget: Budget, size: int, log: list[str], name: str, release: asyncio.Event) -> None:
    await budget.take(size)
    try:
        log.append(name)
        await release.wait()
    finally:
        budget.give(size)


def test_holders_wait_their_turn_and_nobody_overtakes() -> None:
    async def run() -> None:
        budget, log = Budget(10), list[str]()
        events = {name: asyncio.Event() for name in "abc"}
        tasks = []
        for name, size in (("a", 8), ("b", 5), ("c", 1)):
            tasks.append(asyncio.create_task(holder(budget, size, log, name, events[name])))
            await settle()
        assert log == ["a"]
        events["a"].set()
        await settle()
        assert log == ["a", "b", "c"]
        events["b"].set()
        events["c"].set()
        await asyncio.gather(*tasks)
        await budget.take(10)

    asyncio.run(run())


@pytest.mark.parametrize("who", ["first", "waiting"])
def test_cancelled_holders_give_back_what_they_held(who: str) -> None:
    async def run() -> None:
        budget, log = Budget(10), list[str]()
        release = asyncio.Event()
        first = asyncio.create_task(holder(budget, 10, log, "first", release))
        await settle()
        waiting = asyncio.create_task(holder(budget, 10, log, "waiting", release))
        await settle()
        victim = first if who == "first" else waiting
        victim.cancel()
        await settle()
        release.set()
        await asyncio.gather(first, waiting, return_exceptions=True)
        await budget.take(10)

    asyncio.run(run())
