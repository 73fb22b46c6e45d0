"""A checkpoint folder to a model that is ready to run, with everything beside its weights that shapes a prompt."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import is_flash_attn_2_available
from transformers.utils import logging as transformers_logging

from worker.engine import checkpoint
from worker.engine.attention import register
from worker.engine.checkpoint import ModelError
from worker.engine.families import FAMILIES, Family
from worker.engine.rules import PixelRules, read_json, read_rules
from worker.settings import EMBEDDED_MODEL, Settings

log = logging.getLogger(__name__)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device and its checkpoint's rules."""

    name: str
    module: Any
    family: Family
    templated: PreTrainedTokenizerBase
    tokenizer: Tokenizer
    pixels: PixelRules
    generation: dict[str, Any]
    eos_ids: frozenset[int]
    max_model_len: int
    vocabulary_size: int
    device: torch.device
    dtype: torch.dtype


def load(settings: Settings) -> LoadedModel:
    """The model that the settings name, else the embedded tiny one. Raises ModelError."""
    found = checkpoint.find(settings)
    folder = found.folder
    device = _device(settings.device)
    config = AutoConfig.from_pretrained(folder)
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ModelError(f"the model type {config.model_type} is not served; known: {', '.join(sorted(FAMILIES))}")
    dtype = _dtype(settings.dtype, device, config)
    transformers_logging.disable_progress_bar()
    attention = _attention(settings.attention, device)
    module = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, attn_implementation=attention)
    module = module.to(device).eval().requires_grad_(False)
    module.model.language_model.config._attn_implementation = register(attention)
    templated = AutoTokenizer.from_pretrained(folder)
    generation = read_json(folder / "generation_config.json")
    own_limit = int(config.get_text_config().max_position_embeddings)
    name = settings.model_name or found.name
    if folder == EMBEDDED_MODEL:
        log.info("no model is named: serving the embedded tiny model, for trials and tests, as %s", name)
    log.info("serving %s from %s on %s in %s", name, found.origin, device, str(dtype).removeprefix("torch."))
    return LoadedModel(
        name=name,
        module=module,
        family=family,
        templated=templated,
        tokenizer=templated.backend_tokenizer,
        pixels=read_rules(folder),
        generation=generation,
        eos_ids=_eos_ids(generation, config),
        max_model_len=min(settings.max_model_len or own_limit, own_limit),
        vocabulary_size=int(config.get_text_config().vocab_size),
        device=device,
        dtype=dtype,
    )


def facts(model: LoadedModel) -> dict[str, Any]:
    """What `/health` says of the machine."""
    gpu = torch.cuda.get_device_properties(model.device) if model.device.type == "cuda" else None
    return {
        "model": model.name,
        "device": str(model.device),
        "torch_version": torch.__version__,
        "cuda_available": torch.cuda.is_available(),
        "gpu_memory": f"{gpu.total_memory / 2**30:.1f}GB" if gpu else "N/A",
    }


def _device(wanted: str) -> torch.device:
    has_cuda = torch.cuda.is_available()
    if wanted == "auto":
        return torch.device("cuda" if has_cuda else "cpu")
    if wanted.startswith("cuda") and not has_cuda:
        raise ModelError(f"DEVICE is {wanted}, but there is no CUDA device")
    return torch.device(wanted)


def _attention(wanted: str, device: torch.device) -> str:
    """FlashAttention 2 where it is installed and the device is CUDA, else torch's own."""
    if wanted != "auto":
        return wanted
    return "flash_attention_2" if device.type == "cuda" and is_flash_attn_2_available() else "sdpa"


def _dtype(wanted: str, device: torch.device, config: Any) -> torch.dtype:
    if wanted != "auto":
        return _DTYPES[wanted]
    if device.type == "cpu":
        return torch.float32
    return config.get_text_config().dtype or config.dtype or torch.bfloat16


def _eos_ids(generation: dict[str, Any], config: Any) -> frozenset[int]:
    ids = generation.get("eos_token_id", config.get_text_config().eos_token_id)
    if ids is None:
        raise ModelError("the checkpoint names no eos_token_id")
    return frozenset(ids if isinstance(ids, list) else [ids])
