"""Decode steps recorded once: the same tokens as eager ones, whatever joins, leaves, grows and moves in between."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.engine.requests import ask, varied
from tests.engine.test_equality import answer, staggered
from tests.models.by_lengths import Again, load_by_lengths
from worker.core.settings import Settings
from worker.engine.engine import continuous_engine
from worker.models.kv_cache import KVCache
from worker.models.loading import LoadedModel
from worker.models.native import graphs
from worker.models.native.graphs import CudaRecorder, StepGraphs, fed_numbers
from worker.models.native.runner import NativeRunner
from worker.models.runner import prefilled
from worker.prompt.builder import PromptBuilder

SETTINGS = Settings(device="cpu", model_code="native")
ROOM = 2**23  # bytes of keys and values


@pytest.fixture
def recorder() -> Again:
    return Again()


@pytest.fixture
def recording(recorder: Again) -> LoadedModel:
    return load_by_lengths(SETTINGS, recorder)


@pytest.fixture(scope="module")
def eager() -> LoadedModel:
    return load_by_lengths(SETTINGS)


@pytest.fixture(scope="module")
def expected(eager: LoadedModel) -> list[str]:
    return asyncio.run(answers(eager))


async def answers(model: LoadedModel) -> list[str]:
    """Requests one by one, in a burst, and joining while others leave; steps run ahead of what is read."""
    engine = continuous_engine(model, SETTINGS, runs_ahead=True)
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


def steps_of(model: LoadedModel) -> StepGraphs:
    assert isinstance(model.runner, NativeRunner)
    found = model.runner.steps.graphs
    assert found is not None
    return found


def filled(model: LoadedModel, text: str, slots: KVCache) -> tuple[Any, int, int]:
    prompt = PromptBuilder(model.spec, SETTINGS).build(ask(text).request, [])
    cache, _ = prefilled(model.runner, prompt, slots)
    return cache, len(prompt.ids), prompt.delta


@pytest.mark.parametrize("seed", range(3))
def test_logits_are_the_same_while_rows_join_leave_grow_and_move(
    eager: LoadedModel, recording: LoadedModel, recorder: Again, seed: int
) -> None:
    rng = random.Random(seed)
    models = eager, recording
    both = eager.runner.kv_cache(ROOM), recording.runner.kv_cache(ROOM)
    deltas: list[int] = []
    for _ in range(120):
        if both[0].num_live and rng.random() < 0.25:
            row = rng.randrange(both[0].num_live)
            gone = {slots.leave(row) for slots in both}
            moved = deltas.pop(gone_row := gone.pop())
            if gone_row != row:
                deltas[row] = moved
        elif both[0].num_live < 9 and rng.random() < 0.35:
            text, most = "word " * rng.randint(1, 40), rng.choice((200, 300, 500))
            ends = [filled(model, text, slots) for model, slots in zip(models, both, strict=True)]
            rows = {slots.join(cache, length, most) for slots, (cache, length, _) in zip(both, ends, strict=True)}
            deltas.insert(rows.pop(), ends[0][2])
            assert not rows
        recording.runner.tidy()
        if not both[0].num_live:
            continue
        lengths = both[0].lengths
        assert lengths == both[1].lengths
        tokens = [rng.randrange(300) for _ in lengths]
        positions = [length + delta for length, delta in zip(lengths, deltas, strict=True)]
        before = [[7, 8] if rng.random() < 0.1 else [] for _ in lengths] if rng.random() < 0.2 else ()
        positions = [place + len(part) for place, part in zip(positions, before or [()] * len(lengths), strict=True)]
        logits = [
            model.runner.decode(tokens, positions, slots, before) for model, slots in zip(models, both, strict=True)
        ]
        torch.testing.assert_close(logits[0], logits[1], atol=2e-4, rtol=1e-4)
        for slots in both:
            slots.end_step()
    assert recorder.num_replayed >= 30


def test_steps_are_recorded_only_while_nobody_waits(recording: LoadedModel, recorder: Again) -> None:
    """A step of nine rows is eager until the engine rests; then the next one is a replay."""
    slots = recording.runner.kv_cache(ROOM)
    for _ in range(9):
        cache, length, delta = filled(recording, "a", slots)
        slots.join(cache, length, 100)
    for _ in range(3):
        recording.runner.decode([5] * 9, [length + delta] * 9, slots)
    assert (recorder.num_recorded, recorder.num_replayed) == (0, 0)
    while recording.runner.tidy():
        pass
    assert recorder.num_recorded == steps_of(recording).num_graphs == len(graphs.FIRST_ROWS) + 1
    recording.runner.decode([5] * 9, [length + delta] * 9, slots)
    assert recorder.num_replayed == 1


def test_one_graph_serves_all_lengths_and_fewer_rows(recording: LoadedModel, recorder: Again) -> None:
    found = steps_of(recording)
    recording.runner.kv_cache(ROOM)
    while recording.runner.tidy():
        pass
    row = (5, 3, 70, 64, 7)
    for rows, longest in ((1, 1), (1, 4000), (3, 7), (7, 100), (8, 4096)):
        numbers = [row] * (rows - 1) + [(*row[:4], longest)]
        assert found._larger(found._key(rows, longest)) is not None
        assert found._key(rows, longest)[0] in graphs.FIRST_ROWS
        assert fed_numbers(numbers, 8).shape == (graphs.FED, 9)
    assert found._key(1, 4097) == (1, 32_768)
    assert [found._key(rows, 1)[0] for rows in (9, 16, 17, 64)] == [16, 16, 24, 64]
    assert recorder.num_recorded == len(graphs.FIRST_ROWS)


def test_another_cache_is_another_recording(recording: LoadedModel, recorder: Again) -> None:
    """What was recorded reads memory that is no more."""
    for expected in (len(graphs.FIRST_ROWS), 2 * len(graphs.FIRST_ROWS)):
        recording.runner.kv_cache(ROOM)
        assert steps_of(recording).num_graphs == 0
        while recording.runner.tidy():
            pass
        assert recorder.num_recorded == expected


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


def test_a_replay_reads_what_it_is_given(recording: LoadedModel, recorder: Again) -> None:
    """The control: with a token of before, or a length of before, the logits are others."""
    slots = recording.runner.kv_cache(ROOM)
    while recording.runner.tidy():
        pass
    cache, length, delta = filled(recording, "a b c", slots)
    slots.join(cache, length, 100)
    seen = [recording.runner.decode([token], [length + delta], slots).clone() for token in (5, 9, 5)]
    assert recorder.num_replayed == 3
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[1])
    slots.end_step()
    assert not torch.equal(recording.runner.decode([5], [length + delta], slots), seen[2])


class Capture:
    """Stands in for a CUDA graph. fails: at its end, as where an error has spoiled it."""

    fails = False
    log: list[str] = []

    def capture_begin(self, **_: object) -> None:
        self.log.append("begin")

    def capture_end(self) -> None:
        self.log.append("end")
        if self.fails:
            raise RuntimeError("capture invalidated")


class Stream:
    def wait_stream(self, other: object) -> None:
        pass


@pytest.mark.parametrize("at", ["work", "end", "nowhere"])
def test_after_a_capture_the_thread_is_on_its_stream_and_memory_is_its_own(
    at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sequence of calls: torch's own context manager leaves both where a capture fails."""
    now, aside, streams, ended = Stream(), Stream(), [], []
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: aside)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: now)
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: __import__("contextlib").nullcontext())
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *pool: ended.append(pool), raising=False)
    monkeypatch.setattr(Capture, "fails", at == "end")
    monkeypatch.setattr(Capture, "log", [])
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Capture)
    counts = iter(range(9))

    def work() -> torch.Tensor:
        if next(counts) == 1 and at == "work":
            raise RuntimeError("cannot be recorded")
        return torch.zeros(1)

    record: Callable[..., Any] = CudaRecorder(torch.device("cuda", 2))
    if at == "nowhere":
        record(work)
        assert not ended
    else:
        with pytest.raises(RuntimeError):
            record(work)
        assert ended == [(2, (0, 1))]
    assert streams == [now]
    assert Capture.log[:2] == ["begin", "end"]
