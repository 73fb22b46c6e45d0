"""Proves that a checkpoint folder is whole and can be served, without running it: files, hashes, headers, shapes.

python -m builder.verify /models/Qwen3-VL-8B-Instruct

What fails names the file. The model is built on `meta`, takes the headers' shapes in, and does a forward there.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from worker.checkpoint.locate import Checkpoint, missing_file, read_json, shards
from worker.checkpoint.preprocessor import PreprocessorConfig
from worker.checkpoint.quantised import stored_method
from worker.checkpoint.spec import read_spec
from worker.checkpoint.weights import StoredTensor, stored_in, used
from worker.core.errors import ModelError
from worker.core.safe_json import JsonObject
from worker.core.settings import Settings
from worker.models.families import FAMILIES
from worker.models.hf.config import library_config
from worker.models.native.code import NativeCode
from worker.models.native.runner import NativeRunner
from worker.models.native.shapes import why_not

CHUNK_BYTES = 8 * 2**20


def verify(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file. Raises ModelError, which names the file at fault."""
    lacking = missing_file(folder)
    if lacking is not None:
        raise ModelError(f"{lacking} is missing")
    stored = stored_in(folder)
    _check_index(folder, stored)
    hashes = _check_hashes(folder)
    config = _config(folder)
    model_config, family = read_json(folder / "config.json"), FAMILIES[config.model_type]
    spec = read_spec(Checkpoint(folder, folder.name, "a folder"), Settings(), family)
    if stored_method(folder) is None:
        tensors = used(stored)
        if family.native is not None and why_not(model_config, family.native.layout) is None:
            _check_native(family.native, model_config, tensors, spec.preprocessor)
        _check_model(config, tensors)
    return hashes


def _check_index(folder: Path, stored: list[StoredTensor]) -> None:
    if shards(folder) == ["model.safetensors"]:  # an index beside it is not looked at
        return
    index = read_json(folder / "model.safetensors.index.json").get("weight_map")
    where = {header.name: header.file.name for header in stored}
    for name, file in (index or {}).items():
        if where.get(name) != file:
            raise ModelError(f"{file} has no {name}, which the index says is there")


def _check_hashes(folder: Path) -> dict[str, str]:
    expected = read_json(folder / "source.json").get("files", {})
    found = {}
    for path in sorted(folder.iterdir()):
        if not path.is_file() or path.name == "source.json":
            continue
        sha256, git_sha1 = _hashes(path)
        record = expected.get(path.name, {})
        if record.get("sha256") not in (None, sha256) or record.get("git_sha1") not in (None, git_sha1):
            raise ModelError(f"{path.name} is not the file that its source has: a byte differs")
        found[path.name] = sha256
    return found


def _hashes(path: Path) -> tuple[str, str]:
    """SHA-256, and the SHA-1 by which git knows the file."""
    sha256, git = hashlib.sha256(), hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while part := file.read(CHUNK_BYTES):
            sha256.update(part)
            git.update(part)
    return sha256.hexdigest(), git.hexdigest()


def _config(folder: Path) -> Any:
    config = library_config(folder)
    if config.model_type not in FAMILIES:
        raise ModelError(f"config.json: the model type {config.model_type} is not served")
    return config


def _check_model(config: Any, stored: list[StoredTensor]) -> None:
    """The class of the configuration takes just these tensors, and its forward runs through, all on `meta`."""
    made = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    tensors = _on_meta(stored)
    by_name = {header.name: header.file.name for header in stored}
    with torch.device("meta"):
        module = made(config).to(torch.bfloat16)
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    tied = set(getattr(module, "all_tied_weights_keys", None) or ())
    exact = {name: value for name, value in tensors.items() if name in wanted}
    for name, tensor in exact.items():
        shapes = [wanted[name]]
        if ".experts." in name:  # published the other way round; the library turns them as it loads
            shapes.append((*wanted[name][:-2], *wanted[name][:-3:-1]))
        if tuple(tensor.shape) not in shapes:
            raise ModelError(f"{by_name[name]}: {name} is {tuple(tensor.shape)}, the model has {wanted[name]}")
    if len(exact) == len(tensors):  # else the library renames or merges them as it loads
        missing = sorted(set(wanted) - set(exact) - tied)
        if missing:
            raise ModelError(f"{by_name[next(iter(by_name))]}: {len(missing)} tensors are missing, as {missing[0]}")
    ids = torch.zeros(1, 8, dtype=torch.long, device="meta")
    positions = torch.zeros(3, 1, 8, dtype=torch.long, device="meta")
    with torch.inference_mode():
        hidden = module.model.language_model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
        logits = module.lm_head(hidden)
    if logits.shape[-1] != config.get_text_config().vocab_size:
        raise ModelError(f"config.json: the head has {logits.shape[-1]} tokens")


def _on_meta(stored: list[StoredTensor]) -> dict[str, torch.Tensor]:
    return {header.name: torch.empty(header.shape, dtype=header.dtype, device="meta") for header in stored}


def _check_native(
    code: NativeCode, config: JsonObject, stored: list[StoredTensor], preprocessor: PreprocessorConfig
) -> None:
    """The worker's own model code takes each tensor, and finds all that it needs: by the names that older checkpoints
    have too, which the library changes as it loads."""
    try:
        NativeRunner(code, config, _on_meta(stored), preprocessor, torch.device("meta"))
    except ModelError as error:
        files = ", ".join(sorted({header.file.name for header in stored}))
        raise ModelError(f"{files}: {error}") from None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m builder.verify", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    try:
        hashes = verify(folder)
    except ModelError as error:
        sys.exit(f"builder.verify: {folder}: {error}")
    print(json.dumps(hashes, indent=2))


if __name__ == "__main__":
    main()
