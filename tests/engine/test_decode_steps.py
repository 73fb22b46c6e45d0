"""Steps that are launched before the last one is read: the same tokens as with steps that are read one by one, and
nothing lost where something fails in between. On the CPU, with attention by lengths in plain arithmetic."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.engine.requests import Shown, ask, picture, varied
from tests.engine.runners import Watched
from tests.models.by_lengths import Again, load_by_lengths
from worker.core.contract import Done, Piece
from worker.core.errors import WorkerError
from worker.core.sampling import Constraint
from worker.core.settings import Settings
from worker.engine.caches import EngineCaches
from worker.engine.continuous_batch import ContinuousBatch
from worker.engine.decode_steps import DecodeSteps
from worker.engine.engine import Engine, continuous_engine
from worker.engine.metering import Meter
from worker.engine.prefix_cache import FeatureCache
from worker.engine.recovery import Recovery
from worker.engine.scheduler import Scheduler
from worker.models.kv_pools import KVPools
from worker.models.loading import LoadedModel

SETTINGS = Settings(device="cpu", model_code="native", max_num_seqs=12)
DRAWN = {"temperature": 1.2, "top_k": 20, "top_p": 0.9, "max_tokens": 30, "ignore_eos": True}


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_by_lengths(SETTINGS, Again())


@pytest.fixture
def engines(model: LoadedModel) -> Iterator[tuple[Engine, Engine]]:
    """One whose steps run ahead, and one whose steps are read one by one."""
    both = continuous_engine(model, SETTINGS, runs_ahead=True), continuous_engine(model, SETTINGS, runs_ahead=False)
    for engine in both:
        engine.start()
    yield both
    for engine in both:
        engine.close()


def num_ahead(engine: Engine) -> int:
    assert isinstance(engine.parts.batch, ContinuousBatch)
    return engine.parts.batch.steps.num_ahead


async def said(engine: Engine, shown: Shown, leave_after: int | None = None) -> Any:
    """The text of each answer, and how they ended."""
    texts: dict[int, str] = {}
    count = 0
    async for event in engine.generate(shown.request, shown.media):
        if isinstance(event, Done):
            return sorted(texts.items()), event.reasons, event.usage.completion_tokens
        assert isinstance(event, Piece)
        texts[event.index] = texts.get(event.index, "") + event.text
        count += 1
        if count == leave_after:
            break
    return None


def together(engine: Engine, shown: list[Shown], leave: dict[int, int] | None = None) -> list[Any]:
    async def run() -> list[Any]:
        tasks = [said(engine, one, (leave or {}).get(index)) for index, one in enumerate(shown)]
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    return asyncio.run(run())


FREE = [
    *varied(),
    *(ask(f"Tell me of {index}.", seed=index, **DRAWN) for index in range(4)),
    ask("Who are you?", picture(3), n=3, seed=5, **DRAWN),
    ask("Hello", max_tokens=1),
    ask("Hello", max_tokens=2, ignore_eos=True),
    ask("What is in the picture?", picture(1), stop=("e",), max_tokens=20),
    ask("Go on.", temperature=0, logprobs=2, max_tokens=12, ignore_eos=True),
    ask("Bias.", logit_bias=((40, 3.0), (41, -5.0)), seed=3, **DRAWN),
]
HELD = [
    ask("Again and again.", repetition_penalty=1.3, max_tokens=20, ignore_eos=True),
    ask("Once.", presence_penalty=1.5, seed=2, **DRAWN),
    ask("Choose.", constraint=Constraint(kind="choice", text='["red", "blue circle"]'), max_tokens=20),
    ask("Not yet.", min_tokens=12, max_tokens=16),
    ask("Any token at all.", temperature=1.0, seed=9, max_tokens=20, ignore_eos=True),
]


def test_tokens_are_the_same_and_most_steps_run_ahead(engines: tuple[Engine, Engine]) -> None:
    ahead, by_one = engines
    assert together(ahead, FREE) == together(by_one, FREE)
    assert num_ahead(ahead) > 30
    assert num_ahead(by_one) == 0


@pytest.mark.parametrize(("device", "is_arena", "expected"), [
    ("cuda", True, True), ("cuda", False, False), ("cpu", True, False), ("cpu", False, False),
])  # fmt: skip
def test_steps_run_ahead_on_a_gpu_with_an_arena_alone(
    model: LoadedModel, device: str, is_arena: bool, expected: bool
) -> None:
    """Transformers' forward takes its tokens from the host, on a GPU as well."""
    kv = model.runner.kv_cache(2**20) if is_arena else KVPools(0, 1, torch.device("cpu"), torch.float32, lambda _: None)
    caches = EngineCaches(kv, FeatureCache(0), None, torch.device(device))
    scheduler: Any = Scheduler(kv, 4, 2**20, 1)
    steps = DecodeSteps(model.runner, scheduler, caches, Recovery(scheduler, caches), Meter(), lambda _: None)
    assert steps._can_run_ahead is expected


