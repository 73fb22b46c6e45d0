"""Nobody learns from `cached_tokens`, or from the work that is done, what another caller's prompt or picture was."""

import asyncio
import queue
from collections.abc import Sequence
from typing import Any

import pytest

from tests.engine.requests import Shown, ask, picture
from tests.engine.runners import Counting, Stuck
from tests.engine.serving import CPU, Serve
from worker.core.contract import Done, Piece
from worker.core.sampling import Sampling
from worker.engine.engine import Engine

SECRET = "The password is 73914082, and it must be told to nobody but the owner of this house, whatever is asked. "
ANN, BOB = {"caller": "ann"}, {"caller": "bob"}
SALTED, OTHERWISE = {"cache_salt": "a"}, {"cache_salt": "b"}
Owners = Sequence[dict[str, str]]


def cached(engine: Engine, owners: Owners, shown: Shown) -> list[int]:
    """Cached tokens of one request sent by these callers, one after the other."""

    async def tokens(owner: dict[str, str]) -> int:
        request = shown.request.model_copy(update=owner)
        events = [event async for event in engine.generate(request, shown.media)]
        assert isinstance(events[-1], Done)
        return events[-1].usage.cached_tokens

    async def run() -> list[int]:
        return [await tokens(owner) for owner in owners]

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("sharing", "owners", "has_shared"),
    [
        ("caller", (ANN, ANN), True),
        ("caller", (ANN, BOB), False),
        ("caller", ({}, ANN), False),
        ("caller", (SALTED, OTHERWISE), False),
        ("caller", ({}, SALTED), False),
        ("caller", (SALTED, SALTED), True),
        ("caller", (ANN | SALTED, BOB | SALTED), False),
        ("caller", ({"caller": "a", "cache_salt": "b"}, {"caller": "", "cache_salt": "a\0b"}), False),
        ("all", (ANN, BOB), True),
        ("all", (ANN | SALTED, BOB | SALTED), True),
        ("all", (SALTED, OTHERWISE), False),
        ("off", (ANN, ANN), False),
    ],
)
def test_prefixes_and_features_are_shared_within_one_scope(
    serve: Serve, sharing: Any, owners: Owners, has_shared: bool
) -> None:
    counting: list[Counting] = []

    def counted(inner: Any) -> Counting:
        counting.append(Counting(inner))
        return counting[-1]

    engine = serve(CPU.model_copy(update={"prefix_sharing": sharing}), counted)
    words = ask(SECRET * 2, max_tokens=1)
    assert [tokens > 0 for tokens in cached(engine, owners, words)] == [False, has_shared]
    seen = ask("What?", picture(3, 128, 96), max_tokens=1)
    cached(engine, owners, seen)
    assert counting[0].num_features == (1 if has_shared else 2)


def test_a_secret_cannot_be_guessed_digit_by_digit(serve: Serve) -> None:
    engine = serve()
    cached(engine, [ANN], ask(SECRET, max_tokens=1))
    seen = []
    for digit in range(10):
        guess = ask(SECRET.split("73914082")[0] + f"{digit}", max_tokens=1)
        seen += cached(engine, [BOB], guess)
    assert set(seen[:1]) == {0}
    assert len(set(seen[1:])) == 1, "only what bob has sent himself makes a difference, and it is the same for all"


@pytest.mark.parametrize(("owners", "together"), [((ANN, BOB), [2]), ((ANN, ANN), [])])
def test_those_that_begin_alike_wait_for_each_other_only_within_one_scope(
    serve: Serve, owners: Owners, together: list[int]
) -> None:
    """Prompts of a burst that share a beginning are computed one after the other; others' together."""
    held: list[Stuck] = []
    counting: list[Counting] = []

    def watched(inner: Any) -> Counting:
        held.append(Stuck(inner))
        counting.append(Counting(held[0]))
        return counting[0]

    engine = serve(CPU, watched)
    ended: queue.SimpleQueue[object] = queue.SimpleQueue()

    def submit(shown: Shown) -> None:
        def emit(event: object) -> None:
            if not isinstance(event, Piece):
                ended.put(event)

        engine.submit(engine.builder.build(shown.request, ()), Sampling(max_tokens=2), emit)

    submit(ask("Hello!"))
    assert held[0].has_begun.wait(30)
    for owner in owners:  # both are there before either begins
        submit(Shown(ask(SECRET).request.model_copy(update=owner), ()))
    held[0].let_go.set()
    assert all(isinstance(ended.get(timeout=30), Done) for _ in range(3))
    assert counting[0].together == together
