"""The narrow face between the engine's loop and a model: features of pictures, prefill of a chunk, decode of rows.

Two stand behind it: `native`, our own code, and `library`, transformers' forward. The loop knows neither.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from worker.core.contract import Kind, Seen
from worker.models.kv_cache import SlotCache
from worker.prompt.patches import Patches


@dataclass(frozen=True, eq=False)
class Item:
    """A picture or video of a prompt. key: the same for the same content seen in the same way."""

    kind: Kind
    patches: Patches
    key: bytes


@dataclass(frozen=True, eq=False)
class Prompt:
    """All that the model needs to prefill a request.

    ids: the tokens. positions: (3, tokens) M-RoPE positions. delta: what the position of a later token
    differs by from its index. items: pictures and videos in the order of the prompt. item_of, offset_of: (tokens,)
    each token's item and its place in that item's features, -1 for text. fingerprint: (tokens,) int64; prompts that
    begin with the same fingerprints begin with the same keys and values. seen: what the items look like.
    """

    ids: tuple[int, ...]
    positions: torch.Tensor
    delta: int
    items: tuple[Item, ...]
    item_of: torch.Tensor
    offset_of: torch.Tensor
    fingerprint: torch.Tensor
    image_tokens: int
    video_tokens: int
    seen: tuple[Seen, ...] = ()

    @property
    def images(self) -> tuple[Patches, ...]:
        return tuple(item.patches for item in self.items if item.kind == "image")

    @property
    def videos(self) -> tuple[Patches, ...]:
        return tuple(item.patches for item in self.items if item.kind == "video")

    def positions_with(self, num_later: int) -> torch.Tensor:
        """(3, tokens + num_later) positions of the prompt and of the tokens that follow it."""
        if not num_later:
            return self.positions
        first = len(self.ids) + self.delta
        return torch.cat([self.positions, torch.arange(first, first + num_later).expand(3, -1)], dim=1)


@dataclass(frozen=True, eq=False)
class Features:
    """What the vision tower says of one picture or video. embeds: (tokens, hidden). deep: the same for each of the
    first layers of the text model, where the family has them."""

    embeds: torch.Tensor
    deep: tuple[torch.Tensor, ...]

    @property
    def num_bytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in (self.embeds, *self.deep))


def placed(
    prompt: Prompt, chunk: slice, seen: Mapping[int, Features], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]] | None:
    """For a chunk with media: where their tokens lie in it, (spots,), the features that belong there, (spots, hidden),
    and those of each deep layer. None for a chunk without."""
    items, offsets = prompt.item_of[chunk], prompt.offset_of[chunk]
    spots = (items >= 0).nonzero()[:, 0]
    if not len(spots):
        return None
    runs = [(seen[item], offsets[items == item].to(device)) for item in dict.fromkeys(items[spots].tolist())]
    embeds = torch.cat([one.embeds[at] for one, at in runs])
    depth = len(runs[0][0].deep)
    deep = [torch.cat([one.deep[level][at] for one, at in runs]) for level in range(depth)]
    return spots.to(device), embeds, deep


class Filled(Protocol):
    """What a prefill leaves: for each layer keys and values, (1, kv_heads, tokens, head_dim), or recurrent states."""

    @property
    def layers(self) -> Sequence[Any]: ...

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Put keys and values behind what the layer has; all of it."""


class Runner(Protocol):
    """Runs one model on its device. No sampling, no threads; nothing depends on an earlier call."""

    @property
    def bytes_per_token(self) -> int:
        """Keys and values of one token in all attention layers."""

    def empty_cache(self) -> Any:
        """A `Filled` without tokens, which a prefill fills."""

    def slots(self) -> SlotCache:
        """What decode reads and writes."""

    def features(self, items: Sequence[Item]) -> list[Features]:
        """Pictures and videos through the vision tower."""

    def prefill(
        self, prompt: Prompt, tokens: list[int], chunk: slice, seen: Mapping[int, Features], cache: Any
    ) -> torch.Tensor:
        """(vocabulary,) logits after the chunk's last token; `cache` grows by the chunk.

        `tokens` are those of the answer that follow the prompt already; `chunk` counts over both. `seen` has the
        features of every item with a token in the chunk.
        """

    def prefill_together(self, prompts: Sequence[Prompt]) -> tuple[torch.Tensor, list[Any]]:
        """(prompts, vocabulary) logits after the last token of each, and a filled cache for each: whole prompts
        without pictures in one forward. Not for recurrent layers."""

    def decode(self, tokens: list[int], positions: list[int], slots: SlotCache) -> torch.Tensor:
        """(rows, vocabulary) logits after feeding each row of `slots` its newest token at its position. The step counts
        once `slots.end_step()` is called: until then it can be done again."""
