"""Whether a checkpoint's weights are quantised, and by what; known from its small files before any weight is read."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from worker.checkpoint.locate import read_json
from worker.checkpoint.spec import parts
from worker.core.errors import ModelError
from worker.core.safe_json import Json, JsonObject
from worker.core.settings import Settings

# The package by which transformers reads weights of a method; only bitsandbytes computes without a GPU.
_PACKAGES = {
    "awq": "gptqmodel",
    "gptq": "gptqmodel",
    "bitsandbytes": "bitsandbytes",
    "fp8": "kernels",
    "compressed-tensors": "compressed_tensors",
    "torchao": "torchao",
}
# Files of other tools beside a config.json that does not say it: the method, where the file itself does not.
_FILES = {
    "hf_quant_config.json": "modelopt",
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "quantization_config.json": "auto-round",
}
_BITSANDBYTES = "build the image with --build-arg BITSANDBYTES=1, or pip install -r requirements-bitsandbytes.txt"
_INSTEAD = (
    "use the model's bfloat16 checkpoint (with QUANTIZATION=8bit or 4bit on a small GPU), or serve this one with vLLM"
)


def stored_method(folder: Path) -> str | None:
    """The method by which a folder's weights are quantised, as `fp8`, `awq` or `bitsandbytes`; None where they are
    not."""
    return next(_methods(folder), None)


def _methods(folder: Path) -> Iterator[str]:
    config = read_json(folder / "config.json")
    for part in (config, parts(config)[0]):
        for key in ("quantization_config", "compression_config"):
            if part.get(key):
                yield _method_of(part[key], config)
        if isinstance(part.get("quantization"), dict) and part["quantization"]:
            yield "mlx"
    for name, usual in _FILES.items():
        found = read_json(folder / name)
        if found:
            yield str(found.get("quant_method") or usual)


def _method_of(quantisation: Json, config: JsonObject) -> str:
    if not isinstance(quantisation, dict):
        return "an unknown method"
    method = quantisation.get("quant_method")
    if isinstance(method, str):
        return method.lower()
    if "quantization" in config:
        return "mlx"
    return (
        "bitsandbytes" if quantisation.get("load_in_4bit") or quantisation.get("load_in_8bit") else "an unknown method"
    )


def is_quantised(settings: Settings, folder: Path, *, has_gpu: bool) -> bool:
    """Whether the weights are, or are to be. Raises ModelError where that cannot be here."""
    stored_as = stored_method(folder)
    if stored_as is None and settings.quantization == "none":
        return False
    if stored_as is not None and settings.quantization != "none":
        raise ModelError(
            f"QUANTIZATION={settings.quantization}, but the checkpoint is quantized already ({stored_as}): unset it"
        )
    method = stored_as or "bitsandbytes"
    if method not in _PACKAGES:
        raise ModelError(f"weights quantized with {method} are not supported here: {_INSTEAD}")
    if not has_gpu and method != "bitsandbytes":
        raise ModelError(f"weights quantized with {method} need a CUDA device: use a machine with a GPU, or {_INSTEAD}")
    package = _PACKAGES[method]
    if importlib.util.find_spec(package) is None:
        remedy = _BITSANDBYTES if package == "bitsandbytes" else f"add it, or {_INSTEAD}"
        reason = f"weights quantized with {method} need the package {package}, which is not installed: {remedy}"
        raise ModelError(reason)
    return True
