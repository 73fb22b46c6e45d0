"""The references as their users call them, and this worker beside them: the same pictures and videos for both."""

import asyncio
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image
from qwen_vl_utils import vision_process
from transformers import AutoProcessor, AutoTokenizer
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.video_utils import VideoMetadata

from tests.models import checkpoints
from worker.core.contract import ChatRequest, Controls, Media, Message, Text, Upload
from worker.core.opened import Opened
from worker.core.settings import Settings
from worker.media.fetch import Fetcher
from worker.media.opener import Opener
from worker.models.loading import LoadedModel, load
from worker.models.pixel_values import pixel_values
from worker.prompt.builder import PromptBuilder
from worker.prompt.size_policy import SmartResizePolicy
from worker.prompt.types import Prompt

FAMILIES = ("qwen3_vl", "qwen2_5_vl")
PATCH = {"qwen3_vl": 16, "qwen2_5_vl": 14}
# The real checkpoints' rules for pixels.
_QWEN3 = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_CLIP_MEAN, _CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
_QWEN25 = {
    "patch_size": 14,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "image_mean": _CLIP_MEAN,
    "image_std": _CLIP_STD,
}
RULES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qwen3_vl": (
        {**_QWEN3, "size": {"shortest_edge": 65536, "longest_edge": 16777216}},
        {**_QWEN3, "size": {"shortest_edge": 4096, "longest_edge": 25165824}},
    ),
    "qwen2_5_vl": (
        {**_QWEN25, "min_pixels": 3136, "max_pixels": 12845056},
        {**_QWEN25, "min_pixels": 3136, "max_pixels": 12845056},
    ),
}
UNLIMITED = Settings(
    device="cpu",
    max_image_tokens=16_384,
    max_video_tokens=65_536,
    max_frames=768,
    max_video_fps=240,
    max_model_len=None,
)
QUESTION = "What is it?"


@dataclass(frozen=True)
class Both:
    """One family's checkpoint in this worker, and its processor."""

    family: str
    model: LoadedModel
    processor: Any

    @property
    def patch(self) -> int:
        return PATCH[self.family]


def both(family: str, folder: Path) -> Both:
    """Random weights: pictures and prompts are compared, not answers."""
    path = folder / family
    if not path.exists():
        body = checkpoints.CONFIGS[family]
        long = {**body["text_config"], "max_position_embeddings": 200_000}
        kept, checkpoints.CONFIGS[family] = body, {**body, "text_config": long}
        try:
            checkpoints.write(family, path)
        finally:
            checkpoints.CONFIGS[family] = kept
        for name, rules in zip(("preprocessor_config", "video_preprocessor_config"), RULES[family], strict=True):
            own = json.loads((path / f"{name}.json").read_text())
            for key in ("size", "min_pixels", "max_pixels"):
                own.pop(key, None)
            (path / f"{name}.json").write_text(json.dumps({**own, **rules}))
    model = load(Settings(device="cpu", model_path=path))
    if family == "qwen3_vl":
        return Both(family, model, AutoProcessor.from_pretrained(path))
    tokenizer = AutoTokenizer.from_pretrained(path)
    image, video = RULES[family]
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**image),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**video),
        chat_template=tokenizer.chat_template,
    )
    return Both(family, model, processor)


def opened(model: LoadedModel, kind: str, data: bytes, controls: Controls, settings: Settings = UNLIMITED) -> Opened:
    """A file as this worker opens it."""
    size_policy = SmartResizePolicy(model.spec.preprocessor, settings, model.spec.max_model_len)
    opener = Opener(settings, Fetcher(settings), size_policy)
    item = Media(kind=kind, source=Upload(data=data), where="test", controls=controls)
    try:
        [(seen,)] = asyncio.run(opener.open([item]))
    finally:
        opener.close()
    return seen


def prompt(model: LoadedModel, kind: str, data: bytes, controls: Controls) -> Prompt:
    """The same as a prompt with a question behind it."""
    media = Media(kind=kind, source=Upload(data=data), where="test", controls=controls)
    request = ChatRequest(messages=(Message(role="user", parts=(media, Text(text=QUESTION))),))
    return PromptBuilder(model.spec, UNLIMITED).build(request, [opened(model, kind, data, controls)])


def our_pixels(model: LoadedModel, made: Prompt) -> torch.Tensor:
    return pixel_values(
        [item.patches for item in made.items], model.spec.preprocessor, torch.device("cpu"), torch.float32
    )


def rendered(pair: Both, kind: str) -> str:
    messages = [{"role": "user", "content": [{"type": kind}, {"type": "text", "text": QUESTION}]}]
    return str(pair.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def their_picture(pair: Both, image: Image.Image) -> dict[str, torch.Tensor]:
    """What transformers' processor makes of a picture by itself."""
    return dict(pair.processor(text=[rendered(pair, "image")], images=[image], return_tensors="pt"))


def their_size(pair: Both, image: Image.Image, controls: dict[str, int]) -> tuple[int, int]:
    """Height and width that qwen-vl-utils resizes a picture to."""
    width, height = vision_process.fetch_image({"image": image, **controls}, image_patch_size=pair.patch).size
    return height, width


def frames_of(data: bytes) -> tuple[list[np.ndarray], float]:
    """Every frame of a file, decoded plainly, and its frames a second."""
    with av.open(io.BytesIO(data), "r") as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate or 0)
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)], rate


def their_frames(controls: dict[str, Any], count: int, rate: float) -> list[int]:
    """The indices of the frames that qwen-vl-utils takes from a file."""
    first, last, total = vision_process.calculate_video_frame_range(controls, count, rate)
    number = vision_process.smart_nframes(controls, total_frames=total, video_fps=rate)
    return [int(index) for index in torch.linspace(first, last, number).round()]


def their_video(
    pair: Both, frames: list[np.ndarray], indices: list[int], rate: float, total: int, **options: Any
) -> dict[str, Any]:
    """What transformers' processor makes of frames that are chosen already."""
    chosen = torch.from_numpy(np.stack([frames[index] for index in indices])).permute(0, 3, 1, 2)
    metadata = VideoMetadata(total_num_frames=total, fps=rate, frames_indices=list(indices))
    more: dict[str, Any] = {"video_metadata": [metadata], "do_sample_frames": False, **options}
    if pair.family == "qwen2_5_vl":
        span = (indices[-1] - indices[0]) / rate / max(1, len(indices) - 1)
        more["fps"] = 1 / span
    return dict(pair.processor(text=[rendered(pair, "video")], videos=[chosen], return_tensors="pt", **more))


def without_outer_span(pair: Both, ids: list[int]) -> list[int]:
    """Their prompt without the pair of vision marks that the library keeps around a video's timed spans."""
    tokens = pair.model.spec.tokenizer
    start, end = tokens.id_of("<|vision_start|>"), tokens.id_of("<|vision_end|>")
    assert start is not None and end is not None
    last = len(ids) - 1 - ids[::-1].index(end)
    first = ids.index(start)
    return [*ids[:first], *ids[first + 1 : last], *ids[last + 1 :]]
