"""A model whose layers lie apart: the library's hooks carry what they need, and each device has its own part of a step.

No machine with several GPUs is needed for it: some layers lie on the disk, behind the same hooks of accelerate's.
"""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch

from tests.engine.requests import Shown, varied
from worker.checkpoint.load_plan import begin
from worker.core.contract import Done
from worker.core.settings import EMBEDDED_MODEL, Settings
from worker.engine.engine import continuous_engine
from worker.models.hf.runner import HfRunner, module_of
from worker.models.kv_pools import Pool, StepGroup
from worker.models.loading import LoadedModel, load

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture
def spread(tmp_path: Path) -> LoadedModel:
    """The tiny model, its middle layers behind hooks that fetch them for each call."""
    model = load(Settings(device="cpu", model_code="transformers"))
    module: Any = module_of(model.runner)
    places: dict[str, Any] = {"model.visual": "cpu", "model.language_model.embed_tokens": "cpu", "lm_head": "cpu"}
    places |= {"model.language_model.norm": "cpu", "model.language_model.rotary_emb": "cpu"}
    for index in range(len(module.model.language_model.layers)):
        places[f"model.language_model.layers.{index}"] = "disk" if index % 2 else "cpu"
    accelerate.dispatch_model(module, places, main_device="cpu", offload_dir=tmp_path, skip_keys="past_key_values")
    return replace(model, runner=HfRunner(module, model.spec.preprocessor, CPU, torch.float32))


def answers(model: LoadedModel, asked: list[Shown]) -> list[str]:
    engine = continuous_engine(model, Settings(device="cpu"))
    engine.start()

    async def one(shown: Shown) -> str:
        said = ""
        async for event in engine.generate(shown.request, shown.media):
            said += "" if isinstance(event, Done) else event.text
        return said

    async def run() -> list[str]:
        return await asyncio.gather(*map(one, asked))

    try:
        return asyncio.run(run())
    finally:
        engine.close()


def test_layers_behind_hooks_answer_as_layers_without(spread: LoadedModel, library: LoadedModel) -> None:
    asked = varied()
    assert answers(spread, asked) == answers(library, asked)


def test_a_layer_elsewhere_gets_what_the_step_needs_there() -> None:
    rows, columns, mask = torch.arange(2), torch.tensor([3, 5]), torch.zeros(2, 1, 1, 6)
    group = StepGroup(Pool(256), slice(0, 2), rows, columns, 6, mask)
    assert group.on(CPU) is group
    there = group.on(META)
    assert {there.rows.device, there.columns.device, there.mask.device} == {META}
    assert (there.span, there.width, there.mask.shape) == (group.span, group.width, group.mask.shape)
    assert group.on(META) is there


def test_a_model_for_several_gpus_is_left_to_the_library(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr("worker.checkpoint.load_plan.device_of", lambda _: torch.device("cuda"))
    monkeypatch.setattr("worker.checkpoint.load_plan.devices_for", lambda *_: 2)
    plan = begin(Settings(dtype="float32"))
    assert (plan.reader, plan.num_devices, plan.found.folder) == (None, 2, EMBEDDED_MODEL)
    model = load(Settings(), replace(plan, device=CPU))
    assert (model.code, model.num_devices) == ("transformers", 2)
    assert "its layers are spread over 2 GPUs, the slow way" in caplog.text
