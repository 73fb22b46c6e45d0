"""Folders laid out as the published checkpoints are: every small file and every name as on the hub, the vocabulary
whole, and random weights of a few small layers."""

import copy
import json
import random
import tempfile
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from benchmarks.models import real_tokenizer
from builder.published import PublishedModel, config, generation, model, preprocessors
from tests.models.checkpoints import drawn
from worker.checkpoint.family_rules import QWEN2_TEMPLATE
from worker.core.safe_json import JsonObject

UNMERGED = 201
TEMPLATES = Path(__file__).parent / "templates"
# One of each layout that there is, and what is its own.
LAYOUTS = (
    "Qwen2-VL-2B-Instruct",  # an older tower, a tied head that is not in the files
    "Qwen2.5-VL-7B-Instruct",  # a head of its own, five files of weights
    "Qwen2.5-VL-32B-Instruct",  # few fields of its tower, whose weights are float32
    "Qwen3-VL-2B-Instruct",  # one file of weights
    "Qwen3-VL-8B-Thinking",
    "Qwen3-VL-30B-A3B-Instruct",  # experts the other way round
    "Qwen3.5-2B",  # one file with a number and an index; no generation_config.json; does not think unless asked
    "Qwen3.5-35B-A3B",
    "Qwen3.8-27B",
)
# Written out once more: what the worker's own rule is held to.
WORDS = {
    "qwen2": r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"""
    r"""| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
    "qwen3_5": r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"""
    r"""| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
}


def write(name: str, folder: Path, seed: int = 0) -> Path:
    """The checkpoint of this name, scaled down."""
    write_small_files(name, folder)
    save_weights(model(name), folder, weights(model(name), folder, seed))
    return folder


def write_small_files(name: str, folder: Path) -> Path:
    """All but the weights."""
    of = model(name)
    folder.mkdir(parents=True)
    body = scaled(of)
    _dump(folder / "config.json", body)
    for file, content in preprocessors(of).items():
        _dump(folder / file, content)
    if (defaults := generation(of)) is not None:
        _dump(folder / "generation_config.json", defaults)
    write_tokenizer(of, folder)
    write_template(of, folder)
    return folder


def _dump(file: Path, content: JsonObject) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


