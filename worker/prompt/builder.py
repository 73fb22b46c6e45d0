"""A request and its opened media to a `Prompt`: token ids, patches, positions and counts.

Text from a caller never becomes a control token: `<|im_end|>` in a message is read as those ten characters.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import Any

import torch

from worker.checkpoint.family import patch_times
from worker.checkpoint.locate import ModelError
from worker.checkpoint.tokenizer import Tokens
from worker.core.contract import ChatRequest, Clip, Kind, Media, Opened, Picture, Seen, Text
from worker.core.errors import PromptTooLong
from worker.core.settings import Settings
from worker.models.loading import LoadedModel
from worker.models.runner import Item, Prompt
from worker.prompt import patches
from worker.prompt.patches import Patches
from worker.prompt.positions import IMAGE, TEXT, VIDEO, positions
from worker.prompt.sizes import Size, image_size, video_size

_STAND_IN = "\ue000{}\ue001"
_STAND_INS = re.compile("\ue000(\\d+)\ue001")


class PromptBuilder:
    """Builds prompts for one model. Safe to use from many threads."""

    def __init__(self, model: LoadedModel, settings: Settings) -> None:
        self._model = model
        self._settings = settings
        self._image_pad = _id_of(model.tokens, model.family.image_pad)
        self._video_pad = _id_of(model.tokens, model.family.video_pad)
        specials = [re.escape(token.content) for token in model.tokens.added.values() if token.is_special]
        self._specials = re.compile("|".join([*specials, "[\ue000\ue001]"]))

    def build(self, request: ChatRequest, media: Sequence[Opened]) -> Prompt:
        """Raises PromptTooLong. `media` are the request's, in order."""
        items: list[Item] = []
        shown: list[Sequence[float]] = []
        times, seconds = [], []
        rules = self._model.pixels
        for one in media:
            if isinstance(one, Picture):
                items.append(_item("image", self._picture(one)))
                shown.append(())
            else:
                at = one.times or [index / (one.fps or rules.video_fps) for index in range(len(one.frames))]
                items.append(_item("video", self._clip(one), at))
                times.append(patch_times(at, rules.temporal))
                seconds.append(rules.temporal * _step(at, rules.video_fps))
                shown.append(at)
        counts = [item.patches.num_tokens(self._model.pixels.merge) for item in items]
        if sum(counts) >= self._model.max_model_len:
            detail = f"pictures and videos have {sum(counts)} tokens of {self._model.max_model_len}"
            raise PromptTooLong(detail=detail)
        widths: dict[int, list[int]] = {self._image_pad: [], self._video_pad: []}
        for item, count in zip(items, counts, strict=True):
            if item.kind == "image":
                widths[self._image_pad].append(count)
            else:
                spans = item.patches.grid[0] if self._model.family.is_video_timed else 1
                widths[self._video_pad] += [count // spans] * spans
        ids = torch.tensor(_widen(self._tokens(request, times), widths))
        positions, delta = self._positions(ids, items, seconds)
        item_of, offset_of, fingerprint = self._who_is_where(ids, items, counts)
        return Prompt(
            ids=tuple(ids.tolist()),
            positions=positions,
            delta=delta,
            items=tuple(items),
            item_of=item_of,
            offset_of=offset_of,
            fingerprint=fingerprint,
            image_tokens=sum(count for item, count in zip(items, counts, strict=True) if item.kind == "image"),
            video_tokens=sum(count for item, count in zip(items, counts, strict=True) if item.kind == "video"),
            seen=tuple(
                Seen(
                    where=asked.where,
                    kind=item.kind,
                    width=item.patches.grid[2] * rules.patch,
                    height=item.patches.grid[1] * rules.patch,
                    tokens=count,
                    times=tuple(round(at, 3) for at in at_each),
                )
                for asked, item, count, at_each in zip(request.media, items, counts, shown, strict=True)
            ),
        )

    def _who_is_where(
        self, ids: torch.Tensor, items: Sequence[Item], counts: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        item_of, offset_of, fingerprint = torch.full_like(ids, -1), torch.full_like(ids, -1), ids.clone()
        spots = ((ids == self._image_pad) | (ids == self._video_pad)).nonzero()[:, 0]
        assert len(spots) == sum(counts), "every pad belongs to a picture or video"
        first = 0
        for index, (item, count) in enumerate(zip(items, counts, strict=True)):
            at = spots[first : first + count]
            item_of[at], offset_of[at] = index, torch.arange(count)
            fingerprint[at] = int.from_bytes(item.key[:7]) + torch.arange(count) - 2**57
            first += count
        return item_of, offset_of, fingerprint

    def _picture(self, picture: Picture) -> Patches:
        height, width = picture.sides or picture.rgb.shape[:2]
        rules = self._model.pixels
        size = image_size(height, width, rules, self._settings.max_image_tokens, picture.controls)
        return patches.of_picture(picture.rgb, size, rules)

    def _clip(self, clip: Clip) -> Patches:
        """The last frame is repeated to fill the last temporal patch."""
        rules = self._model.pixels
        frames = [*clip.frames, *clip.frames[-1:] * (-len(clip.frames) % rules.temporal)]
        height, width = frames[0].shape[:2]
        if clip.is_sized:
            size = Size(height, width)
        else:
            size = video_size(len(frames), height, width, rules, self._settings.max_video_tokens, clip.controls)
        return patches.of_frames(frames, size, rules)

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
        rendered = self._model.template.render(messages, dict(request.template))
        later = iter(times)
        family = self._model.family
        rendered = re.sub(re.escape(family.video_placeholder), lambda _: family.video_text(next(later)), rendered)
        ids: list[int] = []
        for index, piece in enumerate(_STAND_INS.split(rendered)):
            is_taken = index % 2 == 1
            if is_taken:
                ids += self._model.tokens.encode_letters(taken[int(piece)])
            else:
                ids += self._model.tokens.encode(piece)
        return ids

    def _positions(
        self, ids: torch.Tensor, items: Sequence[Item], seconds: Sequence[float]
    ) -> tuple[torch.Tensor, int]:
        """`seconds` are those of each video's temporal patch; only families with untimed spans ask for them."""
        kinds = torch.where(ids == self._image_pad, IMAGE, torch.where(ids == self._video_pad, VIDEO, TEXT))
        grids = {kind: [item.patches.grid for item in items if item.kind == kind] for kind in ("image", "video")}
        rate = self._model.tokens_per_second
        intervals = None if self._model.family.is_video_timed else [rate * one for one in seconds]
        return positions(kinds, grids["image"], grids["video"], self._model.pixels.merge, intervals)


def _item(kind: Kind, patches: Patches, times: Sequence[float] = ()) -> Item:
    seen = hashlib.blake2b(f"{kind} {patches.grid} {patches.copies} {list(times)}".encode(), digest_size=16).digest()
    return Item(kind, patches, hashlib.blake2b(patches.pixels.numpy().data, digest_size=16, key=seen).digest())


def _step(times: Sequence[float], default_fps: float) -> float:
    """Mean seconds from a frame to the next."""
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 1 / default_fps


def grids(patches: Sequence[Patches]) -> torch.Tensor | None:
    """(items, 3) grids, or None where there are none, as the models want them."""
    return torch.tensor([one.grid for one in patches]) if patches else None


def _id_of(tokens: Tokens, token: str) -> int:
    identity = tokens.id_of(token)
    if identity is None:
        raise ModelError(f"the tokenizer has no {token}")
    return identity


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
