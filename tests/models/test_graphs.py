"""Decode steps recorded once: the same tokens as eager ones, whatever joins, leaves and grows in between.

A GPU records kernels. Here a recorder that does the work again, on the same memory, stands in for it: what a recorded
step must not do (depend on anything but its fixed input and the pools' memory) shows on a CPU as well.
"""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.engine.requests import ask, varied
from tests.engine.test_equality import answer, staggered
from worker.core.settings import Settings
from worker.engine.engine import continuous_engine
from worker.models.loading import LoadedModel, load
from worker.models.native import graphs
from worker.models.native.runner import NativeRunner
from worker.models.runner import Runner, prefilled
from worker.prompt.builder import PromptBuilder

SETTINGS = Settings(device="cpu", model_code="native")


class Again:
    """Does the work again into the memory of the first time. fails: raises instead of recording."""

    def __init__(self) -> None:
        self.num_recorded = self.num_replayed = 0
        self.fails: Exception | None = None

    def __call__(self, work: Callable[[], torch.Tensor]) -> tuple["Again", torch.Tensor]:
        if self.fails:
            raise self.fails
        self.num_recorded += 1
        result = work()
        mine = Again()
        mine.replay = lambda: self._replay(work, result)  # type: ignore[method-assign]
        return mine, result

    def _replay(self, work: Callable[[], torch.Tensor], result: torch.Tensor) -> None:
        self.num_replayed += 1
        result.copy_(work())

    def replay(self) -> None:
        raise AssertionError


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Again:
    monkeypatch.setattr(graphs, "EAGER_STEPS", 2)
    return Again()


