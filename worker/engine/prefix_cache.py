"""What is not computed twice: features of pictures seen before, keys and values of prompts that begin alike."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from worker.models.runner import Features, PrefillCache
from worker.prompt.types import Prompt

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

    def items(self) -> list[tuple[K, V]]:
        return [(key, value) for key, (value, _) in self._values.items()]


class FeatureCache(LruBytes[bytes, Features]):
    """Features by content."""


@dataclass(frozen=True, eq=False)
class _Prefix:
    scope: bytes
    fingerprint: torch.Tensor
    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]


class PrefixCache:
    """Keys and values of earlier prompts of the same scope, found by what they begin with. Only for models that attend
    in every layer: a recurrent state cannot be cut back to where two prompts part."""

    def __init__(self, max_bytes: int) -> None:
        self._kept: LruBytes[int, _Prefix] = LruBytes(max_bytes)
        self._next = 0

    @property
    def num_bytes(self) -> int:
        return self._kept.num_bytes

    @property
    def num_hits(self) -> int:
        return self._kept.num_hits

    def fill(self, prompt: Prompt, cache: PrefillCache) -> int:
        """Put the longest known beginning into an empty `cache`; its length, less than the prompt's, 0 for none."""
        best, length = -1, SHORTEST_PREFIX - 1
        for key, known in self._kept.items():
            shared = _shared(prompt.scope, prompt.fingerprint[:-1], known)
            if shared > length:
                best, length = key, shared
        found = self._kept.get(best)
        if found is None:
            return 0
        for index, (keys, values) in enumerate(found.layers):
            cache.update(keys[:, :, :length], values[:, :, :length], index)
        return length

    def keep(self, prompt: Prompt, cache: PrefillCache) -> None:
        """Remember a prefilled prompt. What it says more than one that is known replaces that one."""
        fingerprint = prompt.fingerprint
        if len(fingerprint) < SHORTEST_PREFIX:
            return
        for key, known in self._kept.items():
            shared = _shared(prompt.scope, fingerprint, known)
            if shared == len(fingerprint):
                return
            if shared == len(known.fingerprint):
                self._kept.drop(key)
        length = len(fingerprint)
        layers = tuple((layer.keys[:, :, :length], layer.values[:, :, :length]) for layer in cache.layers)
        size = sum(part.numel() * part.element_size() for pair in layers for part in pair)
        self._next += 1
        self._kept.put(self._next, _Prefix(prompt.scope, fingerprint, layers), size)

    def clear(self) -> None:
        self._kept.clear()


def share_a_beginning(a: Prompt, b: Prompt) -> bool:
    """Whether what is kept of one of two prompts would be used for the other."""
    return a.scope == b.scope and _common(a.fingerprint, b.fingerprint) >= SHORTEST_PREFIX


def _shared(scope: bytes, fingerprint: torch.Tensor, known: _Prefix) -> int:
    return _common(fingerprint, known.fingerprint) if scope == known.scope else 0


def _common(a: torch.Tensor, b: torch.Tensor) -> int:
    """How many tokens two prompts have in common from the beginning."""
    length = min(len(a), len(b))
    differ = (a[:length] != b[:length]).nonzero()
    return int(differ[0, 0]) if len(differ) else length
