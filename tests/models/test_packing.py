"""Weights that are packed while answers are made: the same numbers, and no more memory than once."""

import asyncio
import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from tests.engine.requests import ask, picture
from tests.models import checkpoints
from tests.models.checkpoints import NATIVE
from worker.checkpoint.cpu import multiplies
from worker.core.contract import Done
from worker.core.settings import Settings
from worker.engine.engine import continuous_engine
from worker.models.loading import LoadedModel, load
from worker.models.native import packing
from worker.models.native.linear import WIDE_FROM, HalfWeight, Linear, OneDnn, Plain, Widened, padding
from worker.models.native.packing import (
    Layout,
    Measured,
    WeightPacking,
    in_float16,
    in_onednns_layout,
    is_right,
    linears,
)
from worker.models.native.runner import NativeRunner
from worker.models.runner import prefilled
from worker.prompt.builder import PromptBuilder

FASTER = dict.fromkeys(packing.STEPS, 1.0)
SLOWER_ALONE = {1: 3.0, 2: 1.5, 4: 1.5, 16: 1.5}
PLAIN = dict.fromkeys(packing.STEPS, 2.0)
HAS_FLOAT16 = is_right(in_float16, torch.float32)
needs_onednn = pytest.mark.skipif(
    not is_right(in_onednns_layout, torch.float32), reason="torch has no oneDNN that packs here"
)
needs_float16 = pytest.mark.skipif(not HAS_FLOAT16, reason="torch has no FBGEMM here")
needs_both = pytest.mark.skipif(
    not (HAS_FLOAT16 and is_right(in_onednns_layout, torch.float32)), reason="torch has no FBGEMM or no oneDNN here"
)


