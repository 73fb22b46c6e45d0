"""The narrow protocol between the engine and a model: features of pictures, prefill of a chunk, decode of rows.

Two implement it: `native`, our own code, and `hf`, transformers' forward. The engine knows neither.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from worker.models.kv_cache import KVCache
from worker.models.kv_widths import KVLayout
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


class PrefillCache(Protocol):
    """What a prefill leaves: for each layer keys and values, (1, kv_heads, tokens, head_dim), or recurrent states."""

    @property
    def layers(self) -> Sequence[Any]: ...

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Put keys and values behind what the layer has; all of it."""


@dataclass(frozen=True, eq=False)
class PrefillChunk:
    """A part of a prompt that is to be computed. tokens: of the answer that follow the prompt already; span: which of
    both; seen: the features of every item with a token in it; cache: of what is before it, and grows by it."""

    prompt: Prompt
    tokens: Sequence[int]
    span: slice
    seen: Mapping[int, Features]
    cache: Any

    @property
    def length(self) -> int:
        return int(self.span.stop - self.span.start)

    @property
    def is_beginning(self) -> bool:
        """Whether nothing is before it."""
        return not self.span.start

    @property
    def ids(self) -> list[int]:
        return [*self.prompt.ids, *self.tokens][self.span]

    @property
    def positions(self) -> torch.Tensor:
        """(3, length) M-RoPE positions."""
        return self.prompt.positions_with(len(self.tokens))[:, self.span]


def placed(
    chunks: Sequence[PrefillChunk], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]] | None:
    """Where the tokens of pictures and videos lie in chunks behind each other, (spots,), the features that belong
    there, (spots, hidden), and those of each deep layer. None for chunks without."""
    places: list[torch.Tensor] = []
    runs: list[tuple[Features, torch.Tensor]] = []
    start = 0
    for chunk in chunks:
        items, offsets = chunk.prompt.item_of[chunk.span], chunk.prompt.offset_of[chunk.span]
        spots = (items >= 0).nonzero()[:, 0]
        for item in dict.fromkeys(items[spots].tolist()):
            runs.append((chunk.seen[item], offsets[items == item].to(device)))
        places.append(spots + start)
        start += chunk.length
    if not runs:
        return None
    embeds = torch.cat([features.embeds[at] for features, at in runs])
    depth = len(runs[0][0].deep)
    deep = [torch.cat([features.deep[level][at] for features, at in runs]) for level in range(depth)]
    return torch.cat(places).to(device), embeds, deep


@dataclass(frozen=True, eq=False)
class Newest:
    """Tokens that only the device has. tokens: (rows of the step before,) int64; rows: of each row of the next step,
    its number in that one."""

    tokens: torch.Tensor
    rows: Sequence[int]


class Runner(Protocol):
    """Runs one model on its device. No sampling; nothing depends on an earlier call."""

    def begin_tuning(self) -> None:
        """Begin what makes later steps faster and would make a start longer, on a thread of its own; called once,
        behind the first answer."""

    def close(self) -> None:
        """End that thread."""

    @property
    def bytes_per_token(self) -> int:
        """Keys and values of one token in all attention layers."""

    def tidy(self) -> bool:
        """Do a piece of what makes later steps faster while nobody waits; whether there is more to do."""

    @property
    def kv_layout(self) -> KVLayout: ...

    def kv_cache(self, max_bytes: int) -> KVCache:
        """What prefill fills, and decode reads and writes; rows of at most so many bytes."""

    def features(self, items: Sequence[MediaItem]) -> list[Features]:
        """Pictures and videos through the vision tower."""

    def prefill(self, chunks: Sequence[PrefillChunk]) -> torch.Tensor:
        """(chunks, vocabulary) logits after the last token of each; their caches grow by them. The chunks are of
        different prompts."""

    @property
    def takes_several(self) -> bool:
        """Whether a row can be fed several tokens in a step."""

    def decode(
        self,
        tokens: list[int],
        positions: list[int],
        slots: KVCache,
        before: Sequence[Sequence[int]] = (),
        newest: Newest | None = None,
        idle: Sequence[int] = (),
    ) -> torch.Tensor:
        """(rows, vocabulary) logits after feeding each row of `slots` its newest token at its position. The step counts
        once `slots.end_step()` is called: until then it can be done again.

        before: what each row is fed before that, where the runner `takes_several`. newest: the tokens of those rows
        whose token here is negative; idle: rows that are not fed. Neither goes with `before`, and both are for a cache
        in an arena alone.
        """


def prefilled(
    runner: Runner, prompt: Prompt, slots: KVCache, seen: Mapping[int, Features] | None = None
) -> tuple[Any, torch.Tensor]:
    """What a prefill of a whole prompt leaves, to join `slots`, and the (vocabulary,) logits behind it."""
    length = len(prompt.ids)
    cache = slots.prefill_cache(length, length)
    return cache, runner.prefill([PrefillChunk(prompt, (), slice(0, length), seen or {}, cache)])[0]
