"""A model family is one file and one row: this one is defined here. A type without a row inherits nothing."""

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.engine.requests import ask, clip
from worker.checkpoint.family import VIDEO_SPAN
from worker.core.contract import Done, Piece
from worker.core.errors import ModelError
from worker.core.settings import EMBEDDED_MODEL, Settings
from worker.core.timeline import Timeline
from worker.engine.engine import Engine
from worker.models.families import FAMILIES
from worker.models.loading import load
from worker.models.native.qwen3_vl import QWEN3_VL
from worker.startup.engines import load_engine


def checkpoint(folder: Path, model_type: str) -> Settings:
    """The tiny model under another type."""
    shutil.copytree(EMBEDDED_MODEL, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "model_type": model_type}), encoding="utf-8")
    return Settings(device="cpu", model_path=folder)


TOY = replace(
    QWEN3_VL, video_text=lambda times: f"[{len(times)}]" + VIDEO_SPAN * len(times), coordinates="resized_pixels"
)
WITH_TOY = {**FAMILIES, "toy_vl": TOY}


def test_a_new_family_is_loaded_and_answers(tmp_path: Path) -> None:
    settings = checkpoint(tmp_path / "toy", "toy_vl")
    loaded = load_engine(settings, None, Timeline(), families=WITH_TOY)
    loaded.wait(Timeline())
    engine = loaded.engine
    assert isinstance(engine, Engine)
    shown = ask("What moves?", clip(4), max_tokens=8)
    prompt = engine.builder.build(shown.request, shown.media)

    async def run() -> list[object]:
        return [event async for event in engine.generate(shown.request, shown.media)]

    *pieces, done = asyncio.run(run())
    loaded.close()
    assert isinstance(done, Done) and all(isinstance(piece, Piece) for piece in pieces)
    assert engine.info.code == "native"
    assert [item.coordinates for item in prompt.media] == ["resized_pixels"]


def test_a_family_without_code_of_its_own_goes_to_the_library(tmp_path: Path) -> None:
    settings = checkpoint(tmp_path / "toy", "qwen3_vl")
    model = load(settings, families={"qwen3_vl": replace(QWEN3_VL, native=None)})
    assert model.code == "transformers"


@pytest.mark.parametrize("model_type", ["qwen9_vl", "qwen3_vl_next", ""])
def test_an_unknown_type_gets_no_other_familys_rules(tmp_path: Path, model_type: str) -> None:
    settings = checkpoint(tmp_path / "unknown", model_type)
    with pytest.raises(ModelError, match="is not supported"):
        load(settings)
    with pytest.raises(ModelError, match="by transformers neither"):
        load_engine(settings, None, Timeline())
