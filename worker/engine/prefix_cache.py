"""What is not computed twice: features of pictures seen before, keys and values of prompts that begin alike."""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Generic, TypeVar

import torch

from worker.models.runner import Features, PrefillCache
from worker.prompt.types import BLOCK, Prompt

SHORTEST_PREFIX = 32  # tokens; computing fewer is cheaper than keeping them

K = TypeVar("K")
V = TypeVar("V")


class LruBytes(Generic[K, V]):
    """Values up to a number of bytes; the longest unused go first. One larger than the limit is not kept."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.num_hits = 0
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: K) -> V | None:
        found = self._values.get(key)
        if found is None:
            return None
        self._values.move_to_end(key)
        self.num_hits += 1
        return found[0]

    def put(self, key: K, value: V, num_bytes: int) -> None:
        self.drop(key)
        if num_bytes > self._max_bytes:
            return
        while self.num_bytes + num_bytes > self._max_bytes:
            self.drop(next(iter(self._values)))
        self._values[key] = (value, num_bytes)
        self.num_bytes += num_bytes

    def drop(self, key: K) -> None:
        if key in self._values:
            self.num_bytes -= self._values.pop(key)[1]

    def clear(self) -> None:
        self._values.clear()
        self.num_bytes = 0


class FeatureCache(LruBytes[bytes, Features]):
    """Features by content."""


@dataclass(frozen=True, eq=False)
class _Run:
    """Keys and values of a prompt's tokens from `start` on, behind those that `parent` has up to there. start: whole
    blocks. hashes: of the blocks in it, by which it is found. layers: (1, kv_heads, tokens, head_dim) each."""

    parent: "_Run | None"
    start: int
    fingerprint: torch.Tensor
    hashes: tuple[bytes, ...]
    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]

    @cached_property
    def num_bytes(self) -> int:
        return sum(part.numel() * part.element_size() for pair in self.layers for part in pair)

    def chain(self) -> "Iterator[_Run]":
        """This one, and those that it lies behind."""
        run: _Run | None = self
        while run is not None:
            yield run
            run = run.parent


class PrefixCache:
    """Keys and values of earlier prompts, found by the hashes of their blocks: what finding, keeping and forgetting
    cost does not depend on how many are kept. What several prompts have in common is kept once. Only for models that
    attend in every layer: a recurrent state cannot be cut back to where two prompts part.

    A run is used whenever one behind it is, and becomes the more recent of the two: the longest unused has none behind
    it, and can go alone.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._by_hash: dict[bytes, _Run] = {}
        self._runs: OrderedDict[int, _Run] = OrderedDict()
        self.num_bytes = 0
        self.num_hits = 0

    def known(self, prompt: Prompt) -> int:
        """Tokens that `fill` would find."""
        return self._found(prompt)[1]

    def fill(self, prompt: Prompt, cache: PrefillCache) -> int:
        """Put the longest known beginning into an empty `cache`; its length, less than the prompt's, 0 for none."""
        found, length = self._found(prompt)
        if found is None or not length:
            return 0
        parts: list[tuple[_Run, int]] = []
        end = length
        for run in found.chain():
            parts.append((run, end - run.start))
            end = run.start
        parts.reverse()
        for index in range(len(found.layers)):
            keys, values = (
                torch.cat([run.layers[index][which][:, :, :count] for run, count in parts], 2) for which in (0, 1)
            )
            cache.update(keys, values, index)
        self._use(found)
        self.num_hits += 1
        return length

    def keep(self, prompt: Prompt, cache: PrefillCache) -> None:
        """Remember what a prefilled prompt says more than is known."""
        length, hashes = len(prompt.fingerprint), prompt.block_hashes
        if length < SHORTEST_PREFIX:
            return
        blocks = self._known_blocks(prompt)
        parent = self._by_hash[hashes[blocks - 1]] if blocks else None
        if parent is not None and _common_after(parent, prompt, blocks) == length - blocks * BLOCK:
            self._use(parent)
            return
        start = blocks * BLOCK
        layers = tuple((_part(layer.keys, start, length), _part(layer.values, start, length)) for layer in cache.layers)
        run = _Run(parent, start, prompt.fingerprint[start:], hashes[blocks:], layers)
        if sum(other.num_bytes for other in run.chain()) > self._max_bytes:
            return
        self._use(run)
        self._by_hash.update(dict.fromkeys(run.hashes, run))
        self.num_bytes += run.num_bytes
        while self.num_bytes > self._max_bytes:
            self._drop_oldest()

    def clear(self) -> None:
        self._by_hash.clear()
        self._runs.clear()
        self.num_bytes = 0

    def _found(self, prompt: Prompt) -> tuple[_Run | None, int]:
        """The last run of the longest known beginning, and how long that is."""
        blocks = self._known_blocks(prompt)
        if blocks * BLOCK < SHORTEST_PREFIX:
            return None, 0
        run = self._by_hash[prompt.block_hashes[blocks - 1]]
        length = blocks * BLOCK + _common_after(run, prompt, blocks)
        return run, min(length, len(prompt.fingerprint) - 1)

    def _known_blocks(self, prompt: Prompt) -> int:
        """Where a block is known, those before it are."""
        hashes = prompt.block_hashes
        return bisect_left(range(len(hashes)), 1, key=lambda block: hashes[block] not in self._by_hash)

    def _use(self, run: _Run) -> None:
        for used in run.chain():
            self._runs[id(used)] = used
            self._runs.move_to_end(id(used))

    def _drop_oldest(self) -> None:
        _, run = self._runs.popitem(last=False)
        for known in run.hashes:
            del self._by_hash[known]
        self.num_bytes -= run.num_bytes


def _common_after(run: _Run, prompt: Prompt, blocks: int) -> int:
    """How many tokens a run has in common with a prompt behind its known blocks: less than one more."""
    at = blocks * BLOCK
    ours, theirs = prompt.fingerprint[at : at + BLOCK].tolist(), run.fingerprint[at - run.start :][:BLOCK].tolist()
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ours, theirs, strict=False)))


def _part(stored: torch.Tensor, start: int, length: int) -> torch.Tensor:
    """Tokens of a layer's keys or values: in memory of their own where they are not all of it."""
    part = stored[:, :, start:length]
    return part if part.nbytes == part.untyped_storage().nbytes() else part.clone()
