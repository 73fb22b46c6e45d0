"""Checkpoints of true architecture with random weights, in sizes that a laptop measures in minutes."""

import base64
import importlib.resources
import json
import shutil
from pathlib import Path

import torch
from tokenizers import models
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from builder.tiny_model import recipe
from worker.core.safe_json import JsonObject
from worker.core.settings import EMBEDDED_MODEL

VOCABULARY = 32_768

SHAPE: JsonObject = {
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


HALF_A_BILLION: JsonObject = {  # as Qwen3-0.6B with a small tower: 1 GB in bfloat16
    "text_config": {
        **SHAPE["text_config"],
        "num_hidden_layers": 20,
        "head_dim": 128,
        "rope_parameters": {**SHAPE["text_config"]["rope_parameters"], "mrope_section": [24, 20, 20]},
    },
    "vision_config": {**SHAPE["vision_config"], "depth": 12},
}


def write(folder: Path, dtype: torch.dtype = torch.float32) -> int:
    """A Qwen3-VL checkpoint in `folder`; the number of its parameters. The tokenizer is the tiny model's, widened."""
    _begin(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<filler{index}>" for index in range(VOCABULARY - len(tokenizer))])
    tokenizer.save_pretrained(folder)
    return _weights(folder, SHAPE, VOCABULARY, recipe.special_id("<|endoftext|>"), dtype)


def write_real_size(folder: Path, layers: int | None = None) -> int:
    """The same with the family's own vocabulary and half a billion parameters in bfloat16, or with more layers."""
    _begin(folder)
    first_special = real_tokenizer(folder / "tokenizer.json")
    shape = HALF_A_BILLION
    if layers is not None:
        shape = {**shape, "text_config": {**shape["text_config"], "num_hidden_layers": layers}}
    return _weights(folder, shape, 151_936, first_special, torch.bfloat16)


def _begin(folder: Path) -> None:
    shutil.copytree(EMBEDDED_MODEL, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        rules = json.loads((folder / name).read_text(encoding="utf-8"))
        rules["size"] = {**rules["size"], "longest_edge": 1024 * 1024 * 16}
        (folder / name).write_text(json.dumps(rules), encoding="utf-8")


def real_tokenizer(file: Path) -> int:
    """The family's 151,643 byte pairs, from the package that carries them; the id of the first control token."""
    lines = (importlib.resources.files("dashscope") / "resources" / "qwen.tiktoken").read_text(encoding="ascii")
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(str.split, lines.splitlines())}
    letters = bytes_to_unicode()
    vocabulary = {"".join(letters[byte] for byte in token): rank for token, rank in ranks.items()}
    merges = [_last_pair(token, ranks) for token in ranks if len(token) > 1]
    tokenizer = recipe.untrained_tokenizer()
    tokenizer.model = models.BPE(
        vocab=vocabulary,
        merges=[("".join(letters[byte] for byte in a), "".join(letters[byte] for byte in b)) for a, b in merges],
    )
    tokenizer.add_special_tokens(list(recipe.SPECIAL_TOKENS))
    tokenizer.add_tokens(list(recipe.PLAIN_ADDED_TOKENS))
    tokenizer.save(str(file), pretty=False)
    return len(ranks)


def _last_pair(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two parts whose joining made this token."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [parts[index] + parts[index + 1] for index in range(len(parts) - 1)]
        at = min(range(len(pairs)), key=lambda index: ranks.get(pairs[index], len(ranks)))
        parts[at : at + 2] = [pairs[at]]
    return parts[0], parts[1]


def _weights(folder: Path, shape: JsonObject, vocabulary: int, first_special: int, dtype: torch.dtype) -> int:
    body = recipe.model_config()
    moved = first_special - recipe.special_id("<|endoftext|>")
    for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        body[name] += moved
    body["text_config"] = {**body["text_config"], **shape["text_config"], "vocab_size": vocabulary}
    body["vision_config"] = {**body["vision_config"], **shape["vision_config"]}
    for name in ("bos_token_id", "eos_token_id"):
        body["text_config"][name] += moved
    for part in (body, body["text_config"]):
        part["dtype"] = str(dtype).removeprefix("torch.")
    body["text_config"].pop("rope_scaling", None)
    (folder / "config.json").write_text(json.dumps(body), encoding="utf-8")
    generation = recipe.generation_config()
    generation["eos_token_id"] = [identity + moved for identity in generation["eos_token_id"]]
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    torch.manual_seed(0)
    module = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder), dtype=dtype)
    module.save_pretrained(folder)
    return sum(parameter.numel() for parameter in module.parameters())