@pytest.fixture(autouse=True)
def _all_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones too, whatever is faster here."""
    monkeypatch.setattr(packing, "SMALLEST", 0)
    chosen(monkeypatch, in_onednns_layout)


def chosen(monkeypatch: pytest.MonkeyPatch, layout: Any, packed: Any = FASTER) -> None:
    """What would be measured."""
    monkeypatch.setattr(packing, "measure", lambda *_: [Measured(layout, packed, PLAIN)])


def logits(model: LoadedModel) -> torch.Tensor:
    shown = ask("What is it?", picture(3))
    prompt = PromptBuilder(model.spec, Settings()).build(shown.request, shown.media)
    slots = model.runner.kv_cache(2**26)
    return prefilled(model.runner, prompt, slots, dict(enumerate(model.runner.features(prompt.items))))[1]


LAYOUTS = [
    pytest.param(in_onednns_layout, OneDnn, marks=needs_onednn),
    pytest.param(in_float16, HalfWeight, marks=needs_float16),
]


@pytest.mark.parametrize(("layout", "kind"), LAYOUTS)
@pytest.mark.parametrize("family", NATIVE)
def test_a_packed_model_gives_the_same_numbers(
    family: str, layout: Any, kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen(monkeypatch, layout)
    path = checkpoints.write(family, tmp_path / family)
    for file in path.glob("*.safetensors"):  # as published checkpoints are
        save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file)
    model = load(Settings(device="cpu", model_path=path, dtype="float32"))
    runner = model.runner
    assert isinstance(runner, NativeRunner) and runner.packing is not None
    before = logits(model)
    runner.begin_tuning()
    runner.begin_tuning()  # once is enough
    runner.packing.wait()
    parts = [*linears(runner.text), *linears(runner.tower)]
    assert all(isinstance(part.products, kind) for part in parts)
    assert len(parts) > 4 * len(runner.text._layers)
    assert (logits(model) - before).abs().max() < 1e-4
    runner.close()


@pytest.mark.parametrize(("layout", "kind"), LAYOUTS)
@pytest.mark.parametrize("rows", [1, 2, 3, 16, 17, 100])
@pytest.mark.parametrize("has_bias", [True, False])
def test_products_with_packed_weights(rows: int, has_bias: bool, layout: Any, kind: Any) -> None:
    weight, bias = torch.randn(48, 40).bfloat16().float(), torch.randn(48) if has_bias else None
    residual, wide = torch.randn(rows, 48), torch.randn(rows, 80)
    part = Linear(weight, bias)
    assert (padding(rows) > 0) == (rows in (3, 17, 100))
    for x in (wide[:, 16:56], wide[:, 16:56].contiguous()):  # the first lies in memory with gaps
        expected, total = Linear(weight, bias)(x), Linear(weight, bias).onto(residual, x)
        part.products = layout(weight, bias)
        assert isinstance(part.products, kind)
        before = x.clone(), residual.clone()
        assert torch.allclose(part(x), expected, atol=1e-5)
        assert torch.allclose(part.onto(residual, x), total, atol=1e-5)
        assert torch.equal(x, before[0]) and torch.equal(residual, before[1])
    assert part.width == 40


@pytest.mark.parametrize(
    ("weight", "fits"),
    [
        (torch.randn(32, 32).bfloat16().float(), True),
        (torch.randn(32, 32).half().float(), True),
        (torch.full((32, 32), 1e-6).bfloat16().float(), True),  # below the smallest normal number, by less than 6e-8
        (torch.randn(32, 32), False),  # was float32 in the checkpoint
        (torch.full((32, 32), 1e6).bfloat16().float(), False),
        (torch.full((32, 32), torch.nan), False),
        (torch.randn(32, 32).bfloat16(), not multiplies(torch.bfloat16)),  # else its own instructions are faster
    ],
)
@needs_float16
def test_weights_are_in_float16_only_where_they_stay_the_same(weight: torch.Tensor, fits: bool) -> None:
    if not fits:
        why = "instructions" if weight.dtype == torch.bfloat16 else "float16 does not have"
        with pytest.raises(ValueError, match=why):
            in_float16(weight, None)
        return
    x = torch.randn(5, 32)
    assert torch.allclose(in_float16(weight, None)(x), x @ weight.float().T, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_layout_is_right_where_its_products_are_rounded_as_the_dtype_is(dtype: torch.dtype) -> None:
    assert is_right(lambda weight, bias: Plain(weight, bias, pads=False), dtype)
    assert is_right(Widened, dtype)
    assert not is_right(lambda weight, bias: Plain(weight * 1.02, bias, pads=False), dtype)
    assert not is_right(lambda weight, bias: Plain(weight.flip(0), bias, pads=False), dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, WIDE_FROM, 90])
@pytest.mark.parametrize("layout", [Widened, pytest.param(in_float16, marks=needs_float16)])
def test_in_16_bits_without_instructions_for_them(
    layout: Layout, rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounded once, at the end; a weight larger than what is made float32 of at a time."""
    monkeypatch.setattr("worker.models.native.packing.multiplies", lambda dtype: dtype == torch.float32)
    monkeypatch.setattr("worker.models.native.linear.WIDE_BYTES", 4 * 40 * 7)
    weight, bias, x, residual = (torch.randn(*shape).to(dtype) for shape in ((64, 40), (64,), (rows, 40), (rows, 64)))
    products = layout(weight, bias)
    expected = functional.linear(x.float(), weight.float(), bias.float())
    eps = torch.finfo(dtype).eps
    assert products(x).dtype == products.onto(residual, x).dtype == dtype
    assert torch.allclose(products(x).float(), expected, rtol=eps, atol=8 * eps)
    assert torch.allclose(products.onto(residual, x).float(), expected + residual.float(), rtol=eps, atol=16 * eps)


