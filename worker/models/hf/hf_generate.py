"""Models of families that this worker does not know: words and pictures by the library's own processor and `generate`.

The slow way, and the answers say so (`model_code` is `generate`): requests wait until the batch before them is done,
nothing is reused, videos are refused, and a picture's size is the processor's choice.
"""

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoProcessor, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from worker.checkpoint.locate import ModelError, read_json
from worker.checkpoint.tokenizer import Tokens
from worker.checkpoint.weights import Begun
from worker.core.contract import RGB, ChatRequest, Controls, Message, Opened, Picture, Seen, Text
from worker.core.errors import InputInvalid, MediaParamInvalid, MediaUnsupportedType, PromptTooLong
from worker.core.settings import Settings
from worker.core.timeline import Timeline
from worker.models.hf.loading import module_for
from worker.models.kv_cache import SlotCache
from worker.models.loading import ServedModel, ending_ids, model_len
from worker.models.runner import Prompt

log = logging.getLogger(__name__)
PIXELS_PER_TOKEN = 32 * 32  # that MAX_IMAGE_TOKENS stands for, where the model counts otherwise
NO_VIDEOS = "this model is served by its library's `generate`, which is given pictures only"


@dataclass(frozen=True, eq=False)
class ForeignPrompt(Prompt):
    """A prompt as the library's processor takes it: the text with its marks, and the pictures."""

    text: str = ""
    pictures: tuple[Image.Image, ...] = ()


class ForeignBuilder:
    """Builds prompts by a processor of the library's. Safe to use from many threads."""

    def __init__(self, processor: Any, image_token: int | None, max_model_len: int, most_pixels: int) -> None:
        self._processor, self._image_token = processor, image_token
        self._max_model_len, self._most_pixels = max_model_len, most_pixels
        added = processor.tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
        marks = {token.content for token in added if token.special} | {getattr(processor, "image_token", None) or ""}
        self._marks = re.compile("|".join(re.escape(mark) for mark in sorted(marks) if mark) or r"(?!)")

    def build(self, request: ChatRequest, media: Sequence[Opened]) -> ForeignPrompt:
        """Raises InputInvalid, MediaUnsupportedType, PromptTooLong. `media` are the request's, in order."""
        messages = [
            {"role": message.role, "content": self._content(message, f"messages[{index}]")}
            for index, message in enumerate(request.messages)
        ]
        pictures = tuple(self._image(one, asked.where) for one, asked in zip(media, request.media, strict=True))
        try:
            text = self._processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            ids = self.encoded([(text, pictures)])["input_ids"][0]
        except (ValueError, TypeError, KeyError, IndexError, TemplateError):
            log.exception("the model's processor could not make a prompt")
            raise InputInvalid(
                where="messages", detail="this model's template or processor does not take them"
            ) from None
        if len(ids) >= self._max_model_len:
            raise PromptTooLong(detail=f"prompt {len(ids)} >= {self._max_model_len}")
        counts = self._counts(ids, len(pictures))
        nothing = torch.empty(0, dtype=torch.long)
        return ForeignPrompt(
            ids=tuple(ids.tolist()),
            positions=nothing.expand(3, 0),
            delta=0,
            items=(),
            item_of=nothing,
            offset_of=nothing,
            fingerprint=nothing,
            image_tokens=sum(counts),
            video_tokens=0,
            seen=tuple(
                Seen(where=asked.where, kind="image", width=image.width, height=image.height, tokens=count)
                for asked, image, count in zip(request.media, pictures, counts, strict=True)
            ),
            text=text,
            pictures=pictures,
        )

    def _content(self, message: Message, where: str) -> list[dict[str, str]]:
        """Words that follow each other are one part: no control token hides in a seam. Raises InputInvalid."""
        content: list[dict[str, str]] = []
        for is_text, parts in groupby(message.parts, lambda part: isinstance(part, Text)):
            if not is_text:
                content += [{"type": "image"} for _ in parts]
                continue
            words = "".join(part.text for part in parts if isinstance(part, Text))
            if self._marks.search(words):
                raise InputInvalid(where=where, detail="a control token of this model in the text")
            content.append({"type": "text", "text": words})
        return content

    def encoded(self, prompts: Sequence[tuple[str, tuple[Image.Image, ...]]]) -> Any:
        """What the model takes, padded on the left. All prompts have pictures, or none has."""
        pictures = [list(own) for _, own in prompts] if prompts[0][1] else None
        texts = [text for text, _ in prompts]
        return self._processor(text=texts, images=pictures, padding=True, padding_side="left", return_tensors="pt")

    def _counts(self, ids: torch.Tensor, num_pictures: int) -> list[int]:
        """Tokens of each picture: each run of them, or equal shares where a picture is several runs."""
        if not num_pictures or self._image_token is None:
            return [0] * num_pictures
        is_picture = (ids == self._image_token).int()
        starts = (is_picture.diff(prepend=is_picture.new_zeros(1)) == 1).cumsum(0)
        runs = torch.bincount(starts[is_picture.bool()], minlength=2)[1:].tolist()
        if len(runs) == num_pictures:
            return runs
        whole, more = divmod(sum(runs), num_pictures)
        return [whole + (index < more) for index in range(num_pictures)]

    def _image(self, opened: Opened, where: str) -> Image.Image:
        if not isinstance(opened, Picture):
            raise MediaUnsupportedType(where=where, detail=NO_VIDEOS)
        image = Image.fromarray(opened.rgb)
        height, width = _fitted(image.height, image.width, self._most_pixels)
        return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)


