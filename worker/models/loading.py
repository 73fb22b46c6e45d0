"""A checkpoint folder to a model on its device, with the rules beside its weights."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch

from worker import __version__
from worker.checkpoint.load_plan import LoadPlan, begin
from worker.checkpoint.locate import Checkpoint, read_json
from worker.checkpoint.preprocessor import PreprocessorConfig
from worker.checkpoint.spec import FamilySpec, ModelSpec, read_spec
from worker.checkpoint.tokenizer import Tokenizer, read_tokenizer
from worker.checkpoint.weights import in_dtype
from worker.core.engine_protocol import EngineInfo
from worker.core.errors import ModelError
from worker.core.safe_json import JsonObject
from worker.core.settings import Settings
from worker.core.timeline import Timeline
from worker.models.capacity import Capacity, fitting_len, sizes_for
from worker.models.families import FAMILIES
from worker.models.family import ModelFamily
from worker.models.native.code import NativeCode
from worker.models.native.graphs import CudaRecorder, Recorder
from worker.models.native.runner import NativeRunner
from worker.models.native.shapes import read, shallow, why_not
from worker.models.runner import Runner
from worker.models.sizes import Sizes, log_sizes
from worker.models.varlen import TEXT_MODES, TOWER_MODES, Varlen, is_right, kernel_for, without_cudnn

log = logging.getLogger(__name__)
Code = Literal["native", "transformers", "generate"]
Families = Mapping[str, ModelFamily]


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model on its device. code: whose model code runs it, `generate` where it is the library's whole loop.
    num_devices: over how many its layers are spread, `device` being the first. sizes: what an engine of it is
    made for, chosen with `max_model_len`; None: by what there is when one is made."""

    spec: ModelSpec
    code: Code
    device: torch.device
    dtype: torch.dtype
    num_devices: int = 1
    sizes: Sizes | None = None

    def info(self) -> EngineInfo:
        """What an engine says of itself."""
        gpu = torch.cuda.get_device_properties(self.device) if self.device.type == "cuda" else None
        return EngineInfo(
            model=self.spec.name,
            code=self.code,
            max_model_len=self.spec.max_model_len,
            device=str(self.device),
            torch_version=torch.__version__,
            cuda_available=torch.cuda.is_available(),
            gpu_memory=f"{gpu.total_memory / 2**30:.1f}GB" if gpu else "N/A",
            fingerprint=self._fingerprint(gpu.name if gpu else "cpu"),
        )

    def _fingerprint(self, processor: str) -> str:
        facts = (__version__, self.spec.name, self.code, str(self.dtype), torch.__version__, processor)
        return "fp_" + hashlib.blake2b("\0".join(facts).encode(), digest_size=5).hexdigest()


@dataclass(frozen=True, kw_only=True)
class LoadedModel(ServedModel):
    """A model of a known family. shallow: a runner of its first layers alone, to warm up with; None where there is
    none."""

    spec: FamilySpec
    runner: Runner
    shallow: Runner | None = None


def model_type(found: Checkpoint) -> str | None:
    """What a checkpoint's config.json says that it is."""
    kind = read_json(found.folder / "config.json").get("model_type")
    return kind if isinstance(kind, str) else None


def load(
    settings: Settings,
    plan: LoadPlan | None = None,
    timeline: Timeline | None = None,
    tokenizer: Tokenizer | None = None,
    families: Families = FAMILIES,
) -> LoadedModel:
    """The model that the settings name, else the demonstration model. Raises ModelError."""
    timeline = timeline or Timeline()
    plan = plan or begin(settings)
    without_cudnn(plan.device)
    kind = model_type(plan.found)
    family = families.get(kind or "")
    if family is None:
        raise ModelError(f"the model type {kind} is not supported, these are: {', '.join(sorted(families))}")
    if tokenizer is None:
        tokenizer = read_tokenizer(plan.found.folder)
        timeline.end("tokenizer")
    spec = read_spec(plan.found, settings, family, tokenizer)
    code = _native_code(settings, plan, family)
    name: Code = "transformers" if code is None else "native"
    runner: Runner
    first_layers: Runner | None = None
    if code is None:
        # It takes longer to import than everything else of a start.
        from worker.models.hf import loading as hf_loading

        timeline.end("import_transformers")
        runner = hf_loading.load(settings, plan, spec.preprocessor, timeline)
    else:
        runner, first_layers = _native(settings, plan, code, spec.preprocessor, timeline)
    timeline.end("build_model")
    _log_served(settings, plan, spec, name)
    sizes = sizes_for(settings, plan.device, plan.num_devices, runner.bytes_per_token, runner.kv_layout)
    log_sizes(settings, sizes)
    capacity = Capacity(sizes.room, runner.bytes_per_token, spec.max_model_len, runner.kv_layout)
    spec = replace(spec, max_model_len=fitting_len(settings, capacity, sizes.max_num_seqs))
    return LoadedModel(
        spec=spec,
        code=name,
        runner=runner,
        shallow=first_layers,
        device=plan.device,
        dtype=plan.dtype,
        num_devices=plan.num_devices,
        sizes=sizes,
    )


