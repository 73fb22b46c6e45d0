"""A request and its opened media to a `Prompt`: token ids, patches, positions and counts.

Text from a caller never becomes a control token: `<|im_end|>` in a message is read as those ten characters.
"""

import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer

from worker.contract import ChatRequest, Clip, Media, Opened, Picture, Text
from worker.engine import pixels
from worker.engine.families import patch_times
from worker.engine.loading import LoadedModel
from worker.engine.pixels import Patches
from worker.engine.sizes import image_size, video_size
from worker.errors import PromptTooLong
from worker.settings import Settings

_STAND_IN = "\ue000{}\ue001"
_STAND_INS = re.compile("\ue000(\\d+)\ue001")
_TEXT, _IMAGE, _VIDEO = 0, 1, 2


@dataclass(frozen=True)
class Prompt:
    """All that the model needs to prefill a request.

    ids: the tokens. positions: (3, tokens) M-RoPE positions. delta: what the position of a later token
    differs by from its index. images, videos: patches in the order of the prompt.
    """

    ids: tuple[int, ...]
    positions: torch.Tensor
    delta: int
    images: tuple[Patches, ...]
    videos: tuple[Patches, ...]
    image_tokens: int
    video_tokens: int


class PromptBuilder:
    """Builds prompts for one model. Safe to use from many threads."""

    def __init__(self, model: LoadedModel, settings: Settings) -> None:
        self._model = model
        self._settings = settings
        self._plain = _without_specials(model.tokenizer)
        vocabulary = model.tokenizer.get_vocab()
        self._image_pad = vocabulary[model.family.image_pad]
        self._video_pad = vocabulary[model.family.video_pad]
        added = model.tokenizer.get_added_tokens_decoder().values()
        self._specials = re.compile(
            "|".join(re.escape(token.content) for token in added if token.special) + "|[\ue000\ue001]"
        )

    def build(self, request: ChatRequest, media: Sequence[Opened]) -> Prompt:
        """Raises PromptTooLong. `media` are the request's, in order."""
        images = tuple(self._picture(one) for one in media if isinstance(one, Picture))
        videos, times = [], []
        for one in media:
            if isinstance(one, Clip):
                patches, at = self._clip(one)
                videos.append(patches)
                times.append(at)
        merge = self._model.pixels.merge
        image_tokens = [patches.num_tokens(merge) for patches in images]
        span_tokens = [
            patches.num_tokens(merge) // patches.grid[0] for patches in videos for _ in range(patches.grid[0])
        ]
        visual = sum(image_tokens) + sum(span_tokens)
        if visual >= self._model.max_model_len:
            raise PromptTooLong(detail=f"pictures and videos have {visual} tokens of {self._model.max_model_len}")
        ids = _widen(self._tokens(request, times), {self._image_pad: image_tokens, self._video_pad: span_tokens})
        positions, delta = self._positions(ids, images, videos)
        return Prompt(tuple(ids), positions, delta, images, tuple(videos), sum(image_tokens), sum(span_tokens))

    def _picture(self, picture: Picture) -> Patches:
        height, width = picture.rgb.shape[:2]
        rules = self._model.pixels
        return pixels.of_picture(picture.rgb, image_size(height, width, rules, self._settings.max_image_tokens), rules)

    def _clip(self, clip: Clip) -> tuple[Patches, list[float]]:
        """Patches and the mean time of each temporal patch; the last frame is repeated to fill the last one."""
        rules = self._model.pixels
        frames = [*clip.frames, *clip.frames[-1:] * (-len(clip.frames) % rules.temporal)]
        height, width = frames[0].shape[:2]
        size = video_size(len(frames), height, width, rules, self._settings.max_video_tokens)
        times = patch_times(len(clip.frames), clip.fps or rules.video_fps, rules.temporal)
        return pixels.of_frames(frames, size, rules), times

    def _tokens(self, request: ChatRequest, times: list[list[float]]) -> list[int]:
        """The rendered conversation as ids, one pad for each picture and each temporal patch of a video."""
        taken: list[str] = []

        def stand_in(match: re.Match[str]) -> str:
            taken.append(match.group())
            return _STAND_IN.format(len(taken) - 1)

        messages = [
            {"role": message.role, "content": [_block(part, self._specials, stand_in) for part in message.parts]}
            for message in request.messages
        ]
        rendered = str(self._model.templated.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        later = iter(times)
        family = self._model.family
        rendered = re.sub(re.escape(family.video_placeholder), lambda _: family.video_text(next(later)), rendered)
        ids: list[int] = []
        for index, piece in enumerate(_STAND_INS.split(rendered)):
            is_taken = index % 2 == 1
            tokenizer = self._plain if is_taken else self._model.tokenizer
            ids += tokenizer.encode(taken[int(piece)] if is_taken else piece, add_special_tokens=False).ids
        return ids

    def _positions(
        self, ids: list[int], images: Sequence[Patches], videos: Sequence[Patches]
    ) -> tuple[torch.Tensor, int]:
        tokens = torch.tensor([ids])
        kinds = torch.where(tokens == self._image_pad, _IMAGE, torch.where(tokens == self._video_pad, _VIDEO, _TEXT))
        positions, deltas = self._model.module.model.get_rope_index(
            tokens, mm_token_type_ids=kinds, image_grid_thw=grids(images), video_grid_thw=grids(videos)
        )
        return positions[:, 0], int(deltas[0, 0])


def grids(patches: Sequence[Patches]) -> torch.Tensor | None:
    """(items, 3) grids, or None where there are none, as the models want them."""
    return torch.tensor([one.grid for one in patches]) if patches else None


def _without_specials(tokenizer: Tokenizer) -> Tokenizer:
    plain = deepcopy(tokenizer)
    plain.encode_special_tokens = True
    return plain


def _block(part: Text | Media, specials: re.Pattern[str], stand_in: Any) -> dict[str, str]:
    if isinstance(part, Media):
        return {"type": part.kind}
    return {"type": "text", "text": specials.sub(stand_in, part.text)}


def _widen(ids: list[int], widths: dict[int, list[int]]) -> list[int]:
    """Each pad repeated to the number of tokens of its picture or temporal patch."""
    left = {pad: iter(counts) for pad, counts in widths.items()}
    wide: list[int] = []
    for token in ids:
        if token in left:
            wide += [token] * next(left[token])
        else:
            wide.append(token)
    assert all(next(counts, None) is None for counts in left.values()), "the template dropped a picture or video"
    return wide
