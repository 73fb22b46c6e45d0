"""A model's rules without its weights: all that a prompt, its counting and its answer depend on.

Read from a checkpoint's small files. Knows no torch; whoever runs the model, here or elsewhere, uses the same rules.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from worker.checkpoint.chat_template import ChatTemplate, vision_template
from worker.checkpoint.family import VISION_TOKENS, Family, VisionTokens
from worker.checkpoint.locate import Checkpoint, read_json
from worker.checkpoint.preprocessor import PreprocessorConfig, read_preprocessor
from worker.checkpoint.sampling_defaults import read_generation
from worker.checkpoint.tokenizer import Tokenizer, read_tokenizer
from worker.checkpoint.tool_prompt import ToolFormat
from worker.core.errors import ModelError
from worker.core.safe_json import JsonObject
from worker.core.settings import Settings

log = logging.getLogger(__name__)
DEFAULT_MODEL_LEN = 32_768
# Where a config names the tokens that stand for media: the field of each.
_TOKEN_FIELDS = {
    "image_pad": "image_token_id",
    "video_pad": "video_token_id",
    "start": "vision_start_token_id",
    "end": "vision_end_token_id",
}


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What any engine needs to know of a model. name: the one that answers carry. generation: the sampling defaults of
    requests. eos_ids: tokens that end an answer. max_model_len: the context length: of a prompt and its answer."""

    name: str
    tokenizer: Tokenizer
    generation: JsonObject
    eos_ids: frozenset[int]
    max_model_len: int
    vocabulary_size: int

    @property
    def tool_format(self) -> ToolFormat:
        """How the model writes a call of a tool."""
        return "json"


@dataclass(frozen=True, kw_only=True)
class FamilySpec(ModelSpec):
    """The rules of a model of a known family. tokens: those that stand for media. tokens_per_second: positions of a
    second of video, where it is one span; None: a temporal patch is one position."""

    family: Family
    template: ChatTemplate
    preprocessor: PreprocessorConfig
    tokens_per_second: float | None
    tokens: VisionTokens = VISION_TOKENS

    @property
    def tool_format(self) -> ToolFormat:
        """As its chat template shows it."""
        return self.template.tool_format


def read_spec(found: Checkpoint, settings: Settings, family: Family, tokenizer: Tokenizer | None = None) -> FamilySpec:
    """The rules in a checkpoint's folder. `tokenizer`: its own, where it was read before. Raises ModelError."""
    folder = found.folder
    config = read_json(folder / "config.json")
    text, vision = parts(config)
    if not vision:
        raise ModelError(f"{folder / 'config.json'} has no vision_config: this copy of the model is text-only")
    generation = read_generation(folder)
    tokenizer = tokenizer or read_tokenizer(folder)
    tokens = _vision_tokens(folder, config, tokenizer)
    template = vision_template(folder, family, tokens)
    rate = family.tokens_per_second
    return FamilySpec(
        name=found.name,
        tokenizer=tokenizer,
        generation=_sampling(settings, family, template, generation),
        eos_ids=_eos_ids(folder, generation, config, tokenizer),
        max_model_len=model_len(settings, text.get("max_position_embeddings")),
        vocabulary_size=_vocabulary_size(folder, text, tokenizer),
        family=family,
        template=template,
        preprocessor=read_preprocessor(folder, family.pixel_rules, vision),
        tokens_per_second=None if rate is None else float(vision.get("tokens_per_second") or rate),
        tokens=tokens,
    )


def parts(config: JsonObject) -> tuple[JsonObject, JsonObject]:
    """The config of the text model and of the vision tower; older checkpoints have the first at the top."""
    text, vision = (config.get(f"{part}_config") for part in ("text", "vision"))
    return text if text and isinstance(text, dict) else config, vision if isinstance(vision, dict) else {}


def model_len(settings: Settings, checkpoint_limit: int | None) -> int:
    """The context length, in tokens of a prompt and its answer: as set, and no more than the checkpoint's own limit."""
    limit = checkpoint_limit or DEFAULT_MODEL_LEN
    return min(settings.max_model_len or limit, limit)


def ending_ids(generation: JsonObject, config: JsonObject) -> frozenset[int]:
    """The tokens that end an answer, as far as the checkpoint's files name them."""
    text, _ = parts(config)
    ids = generation.get("eos_token_id")
    if ids is None:
        ids = text.get("eos_token_id", config.get("eos_token_id"))
    return frozenset(one for one in (ids if isinstance(ids, list) else [ids]) if isinstance(one, int))


def _eos_ids(folder: Path, generation: JsonObject, config: JsonObject, tokenizer: Tokenizer) -> frozenset[int]:
    """With the token that the tokenizer calls its end: chat checkpoints whose config names `<|endoftext|>` alone end
    their turns with it."""
    ids = ending_ids(generation, config)
    end = read_json(folder / "tokenizer_config.json").get("eos_token")
    end = end.get("content") if isinstance(end, dict) else end
    if isinstance(end, str) and (ending := tokenizer.id_of(end)) is not None:
        ids |= {ending}
    if not ids:
        raise ModelError(f"the checkpoint has no eos_token_id: check generation_config.json in {folder}")
    return ids


def _vision_tokens(folder: Path, config: JsonObject, tokenizer: Tokenizer) -> VisionTokens:
    """The tokens that stand for media, by the ids in the config. Raises ModelError where the tokenizer has others."""
    names = {}
    for part, field in _TOKEN_FIELDS.items():
        name, wanted = getattr(VISION_TOKENS, part), config.get(field)
        if isinstance(wanted, int) and tokenizer.id_of(name) != wanted:
            added = tokenizer.added.get(wanted)
            if added is None:
                raise ModelError(
                    f"{folder / 'config.json'}: {field} is {wanted}, which is no added token of the tokenizer: use the "
                    "config.json and the tokenizer of the same model"
                )
            name = added.content
        if tokenizer.id_of(name) is None:
            raise ModelError(f"the tokenizer in {folder} has no {name}: it is not a vision model's")
        names[part] = name
    return VisionTokens(**names)


def _vocabulary_size(folder: Path, text: JsonObject, tokenizer: Tokenizer) -> int:
    """Raises ModelError where a token of the tokenizer has no place in the model."""
    size = text.get("vocab_size")
    if not isinstance(size, int):
        raise ModelError(f"{folder / 'config.json'} has no vocab_size")
    last = max(tokenizer.added, default=0)
    if last >= size:
        raise ModelError(
            f"the tokenizer in {folder} has the token {tokenizer.added[last].content} as {last}, the model has {size} "
            "tokens: resize the model's embeddings, or take the tokenizer that it was trained with"
        )
    return size


def _sampling(settings: Settings, family: Family, template: ChatTemplate, generation: JsonObject) -> JsonObject:
    """The sampling defaults, by the names of generation_config.json."""
    if settings.sampling_preset == "checkpoint":
        return generation
    card = family.card_sampling
    advised = card.thinking if template.opens_thought else card.plain
    if not advised:
        log.info("SAMPLING_PRESET is card, but this family's cards advise nothing: generation_config.json counts")
        return generation
    log.info("sampling by the model's card: %s", ", ".join(f"{name} {value}" for name, value in advised.items()))
    return {**generation, "do_sample": True, "repetition_penalty": 1.0, **advised}
