"""Models of the true shapes of Qwen3-VL with random weights, made on the device, for `benchmarks.gpu`."""

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worker.checkpoint.chat_template import ChatTemplate
from worker.checkpoint.family_rules import QWEN3_VL_PIXELS as RULES
from worker.checkpoint.spec import FamilySpec
from worker.checkpoint.tokenizer import read_tokenizer
from worker.core.safe_json import JsonObject
from worker.core.settings import EMBEDDED_MODEL
from worker.models.loading import LoadedModel
from worker.models.native.graphs import Recorder
from worker.models.native.layers import Tensors
from worker.models.native.qwen3_vl import QWEN3_VL
from worker.models.native.runner import NativeRunner
from worker.models.varlen import Varlen
from worker.prompt.patches import Patches
from worker.prompt.types import MediaItem, Prompt

# hidden, layers, heads, intermediate, tied; the tower's depth, hidden, intermediate, its deep layers
SHAPES: dict[str, tuple[Any, ...]] = {
    "2b": (2048, 28, 16, 6144, True, 24, 1024, 4096, (5, 11, 17)),
    "4b": (2560, 36, 32, 9728, True, 24, 1024, 4096, (5, 11, 17)),
    "8b": (4096, 36, 32, 12_288, False, 27, 1152, 4304, (8, 16, 24)),
    "two layers": (2048, 2, 16, 6144, True, 2, 1024, 4096, (0,)),
    "trial": (128, 2, 4, 256, True, 2, 64, 128, (0,)),
}
VOCABULARY = 151_936


def config(shape: str) -> JsonObject:
    hidden, layers, heads, intermediate, tied, depth, seen, tower, deep = SHAPES[shape]
    dim = 128 if shape != "trial" else 32
    sections = [24, 20, 20] if shape != "trial" else [6, 5, 5]
    return {
        "model_type": "qwen3_vl",
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "image_token_id": 151_655,
        "video_token_id": 151_656,
        "vision_start_token_id": 151_652,
        "vision_end_token_id": 151_653,
        "tie_word_embeddings": tied,
        "text_config": {
            "model_type": "qwen3_vl_text",
            "vocab_size": VOCABULARY,
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": min(8, heads // 2),
            "head_dim": dim,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 262_144,
            "tie_word_embeddings": tied,
            "attention_bias": False,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": sections,
                "mrope_interleaved": True,
            },
        },
        "vision_config": {
            "model_type": "qwen3_vl_vision",
            "depth": depth,
            "hidden_size": seen,
            "intermediate_size": tower,
            "num_heads": 16,
            "out_hidden_size": hidden,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": list(deep),
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "hidden_act": "gelu_pytorch_tanh",
        },
    }


class _Drawn(Tensors):
    """Tensors that are drawn when they are asked for: a checkpoint of any config. like: those of another model."""

    def __init__(self, device: torch.device, dtype: torch.dtype, seed: int, like: dict[str, Tensor]) -> None:
        super().__init__({})
        self._like = like
        self._device, self._dtype = device, dtype
        self._random = None if device.type == "meta" else torch.Generator(device).manual_seed(seed)
        self.drawn: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        tensor = torch.empty(shape, dtype=self._dtype, device=self._device)
        if self._random is None:
            pass  # shapes alone
        elif name in self._like:
            tensor.copy_(self._like[name])
        elif "norm" in name and name.endswith("weight"):
            tensor.fill_(1.0)
        else:
            tensor.normal_(0, 0.02, generator=self._random)
        self.drawn[name] = tensor
        return tensor


@dataclass(frozen=True)
class Drawn:
    """A runner of a random model. tensors: by name. text_bytes: that a step of the text model reads, the embedding's
    rows aside."""

    runner: NativeRunner
    tensors: dict[str, Tensor]
    text_bytes: int


def drawn(
    shape: str,
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
    kernel: Varlen | None = None,
    record: Recorder | None = None,
    like: dict[str, Tensor] | None = None,
) -> Drawn:
    """A model of this shape. kernel: attention by lengths; like: another one's tensors."""
    body = config(shape)
    assert QWEN3_VL.native is not None
    tensors = _Drawn(device, dtype, 1, like or {})
    runner = NativeRunner(
        QWEN3_VL.native, body, tensors, RULES, device, kernel=kernel, tower_kernel=kernel, record=record
    )
    tied = body["tie_word_embeddings"]
    text = {name: tensor for name, tensor in tensors.drawn.items() if ".visual." not in name}
    count = sum(tensor.nbytes for name, tensor in text.items() if tied or "embed_tokens" not in name)
    return Drawn(runner, tensors.drawn, count)


def loaded(runner: NativeRunner, device: torch.device) -> LoadedModel:
    """What an engine serves."""
    return LoadedModel(
        spec=FamilySpec(
            name="random",
            family=QWEN3_VL,
            template=ChatTemplate(EMBEDDED_MODEL),
            tokenizer=read_tokenizer(EMBEDDED_MODEL),
            preprocessor=RULES,
            generation={},
            eos_ids=frozenset(),
            max_model_len=32_768,
            vocabulary_size=VOCABULARY,
            tokens_per_second=2.0,
        ),
        code="native",
        runner=runner,
        device=device,
        dtype=torch.bfloat16,
    )


def prompt(length: int, seed: int) -> Prompt:
    """Made-up words, no two prompts alike."""
    rng = random.Random(seed)
    ids = tuple(rng.randrange(1000) for _ in range(length))
    nowhere = torch.full((length,), -1)
    fingerprint = torch.tensor(ids) + seed * 1_000_003
    return Prompt(ids, torch.arange(length).expand(3, -1), 0, (), nowhere, nowhere, fingerprint)


def shown(frames: int, height: int, width: int, seed: int = 0) -> MediaItem:
    """A picture, or a video of several frames, by its patches."""
    copies = 1 if frames == 1 else 2
    random_bytes = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 255, (frames * height * width, 768 * copies), dtype=torch.uint8, generator=random_bytes)
    return MediaItem("image" if frames == 1 else "video", Patches(pixels, (frames, height, width), copies), b"")
