"""Every family, token for token what transformers' greedy `generate` says, in every way in which rows come and go."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from builder.tiny_model.evaluate import generate_ids
from tests.conftest import EQUALITY
from tests.engine.requests import Shown, ask, clip, picture, varied
from tests.models import checkpoints
from tests.models.by_lengths import Again, load_by_lengths
from tests.models.checkpoints import NATIVE
from worker.core.contract import Done
from worker.core.opened import Clip
from worker.core.sampling import Sampling
from worker.core.settings import Settings
from worker.engine.engine import Engine, continuous_engine
from worker.models import kv_arena, sizes
from worker.models.kv_widths import ARENA, UNIT
from worker.models.loading import LoadedModel, load
from worker.models.runner import prefilled
from worker.prompt.builder import PromptBuilder

Tokenizer = tuple[bytes, ...]
LONG = "Tell me about the picture, and then about the other one. " * 12


# Qwen2-VL's text model is Qwen2.5-VL's to the library, too.
CODES = [(family, "transformers") for family in checkpoints.FAMILIES if family != "qwen2_vl"]
CODES += [(family, code) for family in NATIVE for code in ("native", "by lengths")]


@dataclass(frozen=True)
class Served:
    """A model, and the same one as the library's, whose `generate` says what is right."""

    model: LoadedModel
    library: LoadedModel
    expected: list[Tokenizer]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[LoadedModel, list[Tokenizer]]]:
    """Each family's library model and its tokens of `generate`, one request at a time; made once."""
    folder = tmp_path_factory.mktemp("models")

    @cache
    def library(family: str) -> tuple[LoadedModel, list[Tokenizer]]:
        path = checkpoints.write(family, folder / family)
        model = load(Settings(device="cpu", model_path=path, model_code="transformers"))
        return model, [reference(model, one) for one in requests()]

    library.folder = folder  # type: ignore[attr-defined]
    return library


@pytest.fixture(scope="module", params=CODES, ids=lambda param: "-".join(param))
def tested(request: pytest.FixtureRequest, libraries: Any) -> Served:
    family, code = request.param
    library, tokens = libraries(family)
    if code == "transformers":
        return Served(library, library, tokens)
    settings = Settings(device="cpu", model_path=libraries.folder / family, model_code="native")
    model = load_by_lengths(settings, Again()) if code == "by lengths" else load(settings)
    assert model.code == "native"
    return Served(model, library, tokens)


@pytest.fixture
def model(tested: Served) -> LoadedModel:
    return tested.model


@pytest.fixture
def expected(tested: Served) -> list[Tokenizer]:
    return tested.expected


def requests() -> list[Shown]:
    shown = [*varied(), ask(LONG, picture(3), picture(11, 96, 256))]
    return [
        Shown(one.request.model_copy(update={"sampling": Sampling(max_tokens=12, logprobs=0)}), one.media)
        for one in shown
    ]


def reference(model: LoadedModel, shown: Shown) -> Tokenizer:
    prompt = PromptBuilder(model.spec, Settings()).build(shown.request, shown.media)
    more = {}
    if model.spec.tokens_per_second is not None and prompt.videos:
        more["second_per_grid_ts"] = [2 / (one.fps or 2.0) for one in shown.media if isinstance(one, Clip)]
    return tuple(model.spec.tokenizer.bytes_of(token) for token in generate_ids(model, prompt, 12, **more))


async def answer(engine: Engine, shown: Shown, leave_after: int | None = None) -> Tokenizer:
    """The bytes of each token, as their log-probabilities name them."""
    tokens: list[bytes] = []
    async for event in engine.generate(shown.request, shown.media):
        if isinstance(event, Done) or (leave_after and len(tokens) >= leave_after):
            break
        tokens += [one.chosen.bytes for one in event.logprobs]
    return tuple(tokens)


async def all_of(engine: Engine, shown: list[Shown]) -> list[Tokenizer]:
    return list(await asyncio.gather(*(answer(engine, one) for one in shown)))


async def burst(engine: Engine) -> list[Tokenizer]:
    return await all_of(engine, requests())


async def one_by_one(engine: Engine) -> list[Tokenizer]:
    return [await answer(engine, one) for one in requests()]


async def staggered(engine: Engine) -> list[Tokenizer]:
    """Each joins when the one before it has begun; in between others join and leave, so that rows move."""
    tasks = []
    for index, one in enumerate(requests()):
        other = ask("Go.", picture(20 + index), max_tokens=30, logprobs=0)
        leaving = asyncio.create_task(answer(engine, other, leave_after=2))
        tasks.append(asyncio.create_task(answer(engine, one)))
        await leaving
    return list(await asyncio.gather(*tasks))


