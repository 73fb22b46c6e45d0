"""The narrow protocol between the engine and a model: features of pictures, prefill of a chunk, decode of rows.

Two implement it: `native`, our own code, and `hf`, transformers' forward. The engine knows neither.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from worker.models.kv_cache import KVCache
from worker.prompt.types import MediaItem, Prompt


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
    embeds = torch.cat([features.embeds[at] for features, at in runs])
    depth = len(runs[0][0].deep)
    deep = [torch.cat([features.deep[level][at] for features, at in runs]) for level in range(depth)]
    return spots.to(device), embeds, deep


class PrefillCache(Protocol):
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

    def prefill_cache(self) -> Any:
        """A `PrefillCache` without tokens, for a prefill to fill."""

    def kv_cache(self) -> KVCache:
        """What decode reads and writes."""

    def features(self, items: Sequence[MediaItem]) -> list[Features]:
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

    @property
    def takes_several(self) -> bool:
        """Whether a row can be fed several tokens in a step."""

    def decode(
        self, tokens: list[int], positions: list[int], slots: KVCache, before: Sequence[Sequence[int]] = ()
    ) -> torch.Tensor:
        """(rows, vocabulary) logits after feeding each row of `slots` its newest token at its position. The step counts
        once `slots.end_step()` is called: until then it can be done again.

        before: what each row is fed before that, where the runner `takes_several`.
        """
