"""A prompt on its way through the model, a piece at a time, so that running answers need not wait for all of it."""

import torch

from worker.engine.prefix_cache import FeatureCache, PrefixCache
from worker.models.runner import Features, PrefillCache, Runner
from worker.prompt.types import Prompt


class Prefill:
    """One prompt, and the tokens of its answer that are known already. `cache` is whole when `left` is 0."""

    def __init__(
        self, prompt: Prompt, tokens: list[int], runner: Runner, features: FeatureCache, prefixes: PrefixCache | None
    ) -> None:
        self._prompt, self._tokens = prompt, list(tokens)
        self._runner, self._features, self._prefixes = runner, features, prefixes
        self._seen: dict[int, Features] = {}
        self.cache: PrefillCache = runner.prefill_cache()
        self.reused = prefixes.fill(prompt, self.cache) if prefixes else 0
        self._done = self.reused
        self.logits: torch.Tensor | None = None

    @property
    def left(self) -> int:
        """Tokens still to be computed."""
        return self._length - self._done

    @property
    def _length(self) -> int:
        return len(self._prompt.ids) + len(self._tokens)

    @property
    def is_plain(self) -> bool:
        """Whether it is a prompt without pictures of which nothing is computed yet."""
        return not self._done and not self._tokens and not self._prompt.items

    def finish(self, logits: torch.Tensor, cache: PrefillCache) -> None:
        """Take over what was computed together with others."""
        self.logits, self.cache, self._done = logits, cache, self._length

    def step(self, budget: int) -> int:
        """Compute one picture or one chunk of at most `budget` tokens; what it cost in tokens."""
        chunk = slice(self._done, min(self._done + budget, self._length))
        wanted = [index for index in dict.fromkeys(self._prompt.item_of[chunk].tolist()) if index >= 0]
        if unseen := [index for index in wanted if index not in self._seen]:
            return self._see(unseen, budget)
        self.logits = self._runner.prefill(self._prompt, self._tokens, chunk, self._seen, self.cache)
        self._done = chunk.stop
        return chunk.stop - chunk.start

    def keep(self) -> None:
        """Remember the whole prompt for later ones that begin alike. Only once its numbers are known to be good."""
        if self._prefixes is not None:
            self._prefixes.keep(self._prompt, self.cache)

    def _see(self, unseen: list[int], budget: int) -> int:
        """Take in pictures: those seen before for nothing, others in one pass, as many as the budget has tokens for."""
        fresh: list[int] = []
        cost = 0
        for index in unseen:
            item = self._prompt.items[index]
            found = self._features.get(item.key)
            if found is not None:
                self._seen[index] = found
                continue
            if any(self._prompt.items[other].key == item.key for other in fresh):
                continue  # the same picture again: the next step finds it among the kept
            size = self._prompt.media[index].tokens
            if fresh and cost + size > budget:
                break
            fresh.append(index)
            cost += size
        if not fresh:
            return 0
        for index, features in zip(fresh, self._runner.features([self._prompt.items[i] for i in fresh]), strict=True):
            self._seen[index] = features
            self._features.put(self._prompt.items[index].key, features, features.num_bytes)
        return cost
