"""A request and its opened media to a `Prompt`: token ids, patches, positions and counts.

Text from a caller never becomes a control token: `<|im_end|>` in a message is read as those ten characters, also where
it is spread over several texts. Only a raw prompt, which its caller writes whole, may have control tokens.
"""

import hashlib
import secrets
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch

from worker.checkpoint.chat_template import opens_thought
from worker.checkpoint.family import VIDEO_SPAN, patch_times
from worker.checkpoint.spec import FamilySpec
from worker.checkpoint.tokenizer import Tokenizer
from worker.core.contract import ChatRequest, Kind, MediaInfo
from worker.core.errors import InputInvalid, ModelError, PromptTooLong
from worker.core.opened import Clip, Opened, Picture
from worker.core.settings import Settings
from worker.core.units import context_length
from worker.prompt import patches
from worker.prompt.control_tokens import ControlTokens
from worker.prompt.conversation import conversation_text
from worker.prompt.media_info import media_info
from worker.prompt.patches import Patches
from worker.prompt.positions import IMAGE, TEXT, VIDEO, positions
from worker.prompt.sizes import Size, image_size, video_size, video_tokens
from worker.prompt.types import MediaItem, Prompt

SCOPE_BYTES = 16


@dataclass(frozen=True, eq=False)
class _Shown:
    """A picture or video in the prompt. times: seconds of a video's frames; num_tokens: of all its temporal patches;
    seconds: that its patches took."""

    item: MediaItem
    opened: Opened
    num_tokens: int
    times: Sequence[float] = ()
    seconds: float = 0.0

    @property
    def kind(self) -> Kind:
        return self.item.kind


