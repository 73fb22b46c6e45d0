"""A checkpoint as one of transformers' models."""

import logging
from typing import Any

import torch
from transformers import BitsAndBytesConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.utils import is_flash_attn_2_available
from transformers.utils import logging as transformers_logging

from worker.checkpoint.load_plan import LoadPlan
from worker.checkpoint.preprocessor import PreprocessorConfig
from worker.checkpoint.weights import in_dtype
from worker.core.errors import ModelError
from worker.core.settings import Settings
from worker.core.timeline import Timeline
from worker.models.hf.attention import register
from worker.models.hf.config import library_config
from worker.models.hf.runner import HfRunner


def load(settings: Settings, plan: LoadPlan, preprocessor: PreprocessorConfig, timeline: Timeline) -> HfRunner:
    """The library's model as the engine's runner, with our attention in its steps. Raises ModelError."""
    module = module_for(settings, plan, timeline)
    module.model.language_model.config._attn_implementation = register(_attention(settings.attention, plan.device))
    return HfRunner(module, preprocessor, plan.device, plan.dtype)


def module_for(settings: Settings, plan: LoadPlan, timeline: Timeline) -> Any:
    """The library's class for the checkpoint with its tensors in it, taken as they are. Raises ModelError."""
    folder, device = plan.found.folder, plan.device
    config = library_config(folder)
    if "sliding_attention" in (getattr(config.get_text_config(), "layer_types", None) or ()):
        raise ModelError(f"{folder / 'config.json'} has use_sliding_window, which is not supported: set it to false")
    transformers_logging.disable_progress_bar()
    attention = _attention(settings.attention, device)
    options = {"config": config, "dtype": plan.dtype, "attn_implementation": attention, "output_loading_info": True}
    if device.type == "cuda":
        options["device_map"] = {"": device} if plan.num_devices == 1 else "auto"
    made = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    if plan.reader is not None:
        tensors = {name: in_dtype(tensor, plan.dtype) for name, tensor in plan.reader.tensors().items()}
        timeline.end("wait_for_weights")
        # Shapes that differ are told below, by name.
        module, info = made.from_pretrained(None, state_dict=tensors, ignore_mismatched_sizes=True, **options)
    else:
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns at every product in 8 bit
        more = {} if settings.quantization == "none" else {"quantization_config": _bits(settings, plan.dtype)}
        try:
            module, info = made.from_pretrained(folder, **options, **more)
        except (ImportError, ValueError, RuntimeError, OSError) as error:
            how = "over several GPUs" if plan.num_devices > 1 else "quantised"
            raise ModelError(f"{folder} could not be loaded {how}: {error}") from None
    lost = [*sorted(info["missing_keys"]), *sorted(str(name) for name, *_ in info["mismatched_keys"])]
    if lost:
        example = f"for example {lost[0]}"
        raise ModelError(
            f"{folder} is not a {config.model_type}: {len(lost)} tensors are missing or have another shape, {example}"
        )
    return module.eval().requires_grad_(False)


def _bits(settings: Settings, dtype: torch.dtype) -> BitsAndBytesConfig:
    if settings.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype)


def _attention(wanted: str, device: torch.device) -> str:
    """FlashAttention 2 where it is installed and the device is CUDA, else torch's own. Raises ModelError."""
    if wanted == "flash_attention_2" and not is_flash_attn_2_available():
        raise ModelError(
            "ATTENTION=flash_attention_2 needs the package flash-attn and a CUDA device. Set ATTENTION=auto"
        )
    if wanted != "auto":
        return wanted
    return "flash_attention_2" if device.type == "cuda" and is_flash_attn_2_available() else "sdpa"
