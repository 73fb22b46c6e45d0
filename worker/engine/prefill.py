"""Prompts on their way through the model, several in one forward, a piece at a time, so that running answers need not
wait for all of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from worker.core.contract import Cached
from worker.engine.caches import EngineCaches
from worker.engine.prefix_cache import FeatureCache
from worker.models.runner import Features, PrefillCache, PrefillChunk, Runner
from worker.prompt.types import MediaItem, Prompt


class Prefill:
    """One prompt, and the tokens of its answer that are known already. most: as long as both may become. `cache` is
    whole when `left` is 0, and `logits` are those behind the last token then. cached: what was known of its pictures
    and videos, by number. Raises NoRoom."""

    def __init__(self, prompt: Prompt, tokens: Sequence[int], most: int, caches: EngineCaches) -> None:
        self._prompt, self._tokens, self._prefixes = prompt, list(tokens), caches.prefixes
        self._seen: dict[int, Features] = {}
        self.cached: dict[int, Cached] = {}
        self._length = len(prompt.ids) + len(tokens)
        self.cache: PrefillCache = caches.kv.prefill_cache(self._length, most)
        self.reused = self._prefixes.fill(prompt, self.cache) if self._prefixes else 0
        self._done = self.reused
        for index in set(prompt.item_of[: self.reused].tolist()) - {-1}:
            if not (prompt.item_of[self.reused :] == index).any():
                self.cached[index] = "prefix"
        self.logits: torch.Tensor | None = None

    @property
    def left(self) -> int:
        """Tokens still to be computed."""
        return self._length - self._done

    def unseen(self, num_tokens: int, features: FeatureCache) -> list[tuple[int, MediaItem, int]]:
        """The pictures and videos that the next tokens need and that nobody has seen: number, item, and how many tokens
        it has. Those in the cache are seen now."""
        span = slice(self._done, self._done + num_tokens)
        found = []
        for index in dict.fromkeys(self._prompt.item_of[span].tolist()):
            if index < 0 or index in self._seen:
                continue
            item = self._prompt.items[index]
            known = features.get(item.key)
            if known is None:
                found.append((index, item, self._prompt.media[index].tokens))
            else:
                self._seen[index], self.cached[index] = known, "features"
        return found

    def see(self, index: int, features: Features) -> None:
        """What the vision tower says of a picture or video."""
        self._seen[index] = features

    def chunk(self, num_tokens: int) -> PrefillChunk:
        """The next tokens, at most so many, whose pictures have all been seen."""
        span = slice(self._done, min(self._done + num_tokens, self._length))
        return PrefillChunk(self._prompt, self._tokens, span, self._seen, self.cache)

    def take(self, chunk: PrefillChunk, logits: torch.Tensor) -> None:
        """The chunk has been computed."""
        self._done, self.logits = chunk.span.stop, logits

    def keep(self) -> None:
        """Remember the whole prompt for later ones that begin alike. Only once its numbers are known to be good."""
        if self._prefixes is not None:
            self._prefixes.keep(self._prompt, self.cache)


@dataclass(frozen=True)
class Pass:
    """What was computed in one pass. tokens: of each of the prefills, in order, at least 1 in all; is_vision: by the
    vision tower."""

    tokens: tuple[float, ...]
    is_vision: bool

    @property
    def cost(self) -> int:
        return round(sum(self.tokens))


def advance(runner: Runner, prefills: Sequence[Prefill], features: FeatureCache, budget: int) -> Pass:
    """Compute pictures that the next tokens of the prompts need, as many as the budget has tokens for, or, where all
    have been seen, those tokens, in one pass. `budget` is for all of them, and one picture may be larger."""
    sizes = [min(prefill.left, budget) for prefill in prefills]
    unseen = [prefill.unseen(size, features) for prefill, size in zip(prefills, sizes, strict=True)]
    if any(unseen):
        return _see(runner, prefills, unseen, features, budget)
    chunks = [prefill.chunk(size) for prefill, size in zip(prefills, sizes, strict=True)]
    for prefill, chunk, logits in zip(prefills, chunks, runner.prefill(chunks), strict=True):
        prefill.take(chunk, logits)
    return Pass(tuple(chunk.length for chunk in chunks), is_vision=False)


def _see(
    runner: Runner,
    prefills: Sequence[Prefill],
    unseen: Sequence[Sequence[tuple[int, MediaItem, int]]],
    features: FeatureCache,
    budget: int,
) -> Pass:
    """Pictures in one pass through the vision tower; the same one that is shown twice is computed once."""
    wanted: dict[bytes, tuple[MediaItem, list[tuple[Prefill, int]]]] = {}
    sizes, total = dict[bytes, int](), 0
    for prefill, pictures in zip(prefills, unseen, strict=True):
        for index, item, size in pictures:
            if item.key not in wanted:
                if wanted and total + size > budget:
                    continue
                wanted[item.key], sizes[item.key], total = (item, []), size, total + size
            wanted[item.key][1].append((prefill, index))
    said = runner.features([item for item, _ in wanted.values()])
    for (item, shown), of_item in zip(wanted.values(), said, strict=True):
        for prefill, index in shown:
            prefill.see(index, of_item)
        features.put(item.key, of_item, of_item.num_bytes)
    tokens = dict.fromkeys(map(id, prefills), 0.0)
    for key, (_, shown) in wanted.items():
        for prefill, _ in shown:
            tokens[id(prefill)] += sizes[key] / len(shown)
    return Pass(tuple(tokens.values()), is_vision=True)