@needs_onednn
def test_memory_is_that_of_the_weights_and_of_one_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each weight is gone before the next is packed, and a mapped file is told."""
    parts = [Linear(torch.randn(64, 64)) for _ in range(5)]
    kept = [weakref.ref(part.products.weight) for part in parts]
    alive: list[int] = []
    told: list[tuple[int, ...]] = []

    def counted(weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
        gc.collect()
        alive.append(sum(ref() is not None for ref in kept))
        return in_onednns_layout(weight, bias)

    chosen(monkeypatch, counted)
    work = WeightPacking(parts, lambda old: told.append(tuple(old.shape)))
    work.begin()
    work.wait()
    assert alive == [5, 4, 3, 2, 1]
    assert told == [(64, 64)] * 5


def test_what_cannot_be_packed_stays_and_is_told(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    parts = [Linear(torch.randn(8, 8)) for _ in range(3)]
    weights = [part.products.weight for part in parts]

    def failing(*_: object) -> Any:
        raise RuntimeError("could not create a memory object")

    chosen(monkeypatch, failing)
    work = WeightPacking(parts, lambda _: None)
    work.begin()
    work.wait()
    assert all(part.products.weight is weight for part, weight in zip(parts, weights, strict=True))
    assert "0 weights are packed, the others stay as they lie: could not create a memory object" in caplog.messages
    assert not is_right(failing, torch.float32)


@needs_both
def test_a_weight_that_float16_does_not_have_stays_as_it_lies(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    caplog.set_level("INFO")
    parts = [Linear(torch.randn(8, 8).bfloat16().float()), Linear(torch.full((8, 8), 1e6))]
    told: list[object] = []
    chosen(monkeypatch, in_float16)
    work = WeightPacking(parts, told.append)
    work.begin()
    work.wait()
    assert [type(part.products) for part in parts] == [HalfWeight, OneDnn]
    assert len(told) == 1
    assert any(message.endswith("1 in float16, 1 as they lie") for message in caplog.messages)


def test_a_wrong_product_is_not_used() -> None:
    assert not is_right(lambda weight, bias: Linear(weight * 2, bias).products, torch.float32)


@needs_onednn
def test_closing_stops_behind_the_weight_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [Linear(torch.randn(8, 8)) for _ in range(50)]
    before = [part.products for part in parts]
    has_begun, let_go = threading.Event(), threading.Event()

    def slow(weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
        has_begun.set()
        let_go.wait(30)
        return in_onednns_layout(weight, bias)

    chosen(monkeypatch, slow)
    work = WeightPacking(parts, lambda _: None)
    work.begin()
    assert has_begun.wait(30)
    work._is_closing = True
    let_go.set()
    work.close()
    assert sum(part.products is not old for part, old in zip(parts, before, strict=True)) == 1
    work.begin()  # nothing


@needs_onednn
def test_where_one_row_is_slower_it_waits_for_steps_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen(monkeypatch, in_onednns_layout, SLOWER_ALONE)
    (part,) = parts = [Linear(torch.randn(8, 8))]
    before = part.products
    work = WeightPacking(parts, lambda _: None)
    work.saw(16)  # nothing is known yet
    work.begin()
    work.wait()
    for rows in (1,) * 3 * packing.LOOKS_AFTER:
        work.saw(rows)
    work.wait()
    assert part.products is before
    for rows in (1, 3, 3, 5) * (packing.LOOKS_AFTER // 4):  # 3 + 1.5 + 1.5 + 1.5 against 8
        work.saw(rows)
    work.wait()
    assert part.products is not before
    work.saw(1)
    work.close()


@needs_both
def test_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for weight, layouts in (
        (torch.randn(64, 64), [in_onednns_layout]),
        (torch.randn(64, 64).half().float(), [in_float16, in_onednns_layout]),
    ):
        found = packing.measure(Linear(weight), weight)
        assert [each.layout for each in found] == layouts
        for each in found:
            assert set(each.plain) == set(each.packed) == set(packing.STEPS)
            assert all(seconds > 0 for seconds in (*each.plain.values(), *each.packed.values()))


@needs_onednn
def test_it_begins_behind_the_first_answer_and_answers_stay_the_same() -> None:
    model = load(Settings(device="cpu", dtype="float32"))
    runner = model.runner
    assert isinstance(runner, NativeRunner) and runner.packing is not None
    engine = continuous_engine(model, Settings(device="cpu", max_num_seqs=4))
    engine.start()
    before = runner.text.head.products

    async def answer() -> str:
        shown = ask("What is in the picture?", picture(5), max_tokens=30, temperature=0)
        events = [event async for event in engine.generate(shown.request, shown.media)]
        assert isinstance(events[-1], Done)
        return "".join(event.text for event in events if not isinstance(event, Done))

    try:
        first = asyncio.run(answer())
        second = asyncio.run(answer())  # it has begun, at the latest, before this one
        runner.packing.wait()
        assert runner.text.head.products is not before
        assert [first, asyncio.run(answer())] == [second, second]
    finally:
        engine.close()
