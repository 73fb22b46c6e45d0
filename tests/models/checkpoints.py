"""Small checkpoints with random weights for every family: true architectures, the tiny model's tokenizer."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from builder.tiny_model import recipe
from worker.core.settings import EMBEDDED_MODEL

NATIVE = ("qwen3_vl", "qwen3_vl_moe", "qwen2_5_vl", "qwen2_vl")  # those that our own model code runs
FAMILIES = (*NATIVE, "qwen3_5")
SPREAD = 0.09  # of random weights: wide enough for answers that depend on what is asked and shown

_IDS = {
    "image_token_id": recipe.special_id("<|image_pad|>"),
    "video_token_id": recipe.special_id("<|video_pad|>"),
    "vision_start_token_id": recipe.special_id("<|vision_start|>"),
    "vision_end_token_id": recipe.special_id("<|vision_end|>"),
}
_TEXT = {
    "vocab_size": recipe.VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "initializer_range": SPREAD,
    "bos_token_id": recipe.special_id("<|endoftext|>"),
    "eos_token_id": recipe.special_id("<|im_end|>"),
    "rope_theta": 10000.0,
    "dtype": "float32",
}
INTERLEAVED = {
    "rope_type": "default",
    "rope_theta": 10000.0,
    "mrope_section": [4, 2, 2],
    "mrope_interleaved": True,
}
_VISION = {
    "depth": 3,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_heads": 3,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 64,
    "initializer_range": SPREAD,
}
_DEEPSTACK = {**_VISION, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
_LINEAR = {
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "head_dim": 16,
    "rope_parameters": {**INTERLEAVED, "partial_rotary_factor": 1.0},
}

CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3_vl": {"text_config": {**_TEXT, "rope_parameters": INTERLEAVED}, "vision_config": _DEEPSTACK},
    "qwen3_vl_moe": {
        "text_config": {**_TEXT, **_MOE, "rope_parameters": INTERLEAVED},
        "vision_config": _DEEPSTACK,
    },
    "qwen2_5_vl": {
        "text_config": {
            **{key: value for key, value in _TEXT.items() if key != "head_dim"},
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        },
        "vision_config": {
            **_VISION,
            "patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
        },
    },
    "qwen2_vl": {
        "text_config": {
            **{key: value for key, value in _TEXT.items() if key != "head_dim"},
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        },
        "vision_config": {
            **{key: _VISION[key] for key in ("depth", "num_heads", "spatial_merge_size", "temporal_patch_size")},
            "embed_dim": 48,
            "mlp_ratio": 4,
            "hidden_size": 64,
            "patch_size": 14,
            "initializer_range": SPREAD,
        },
    },
    "qwen3_5": {"text_config": {**_TEXT, **_LINEAR}, "vision_config": {**_VISION, "num_position_embeddings": 64}},
}


def write(family: str, folder: Path, seed: int = 0) -> Path:
    """A checkpoint folder of the family, its weights drawn from the seed."""
    shutil.copytree(EMBEDDED_MODEL, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    body = {"model_type": family, **_IDS, **CONFIGS[family], "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(body))
    patch = CONFIGS[family]["vision_config"]["patch_size"]
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        rules = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**rules, "patch_size": patch}))
    drawn(folder, seed).save_pretrained(folder)
    return folder


def drawn(folder: Path, seed: int) -> Any:
    """The library's model of the folder's config, its weights drawn from the seed."""
    torch.manual_seed(seed)
    module = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1 and "norm" not in name:
                parameter.normal_(0, SPREAD)
    return module
