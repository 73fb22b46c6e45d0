"""Runners for tests: one without a model, and ones that watch or spoil a real one."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from worker.models.kv_cache import KVCache
from worker.models.kv_pools import KVPools
from worker.models.runner import PrefillChunk, Runner
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

    def begin_tuning(self) -> None:
        pass

    def close(self) -> None:
        pass

    def tidy(self) -> bool:
        return False

    def kv_cache(self, max_bytes: int) -> KVPools:
        return KVPools(0, self.bytes_per_token, torch.device("cpu"), torch.float32, lambda _: EmptyCache())

    def prefill(self, chunks: list[PrefillChunk]) -> torch.Tensor:
        return self._saying([self.first] * len(chunks))

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
    """Counts what is computed: chunks of prompts in tokens, pictures in all and in one pass, prompts in one forward
    where these are several."""

    def __init__(self, inner: Runner) -> None:
        super().__init__(inner)
        self.chunks: list[int] = []
        self.together: list[int] = []
        self.num_features = 0
        self.passes: list[int] = []

    def prefill(self, chunks: list[PrefillChunk]) -> torch.Tensor:
        self.chunks += [chunk.length for chunk in chunks]
        if len(chunks) > 1:
            self.together.append(len(chunks))
        return self.inner.prefill(chunks)

    def features(self, items: Any) -> Any:
        self.num_features += len(items)
        self.passes.append(len(items))
        return self.inner.features(items)


class Feeding(Watched):
    """Counts what the longest-fed row is fed, and all rows together, step by step."""

    def __init__(self, inner: Runner, *, takes_several: bool) -> None:
        super().__init__(inner)
        self.takes_several = takes_several
        self.counts: list[int] = []
        self.totals: list[int] = []

    def decode(self, tokens: list[int], positions: list[int], slots: KVCache, before: Any, *more: Any) -> torch.Tensor:
        self.counts.append(1 + max(map(len, before)))
        self.totals.append(len(tokens) + sum(map(len, before)))
        return self.inner.decode(tokens, positions, slots, before, *more)


class FailingTogether(Watched):
    """Fails once when several prompts are computed in one forward, half way through the layers, and works otherwise."""

    def __init__(self, inner: Runner, error: Exception) -> None:
        super().__init__(inner)
        self.error, self.has_failed = error, False

    def prefill(self, chunks: list[PrefillChunk]) -> torch.Tensor:
        if len(chunks) > 1 and not self.has_failed:
            self.has_failed = True
            for chunk in chunks:
                self.inner.prefill([chunk])
                chunk.cache.layers[-1].keys = chunk.cache.layers[-1].values = None
            raise self.error
        return self.inner.prefill(chunks)


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

    def prefill(self, chunks: list[PrefillChunk]) -> torch.Tensor:
        logits = self.inner.prefill(chunks)
        for row, chunk in enumerate(chunks):
            if chunk.prompt.items:
                for layer in chunk.cache.layers:
                    layer.keys.fill_(torch.nan)
                    layer.values.fill_(torch.nan)
                logits[row] = torch.nan
        return logits


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

    def prefill(self, chunks: list[PrefillChunk]) -> torch.Tensor:
        self._fail_if("prefill", any(self.is_marked(chunk.prompt) for chunk in chunks))
        return self.inner.prefill(chunks)

    def decode(self, *arguments: Any) -> torch.Tensor:
        self._fail_if("decode", bool(self.marked_rows()))
        logits = self.inner.decode(*arguments)
        if self.is_on and self.stage == "numbers":
            for row in self.marked_rows():
                logits[row] = torch.nan
        return logits

    def kv_cache(self, max_bytes: int) -> KVCache:
        cache = self.inner.kv_cache(max_bytes)
        join = cache.join

        def spoilt(prefilled: Any, length: int, most: int) -> int:
            self._fail_if("join", most - length > MARK - 5)
            return join(prefilled, length, most)

        cache.join = spoilt  # type: ignore[method-assign]
        return cache


MARK = 77  # max_tokens of the request that every fault follows
