"""Models of families that this worker does not know, run by the library's own `generate`.

The slow way, and the answers say so (`model_code` is `generate`): requests wait until the batch before them is done,
nothing is reused, videos are refused, and a picture's size is the processor's choice.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as HfTokenizer
from transformers import AutoProcessor, GenerationConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from worker.checkpoint.load_plan import LoadPlan
from worker.checkpoint.locate import read_json
from worker.checkpoint.sampling_defaults import read_generation
from worker.checkpoint.spec import ModelSpec, ending_ids, model_len
from worker.checkpoint.tokenizer import Tokenizer
from worker.core.errors import ModelError
from worker.core.settings import Settings
from worker.core.timeline import Timeline
from worker.models.capacity import Capacity, fitting_len, sizes_for
from worker.models.hf.config import library_config
from worker.models.hf.hf_prompt import HfPrompt, HfPromptBuilder, max_pixels
from worker.models.hf.loading import module_for
from worker.models.kv_pools import KVPools
from worker.models.kv_widths import POOLS, token_bytes
from worker.models.loading import ServedModel
from worker.models.sizes import log_sizes
from worker.models.varlen import without_cudnn

log = logging.getLogger(__name__)


class HfGenerateRunner:
    """Left-padded batches through `generate`, in which the caller chooses every token."""

    def __init__(
        self, module: Any, builder: HfPromptBuilder, pad: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        module.generation_config = GenerationConfig()  # the checkpoint's own go into each request's choice
        self.module, self.builder, self._pad, self._device, self._dtype = module, builder, pad, device, dtype
        whole = set(getattr(module, "_no_split_modules", None) or ())
        self._layers = [part for part in module.modules() if type(part).__name__ in whole]
        self.bytes_per_token = _bytes_per_token(module, dtype)

    def kv_cache(self, max_bytes: int) -> KVPools:  # noqa: ARG002  # it holds nothing
        """Without layers: `generate` has a cache of its own."""
        return KVPools(0, self.bytes_per_token, self._device, self._dtype, lambda _: None)

    kv_layout = POOLS

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[HfPrompt],
        max_tokens: int,
        choose: Callable[[torch.Tensor], list[int | None]],
        is_over: Callable[[], list[bool]],
        beat: Callable[[], None],
    ) -> None:
        """Prompts that all have pictures, or none. `choose` gets (rows, vocabulary) logits at each step and gives each
        row's token, None where it has ended; `is_over` says at each step which have; `beat` is called all the while."""
        inputs = self.builder.encoded([(prompt.text, prompt.pictures) for prompt in prompts]).to(self._device)
        inputs = {
            name: value.to(self._dtype) if torch.is_tensor(value) and value.is_floating_point() else value
            for name, value in inputs.items()
        }

        def chosen(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            """One token left possible in each row."""
            tokens = [self._pad if token is None else token for token in choose(scores)]
            only = torch.full_like(scores, -torch.inf)
            return only.scatter_(1, torch.tensor(tokens, device=scores.device)[:, None], 0.0)

        def ended(ids: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
            return torch.tensor(is_over(), device=ids.device)

        config = GenerationConfig(max_new_tokens=max_tokens, do_sample=False, pad_token_id=self._pad)
        hooks = [layer.register_forward_hook(lambda *_: beat()) for layer in self._layers]
        try:
            self.module.generate(
                **inputs,
                generation_config=config,
                logits_processor=[chosen],
                stopping_criteria=[ended],
            )
        finally:
            for hook in hooks:
                hook.remove()


def _bytes_per_token(module: Any, dtype: torch.dtype) -> int:
    text = module.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return token_bytes(text.num_hidden_layers, heads, dim, dtype.itemsize)


@dataclass(frozen=True, kw_only=True)
class GenerateModel(ServedModel):
    """A model that only the library's `generate` can run."""

    runner: HfGenerateRunner
    builder: HfPromptBuilder


def load(settings: Settings, plan: LoadPlan, timeline: Timeline) -> GenerateModel:
    """A model of the library's that reads pictures. Raises ModelError where it is none, or a prompt cannot be made."""
    folder = plan.found.folder
    without_cudnn(plan.device)
    config = _known_config(folder)
    processor, backend = _loaded_processor(folder)
    timeline.end("tokenizer")
    module = module_for(settings, plan, timeline)
    timeline.end("build_model")
    text = config.get_text_config()
    limit = model_len(settings, getattr(text, "max_position_embeddings", None))
    per_token = _bytes_per_token(module, plan.dtype)
    sizes = sizes_for(settings, plan.device, plan.num_devices, per_token, POOLS)
    log_sizes(settings, sizes)
    max_model_len = fitting_len(settings, Capacity(sizes.room, per_token, limit, POOLS), sizes.max_num_seqs)
    image_token = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)
    builder = HfPromptBuilder(processor, image_token, max_model_len, max_pixels(settings))
    generation = read_generation(folder)
    eos_ids = ending_ids(generation, read_json(folder / "config.json")) or _eos_of(processor)
    pad = processor.tokenizer.pad_token_id
    runner = HfGenerateRunner(module, builder, pad if pad is not None else min(eos_ids), plan.device, plan.dtype)
    name = plan.found.name
    if settings.sampling_preset == "card":
        log.warning("SAMPLING_PRESET is card, and the cards of %s are not known: generation_config.json counts", name)
    log.warning("serving %s of the unknown type %s by `generate`: slow, pictures only", name, config.model_type)
    # Without padding of its own: texts are put together token by token.
    tokenizer = HfTokenizer.from_str(backend.to_str())
    tokenizer.no_padding()
    spec = ModelSpec(
        name=name,
        tokenizer=Tokenizer(tokenizer),
        generation=generation,
        eos_ids=eos_ids,
        max_model_len=max_model_len,
        vocabulary_size=int(text.vocab_size),
    )
    return GenerateModel(
        spec=spec,
        code="generate",
        runner=runner,
        builder=builder,
        device=plan.device,
        dtype=plan.dtype,
        num_devices=plan.num_devices,
        sizes=sizes,
    )


def _loaded_processor(folder: Path) -> tuple[Any, HfTokenizer]:
    """The library's processor, and the tokenizer in it. Raises ModelError."""
    try:
        processor = AutoProcessor.from_pretrained(folder)
    except (ImportError, OSError, ValueError) as error:
        raise ModelError(f"the processor in {folder} could not be loaded: {str(error).splitlines()[0]}") from None
    backend = getattr(getattr(processor, "tokenizer", None), "backend_tokenizer", None)
    if not isinstance(backend, HfTokenizer) or getattr(processor, "chat_template", None) is None:
        raise ModelError(f"{folder} needs a tokenizer.json and a chat template")
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return processor, backend


def _known_config(folder: Path) -> Any:
    """The library's config of a model that reads pictures. Raises ModelError."""
    kind = read_json(folder / "config.json").get("model_type")
    if kind not in CONFIG_MAPPING:
        raise ModelError(
            f"the model type {kind} is not supported, by transformers neither: docs/models.md lists what is"
        )
    config = library_config(folder)
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise ModelError(f"the model type {config.model_type} takes no images: docs/models.md lists what is supported")
    return config


def _eos_of(processor: Any) -> frozenset[int]:
    eos_id = processor.tokenizer.eos_token_id
    if eos_id is None:
        raise ModelError("the checkpoint has no eos_token_id")
    return frozenset([eos_id])