def max_pixels(settings: Settings) -> int:
    """Of a picture, before the processor resizes it."""
    return settings.max_image_tokens * PIXELS_PER_TOKEN


def _fitted(height: int, width: int, max_pixels: int) -> tuple[int, int]:
    scale = min(1.0, (max_pixels / (height * width)) ** 0.5)
    return max(1, round(height * scale)), max(1, round(width * scale))


class ForeignEye:
    """Pictures are seen as large as MAX_IMAGE_TOKENS allows; what the processor makes of them is known later. See
    `media.opener.Sees`."""

    def __init__(self, settings: Settings, max_model_len: int) -> None:
        self._max_pixels = max_pixels(settings)
        self.max_tokens = max_model_len

    def picture(self, height: int, width: int, controls: Controls) -> tuple[int, int, int]:
        """Raises MediaParamInvalid."""
        if controls.model_dump(exclude_none=True):
            raise MediaParamInvalid(detail="this model's processor chooses the size")
        return *_fitted(height, width, self._max_pixels), 1

    def clip_tokens(self, *_: object) -> int:
        raise MediaUnsupportedType(detail=NO_VIDEOS)

    def shrink(self, *_: object) -> RGB:
        raise MediaUnsupportedType(detail=NO_VIDEOS)


class ForeignRunner:
    """Left-padded batches through `generate`, in which the caller chooses every token."""

    def __init__(
        self, module: Any, builder: ForeignBuilder, pad: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        module.generation_config = GenerationConfig()  # the checkpoint's own go into each request's choice
        self.module, self.builder, self._pad, self._device, self._dtype = module, builder, pad, device, dtype
        whole = set(getattr(module, "_no_split_modules", None) or ())
        self._layers = [part for part in module.modules() if type(part).__name__ in whole]
        text = module.config.get_text_config()
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        self.bytes_per_token = int(2 * text.num_hidden_layers * heads * dim * dtype.itemsize)

    def slots(self) -> SlotCache:
        """Without layers: `generate` has a cache of its own."""
        return SlotCache(0, self.bytes_per_token, self._device, self._dtype)

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[ForeignPrompt],
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


def load(settings: Settings, begun: Begun, timeline: Timeline) -> ServedModel:
    """A model of the library's that reads pictures. Raises ModelError where it is none, or a prompt cannot be made."""
    folder = begun.found.folder
    try:
        config = AutoConfig.from_pretrained(folder)
    except (ValueError, KeyError):
        kind = read_json(folder / "config.json").get("model_type")
        raise ModelError(f"the model type {kind} is not served: transformers does not know it either") from None
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise ModelError(f"the model type {config.model_type} reads no pictures, as far as transformers knows")
    try:
        processor = AutoProcessor.from_pretrained(folder)
    except (ImportError, OSError, ValueError) as error:
        raise ModelError(f"{folder} has no processor that can be loaded here: {str(error).splitlines()[0]}") from None
    backend = getattr(getattr(processor, "tokenizer", None), "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer) or getattr(processor, "chat_template", None) is None:
        raise ModelError(f"{folder} needs a tokenizer.json and a chat template")
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    timeline.end("tokenizer")
    module = module_for(settings, begun, timeline)
    timeline.end("model")
    text = config.get_text_config()
    max_model_len = model_len(settings, getattr(text, "max_position_embeddings", None))
    image_token = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)
    builder = ForeignBuilder(processor, image_token, max_model_len, max_pixels(settings))
    generation = read_json(folder / "generation_config.json")
    eos_ids = ending_ids(generation, read_json(folder / "config.json")) or _eos_of(processor)
    pad = processor.tokenizer.pad_token_id
    runner = ForeignRunner(module, builder, pad if pad is not None else min(eos_ids), begun.device, begun.dtype)
    name = settings.model_name or begun.found.name
    log.warning("serving %s of the unknown type %s by `generate`: slow, pictures only", name, config.model_type)
    # Without padding of its own: texts are put together token by token.
    tokenizer = Tokenizer.from_str(backend.to_str())
    tokenizer.no_padding()
    return ServedModel(
        name=name,
        code="generate",
        runner=runner,
        tokens=Tokens(tokenizer),
        generation=generation,
        eos_ids=eos_ids,
        max_model_len=max_model_len,
        vocabulary_size=int(text.vocab_size),
        device=begun.device,
        dtype=begun.dtype,
        num_devices=begun.num_devices,
    )


def _eos_of(processor: Any) -> frozenset[int]:
    own = processor.tokenizer.eos_token_id
    if own is None:
        raise ModelError("the checkpoint names no eos_token_id")
    return frozenset([own])
