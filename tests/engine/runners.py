"""Runners for tests: one without a model, and ones that watch or spoil a real one."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from worker.models.kv_cache import KVCache
from worker.models.runner import PrefillCache, Runner
from worker.prompt.types import Prompt


@dataclass
class EmptyCache:
    """What a model without layers leaves."""

    layers: tuple[()] = ()


@dataclass
class FakeRunner:
    """A model without layers that counts: behind the prompt it says `first`, behind each token the next one. See
    `models.runner.Runner`."""

    vocabulary: int
    first: int
    bytes_per_token: int = 1024
    takes_several: bool = False
    steps: list[int] = field(default_factory=list)  # rows of each

    def prefill_cache(self) -> EmptyCache:
        return EmptyCache()

    def kv_cache(self) -> KVCache:
        return KVCache(0, self.bytes_per_token, torch.device("cpu"), torch.float32)

    def prefill(self, *_: object) -> torch.Tensor:
        return self._saying([self.first])[0]

    def prefill_together(self, prompts: list[Prompt]) -> tuple[torch.Tensor, list[EmptyCache]]:
        return self._saying([self.first] * len(prompts)), [EmptyCache() for _ in prompts]

    def decode(self, tokens: list[int], *_: object) -> torch.Tensor:
        self.steps.append(len(tokens))
        return self._saying([token + 1 for token in tokens])

    def _saying(self, tokens: list[int]) -> torch.Tensor:
        logits = torch.zeros(len(tokens), self.vocabulary)
        logits[torch.arange(len(tokens)), torch.tensor(tokens)] = 1.0
        return logits


class Watched:
    """A runner that does what another does, and that a test changes a part of."""

    def __init__(self, inner: Runner) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Counting(Watched):
    """Counts what is computed: chunks of prompts in tokens, pictures, prompts in one forward."""

    def __init__(self, inner: Runner) -> None:
        super().__init__(inner)
        self.chunks: list[int] = []
        self.together: list[int] = []
        self.num_features = 0

    def prefill(self, prompt: Prompt, tokens: list[int], chunk: slice, *rest: Any) -> torch.Tensor:
        self.chunks.append(chunk.stop - chunk.start)
        return self.inner.prefill(prompt, tokens, chunk, *rest)

    def prefill_together(self, prompts: list[Prompt]) -> tuple[torch.Tensor, list[Any]]:
        self.together.append(len(prompts))
        return self.inner.prefill_together(prompts)

    def features(self, items: Any) -> Any:
        self.num_features += len(items)
        return self.inner.features(items)


class Feeding(Watched):
    """Counts what the longest-fed row is fed, and all rows together, step by step."""

    def __init__(self, inner: Runner, *, takes_several: bool) -> None:
        super().__init__(inner)
        self.takes_several = takes_several
        self.counts: list[int] = []
        self.totals: list[int] = []

    def decode(self, tokens: list[int], positions: list[int], slots: KVCache, before: Any) -> torch.Tensor:
        self.counts.append(1 + max(map(len, before)))
        self.totals.append(len(tokens) + sum(map(len, before)))
        return self.inner.decode(tokens, positions, slots, before)


class FailingOnce(Watched):
    """Fails once at the step named, and works otherwise."""

    def __init__(self, inner: Runner, at: str, error: Exception) -> None:
        super().__init__(inner)
        self.at, self.error, self.has_failed = at, error, False

    def __getattribute__(self, name: str) -> Any:
        if name == object.__getattribute__(self, "__dict__").get("at") and not self.has_failed:
            self.has_failed = True
            raise self.error
        return object.__getattribute__(self, name)


class Stuck(Watched):
    """Its prompts hang until it is let go."""

    def __init__(self, inner: Runner) -> None:
        super().__init__(inner)
        self.has_begun, self.let_go = threading.Event(), threading.Event()

    def prefill(self, *arguments: Any) -> torch.Tensor:
        self.has_begun.set()
        assert self.let_go.wait(30)
        return self.inner.prefill(*arguments)


class Overflowing(Watched):
    """In its prompts with pictures all numbers are lost, as when half precision overflows."""

    def prefill(self, prompt: Prompt, tokens: Any, chunk: slice, seen: Any, cache: PrefillCache) -> torch.Tensor:
        logits = self.inner.prefill(prompt, tokens, chunk, seen, cache)
        if not prompt.items:
            return logits
        for layer in cache.layers:
            layer.keys.fill_(torch.nan)
            layer.values.fill_(torch.nan)
        return logits.fill_(torch.nan)


class Spoilt(Watched):
    """Fails at one stage whenever the marked request has a part in it. is_marked: of a prompt; marked_rows: of the step
    under way, by number."""

    def __init__(
        self,
        inner: Runner,
        stage: str,
        error: Exception,
        is_marked: Callable[[Prompt], bool],
        marked_rows: Callable[[], list[int]],
    ) -> None:
        super().__init__(inner)
        self.stage, self.error, self.is_marked, self.marked_rows = stage, error, is_marked, marked_rows
        self.is_on = False
        self.key = b""  # of the marked picture

    def _fail_if(self, stage: str, is_due: bool) -> None:
        if self.is_on and self.stage == stage and is_due:
            raise self.error

    def features(self, items: Any) -> Any:
        self._fail_if("features", any(item.key == self.key for item in items))
        return self.inner.features(items)

    def prefill(self, prompt: Prompt, *rest: Any) -> torch.Tensor:
        self._fail_if("prefill", self.is_marked(prompt))
        return self.inner.prefill(prompt, *rest)

    def prefill_together(self, prompts: list[Prompt]) -> Any:
        self._fail_if("prefill", any(self.is_marked(prompt) for prompt in prompts))
        return self.inner.prefill_together(prompts)

    def decode(self, *arguments: Any) -> torch.Tensor:
        self._fail_if("decode", bool(self.marked_rows()))
        logits = self.inner.decode(*arguments)
        if self.is_on and self.stage == "numbers":
            for row in self.marked_rows():
                logits[row] = torch.nan
        return logits

    def kv_cache(self) -> KVCache:
        cache = self.inner.kv_cache()
        join = cache.join

        def spoilt(prefilled: Any, length: int, most: int) -> int:
            self._fail_if("join", most - length > MARK - 5)
            return join(prefilled, length, most)

        cache.join = spoilt  # type: ignore[method-assign]
        return cache


MARK = 77  # max_tokens of the request that every fault follows
