"""A model's rules without its weights: all that a prompt, its counting and its answer depend on.

Read from a checkpoint's small files. Knows no torch; whoever runs the model, here or elsewhere, uses the same rules.
"""

from dataclasses import dataclass
from pathlib import Path

from worker.checkpoint.chat_template import ChatTemplate
from worker.checkpoint.family import Family
from worker.checkpoint.locate import Checkpoint, read_json
from worker.checkpoint.preprocessor import PreprocessorConfig, read_preprocessor
from worker.checkpoint.tokenizer import Tokenizer, read_tokenizer
from worker.core.errors import ModelError
from worker.core.safe_json import JsonObject
from worker.core.settings import Settings

DEFAULT_MODEL_LEN = 32_768
DEFAULT_TOKENS_PER_SECOND = 4


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What any engine needs to know of a model. name: the one that answers carry. generation: the checkpoint's sampling
    defaults. eos_ids: tokens that end an answer. max_model_len: most tokens of a prompt and its answer."""

    name: str
    tokenizer: Tokenizer
    generation: JsonObject
    eos_ids: frozenset[int]
    max_model_len: int
    vocabulary_size: int


@dataclass(frozen=True, kw_only=True)
class FamilySpec(ModelSpec):
    """The rules of a model of a known family. tokens_per_second: positions of a second of video, where it is one
    span."""

    family: Family
    template: ChatTemplate
    preprocessor: PreprocessorConfig
    tokens_per_second: float


def read_spec(found: Checkpoint, settings: Settings, family: Family, tokenizer: Tokenizer | None = None) -> FamilySpec:
    """The rules in a checkpoint's folder. `tokenizer`: its own, where it was read before. Raises ModelError."""
    folder = found.folder
    config = read_json(folder / "config.json")
    text, vision = parts(config)
    generation = read_json(folder / "generation_config.json")
    return FamilySpec(
        name=settings.model_name or found.name,
        tokenizer=tokenizer or read_tokenizer(folder),
        generation=generation,
        eos_ids=_eos_ids(folder, generation, config),
        max_model_len=model_len(settings, text.get("max_position_embeddings")),
        vocabulary_size=_vocabulary_size(folder, text),
        family=family,
        template=ChatTemplate(folder),
        preprocessor=read_preprocessor(folder),
        tokens_per_second=float(vision.get("tokens_per_second", DEFAULT_TOKENS_PER_SECOND)),
    )


def parts(config: JsonObject) -> tuple[JsonObject, JsonObject]:
    """The config of the text model and of the vision tower; older checkpoints have the first at the top."""
    return config.get("text_config") or config, config.get("vision_config") or {}


def model_len(settings: Settings, checkpoint_limit: int | None) -> int:
    """The most tokens of a prompt and its answer: as set, and no more than the checkpoint's own limit."""
    limit = checkpoint_limit or DEFAULT_MODEL_LEN
    return min(settings.max_model_len or limit, limit)


def ending_ids(generation: JsonObject, config: JsonObject) -> frozenset[int]:
    """The tokens that end an answer, as far as the checkpoint's files name them."""
    text, _ = parts(config)
    ids = generation.get("eos_token_id", text.get("eos_token_id", config.get("eos_token_id")))
    return frozenset(ids if isinstance(ids, list) else [] if ids is None else [ids])


def _eos_ids(folder: Path, generation: JsonObject, config: JsonObject) -> frozenset[int]:
    ids = ending_ids(generation, config)
    if not ids:
        raise ModelError(f"the checkpoint names no eos_token_id: look at generation_config.json in {folder}")
    return ids


def _vocabulary_size(folder: Path, text: JsonObject) -> int:
    size = text.get("vocab_size")
    if not isinstance(size, int):
        raise ModelError(f"{folder / 'config.json'} does not say 'vocab_size'")
    return size
