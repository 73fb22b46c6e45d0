"""Weights in the forms in which published checkpoints and copies of them have them: served, or refused in one line
before any is read."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from builder.verify import verify
from tests.engine.requests import ask, picture
from tests.models import checkpoints
from tests.models.published import older, set_in
from tests.models.test_native import NEAR, distance, steps
from worker.checkpoint import load_plan, quantised
from worker.checkpoint.load_plan import begin
from worker.checkpoint.locate import Checkpoint, find, shards
from worker.checkpoint.quantised import stored_method
from worker.core.errors import ModelError
from worker.core.settings import EMBEDDED_MODEL, Settings
from worker.models.loading import LoadedModel, load

SHOWN = ask("What is it?", picture(1))
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The tiny model, to be changed."""
    return Path(shutil.copytree(EMBEDDED_MODEL, tmp_path / "copy"))


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write("qwen2_5_vl", tmp_path_factory.mktemp("weights") / "dense")


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write("qwen3_5", tmp_path_factory.mktemp("weights") / "recurrent")


def served(folder: Path, **more: Any) -> LoadedModel:
    return load(Settings(device="cpu", model_path=folder, **more))


def rewritten(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", {"format": "pt"})


def renamed(new: Callable[[str], str]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {new(name): tensor for name, tensor in tensors.items()}


def _without_head(name: str) -> str:
    """As a model is saved that is not the one with the head: one without it, or another tool's."""
    return name.replace("model.language_model.", "language_model.").replace("model.visual.", "visual.")


def _text_within(name: str) -> str:
    name = name.replace("model.language_model.", "language_model.model.").replace("model.visual.", "visual.")
    return name.replace("lm_head.", "language_model.lm_head.")


@pytest.mark.parametrize("new", [older, _without_head, _text_within])
def test_tensors_may_have_the_prefixes_of_any_release(dense: Path, tmp_path: Path, new: Callable[[str], str]) -> None:
    folder = Path(shutil.copytree(dense, tmp_path / "renamed"))
    rewritten(folder, renamed(new))
    assert distance(steps(served(folder), SHOWN), steps(served(dense), SHOWN)) == 0


def test_what_no_forward_reads_is_left_out_and_the_log_says_so(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    more = {"mtp.fc.weight": torch.ones(1024, 1024), "model.mtp.layers.0.norm.weight": torch.ones(8)}
    more["model.language_model.rotary_emb.inv_freq"] = torch.ones(8)
    rewritten(copy, lambda tensors: tensors | more)
    verify(copy)
    assert distance(steps(served(copy), SHOWN), steps(served(EMBEDDED_MODEL), SHOWN)) == 0
    assert "3 tensors (0.00 GiB) are not loaded: layers for multi-token prediction and rotary tables" in caplog.text


def test_dtypes_may_be_mixed(copy: Path) -> None:
    def mixed(tensors: Tensors) -> Tensors:
        turns = (torch.float16, torch.bfloat16, torch.float32)
        return {name: tensor.to(turns[index % 3]) for index, (name, tensor) in enumerate(sorted(tensors.items()))}

    rewritten(copy, mixed)
    model, library = served(copy), served(copy, model_code="transformers")
    assert (model.code, model.dtype, library.dtype) == ("native", torch.float32, torch.float32)
    assert distance(steps(model, SHOWN), steps(library, SHOWN)) < NEAR


@pytest.mark.parametrize("is_stale", [True, False])
def test_one_file_counts_before_an_index_beside_it(copy: Path, is_stale: bool) -> None:
    file = "model-00001-of-00002.safetensors" if is_stale else "model.safetensors"
    where = dict.fromkeys(load_file(copy / "model.safetensors"), file)
    (copy / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    assert shards(copy) == ["model.safetensors"]
    assert served(copy).code == "native"
    verify(copy)


def test_a_copy_may_have_more_tokens_than_its_tokenizer(copy: Path) -> None:
    """As one that was resized; the new rows are nobody's."""
    config = json.loads((copy / "config.json").read_text())
    before = config["text_config"]["vocab_size"]
    config["text_config"]["vocab_size"] = before + 37
    set_in(copy / "config.json", **config)

    def resized(tensors: Tensors) -> Tensors:
        wide = {name: tensor for name, tensor in tensors.items() if len(tensor) == before}
        assert wide
        return tensors | {name: torch.cat([one, torch.zeros(37, *one.shape[1:])]) for name, one in wide.items()}

    rewritten(copy, resized)
    ours, whole = (steps(served(folder), SHOWN)[-1] for folder in (copy, EMBEDDED_MODEL))
    assert torch.equal(ours[:before], whole)


def test_a_merged_copy_may_keep_its_adapters_config_and_an_abliterated_one_its_head(copy: Path) -> None:
    (copy / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "Qwen/Qwen3-VL-2B-Instruct"}))
    (copy / "trainer_state.json").write_text("{}")
    embedding = "model.language_model.embed_tokens.weight"
    rewritten(copy, lambda tensors: tensors | {"lm_head.weight": tensors[embedding].clone()})
    set_in(copy / "config.json", tie_word_embeddings=True)
    model, library = served(copy), served(copy, model_code="transformers")
    assert distance(steps(model, SHOWN), steps(library, SHOWN)) < NEAR
    assert distance(steps(model, SHOWN), steps(served(EMBEDDED_MODEL), SHOWN)) < NEAR


def test_a_head_for_training_is_left(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    rewritten(
        copy, lambda tensors: tensors | {"v_head.summary.weight": torch.ones(1, 8), "score.weight": torch.ones(2)}
    )
    assert distance(steps(served(copy), SHOWN), steps(served(EMBEDDED_MODEL), SHOWN)) == 0
    assert "2 tensors are not the model's and not used, as score.weight" in caplog.text


def test_a_folder_without_a_tokenizers_config_is_served(copy: Path) -> None:
    (copy / "tokenizer_config.json").unlink()
    assert distance(steps(served(copy), SHOWN), steps(served(EMBEDDED_MODEL), SHOWN)) == 0


def test_a_window_that_no_layer_has_is_none(dense: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(dense, tmp_path / "windows"))
    _set_in_text(folder, use_sliding_window=True, sliding_window=64, max_window_layers=4)
    assert distance(steps(served(folder), SHOWN), steps(served(dense), SHOWN)) == 0
    _set_in_text(folder, max_window_layers=1, layer_types=None)
    with pytest.raises(ModelError, match="has use_sliding_window, which is not supported: set it to false"):
        served(folder)


# What cannot be served is told in one line, before the weights are read.


def _adapter_alone(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "adapter_model.safetensors").write_bytes(b"")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "Qwen/Qwen3-VL-2B-Instruct"}))


