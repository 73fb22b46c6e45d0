"""Pieces at a pace: gathered while the consumer is busy, one by one without an interval, nothing left behind."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest

from tests.fakes import cancelled_while_delivering
from worker.core.contract import Done, Event, Piece, TokenAlternative, TokenLogprob, Usage
from worker.core.errors import OutOfMemory
from worker.core.pacing import joined, paced

DONE = Done(reasons=("stop",), usage=Usage(prompt_tokens=1, completion_tokens=1))


class Stream:
    """Events one after the other; remembers how it ended."""

    def __init__(self, events: Sequence[Event | Exception]) -> None:
        self.events, self.is_closed = events, False

    async def __call__(self) -> AsyncGenerator[Event, None]:
        try:
            for event in self.events:
                await asyncio.sleep(0)
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            self.is_closed = True


def pieces(text: str) -> list[Event | Exception]:
    return [Piece(text=letter) for letter in text]


def texts(events: Sequence[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Piece)]


def collected(stream: Stream, interval_s: float) -> list[Event]:
    async def run() -> list[Event]:
        return [event async for event in paced(stream(), interval_s)]

    return asyncio.run(run())


def test_without_an_interval_each_piece_comes_as_it_is() -> None:
    got = collected(Stream([*pieces("abc"), DONE]), 0)
    assert texts(got) == ["a", "b", "c"]
    assert got[-1] == DONE


def test_the_first_comes_at_once_and_the_rest_gathers() -> None:
    """The end does not wait for the interval."""
    got = collected(Stream([*pieces("abcdef"), DONE]), 3600)
    assert "".join(texts(got)) == "abcdef"
    assert len(texts(got)) == 2
    assert got[-1] == DONE


@pytest.mark.parametrize("interval_s", [0, 3600])
def test_an_error_comes_behind_what_was_said(interval_s: float) -> None:
    got: list[Event] = []

    async def run() -> None:
        async for event in paced(Stream([*pieces("ab"), OutOfMemory()])(), interval_s):
            got.append(event)

    with pytest.raises(OutOfMemory):
        asyncio.run(run())
    assert "".join(texts(got)) == "ab"


@pytest.mark.parametrize("interval_s", [0, 0.001])
def test_leaving_closes_the_stream(interval_s: float) -> None:
    stream = Stream([*pieces("abc" * 100), DONE])

    async def run() -> None:
        events = paced(stream(), interval_s)
        await anext(events)
        await events.aclose()

    asyncio.run(run())
    assert stream.is_closed


@pytest.mark.parametrize("interval_s", [0, 3600])
def test_a_task_that_is_cancelled_while_its_consumer_is_busy_closes_the_stream(interval_s: float) -> None:
    stream = Stream([*pieces("abc"), DONE])
    kept: list[AsyncGenerator[Event, None]] = []

    async def run() -> None:
        kept.append(paced(stream(), interval_s))  # somebody else still holds it
        await cancelled_while_delivering(kept[0])
        for _ in range(5):
            await asyncio.sleep(0)
        assert stream.is_closed

    asyncio.run(run())


def test_what_gathers_while_a_client_is_slow_comes_in_pieces_of_a_bounded_size() -> None:
    token = TokenLogprob(TokenAlternative("x", b"x", 0.0), ())
    many = [Piece(text="ab", index=index % 2, logprobs=(token,) * 30) for index in range(20)]
    merged = [event for event in joined(many) if isinstance(event, Piece)]
    assert max(len(piece.logprobs) for piece in merged) < 130
    for index in (0, 1):
        assert "".join(piece.text for piece in merged if piece.index == index) == "ab" * 10
