"""Token for token what transformers' greedy `generate` says: alone, in a burst, joining late, leaving early."""

import asyncio
from collections.abc import Sequence

import pytest

from builder.tiny_model.evaluate import generate_ids
from tests.engine.requests import Shown, ask, clip, picture, varied
from worker.core.contract import Done
from worker.core.settings import Settings
from worker.engine.engine import Engine
from worker.models.loading import LoadedModel
from worker.prompt.builder import PromptBuilder


@pytest.fixture(scope="module")
def expected(library: LoadedModel) -> list[str]:
    """The answers of `generate`, one request at a time."""
    return [reference(library, shown) for shown in varied()]


def reference(library: LoadedModel, shown: Shown) -> str:
    prompt = PromptBuilder(library.spec, Settings()).build(shown.request, shown.media)
    tokens = generate_ids(library, prompt, shown.request.sampling.max_tokens or 512)
    return library.spec.tokenizer.decode(tokens)


async def answer(engine: Engine, shown: Shown, leave_after: int | None = None) -> str:
    text, num_pieces = "", 0
    async for event in engine.generate(shown.request, shown.media):
        if isinstance(event, Done):
            break
        text, num_pieces = text + event.text, num_pieces + 1
        if num_pieces == leave_after:
            break
    return text


async def staggered(engine: Engine, shown: Sequence[Shown], leaving: Sequence[Shown]) -> list[str]:
    """Each request joins after the one before has said something; in between others join and leave at once."""
    tasks = []
    for index, one in enumerate(shown):
        if leaving:
            await answer(engine, leaving[index % len(leaving)], leave_after=1)
        tasks.append(asyncio.create_task(answer(engine, one)))
    return list(await asyncio.gather(*tasks))


def test_alone(engine: Engine, expected: list[str]) -> None:
    async def run() -> list[str]:
        return [await answer(engine, shown) for shown in varied()]

    assert asyncio.run(run()) == expected


def test_in_a_burst(engine: Engine, expected: list[str]) -> None:
    async def run() -> list[str]:
        return list(await asyncio.gather(*(answer(engine, shown) for shown in varied())))

    assert asyncio.run(run()) == expected


def test_while_others_join_and_leave(engine: Engine, expected: list[str]) -> None:
    leaving = [ask("What is in the picture?", picture(20)), ask("Locate the blue ring.", picture(21), max_tokens=90)]
    assert asyncio.run(staggered(engine, varied(), leaving)) == expected


def test_more_requests_than_slots(engine: Engine, expected: list[str]) -> None:
    async def run() -> list[str]:
        return list(await asyncio.gather(*(answer(engine, shown) for shown in varied() * 3)))

    assert asyncio.run(run()) == expected * 3


def test_other_pixels_give_another_text(engine: Engine) -> None:
    async def run() -> set[str]:
        shown = [ask("What is in the picture?", picture(seed)) for seed in range(30, 36)]
        return set(await asyncio.gather(*(answer(engine, one) for one in shown)))

    assert len(asyncio.run(run())) > 2


def test_the_position_delta_matters_for_pictures_and_not_for_text(tiny: LoadedModel) -> None:
    builder = PromptBuilder(tiny.spec, Settings())
    deltas = []
    for shown in (ask("Hi"), ask("Hi", picture(1)), ask("Hi", clip(1))):
        deltas.append(builder.build(shown.request, shown.media).delta)
    assert deltas[0] == 0
    assert deltas[1] < 0
    assert deltas[2] < 0
