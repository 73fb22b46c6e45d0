"""Weights in 8 and 4 bit by the real bitsandbytes, which computes on the CPU too."""

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from builder.tiny_model.evaluate import module_of
from tests.engine.requests import ask, picture, varied
from tests.engine.test_equality import answer, reference
from worker.checkpoint import memory
from worker.checkpoint.locate import EMBEDDED_MODEL
from worker.checkpoint.weights import num_bytes, stored_in
from worker.core.errors import ModelError
from worker.core.settings import Settings
from worker.engine.engine import continuous_engine
from worker.models.loading import LoadedModel, load

BITS = {"8bit": (8, torch.int8), "4bit": (4, torch.uint8)}


def quantised(how: str, **more: Any) -> LoadedModel:
    return load(Settings(device="cpu", quantization=how, **more))  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=BITS)
def model(request: pytest.FixtureRequest) -> LoadedModel:
    return quantised(request.param)


def test_a_batch_says_what_the_librarys_own_generate_says(model: LoadedModel, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    shown = varied()
    expected = [reference(model, one) for one in shown]
    engine = continuous_engine(model, Settings())
    engine.start()

    async def run() -> list[str]:
        return list(await asyncio.gather(*(answer(engine, one) for one in shown)))

    assert asyncio.run(run()) == expected
    engine.close()
    assert model.code == "transformers"
    assert not caplog.records, "it warns at every product"


def test_it_still_sees(model: LoadedModel, library: LoadedModel) -> None:
    shown = [ask("What is in the picture?", picture(seed)) for seed in range(40, 44)]
    right = [reference(library, one) for one in shown]
    assert sum(reference(model, one) == text for one, text in zip(shown, right, strict=True)) >= 3


@pytest.mark.parametrize("how", BITS)
def test_it_takes_the_memory_that_was_counted(how: str) -> None:
    bits, dtype = BITS[how]
    module = module_of(quantised(how).runner)
    small = [one for one in module.parameters() if one.dtype == dtype]
    held = {one.data_ptr(): one.nbytes for one in module.parameters()}
    assert len(small) > 20
    stored = stored_in(EMBEDDED_MODEL)
    counted = num_bytes(stored, torch.float32, bits)
    assert counted <= sum(held.values()) <= 1.02 * counted < 0.75 * num_bytes(stored, torch.float32)


def test_what_does_not_fit_is_told_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = num_bytes(stored_in(EMBEDDED_MODEL), torch.float32, 4)
    monkeypatch.setattr(memory, "free_bytes", lambda device: needed - 1)
    with pytest.raises(ModelError, match=r"the weights need 0\.\d GiB on cpu, but 0\.\d GiB are free"):
        quantised("4bit")


def test_weights_that_are_stored_so_are_served(model: LoadedModel, tmp_path: Path) -> None:
    folder = tmp_path / "stored"
    module_of(model.runner).save_pretrained(folder)
    for file in EMBEDDED_MODEL.iterdir():
        if file.name != "config.json" and not file.name.endswith(".safetensors"):
            (folder / file.name).write_bytes(file.read_bytes())
    assert json.loads((folder / "config.json").read_text())["quantization_config"]["quant_method"] == "bitsandbytes"
    shown = ask("What is in the picture?", picture(50))
    assert reference(quantised("none", model_path=folder), shown) == reference(model, shown)


def test_without_the_package_it_is_told_how_to_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="need the package bitsandbytes, which is not installed"):
        quantised("8bit")
