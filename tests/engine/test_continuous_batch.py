"""Continuous batching with a model that counts: answers join and leave at every step, and what each says is its own."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from tests.engine.requests import Shown, ask
from tests.engine.runners import FakeRunner
from worker.core.contract import Done, Event
from worker.core.settings import Settings
from worker.engine.engine import Engine, continuous_engine
from worker.models.loading import LoadedModel

FIRST = 300  # of the tiny vocabulary: an ordinary word's


@pytest.fixture
def runner(tiny: LoadedModel) -> FakeRunner:
    return FakeRunner(tiny.spec.vocabulary_size, FIRST)


def engine_of(tiny: LoadedModel, runner: Any, **settings: Any) -> Engine:
    return continuous_engine(replace(tiny, runner=runner), Settings(device="cpu", **settings))


async def said(engine: Engine, shown: Shown) -> tuple[str, Done]:
    events: list[Event] = [event async for event in engine.generate(shown.request, shown.media)]
    done = events[-1]
    assert isinstance(done, Done)
    return "".join(event.text for event in events[:-1] if not isinstance(event, Done)), done


def together(engine: Engine, work: list[Shown]) -> list[tuple[str, Done]]:
    async def run() -> list[tuple[str, Done]]:
        return list(await asyncio.gather(*(said(engine, shown) for shown in work)))

    engine.start()
    try:
        return asyncio.run(run())
    finally:
        engine.close()


def counted(tiny: LoadedModel, number: int) -> str:
    return tiny.spec.tokenizer.decode(range(FIRST, FIRST + number))


def test_each_answer_is_as_long_as_it_was_asked_to_be(tiny: LoadedModel, runner: FakeRunner) -> None:
    lengths = [1, 7, 3, 12, 5, 2]
    engine = engine_of(tiny, runner, max_num_seqs=4)
    answers = together(engine, [ask(f"Count to {number}", max_tokens=number) for number in lengths])
    assert [text for text, _ in answers] == [counted(tiny, number) for number in lengths]
    assert [done.usage.completion_tokens for _, done in answers] == lengths
    assert max(runner.steps) <= 4
    assert sum(runner.steps) == sum(lengths) - len(lengths)  # a step for each token but the first, which prefill gives


def test_several_answers_to_one_prompt_take_a_row_each(tiny: LoadedModel, runner: FakeRunner) -> None:
    [(_, done)] = together(engine_of(tiny, runner), [ask("Count", max_tokens=4, n=3)])
    assert done.reasons == ("length",) * 3
    assert runner.steps == [3, 3, 3]


def test_bias_and_bans_hold_in_a_batch(tiny: LoadedModel, runner: FakeRunner) -> None:
    """Of three answers in the same steps one is pushed to its end at once, and one is kept from it."""
    end = min(tiny.spec.eos_ids)
    work = [
        ask("a", max_tokens=5),
        ask("b", max_tokens=5, logit_bias=((end, 50.0),)),
        ask("c", max_tokens=5, logit_bias=((end, 50.0),), min_tokens=3),
    ]
    answers = together(engine_of(tiny, runner), work)
    assert [done.usage.completion_tokens for _, done in answers] == [5, 1, 4]
    assert [done.reasons[0] for _, done in answers] == ["length", "stop", "stop"]
