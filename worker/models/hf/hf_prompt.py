"""Prompts for models of families that this worker does not know, by the library's own processor: text and pictures."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from PIL import Image

from worker.checkpoint.chat_template import opens_thought
from worker.core.contract import ChatRequest, Controls, Kind, Message, Text
from worker.core.errors import InputInvalid, MediaParamInvalid, MediaUnsupportedType, PromptTooLong
from worker.core.opened import RGB, Opened, Picture
from worker.core.settings import Settings
from worker.core.units import context_length
from worker.prompt.control_tokens import ControlTokens
from worker.prompt.media_info import media_info
from worker.prompt.types import Prompt

log = logging.getLogger(__name__)
PIXELS_PER_TOKEN = 32 * 32  # that MAX_IMAGE_TOKENS stands for, where the model counts otherwise
_WHOLE = {"add_generation_prompt": True, "tokenize": False}
_CONTROL = "a control token of this model in the text"
_NO_TOOLS = "this model is served by its library's `generate`: without tools, and with a whole turn as its answer"
NO_VIDEOS = "this model is served by its library's `generate`, which is given pictures only"


@dataclass(frozen=True, eq=False)
class HfPrompt(Prompt):
    """A prompt as the library's processor takes it: the text with its marks, and the pictures."""

    text: str = ""
    pictures: tuple[Image.Image, ...] = ()


class HfPromptBuilder:
    """Builds prompts by a processor of the library's. Safe to use from many threads."""

    def __init__(self, processor: Any, image_token: int | None, max_model_len: int, most_pixels: int) -> None:
        self._processor, self._image_token = processor, image_token
        self._max_model_len, self._most_pixels = max_model_len, most_pixels
        added = processor.tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
        specials = {token.content for token in added if token.special} | {getattr(processor, "image_token", None) or ""}
        self._specials = re.compile("|".join(map(re.escape, sorted(filter(None, specials)))) or r"(?!)")
        self._control = ControlTokens(specials)

    def build(self, request: ChatRequest, media: Sequence[Opened]) -> HfPrompt:
        """Raises InputInvalid, MediaUnsupportedType, PromptTooLong. `media` are the request's, in order."""
        _refuse_unbuilt(request)
        mark = self._control.mark_for(request.texts)
        messages = [
            {"role": message.role, "content": self._content(message, f"messages[{index}]", mark)}
            for index, message in enumerate(request.messages)
        ]
        pictures = tuple(self._image(opened, asked.where) for opened, asked in zip(media, request.media, strict=True))
        try:
            if request.is_raw:
                text = "".join(request.texts)
            else:
                text = self._without_marks(self._processor.apply_chat_template(messages, **_WHOLE), mark)
            ids = self.encoded([(text, pictures)])["input_ids"][0]
        except (ValueError, TypeError, KeyError, IndexError, TemplateError):
            log.exception("the model's processor could not make a prompt")
            raise InputInvalid(where="messages", detail="the model's chat template or processor refuses them") from None
        if len(ids) >= self._max_model_len:
            raise PromptTooLong(detail=f"{context_length(self._max_model_len)}, the prompt has {len(ids)}")
        counts = self._counts(ids, len(pictures))
        nothing = torch.empty(0, dtype=torch.long)
        return HfPrompt(
            ids=tuple(ids.tolist()),
            positions=nothing.expand(3, 0),
            delta=0,
            items=(),
            item_of=nothing,
            offset_of=nothing,
            fingerprint=nothing,
            media=tuple(
                media_info(asked.where, opened, image.size, count)
                for asked, opened, image, count in zip(request.media, media, pictures, counts, strict=True)
            ),
            text=text,
            pictures=pictures,
            opens_thought=not request.is_raw and opens_thought(text),
            is_raw=request.is_raw,
        )

    def _content(self, message: Message, where: str, mark: str) -> list[dict[str, str]]:
        """Words that follow each other are one part. Raises InputInvalid."""
        content: list[dict[str, str]] = []
        for is_text, parts in groupby(message.parts, lambda part: isinstance(part, Text)):
            if not is_text:
                content += [{"type": "image"} for _ in parts]
                continue
            words = "".join(part.text for part in parts if isinstance(part, Text))
            if self._specials.search(words):
                raise InputInvalid(where=where, detail=_CONTROL)
            content.append({"type": "text", "text": self._control.marked(words, mark)})
        return content

    def _without_marks(self, rendered: str, mark: str) -> str:
        """The rendered text. The library finds control tokens by itself: none may be put together from the words of
        several messages. Raises InputInvalid."""
        parts = list(self._control.split(rendered, mark))
        if any(self._specials.search(part) for part, is_control in parts if not is_control):
            raise InputInvalid(where="messages", detail=_CONTROL)
        return "".join(part for part, _ in parts)

    def encoded(self, prompts: Sequence[tuple[str, tuple[Image.Image, ...]]]) -> Any:
        """What the model takes, padded on the left. All prompts have pictures, or none has."""
        images = [list(pictures) for _, pictures in prompts] if prompts[0][1] else None
        texts = [text for text, _ in prompts]
        return self._processor(text=texts, images=images, padding=True, padding_side="left", return_tensors="pt")

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
        if opened.source is not None:  # the opener has brought it to its size
            return Image.fromarray(opened.rgb)
        return _resized(opened.rgb, *_fitted(*opened.size, self._most_pixels))


def _refuse_unbuilt(request: ChatRequest) -> None:
    """Raises InputInvalid."""
    is_plain = request.opens_turn and not request.continues_last
    spoken = [message for message in request.messages if message.tool_calls or message.role == "tool"]
    if request.tools.usable or spoken or not is_plain:
        raise InputInvalid(where="messages", detail=_NO_TOOLS)


def max_pixels(settings: Settings) -> int:
    """Of a picture, before the processor resizes it."""
    return settings.max_image_tokens * PIXELS_PER_TOKEN


def _fitted(height: int, width: int, max_pixels: int) -> tuple[int, int]:
    scale = min(1.0, (max_pixels / (height * width)) ** 0.5)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _resized(rgb: RGB, height: int, width: int) -> Image.Image:
    image = Image.fromarray(rgb)
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)


class HfSizePolicy:
    """Pictures are seen as large as MAX_IMAGE_TOKENS allows; what the processor makes of them is known later. See
    `core.media_protocol.SizePolicy`."""

    def __init__(self, settings: Settings, max_model_len: int) -> None:
        self._max_pixels = max_pixels(settings)
        self.max_tokens = max_model_len

    def picture(self, height: int, width: int, controls: Controls) -> tuple[int, int, int]:
        """Raises MediaParamInvalid."""
        if controls.model_dump(exclude_none=True):
            raise MediaParamInvalid(detail="this model's processor chooses the size")
        return *_fitted(height, width, self._max_pixels), 1

    def clip(self, *_: object) -> tuple[int, int, int]:
        raise MediaUnsupportedType(detail=NO_VIDEOS)

    def max_pixels(self, _: Kind) -> int:
        return self._max_pixels

    def resized(self, rgb: RGB, height: int, width: int) -> RGB:
        return np.asarray(_resized(rgb, height, width))