def _log_served(settings: Settings, plan: LoadPlan, spec: ModelSpec, code: Code) -> None:
    found = plan.found
    how = "" if settings.quantization == "none" else f", weights in {settings.quantization}"
    shown = (spec.name, found.origin, plan.device, str(plan.dtype).removeprefix("torch."), how, code)
    log.info("serving %s from %s on %s in %s%s, with %s model code", *shown)


def _native_code(settings: Settings, plan: LoadPlan, family: ModelFamily) -> NativeCode | None:
    """Our own code where it can run the model and the settings do not say otherwise. Raises ModelError."""
    if settings.model_code == "transformers":
        return None
    why = _why_not_native(settings, plan, family)
    if why is None:
        return family.native
    if settings.model_code == "native":
        raise ModelError(f"MODEL_CODE=native cannot run this model: {why}. Set MODEL_CODE=auto")
    log.info("transformers runs this model: %s", why)
    return None


def _why_not_native(settings: Settings, plan: LoadPlan, family: ModelFamily) -> str | None:
    if plan.num_devices > 1:
        return f"its layers are spread over {plan.num_devices} GPUs, the slow way: each waits for the one before"
    if plan.reader is None:
        return "its weights are quantised"
    if settings.attention not in ("auto", "sdpa"):
        return f"ATTENTION is {settings.attention}"
    if family.native is None:
        known = ", ".join(sorted(kind for kind, other in FAMILIES.items() if other.native is not None))
        return f"the model type {model_type(plan.found)} is not among {known}"
    return why_not(read_json(plan.found.folder / "config.json"), family.native.layout)


def _native(
    settings: Settings, plan: LoadPlan, code: NativeCode, preprocessor: PreprocessorConfig, timeline: Timeline
) -> tuple[NativeRunner, NativeRunner | None]:
    assert plan.reader is not None
    config: JsonObject = read_json(plan.found.folder / "config.json")
    kernel, tower_kernel = _kernels(config, code, plan.device, plan.dtype)
    tensors = plan.reader.tensors()
    timeline.end("wait_for_weights")
    try:
        first_layers, give_back = None, None
        if plan.device.type == "cpu":  # elsewhere joining projections takes memory, and a forward little time
            _convert_tied_head(config, code, tensors, plan)
            first_layers = NativeRunner(code, *shallow(config, code.layout, tensors), preprocessor, plan.device)
            give_back = plan.reader.give_back
        runner = NativeRunner(
            code,
            config,
            tensors,
            preprocessor,
            plan.device,
            kernel=kernel,
            tower_kernel=tower_kernel,
            record=recorder(settings, plan.device),
            give_back=give_back,
        )
    except ModelError as error:
        raise ModelError(f"{plan.found.folder} is not a {config['model_type']}: {error}") from None
    if plan.device.type == "cuda":
        torch.cuda.empty_cache()  # the parts of what was joined; keys and values are given what is free
    return runner, first_layers


def _kernels(
    config: JsonObject, code: NativeCode, device: torch.device, dtype: torch.dtype
) -> tuple[Varlen | None, Varlen | None]:
    """Attention by lengths for the text model and for the vision tower, where the device has it and it is right."""
    kernel = kernel_for(device, dtype)
    if kernel is None:
        if device.type == "cuda":
            log.warning("no attention by lengths on this GPU in %s: steps are slower, and not recorded", dtype)
        return None, None
    shape, vision = read(config, code.layout)
    of_text = shape.heads, shape.kv_heads, shape.head_dim
    of_tower = vision.heads, vision.heads, vision.head_dim
    return (
        kernel if is_right(kernel, TEXT_MODES, *of_text, dtype, device) else None,
        kernel if is_right(kernel, TOWER_MODES, *of_tower, dtype, device) else None,
    )


def _convert_tied_head(config: JsonObject, code: NativeCode, tensors: dict[str, torch.Tensor], plan: LoadPlan) -> None:
    """Embeddings are in the file's dtype; a head that is the same matrix is multiplied by in the model's."""
    assert plan.reader is not None
    name = next((name for name in tensors if name.endswith("embed_tokens.weight")), "")
    has_head = any(other.endswith("lm_head.weight") for other in tensors)
    if not name or has_head or tensors[name].dtype == plan.dtype or not read(config, code.layout)[0].is_tied:
        return
    tensors["lm_head.weight"] = in_dtype(tensors[name], plan.dtype)
    plan.reader.give_back(tensors[name])


def recorder(settings: Settings, device: torch.device) -> Recorder | None:
    """What records decode steps, where there is something to gain by it."""
    return CudaRecorder(device) if device.type == "cuda" and settings.cuda_graphs else None