def _instead(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "model.safetensors").rename(folder / name) and None


def _changed(change: Callable[[Tensors], Tensors]) -> Callable[[Path], None]:
    return lambda folder: rewritten(folder, change)


def _without(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


def _untied(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"].pop("tie_word_embeddings", None)
    set_in(folder / "config.json", tie_word_embeddings=False, text_config=config["text_config"])
    rewritten(folder, _without("lm_head"))


def _for_text_alone(folder: Path) -> None:
    set_in(folder / "config.json", vision_config={})
    rewritten(folder, _without("visual"))


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "an adapter without its model": (_adapter_alone, "an adapter of Qwen/Qwen3-VL-2B-Instruct: merge it first"),
    "an adapter beside its model": (
        _changed(lambda tensors: tensors | {"model.language_model.layers.0.q.lora_A.default.weight": torch.ones(2)}),
        r"contain an adapter \(.*lora_A.*\): merge it first",
    ),
    "a pickle": (
        _instead("pytorch_model.bin"),
        r"model\.safetensors is missing from .*\. pytorch_model\.bin is a pickle, which",
    ),
    "a GGUF": (_instead("model-Q4_K_M.gguf"), r"model-Q4_K_M\.gguf is for llama\.cpp: use the model's safetensors"),
    "shards without their index": (
        _instead("model-00001-of-00002.safetensors"),
        "which need model.safetensors.index",
    ),
    "no words": (lambda folder: (folder / "tokenizer.json").unlink(), r"tokenizer\.json is missing from"),
    "a head that is gone": (_untied, r"the tensor lm_head\.weight is missing"),
    "tensors of one shape less": (
        _changed(lambda tensors: {name: tensor.new_empty(0) for name, tensor in tensors.items()}),
        r"has the shape \(0,\) instead of",
    ),
    "FP8 without a word of it": (
        _changed(
            lambda tensors: tensors | {name: tensors[name].to(torch.float8_e4m3fn) for name in tensors if "mlp" in name}
        ),
        r"mlp.* as torch\.float8_e4m3fn, and config\.json has no quantization_config: use the model's bfloat16",
    ),
    "a word for a number": (
        lambda folder: _set_in_text(folder, rms_norm_eps="small"),
        r"config\.json is refused by transformers: .*rms_norm_eps",
    ),
    "another model's prefix": (_changed(renamed(lambda name: f"base_model.{name}")), "is missing"),
    "text alone": (_for_text_alone, r"config\.json has no vision_config: this copy of the model is text-only"),
}


RECURRENT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a vocabulary that was resized without its config": (
        _changed(lambda tensors: {n: torch.cat([t, t[:8]]) if "embed_tokens" in n else t for n, t in tensors.items()}),
        r"1 tensors are missing or have another shape, for example model\.language_model\.embed_tokens\.weight",
    ),
    "tensors of one shape less": (
        _changed(lambda tensors: {n: t.new_empty(0) if "mlp" in n else t for n, t in tensors.items()}),
        "tensors are missing or have another shape, for example model",
    ),
    "a word for a number": (
        lambda folder: _set_in_text(folder, hidden_size="wide"),
        r"config\.json is refused by transformers: .*hidden_size",
    ),
    "another dtype": (lambda folder: _set_in_text(folder, dtype="torch.bfloat99"), "is refused by transformers"),
}


