"""Every published checkpoint beside the library's own processor of the same folder: ids of prompts with pictures,
frames and films."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor
from transformers.video_utils import VideoMetadata

from builder.published import MODELS, model
from tests.engine.requests import Shown, ask, clip, picture
from tests.models import published
from tests.models.test_published import PROMPTS
from tests.parity.conftest import note
from worker.checkpoint.locate import Checkpoint
from worker.checkpoint.spec import FamilySpec, read_spec
from worker.core.contract import Text
from worker.core.opened import Clip, Picture
from worker.core.settings import Settings
from worker.models.families import FAMILIES
from worker.prompt.builder import PromptBuilder

SETTINGS = Settings(max_image_tokens=16_384, max_video_tokens=65_536)
WITH_VIDEOS = {
    "frames": ask("What moves?", clip(1, 5)),
    "a film": ask("And now?", clip(2, 12, 8.0)),
    "a picture and a film": ask("Compare.", picture(6, 300, 200), clip(3, 4)),
    "a minute of large frames": ask("What?", Clip((np.full((360, 640, 3), 90, np.uint8),) * 60, 1.0)),
    "frames smaller than a window": ask("What?", Clip((np.full((40, 60, 3), 90, np.uint8),) * 6, 2.0)),
    "two films": ask("Which?", clip(3, 4), clip(4, 7)),
}


@dataclass(frozen=True)
class Pair:
    name: str
    spec: FamilySpec
    processor: Any


@pytest.fixture(scope="module", params=[of.name for of in MODELS])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder: Path = published.write_small_files(request.param, tmp_path_factory.mktemp("published") / request.param)
    spec = read_spec(Checkpoint(folder, folder.name, "a test"), SETTINGS, FAMILIES[model(request.param).kind])
    return Pair(request.param, spec, AutoProcessor.from_pretrained(folder))


def their_ids(pair: Pair, one: Shown) -> list[int]:
    """By the processor as its users call it."""
    messages: list[dict[str, Any]] = []
    for message in one.request.messages:
        content = [
            {"type": "text", "text": part.text} if isinstance(part, Text) else {"type": part.kind}
            for part in message.parts
        ]
        messages.append({"role": message.role, "content": content})
    text = pair.processor.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, **dict(one.request.template)
    )
    inputs: dict[str, Any] = {"text": [text], "return_tensors": "pt"}
    pictures = [Image.fromarray(media.rgb) for media in one.media if isinstance(media, Picture)]
    clips = [media for media in one.media if isinstance(media, Clip)]
    if pictures:
        inputs["images"] = pictures
    if clips:
        inputs["videos"] = [torch.from_numpy(np.stack(media.frames)).permute(0, 3, 1, 2) for media in clips]
        inputs["do_sample_frames"] = False
        inputs["video_metadata"] = [
            VideoMetadata(total_num_frames=count, fps=media.fps, frames_indices=list(range(count)))
            for media in clips
            if (count := len(media.frames))
        ]
    ids: list[int] = pair.processor(**inputs)["input_ids"][0].tolist()
    return ids if pair.name.startswith("Qwen2") else without_outer_spans(pair, ids)


def without_outer_spans(pair: Pair, ids: list[int]) -> list[int]:
    """Without the pair of marks that the library leaves around a video's timed spans, where a template wrote them for a
    video of one span."""
    start, end = (pair.spec.tokenizer.id_of(mark) for mark in (pair.spec.tokens.start, pair.spec.tokens.end))
    outer: set[int] = set()
    opened: list[int] = []
    for at, token in enumerate(ids):
        if token == start:
            opened.append(at)
        elif token == end and start in ids[(first := opened.pop()) + 1 : at]:
            outer |= {first, at}
    return [token for at, token in enumerate(ids) if at not in outer]


@pytest.mark.parametrize("prompt", [*PROMPTS, *WITH_VIDEOS])
def test_ids_are_the_processors(pair: Pair, prompt: str) -> None:
    one = {**PROMPTS, **WITH_VIDEOS}[prompt]
    expected = their_ids(pair, one)
    found = list(PromptBuilder(pair.spec, SETTINGS).build(one.request, one.media).ids)
    note("ids of a prompt of a published layout", pair.name, float(found != expected))
    assert found == expected