@pytest.fixture
def recording(recorder: Again, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    monkeypatch.setattr("worker.models.loading.recorder", lambda settings, device: recorder)
    return load(SETTINGS)


@pytest.fixture(scope="module")
def eager() -> LoadedModel:
    return load(SETTINGS)


@pytest.fixture(scope="module")
def expected(eager: LoadedModel) -> list[str]:
    return asyncio.run(answers(eager))


async def answers(model: LoadedModel) -> list[str]:
    """Requests one by one, in a burst, and joining while others leave."""
    engine = continuous_engine(model, SETTINGS)
    engine.start()
    try:
        alone = [await answer(engine, shown) for shown in varied()[:3]]
        burst = list(await asyncio.gather(*(answer(engine, shown) for shown in varied())))
        leaving = [ask("Count to ten, slowly.", max_tokens=20)]
        return [*alone, *burst, *await staggered(engine, varied(), leaving)]
    finally:
        engine.close()


def test_answers_are_the_same(recording: LoadedModel, recorder: Again, expected: list[str]) -> None:
    assert asyncio.run(answers(recording)) == expected
    assert recorder.num_recorded >= 2
    assert recorder.num_replayed > 50


def filled(model: LoadedModel, text: str) -> tuple[Any, int, int]:
    prompt = PromptBuilder(model.spec, SETTINGS).build(ask(text).request, [])
    cache, _ = prefilled(model.runner, prompt)
    return cache, len(prompt.ids), prompt.delta


@pytest.mark.parametrize("seed", range(3))
def test_logits_are_the_same_while_rows_join_leave_and_pools_grow(
    eager: LoadedModel, recording: LoadedModel, recorder: Again, seed: int
) -> None:
    rng = random.Random(seed)
    runners: tuple[Runner, Runner] = (eager.runner, recording.runner)
    both = recording.runner.kv_cache(), recording.runner.kv_cache()
    prompts = [filled(eager, "word " * rng.randint(1, 40)) for _ in range(6)]
    deltas: list[int] = []
    for _ in range(60):
        if both[0].num_live and rng.random() < 0.25:
            row = rng.randrange(both[0].num_live)
            gone = {slots.leave(row) for slots in both}
            moved = deltas.pop(gone_row := gone.pop())
            if gone_row != row:
                deltas[row] = moved
        elif both[0].num_live < 9 and rng.random() < 0.35:
            (cache, length, delta), most = rng.choice(prompts), rng.choice((200, 300, 500))
            rows = {slots.join(cache, length, most) for slots in both}
            deltas.insert(rows.pop(), delta)
            assert not rows
        if not both[0].num_live:
            continue
        lengths = both[0].lengths
        assert lengths == both[1].lengths
        tokens = [rng.randrange(300) for _ in lengths]
        positions = [length + delta for length, delta in zip(lengths, deltas, strict=True)]
        logits = [runner.decode(tokens, positions, slots) for runner, slots in zip(runners, both, strict=True)]
        torch.testing.assert_close(logits[0], logits[1], atol=2e-4, rtol=1e-4)
        for slots in both:
            slots.end_step()
    assert recorder.num_replayed >= 10


def test_graphs_whose_memory_is_gone_are_forgotten(recording: LoadedModel, recorder: Again) -> None:
    runner = recording.runner
    assert isinstance(runner, NativeRunner) and runner.graphs is not None
    slots, (cache, length, delta) = runner.kv_cache(), filled(recording, "a")

    def decode(times: int) -> None:
        for _ in range(times):
            runner.decode([5] * slots.num_live, [length + delta] * slots.num_live, slots)

    slots.join(cache, length, 100)
    decode(4)
    assert (runner.graphs.num_graphs, recorder.num_replayed) == (1, 2)
    slots.leave(0)
    slots.join(cache, length, 100)  # into the memory that was kept
    decode(1)
    assert (runner.graphs.num_graphs, recorder.num_replayed) == (1, 3)
    slots.join(cache, length, 100)  # the pool grows
    decode(4)
    assert runner.graphs.num_graphs == 1
    slots.leave(0)
    slots.leave(0)
    slots.expect([5000])  # memory of other widths is given back
    slots.join(cache, length, 5000)
    decode(1)
    assert runner.graphs.num_graphs == 0


@pytest.mark.parametrize(
    "failure",
    [
        torch.OutOfMemoryError("no memory"),
        RuntimeError("cannot be recorded"),
        torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing"),
    ],
)
def test_where_recording_fails_steps_are_eager(
    recording: LoadedModel, recorder: Again, expected: list[str], failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """Without memory for now, with anything else for good."""
    recorder.fails = failure
    assert asyncio.run(answers(recording)) == expected
    assert recorder.num_replayed == 0
    recorder.fails = None
    assert asyncio.run(answers(recording)) == expected
    assert (recorder.num_replayed > 0) == isinstance(failure, torch.OutOfMemoryError)
    assert "record" in caplog.text


def test_with_more_layouts_than_graphs_the_one_not_used_for_longest_goes(
    recording: LoadedModel, recorder: Again, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "MAX_GRAPHS", 2)
    runner, (cache, length, delta) = recording.runner, filled(recording, "a")
    assert isinstance(runner, NativeRunner) and runner.graphs is not None
    slots = runner.kv_cache()
    widths = (100, 300, 500)
    for most in widths:
        slots.join(cache, length, most)
    for _ in widths:  # memory for all three; from here on one of them has a row at a time
        slots.leave(0)
    for turn in range(4):
        for most in widths[: 2 if turn == 3 else 3]:
            slots.expect([])
            slots.join(cache, length, most)
            for _ in range(3):
                runner.decode([5], [length + delta], slots)
            slots.leave(0)
    assert runner.graphs.num_graphs == 2
    assert recorder.num_recorded <= 4 * 3


def test_a_replay_reads_what_it_is_given(recording: LoadedModel, eager: LoadedModel, recorder: Again) -> None:
    """The control: with a token of before, or a length of before, the logits are others."""
    slots, (cache, length, delta) = recording.runner.kv_cache(), filled(recording, "a b c")
    slots.join(cache, length, 100)
    seen = [recording.runner.decode([token], [length + delta], slots).clone() for token in (5, 5, 5, 9, 5)]
    assert recorder.num_replayed == 3
    assert torch.equal(seen[2], seen[4])
    assert not torch.equal(seen[2], seen[3])
    slots.end_step()
    assert not torch.equal(recording.runner.decode([5], [length + delta], slots), seen[4])
