"""Prompts are built and counted by a model's rules alone: without tensors on the disk, without the engine's code."""

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

from tests.engine.requests import varied
from tests.fakes import FakeEngine
from tests.processes import printed
from worker.checkpoint.locate import Checkpoint
from worker.checkpoint.spec import FamilySpec, read_spec
from worker.core.contract import ChatRequest
from worker.core.engine_protocol import TokenCounts
from worker.core.opened import Opened
from worker.core.settings import EMBEDDED_MODEL, Settings
from worker.models.loading import LoadedModel
from worker.models.native.qwen3_vl import QWEN3_VL
from worker.prompt.builder import PromptBuilder

ROOT = Path(__file__).parents[2]


def spec_without_weights(folder: Path) -> FamilySpec:
    shutil.copytree(EMBEDDED_MODEL, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return read_spec(Checkpoint(folder, "tiny", "a test"), Settings(), QWEN3_VL)


def test_prompts_are_those_of_the_whole_model(tiny: LoadedModel, tmp_path: Path) -> None:
    alone = PromptBuilder(spec_without_weights(tmp_path / "rules"), Settings())
    whole = PromptBuilder(tiny.spec, Settings())
    for shown in varied():
        ours, theirs = (builder.build(shown.request, shown.media) for builder in (alone, whole))
        assert (ours.ids, ours.media) == (theirs.ids, theirs.media)
        assert ours.positions.equal(theirs.positions)


class CountsOnly(FakeEngine):
    """Counts by the rules of a model that is not here."""

    def __init__(self, spec: FamilySpec) -> None:
        super().__init__()
        self.builder = PromptBuilder(spec, Settings())

    async def count_tokens(self, request: ChatRequest, media: Sequence[Opened]) -> TokenCounts:
        prompt = self.builder.build(request, media)
        return TokenCounts(len(prompt.ids), prompt.media)


def test_what_was_seen_knows_its_source(tmp_path: Path) -> None:
    engine = CountsOnly(spec_without_weights(tmp_path / "rules"))
    shown = varied()[2]
    counts = asyncio.run(engine.count_tokens(shown.request, shown.media))
    assert [(item.source_width, item.source_height) for item in counts.media] == [(160, 128), (288, 96)]
    assert {item.coordinates for item in counts.media} == {"thousandths"}
    assert counts.prompt_tokens > sum(item.tokens for item in counts.media)


ALONE = """
import sys
from pathlib import Path
from worker.checkpoint.family import Family, timed_spans
from worker.checkpoint.locate import Checkpoint
from worker.checkpoint.spec import read_spec
from worker.core.contract import ChatRequest, Message, Text
from worker.core.settings import Settings
from worker.prompt.builder import PromptBuilder
folder = Path(sys.argv[1])
assert not list(folder.glob("*.safetensors"))
family = Family(video_text=timed_spans, is_video_timed=True, coordinates="thousandths")
spec = read_spec(Checkpoint(folder, "tiny", "a test"), Settings(), family)
request = ChatRequest(messages=(Message(role="user", parts=(Text(text="Hello"),)),))
assert len(PromptBuilder(spec, Settings()).build(request, ()).ids) > 5
print([name for name in sys.modules if name.startswith(("worker.models", "worker.engine", "transformers"))])
"""


def test_it_needs_neither_model_code_nor_the_engine(tmp_path: Path) -> None:
    spec_without_weights(tmp_path / "rules")
    assert printed(ALONE, str(tmp_path / "rules")) == "[]"