def scaled(of: PublishedModel) -> JsonObject:
    """Its config with small numbers in place of the large ones."""
    body = copy.deepcopy(config(of))
    text, vision = body.get("text_config") or body, body["vision_config"]
    text |= {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    if "intermediate_size" in text:
        text["intermediate_size"] = 96
    if of.experts is not None:
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
        if "shared_expert_intermediate_size" in text:
            text["shared_expert_intermediate_size"] = 48
    if of.is_recurrent:
        text |= {"head_dim": 32, "num_hidden_layers": 4, "layer_types": text["layer_types"][:4]}
        text |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
        text |= {"linear_key_head_dim": 16, "linear_value_head_dim": 16}
        text["rope_parameters"]["mrope_section"] = [2, 1, 1]
    elif "head_dim" in text:
        text["head_dim"] = 16
        text["rope_scaling"]["mrope_section"] = [4, 2, 2]
    else:
        text["rope_scaling"]["mrope_section"] = [2, 3, 3]
    _scale_tower(vision)
    return body


def _scale_tower(vision: JsonObject) -> None:
    is_sparse = "depth" not in vision  # then depth and heads are the family's own
    width = 64 if is_sparse else 48
    if not is_sparse:
        vision |= {"depth": 3, "num_heads": 3}
    if "embed_dim" in vision:
        vision |= {"embed_dim": width, "hidden_size": 64, "mlp_ratio": 4}
    else:
        vision |= {"hidden_size": width, "intermediate_size": 80, "out_hidden_size": 64}
    if vision.get("fullatt_block_indexes"):
        vision["fullatt_block_indexes"] = [1]
    if vision.get("deepstack_visual_indexes"):
        vision["deepstack_visual_indexes"] = [0, 1]


# Words.


@cache
def _byte_pairs() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The 151,643 of the families before Qwen3.5."""
    with tempfile.TemporaryDirectory() as made:
        file = Path(made) / "tokenizer.json"
        real_tokenizer(file)
        body = json.loads(file.read_text(encoding="utf-8"))["model"]
    return body["vocab"], [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in body["merges"]]


def vocabulary(base: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """So many byte pairs, and the merges that make them: the families' own, beyond those made ones, and a few that no
    merge makes, as Qwen3.5 has."""
    known, made = _byte_pairs()
    tokens, merges = dict(known), list(made)
    if len(tokens) == base:
        return tokens, merges
    draw = random.Random(0)
    short = [token for token in tokens if 1 < len(token) < 6 and token.isascii() and token.isalpha()]
    plain = Tokenizer(BPE(vocab=tokens, merges=merges))
    while len(tokens) < base - UNMERGED:
        pairs = [(draw.choice(short), draw.choice(short)) for _ in range(20_000)]
        for pair, cut in zip(pairs, plain.encode_batch(["".join(pair) for pair in pairs]), strict=True):
            if len(tokens) < base - UNMERGED and tuple(cut.tokens) == pair and "".join(pair) not in tokens:
                merges.append(pair)
                tokens["".join(pair)] = len(tokens)
    while len(tokens) < base:
        tokens["".join(draw.choices("xyz", k=16))] = len(tokens)
    return tokens, merges


@cache
def _files(base: int, words: str) -> tuple[str, str, str]:
    """`tokenizer.json` without its added tokens (an empty list), `vocab.json`, `merges.txt`."""
    tokens, merges = vocabulary(base)
    empty = {"continuing_subword_prefix": "", "end_of_word_suffix": ""}  # as published files have them
    tokenizer = Tokenizer(BPE(vocab=tokens, merges=merges, **empty))
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(WORDS[words]), "isolated")
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, last])
    tokenizer.decoder = decoders.ByteLevel()
    lines = "\n".join(f"{left} {right}" for left, right in merges)
    return tokenizer.to_str(), json.dumps(tokens, ensure_ascii=False), lines + "\n"


def write_tokenizer(of: PublishedModel, folder: Path) -> None:
    """All four files."""
    words = of.words
    whole, tokens, merges = _files(words.base, "qwen3_5" if of.is_recurrent else "qwen2")
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": words.base + index, "content": token, **plain, "special": token not in words.words}
        for index, token in enumerate(words.added)
    ]
    known = json.dumps([token for token in added if token["content"] not in words.only_declared])
    assert whole.count('"added_tokens":[]') == 1
    (folder / "tokenizer.json").write_text(whole.replace('"added_tokens":[]', f'"added_tokens":{known}'), "utf-8")
    (folder / "vocab.json").write_text(tokens, encoding="utf-8")
    (folder / "merges.txt").write_text(merges, encoding="utf-8")
    listed = [token for token in words.added if token not in words.words][1:14]
    _dump(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added
            },
            "additional_special_tokens": listed,
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": of.context,
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )


def template(of: PublishedModel) -> str:
    """Written anew, to the same output; see test_published."""
    if of.is_flat:
        return QWEN2_TEMPLATE
    thinks = f"{{%- set thinks = {str(bool(of.thinks)).lower()} -%}}"
    if of.kind.startswith("qwen3_vl"):
        return thinks + (TEMPLATES / "qwen3_vl.jinja").read_text(encoding="utf-8")
    version = f"{{%- set version = {of.version} -%}}"
    return version + thinks + (TEMPLATES / "qwen3_5.jinja").read_text(encoding="utf-8")


def write_template(of: PublishedModel, folder: Path) -> None:
    """In two places, as all of them have it."""
    text = template(of)
    if of.is_recurrent:
        (folder / "chat_template.jinja").write_text(text, encoding="utf-8")
    else:
        _dump(folder / "chat_template.json", {"chat_template": text})
    set_in(folder / "tokenizer_config.json", chat_template=text)


def set_in(file: Path, **values: Any) -> None:
    """Other values in a JSON file; None takes one away."""
    body = json.loads(file.read_text(encoding="utf-8")) | values
    _dump(file, {name: value for name, value in body.items() if value is not None})


# Weights.


def weights(of: PublishedModel, folder: Path, seed: int) -> dict[str, torch.Tensor]:
    """Of the folder's config, by the names and in the dtypes in which they are published."""
    tensors = {name: tensor.detach().bfloat16() for name, tensor in drawn(folder, seed).state_dict().items()}
    if of.is_tied:
        del tensors["lm_head.weight"]
    if of.is_flat:
        tensors = {older(name): tensor for name, tensor in tensors.items()}
    if of.kind == "qwen3_vl_moe":
        turned = {name for name in tensors if ".experts." in name}
        tensors |= {name: tensors[name].transpose(1, 2).contiguous() for name in turned}
    if of.is_recurrent:
        wide = ("A_log", "linear_attn.norm.weight") if of.version == 5 else ()
        tensors |= {name: tensors[name].float() for name in tensors if name.endswith(wide)} if wide else {}
        tensors |= {f"mtp.{part}": torch.randn(64, 64).bfloat16() for part in ("fc.weight", "layers.0.mlp.up.weight")}
    if of.has_few_tower_fields:
        tensors |= {name: tensor.float() for name, tensor in tensors.items() if name.startswith("visual.")}
    return tensors


def older(name: str) -> str:
    """As tensors were called before there was a `model.language_model`."""
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def save_weights(of: PublishedModel, folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """One file, or two with their index; those of Qwen3.5 have a name of their own."""
    is_recurrent = of.is_recurrent
    if of.shards == 1 and not is_recurrent:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return
    stem = "model.safetensors" if is_recurrent and of.version == 5 else "model"
    count = 1 if of.shards == 1 else 2
    files = [f"{stem}-{index + 1:05}-of-{count:05}.safetensors" for index in range(count)]
    where = {name: files[index % count] for index, name in enumerate(sorted(tensors))}
    for file in files:
        save_file({name: tensors[name] for name in tensors if where[name] == file}, folder / file, {"format": "pt"})
    size = sum(tensor.nbytes for tensor in tensors.values())
    _dump(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": where})


# Conversations for templates.


def conversations() -> dict[str, JsonObject]:
    """By a name: messages and variables of a template, over everything that the families' templates look at."""

    def text(words: str) -> JsonObject:
        return {"type": "text", "text": words}

    picture, linked, video = {"type": "image"}, {"type": "image_url", "image_url": {"url": "data:x"}}, {"type": "video"}
    asked: list[JsonObject] = [{"role": "user", "content": "hi"}]
    system = {"role": "system", "content": "SYS é"}
    arguments = {"x": 1, "y": "s", "z": [1], "b": True, "n": None}
    call = {"role": "assistant", "content": ""}
    call["tool_calls"] = [{"type": "function", "function": {"name": "f", "arguments": arguments}}]  # type: ignore[assignment]
    parameters = {"type": "object", "properties": {"x": {"type": "integer"}}}
    tools = [{"type": "function", "function": {"name": "f", "description": "dé <b>", "parameters": parameters}}]
    thought = "<think>\nwhy\n</think>\n\nans"
    plain: dict[str, list[JsonObject]] = {
        "text": asked,
        "system": [system, *asked],
        "picture": [{"role": "user", "content": [picture, text("what?")]}],
        "picture by its address": [{"role": "user", "content": [linked, text("what?")]}],
        "two pictures": [{"role": "user", "content": [picture, picture, text("cmp")]}],
        "video": [{"role": "user", "content": [video, text("see")]}],
        "words in parts": [{"role": "user", "content": [text("a "), text(" b")]}],
        "a system message in parts": [
            {"role": "system", "content": [text("SYS")]},
            {"role": "user", "content": [text("a")]},
        ],
        "a picture in the system message": [{"role": "system", "content": [picture, text("SYS")]}, *asked],
        "turns": [
            {"role": "user", "content": [picture, text("1")]},
            {"role": "assistant", "content": "ans"},
            {"role": "user", "content": [picture, text("2")]},
        ],
        "a thought": [
            {"role": "user", "content": "1"},
            {"role": "assistant", "content": thought},
            {"role": "user", "content": "2"},
        ],
        "a thought beside": [
            {"role": "user", "content": "1"},
            {"role": "assistant", "content": "ans", "reasoning_content": "why"},
            {"role": "user", "content": "2"},
        ],
        "an answer at the end": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "ans"}],
        "an answer in parts": [
            {"role": "user", "content": "1"},
            {"role": "assistant", "content": [text("ans")]},
            {"role": "user", "content": "2"},
        ],
        "spaces": [{"role": "user", "content": "  hi \n"}],
        "a late system message": [
            {"role": "user", "content": "1"},
            {"role": "assistant", "content": "x"},
            system,
            {"role": "user", "content": "2"},
        ],
        "no question": [system],
    }
    with_tools: dict[str, list[JsonObject]] = {
        "tools": asked,
        "tools and a system message": [system, *asked],
        "a round of tools": [*asked, call, {"role": "tool", "content": "R1"}, {"role": "tool", "content": "R2"}],
        "a picture from a tool": [*asked, call, {"role": "tool", "content": [picture, text("R")]}],
    }
    all_of_them = [(name, {"messages": messages}) for name, messages in plain.items()]
    all_of_them += [(name, {"messages": messages, "tools": tools}) for name, messages in with_tools.items()]
    thinking: tuple[JsonObject, ...] = ({"enable_thinking": True}, {"enable_thinking": False})
    variables = ({}, {"add_vision_id": True}, *thinking)
    return {
        ", ".join([name, *(f"{key} {value}" for key, value in more.items())]): {**case, **more}
        for (name, case), more in product(all_of_them, variables)
    }