async def twice(engine: Engine) -> list[Tokenizer]:
    """The second time features are known, and so is all of a prompt but its last token."""
    await burst(engine)
    return await burst(engine)


async def shared_beginnings(engine: Engine) -> list[Tokenizer]:
    """Others with the same pictures and other questions come first."""
    for one in requests():
        await answer(engine, ask("Something else that is asked about it.", *one.media, max_tokens=2))
    return await burst(engine)


WAYS = {
    "one by one": (one_by_one, {}),
    "burst": (burst, {"max_num_seqs": 16}),
    "joins and leaves": (staggered, {"max_num_seqs": 16}),
    "four rows": (burst, {"max_num_seqs": 4}),
    "chunks of 16": (burst, {"prefill_chunk": 16}),
    "nothing kept": (burst, {"feature_cache_mib": 0, "prefix_cache_mib": 0}),
    "all seen before": (twice, {}),
    "shared beginnings": (shared_beginnings, {"prefill_chunk": 64}),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_family_in_every_way(model: LoadedModel, expected: list[Tokenizer], way: str) -> None:
    run, options = WAYS[way]
    has_arena = model.runner.kv_layout is ARENA  # there steps run ahead of what is read, as on a GPU
    engine = continuous_engine(model, Settings(device="cpu", **options), runs_ahead=has_arena)
    engine.start()
    try:
        answers = asyncio.run(run(engine))
    finally:
        engine.close()
    right = [a == b for a, b in zip(answers, expected, strict=True)]
    how = "by lengths" if has_arena else model.code
    EQUALITY[f"{model.spec.name} {how}", way] = f"{sum(right)}/{len(right)}"
    assert answers == expected


@pytest.mark.parametrize("tested", [(family, "by lengths") for family in NATIVE], indirect=True, ids="-".join)
def test_out_of_room_answers_go_on_later_and_say_the_same(
    tested: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All begin, with memory for two or three of them as long as they become: the youngest make room, and nobody
    fails."""
    model, runner = tested.model, tested.model.runner
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(kv_arena, "HEADROOM", 0)
    shown = [ask(f"Tell me of {index}.", max_tokens=120, ignore_eos=True, logprobs=0) for index in range(7)]
    length = max(len(PromptBuilder(model.spec, Settings()).build(one.request, ()).ids) for one in shown)

    def said(num_tokens: int) -> list[Tokenizer]:
        monkeypatch.setattr(sizes, "MIB", runner.bytes_per_token * num_tokens)
        engine = continuous_engine(model, Settings(device="cpu", max_num_seqs=16, kv_cache_mib=1), runs_ahead=True)
        engine.start()
        try:
            return asyncio.run(all_of(engine, shown))
        finally:
            engine.close()

    expected = said(7 * (length + 300))
    assert "the youngest goes on later" not in caplog.text
    assert said(2 * (length + 120) + UNIT) == expected
    assert caplog.text.count("the youngest goes on later") >= 4


def test_plain_attention_gives_the_tokens_of_generate_too(tmp_path: Path) -> None:
    model = load(
        Settings(device="cpu", model_path=checkpoints.write("qwen3_vl", tmp_path / "model"), attention="eager")
    )
    wanted = [reference(model, one) for one in requests()]
    engine = continuous_engine(model, Settings(device="cpu", prefill_chunk=64))
    engine.start()
    try:
        assert asyncio.run(burst(engine)) == wanted
    finally:
        engine.close()


def test_other_pixels_and_other_positions_give_another_text(tested: Served) -> None:
    """Controls: without them the table above could be of models that look at nothing."""
    assert len(set(tested.expected)) >= len(tested.expected) - 2
    for shown, least in ((picture, 2), (clip, 1)):
        asked = [ask("What is it?", shown(seed), max_tokens=12) for seed in range(40, 46)]
        assert len({reference(tested.library, one) for one in asked}) > least


def test_a_wrong_position_delta_gives_other_numbers_for_media_and_there_is_none_for_text(model: LoadedModel) -> None:
    builder = PromptBuilder(model.spec, Settings())
    assert builder.build(ask("Hi").request, ()).delta == 0
    for shown in (ask("Hi", picture(1, 400, 300)), ask("Hi", clip(1))):
        prompt = builder.build(shown.request, shown.media)
        assert prompt.delta != 0
        steps = []
        for delta in (prompt.delta, 0):
            runner = model.runner
            slots = runner.kv_cache(2**26)
            filled, _ = prefilled(runner, prompt, slots, dict(enumerate(runner.features(prompt.items))))
            slots.join(filled, len(prompt.ids), len(prompt.ids) + 1)
            steps.append(runner.decode([5], [len(prompt.ids) + delta], slots))
            slots.end_step()
        assert not torch.allclose(steps[0], steps[1], atol=1e-4)