def _set_in_text(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    set_in(folder / "config.json", text_config=config["text_config"] | values)


@pytest.mark.parametrize("fault", RECURRENT)
def test_what_the_librarys_forward_cannot_serve_is_told_in_one_line(
    recurrent: Path, tmp_path: Path, fault: str
) -> None:
    change, told = RECURRENT[fault]
    folder = Path(shutil.copytree(recurrent, tmp_path / "copy"))
    change(folder)
    with pytest.raises(ModelError, match=told) as caught:
        served(folder)
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError):
        verify(folder)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_served_is_told_in_one_line(copy: Path, fault: str) -> None:
    change, told = FAULTS[fault]
    change(copy)
    with pytest.raises(ModelError, match=told) as caught:
        served(copy)
    assert "\n" not in str(caught.value)


QUANTISED: dict[str, tuple[str, dict[str, Any], str]] = {
    "fp8": ("config.json", {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, "fp8"),
    "awq": ("config.json", {"quantization_config": {"quant_method": "awq", "bits": 4, "version": "gemm"}}, "awq"),
    "gptq": ("config.json", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
    "an older bitsandbytes": ("config.json", {"quantization_config": {"load_in_4bit": True}}, "bitsandbytes"),
    "compressed-tensors": (
        "config.json",
        {"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}},
        "compressed-tensors",
    ),
    "compressed-tensors, older": (
        "config.json",
        {"compression_config": {"quant_method": "compressed-tensors"}},
        "compressed-tensors",
    ),
    "modelopt": (
        "config.json",
        {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}},
        "modelopt",
    ),
    "modelopt, beside": ("hf_quant_config.json", {"quantization": {"quant_algo": "FP8"}}, "modelopt"),
    "GPTQ, beside": ("quantize_config.json", {"bits": 4, "group_size": 128}, "gptq"),
    "AWQ, beside": ("quant_config.json", {"w_bit": 4, "q_group_size": 128}, "awq"),
    "auto-round, beside": ("quantization_config.json", {"bits": 4, "packing_format": "auto_gptq"}, "auto-round"),
    "no object": ("config.json", {"quantization_config": "fp8"}, "an unknown method"),
    "MLX": ("config.json", {"quantization": {"bits": 4}, "quantization_config": {"bits": 4}}, "mlx"),
    "in the text's config": ("config.json", {"text_config": {"quantization_config": {"quant_method": "AWQ"}}}, "awq"),
}


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_weights_are_known_by_the_small_files(tmp_path: Path, kind: str, monkeypatch: Any) -> None:
    """There are none to be read."""
    file, content, method = QUANTISED[kind]
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / file).write_text(json.dumps(content))
    assert stored_method(tmp_path) == method
    found = Checkpoint(tmp_path, "quantised", "a test")
    if method == "bitsandbytes":
        monkeypatch.setattr(quantised.importlib.util, "find_spec", lambda _: None)
        told = "need the package bitsandbytes, which is not installed: build the image with --build-arg BITSANDBYTES=1"
    elif method in ("mlx", "modelopt", "auto-round", "an unknown method"):
        told = (
            f"weights quantized with {method} are not supported here: use the model's bfloat16 checkpoint .* with vLLM"
        )
    else:
        told = f"weights quantized with {method} need a CUDA device: use a machine with a GPU, or use .* with vLLM"
    with pytest.raises(ModelError, match=told):
        begin(Settings(device="cpu"), found)


def test_on_a_gpu_it_is_said_which_package_reads_them(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QUANTISED["awq"][1]))
    monkeypatch.setattr(load_plan, "device_of", lambda _: torch.device("cuda"))
    with pytest.raises(ModelError, match="need the package gptqmodel, which is not installed: add it, or use"):
        begin(Settings(), Checkpoint(tmp_path, "quantised", "a test"))


@pytest.mark.parametrize("leftover", [{}, {"quantization_config": None}, {"quantization_config": {}}])
def test_a_whole_folder_is_not_quantised(copy: Path, leftover: dict[str, Any]) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | leftover))
    assert stored_method(copy) is None
    assert find(Settings(model_path=copy)).folder == copy