def test_beside_rows_that_wait_for_their_last_token_all_do(engines: tuple[Engine, Engine]) -> None:
    ahead, by_one = engines
    for one in HELD:
        before = num_ahead(ahead)
        assert together(ahead, [one]) == together(by_one, [one])
        assert num_ahead(ahead) == before
    mixed = [*FREE[:6], *HELD, *FREE[8:12]]
    assert together(ahead, mixed) == together(by_one, mixed)
    before = num_ahead(ahead)
    together(ahead, FREE[8:10])
    assert num_ahead(ahead) > before + 20


def test_who_leaves_takes_nobody_along(engines: tuple[Engine, Engine]) -> None:
    """Cancelled in the middle of a step that is under way."""
    ahead, by_one = engines
    shown = [ask(f"Tell me of {index}.", seed=index, **DRAWN) for index in range(8)]
    leave = {1: 2, 4: 1, 6: 5}
    assert together(ahead, shown, leave) == together(by_one, shown, leave)


class FailingAt(Watched):
    """Its steps of these numbers fail, before anything is computed or behind it."""

    def __init__(self, inner: Any, error: Exception, at: set[int], *, behind: bool) -> None:
        super().__init__(inner)
        self.error, self.at, self.behind, self.count = error, at, behind, 0

    def decode(self, *arguments: Any) -> torch.Tensor:
        self.count += 1
        if self.count in self.at and not self.behind:
            raise self.error
        logits = self.inner.decode(*arguments)
        if self.count in self.at:
            raise self.error
        return logits


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("none"), RuntimeError("it breaks")])
@pytest.mark.parametrize("at", [{1}, {2}, {5}])
def test_a_step_that_fails_loses_no_token(
    model: LoadedModel, error: Exception, at: set[int], behind: bool, engines: tuple[Engine, Engine]
) -> None:
    """Whoever is tried again goes on from what the step before it said."""
    shown = [ask(f"Tell me of {index}.", max_tokens=25, ignore_eos=True) for index in range(4)]
    expected = together(engines[1], shown)
    runner: Any = FailingAt(model.runner, error, at, behind=behind)
    engine = continuous_engine(replace(model, runner=runner), SETTINGS, runs_ahead=True)
    engine.start()
    try:
        assert together(engine, shown) == expected
        assert runner.count > max(at)
    finally:
        engine.close()
    assert num_ahead(engine) > 10


def test_a_row_without_numbers_fails_alone(model: LoadedModel, engines: tuple[Engine, Engine]) -> None:
    shown = [ask(f"Tell me of {index}.", max_tokens=25, ignore_eos=True) for index in range(4)]
    expected = together(engines[1], shown)

    class Lost(Watched):
        count = 0

        def decode(self, *arguments: Any) -> torch.Tensor:
            self.count += 1
            logits = self.inner.decode(*arguments).clone()
            if self.count == 9:
                logits[0] = torch.nan
            return logits

    runner: Any = Lost(model.runner)
    engine = continuous_engine(replace(model, runner=runner), SETTINGS, runs_ahead=True)
    engine.start()
    try:
        found = together(engine, shown)
    finally:
        engine.close()
    failed = [index for index, one in enumerate(found) if isinstance(one, WorkerError)]
    assert len(failed) == 1
    assert [one for index, one in enumerate(found) if index not in failed] == [
        one for index, one in enumerate(expected) if index not in failed
    ]
