"""Checkpoints of true architecture with random weights, in sizes that a laptop measures in minutes."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

from builder.tiny_model import recipe
from worker.settings import EMBEDDED_MODEL

VOCABULARY = 32_768

SHAPE: dict[str, Any] = {
    "text_config": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 14,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 8192,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5e6,
            "mrope_section": [12, 10, 10],
            "mrope_interleaved": True,
        },
    },
    "vision_config": {
        "depth": 6,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_heads": 8,
        "out_hidden_size": 1024,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [1, 2, 3],
    },
}


def write(folder: Path) -> int:
    """A Qwen3-VL checkpoint in `folder`; the number of its parameters. The tokenizer is the tiny model's, widened."""
    shutil.copytree(EMBEDDED_MODEL, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    body = recipe.model_config()
    body["text_config"] = {**body["text_config"], **SHAPE["text_config"], "vocab_size": VOCABULARY}
    body["vision_config"] = {**body["vision_config"], **SHAPE["vision_config"]}
    body["text_config"].pop("rope_scaling", None)
    (folder / "config.json").write_text(json.dumps(body), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<filler{index}>" for index in range(VOCABULARY - len(tokenizer))])
    tokenizer.save_pretrained(folder)
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        rules = json.loads((folder / name).read_text(encoding="utf-8"))
        rules["size"] = {**rules["size"], "longest_edge": 1024 * 1024 * 16}
        (folder / name).write_text(json.dumps(rules), encoding="utf-8")
    torch.manual_seed(0)
    module = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    module.save_pretrained(folder)
    return sum(parameter.numel() for parameter in module.parameters())