class PromptBuilder:
    """Builds prompts for one model, from its rules alone: no weights are needed. Safe to use from many threads."""

    def __init__(self, spec: FamilySpec, settings: Settings) -> None:
        self._spec = spec
        self._settings = settings
        self._image_pad = _id_of(spec.tokenizer, spec.tokens.image_pad)
        self._video_pad = _id_of(spec.tokenizer, spec.tokens.video_pad)
        self._control = ControlTokens([*spec.tokenizer.specials, *astuple(spec.tokens)])

    def build(self, request: ChatRequest, media: Sequence[Opened]) -> Prompt:
        """Raises PromptTooLong, and InputInvalid where the chat template does not take the messages. `media` are the
        request's, in order."""
        scope = self._scope(request)
        shown = [self._shown(opened, scope) for opened in media]
        self._check_length(sum(entry.num_tokens for entry in shown), "pictures and videos have")
        rendered, mark = self._rendered(request, shown)
        tokens = self._tokens(rendered, mark)
        self._check_length(len(tokens), "the prompt has")
        ids = torch.tensor(_widen(tokens, self._pad_counts(shown)))
        positions, delta = self._positions(ids, shown)
        item_of, offset_of, fingerprint = self._token_places(ids, shown)
        prompt = Prompt(
            ids=tuple(ids.tolist()),
            positions=positions,
            delta=delta,
            items=tuple(entry.item for entry in shown),
            item_of=item_of,
            offset_of=offset_of,
            fingerprint=fingerprint,
            media=tuple(self._info(asked.where, entry) for asked, entry in zip(request.media, shown, strict=True)),
            scope=scope,
            opens_thought=not request.is_raw and opens_thought(rendered),
            is_raw=request.is_raw,
            preprocess_s=tuple(entry.seconds for entry in shown),
        )
        if self._settings.prefix_cache_mib != 0:
            _ = prompt.block_hashes  # computed here, on a thread that nobody's answer waits for
        return prompt

    def _scope(self, request: ChatRequest) -> bytes:
        """Who may share keys, values and features with the request."""
        match self._settings.prefix_sharing:
            case "all":
                parts = ["", request.cache_salt]
            case "caller":
                parts = [request.caller, request.cache_salt]
            case "off":
                return secrets.token_bytes(SCOPE_BYTES)
        return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=SCOPE_BYTES).digest()

    def _shown(self, opened: Opened, scope: bytes) -> _Shown:
        began_at, times = time.monotonic(), opened.times if isinstance(opened, Clip) else ()
        if isinstance(opened, Picture):
            item = _item("image", self._picture(opened), scope)
        else:
            fps = opened.fps or self._spec.preprocessor.video_fps
            times = opened.times or tuple(index / fps for index in range(len(opened.frames)))
            item = _item("video", self._clip(opened), scope, times)
        num_tokens = item.patches.num_tokens(self._spec.preprocessor.merge)
        return _Shown(item, opened, num_tokens, times or (), time.monotonic() - began_at)

    def _check_length(self, count: int, what: str) -> None:
        """Before more is done with them. Raises PromptTooLong."""
        if count >= self._spec.max_model_len:
            raise PromptTooLong(detail=f"{context_length(self._spec.max_model_len)}, {what} {count}")

    def _pad_counts(self, shown: Sequence[_Shown]) -> dict[int, list[int]]:
        """By pad token: how many tokens each of its spans has, in order."""
        counts: dict[int, list[int]] = {self._image_pad: [], self._video_pad: []}
        for entry in shown:
            if entry.kind == "image":
                counts[self._image_pad].append(entry.num_tokens)
            else:
                spans = entry.item.patches.grid[0] if self._spec.family.is_video_timed else 1
                counts[self._video_pad] += [entry.num_tokens // spans] * spans
        return counts

    def _token_places(
        self, ids: torch.Tensor, shown: Sequence[_Shown]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """item_of, offset_of and fingerprint of a `Prompt`."""
        item_of, offset_of, fingerprint = torch.full_like(ids, -1), torch.full_like(ids, -1), ids.clone()
        spots = ((ids == self._image_pad) | (ids == self._video_pad)).nonzero()[:, 0]
        assert len(spots) == sum(entry.num_tokens for entry in shown), "every pad belongs to a picture or video"
        first = 0
        for index, entry in enumerate(shown):
            at, offsets = spots[first : first + entry.num_tokens], torch.arange(entry.num_tokens)
            item_of[at], offset_of[at] = index, offsets
            fingerprint[at] = int.from_bytes(entry.item.key[:7]) + offsets - 2**57
            first += entry.num_tokens
        return item_of, offset_of, fingerprint

    def _info(self, where: str, shown: _Shown) -> MediaInfo:
        _, rows, columns = shown.item.patches.grid
        seen = (columns * self._spec.preprocessor.patch, rows * self._spec.preprocessor.patch)
        coordinates = self._spec.family.coordinates
        return media_info(where, shown.opened, seen, shown.num_tokens, shown.times, coordinates)

    def _picture(self, picture: Picture) -> Patches:
        config = self._spec.preprocessor
        size = image_size(*picture.size, config, self._settings.max_image_tokens, picture.controls)
        return patches.of_picture(picture.rgb, size, config)

    def _clip(self, clip: Clip) -> Patches:
        """The last frame is repeated to fill the last temporal patch."""
        config = self._spec.preprocessor
        frames = [*clip.frames, *clip.frames[-1:] * (-len(clip.frames) % config.temporal)]
        height, width = frames[0].shape[:2]
        if clip.is_sized:
            size = Size(height, width)
        else:
            most = video_tokens(self._settings, self._spec.max_model_len)
            size = video_size(len(frames), height, width, config, most, clip.controls)
        return patches.of_frames(frames, size, config)

    def _tokens(self, rendered: str, mark: str) -> list[int]:
        """The rendered conversation as ids, one pad for each picture and each temporal patch of a video."""
        tokenizer = self._spec.tokenizer
        ids: list[int] = []
        for piece, is_control in self._control.split(rendered, mark):
            ids += [_id_of(tokenizer, piece)] if is_control else tokenizer.encode(piece)
        return ids

    def _rendered(self, request: ChatRequest, shown: Sequence[_Shown]) -> tuple[str, str]:
        """The template's text with the family's own text in the place of each video, and the mark in it. Raises
        InputInvalid."""
        mark = self._control.mark_for(request.texts)
        if request.is_raw:
            return self._raw("".join(request.texts)), mark
        rendered = conversation_text(request, self._spec.template, lambda text: self._control.marked(text, mark))
        temporal, span = self._spec.preprocessor.temporal, self._spec.tokens.video_span
        videos = [patch_times(entry.times, temporal) for entry in shown if entry.kind == "video"]
        pieces = rendered.split(span)
        if len(pieces) != len(videos) + 1:
            raise _not_shown("videos", len(pieces) - 1, len(videos))
        texts = [self._spec.family.video_text(times).replace(VIDEO_SPAN, span) for times in videos]
        return pieces[0] + "".join(text + piece for text, piece in zip(texts, pieces[1:], strict=True)), mark

    def _raw(self, text: str) -> str:
        """Raises InputInvalid."""
        if any(pad in text for pad in (self._spec.tokens.image_pad, self._spec.tokens.video_pad)):
            raise InputInvalid(where="prompt", detail="has the place of an image or video: send those in messages")
        return text

    def _positions(self, ids: torch.Tensor, shown: Sequence[_Shown]) -> tuple[torch.Tensor, int]:
        """M-RoPE positions, for families with untimed spans by the seconds of a video's temporal patches."""
        kinds = torch.where(ids == self._image_pad, IMAGE, torch.where(ids == self._video_pad, VIDEO, TEXT))
        images, videos = ([entry for entry in shown if entry.kind == kind] for kind in ("image", "video"))
        intervals = None
        if not self._spec.family.is_video_timed:
            intervals = [self._interval(entry.times) for entry in videos]
        image_grids, video_grids = ([entry.item.patches.grid for entry in of_kind] for of_kind in (images, videos))
        return positions(kinds, image_grids, video_grids, self._spec.preprocessor.merge, intervals)

    def _interval(self, times: Sequence[float]) -> float:
        """Positions from a temporal patch of a video to the next."""
        config, rate = self._spec.preprocessor, self._spec.tokens_per_second
        return 1.0 if rate is None else rate * config.temporal * _frame_interval(times, config.video_fps)


def _item(kind: Kind, seen: Patches, scope: bytes, times: Sequence[float] = ()) -> MediaItem:
    """Its key depends on the pixels, on everything that changes how they are seen, and on the scope."""
    seen_as = f"{kind} {seen.grid} {seen.copies} {list(times)}".encode()
    way = hashlib.blake2b(seen_as, digest_size=16, key=scope).digest()
    return MediaItem(kind, seen, hashlib.blake2b(seen.pixels.numpy().data, digest_size=16, key=way).digest())


def _frame_interval(times: Sequence[float], default_fps: float) -> float:
    """Mean seconds from a frame to the next."""
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 1 / default_fps


def _id_of(tokenizer: Tokenizer, token: str) -> int:
    identity = tokenizer.id_of(token)
    if identity is None:
        raise ModelError(f"the tokenizer has no {token}")
    return identity


def _widen(ids: list[int], counts: dict[int, list[int]]) -> list[int]:
    """Each pad repeated to the number of tokens of its picture or temporal patch. Raises InputInvalid."""
    for pad, spans in counts.items():
        if ids.count(pad) != len(spans):
            raise _not_shown("images or parts of videos", ids.count(pad), len(spans))
    left = {pad: iter(spans) for pad, spans in counts.items()}
    wide: list[int] = []
    for token in ids:
        wide += [token] * next(left[token]) if token in left else [token]
    return wide


def _not_shown(what: str, count: int, sent: int) -> InputInvalid:
    return InputInvalid(where="messages", detail=f"the model's chat template renders {count} of {sent} {what}")
