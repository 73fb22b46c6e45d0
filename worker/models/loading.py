"""A checkpoint folder to a model that is ready to run, with everything beside its weights that shapes a prompt."""

import importlib
import logging
from dataclasses import dataclass
from typing import Any, Literal

import torch

from worker.checkpoint.chat_template import Template
from worker.checkpoint.family import FAMILIES, Family
from worker.checkpoint.locate import ModelError, read_json
from worker.checkpoint.preprocessor import PixelRules, read_rules
from worker.checkpoint.tokenizer import Tokens, read_tokens
from worker.checkpoint.weights import Begun, begin
from worker.core.settings import EMBEDDED_MODEL, Settings
from worker.core.timeline import Timeline
from worker.models.native import shapes
from worker.models.native.graphs import CudaRecorder, Recorder
from worker.models.native.runner import NativeRunner
from worker.models.runner import Runner

log = logging.getLogger(__name__)
DEFAULT_MODEL_LEN = 32_768
DEFAULT_TOKENS_PER_SECOND = 4


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """What an engine needs of any model. code: whose model code `runner` runs, `generate` where it is the library's
    whole loop. num_devices: over how many its layers are spread, `device` being the first."""

    name: str
    code: Literal["native", "transformers", "generate"]
    runner: Any
    tokens: Tokens
    generation: dict[str, Any]
    eos_ids: frozenset[int]
    max_model_len: int
    vocabulary_size: int
    device: torch.device
    dtype: torch.dtype
    num_devices: int = 1


@dataclass(frozen=True, kw_only=True)
class LoadedModel(ServedModel):
    """A model of a known family on its device and its checkpoint's rules. tokens_per_second: positions of a second of
    video, where it is one span. shallow: a runner of its first layers alone, to warm up with; None where there is
    none."""

    runner: Runner
    family: Family
    template: Template
    pixels: PixelRules
    tokens_per_second: float
    shallow: Runner | None


def load(
    settings: Settings,
    begun: Begun | None = None,
    timeline: Timeline | None = None,
    tokens: Tokens | None = None,
) -> LoadedModel:
    """The model that the settings name, else the embedded tiny one. Raises ModelError."""
    timeline = timeline or Timeline()
    begun = begun or begin(settings)
    found, device, dtype = begun.found, begun.device, begun.dtype
    folder = found.folder
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise ModelError(f"the model type {kind} is not served; known: {', '.join(sorted(FAMILIES))}")
    text, vision = shapes.parts(config)
    if tokens is None:
        tokens = read_tokens(folder)
        timeline.end("tokenizer")
    pixels = read_rules(folder)
    code = _code(settings, begun, config)
    runner: Runner
    shallow: Runner | None
    if code == "native":
        runner, shallow = _native(settings, begun, config, pixels, timeline)
    else:
        # Imported when it is needed: it takes longer than everything else of a start.
        library = importlib.import_module("worker.models.hf.loading")
        timeline.end("importing transformers")
        runner, shallow = library.load(settings, begun, pixels, timeline), None
    timeline.end("model")
    generation = read_json(folder / "generation_config.json")
    name = settings.model_name or found.name
    if folder == EMBEDDED_MODEL:
        log.info("no model is named: serving the embedded tiny model, for trials and tests, as %s", name)
    how = "" if settings.quantization == "none" else f", weights in {settings.quantization}"
    shown = (name, found.origin, device, str(dtype).removeprefix("torch."), how, code)
    log.info("serving %s from %s on %s in %s%s, by %s model code", *shown)
    return LoadedModel(
        name=name,
        code=code,
        runner=runner,
        family=FAMILIES[kind],
        template=Template(folder),
        tokens=tokens,
        pixels=pixels,
        generation=generation,
        eos_ids=_eos_ids(generation, config),
        max_model_len=model_len(settings, text.get("max_position_embeddings")),
        vocabulary_size=int(text["vocab_size"]),
        tokens_per_second=float(vision.get("tokens_per_second", DEFAULT_TOKENS_PER_SECOND)),
        device=device,
        dtype=dtype,
        num_devices=begun.num_devices,
        shallow=shallow,
    )


def _code(settings: Settings, begun: Begun, config: dict[str, Any]) -> Literal["native", "transformers"]:
    """Whose model code runs it: ours where it can, unless the settings say otherwise. Raises ModelError."""
    if settings.model_code == "transformers":
        return "transformers"
    why = shapes.why_not(config)
    if begun.num_devices > 1:
        why = f"its layers are spread over {begun.num_devices} GPUs, the slow way: each waits for the one before"
    elif begun.reading is None:
        why = "its weights are quantised"
    elif settings.attention not in ("auto", "sdpa"):
        why = f"ATTENTION is {settings.attention}"
    if why is None:
        return "native"
    if settings.model_code == "native":
        raise ModelError(f"MODEL_CODE is native, which cannot run this model: {why}. MODEL_CODE=auto")
    log.info("transformers runs this model: %s", why)
    return "transformers"


def _native(
    settings: Settings, begun: Begun, config: dict[str, Any], pixels: PixelRules, timeline: Timeline
) -> tuple[NativeRunner, NativeRunner | None]:
    assert begun.reading is not None
    tensors = begun.reading.tensors()
    timeline.end("waiting for weights")
    try:
        shallow = None
        if begun.device.type == "cpu":  # elsewhere joining projections takes memory, and a forward little time
            shallow = NativeRunner(*shapes.shallow(config, tensors), pixels, begun.device)
        runner = NativeRunner(config, tensors, pixels, begun.device, _recorder(settings, begun.device))
        if begun.device.type == "cuda":
            torch.cuda.empty_cache()  # the parts of what was joined; keys and values are given what is free
        return runner, shallow
    except ModelError as error:
        raise ModelError(f"{begun.found.folder} is no {config['model_type']}: {error}") from None


def _recorder(settings: Settings, device: torch.device) -> Recorder | None:
    """What records decode steps, where there is something to gain by it."""
    return CudaRecorder(device) if device.type == "cuda" and settings.cuda_graphs else None


def facts(model: ServedModel) -> dict[str, Any]:
    """What `/health` says of the machine."""
    gpu = torch.cuda.get_device_properties(model.device) if model.device.type == "cuda" else None
    return {
        "model": model.name,
        "device": str(model.device),
        "torch_version": torch.__version__,
        "cuda_available": torch.cuda.is_available(),
        "gpu_memory": f"{gpu.total_memory / 2**30:.1f}GB" if gpu else "N/A",
    }


def _eos_ids(generation: dict[str, Any], config: dict[str, Any]) -> frozenset[int]:
    ids = ending_ids(generation, config)
    if not ids:
        raise ModelError("the checkpoint names no eos_token_id")
    return ids


def model_len(settings: Settings, own: int | None) -> int:
    """The most tokens of a prompt and its answer: as set, and no more than the checkpoint's own."""
    own = own or DEFAULT_MODEL_LEN
    return min(settings.max_model_len or own, own)


def ending_ids(generation: dict[str, Any], config: dict[str, Any]) -> frozenset[int]:
    """The tokens that end an answer, as far as the checkpoint's files name them."""
    text, _ = shapes.parts(config)
    ids = generation.get("eos_token_id", text.get("eos_token_id", config.get("eos_token_id")))
    return frozenset(ids if isinstance(ids, list) else [] if ids is None else [ids])
