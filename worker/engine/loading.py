"""A checkpoint folder to a model that is ready to run, with everything beside its weights that shapes a prompt."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, BitsAndBytesConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.utils import is_flash_attn_2_available
from transformers.utils import logging as transformers_logging
from transformers.utils.chat_template_utils import render_jinja_template

from worker.engine.attention import register
from worker.engine.checkpoint import ModelError
from worker.engine.families import FAMILIES, Family
from worker.engine.rules import PixelRules, read_json, read_rules
from worker.engine.weights import Begun, begin
from worker.settings import EMBEDDED_MODEL, Settings
from worker.timeline import Timeline

log = logging.getLogger(__name__)


class Template:
    """A checkpoint's chat template."""

    def __init__(self, folder: Path) -> None:
        own = folder / "chat_template.jinja"
        config = read_json(folder / "tokenizer_config.json")
        text = own.read_text(encoding="utf-8") if own.is_file() else config.get("chat_template")
        text = text or read_json(folder / "chat_template.json").get("chat_template")
        if not isinstance(text, str):
            raise ModelError(f"{folder} has no chat template")
        self._text = text
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        tokens = {name: config.get(name) for name in names}
        self._tokens = {name: one["content"] if isinstance(one, dict) else one for name, one in tokens.items() if one}

    def render(self, messages: list[dict[str, Any]], told: Mapping[str, Any] = MappingProxyType({})) -> str:
        """The conversation as text, up to where the answer begins. `told`: further variables of the template."""
        [rendered], _ = render_jinja_template(
            [messages], chat_template=self._text, **{"add_generation_prompt": True, **told, **self._tokens}
        )
        return str(rendered)


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device and its checkpoint's rules."""

    name: str
    module: Any
    family: Family
    template: Template
    tokenizer: Tokenizer
    pixels: PixelRules
    generation: dict[str, Any]
    eos_ids: frozenset[int]
    max_model_len: int
    vocabulary_size: int
    device: torch.device
    dtype: torch.dtype


def load(settings: Settings, begun: Begun | None = None, timeline: Timeline | None = None) -> LoadedModel:
    """The model that the settings name, else the embedded tiny one. Raises ModelError."""
    timeline = timeline or Timeline()
    begun = begun or begin(settings)
    found, device, dtype = begun.found, begun.device, begun.dtype
    folder = found.folder
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError):
        config = None
    if config is None or config.model_type not in FAMILIES:
        kind = read_json(folder / "config.json").get("model_type")
        raise ModelError(f"the model type {kind} is not served; known: {', '.join(sorted(FAMILIES))}")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    timeline.end("tokenizer")
    module = _module(settings, begun, config, timeline)
    timeline.end("model")
    generation = read_json(folder / "generation_config.json")
    own_limit = int(config.get_text_config().max_position_embeddings)
    name = settings.model_name or found.name
    if folder == EMBEDDED_MODEL:
        log.info("no model is named: serving the embedded tiny model, for trials and tests, as %s", name)
    log.info("serving %s from %s on %s in %s", name, found.origin, device, str(dtype).removeprefix("torch."))
    return LoadedModel(
        name=name,
        module=module,
        family=FAMILIES[config.model_type],
        template=Template(folder),
        tokenizer=tokenizer,
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


def _module(settings: Settings, begun: Begun, config: Any, timeline: Timeline) -> Any:
    """The model's own class with its tensors in it, taken as they are. Raises ModelError."""
    folder, device = begun.found.folder, begun.device
    transformers_logging.disable_progress_bar()
    attention = _attention(settings.attention, device)
    options = {"config": config, "dtype": begun.dtype, "attn_implementation": attention, "output_loading_info": True}
    if device.type == "cuda":
        options["device_map"] = {"": device}
    made = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    if begun.reading is not None:
        tensors = begun.reading.tensors()
        timeline.end("waiting for weights")
        timeline.ran_beside("reading weights", begun.reading.seconds)
        module, info = made.from_pretrained(None, state_dict=tensors, **options)
    else:
        more = {} if settings.quantization == "none" else {"quantization_config": _bits(settings, begun.dtype)}
        try:
            module, info = made.from_pretrained(folder, **options, **more)
        except (ImportError, ValueError, RuntimeError, OSError) as error:
            raise ModelError(f"{folder} could not be loaded quantised: {error}") from None
    lost = sorted(info["missing_keys"]) + sorted(str(name) for name in info["mismatched_keys"])
    if lost:
        raise ModelError(
            f"{folder} is no {config.model_type}: {len(lost)} tensors are missing or of another shape, as {lost[0]}"
        )
    module = module.eval().requires_grad_(False)
    module.model.language_model.config._attn_implementation = register(attention)
    return module


def _bits(settings: Settings, dtype: torch.dtype) -> BitsAndBytesConfig:
    if settings.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype)


def _attention(wanted: str, device: torch.device) -> str:
    """FlashAttention 2 where it is installed and the device is CUDA, else torch's own."""
    if wanted != "auto":
        return wanted
    return "flash_attention_2" if device.type == "cuda" and is_flash_attn_2_available() else "sdpa"


def _eos_ids(generation: dict[str, Any], config: Any) -> frozenset[int]:
    ids = generation.get("eos_token_id", config.get_text_config().eos_token_id)
    if ids is None:
        raise ModelError("the checkpoint names no eos_token_id")
    return frozenset(ids if isinstance(ids, list) else [ids])
