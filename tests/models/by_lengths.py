"""Models on the CPU as they are on a GPU: keys and values in an arena, attention by lengths in plain arithmetic, decode
steps that are done again instead of recorded."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from worker.core.settings import Settings
from worker.models.loading import LoadedModel, load
from worker.models.native.graphs import Recorder
from worker.models.varlen import plain


class Again:
    """Does the work again into the memory of the first time: what a recorded step must not do (depend on anything but
    its fixed input and the cache's memory) shows on a CPU as well. fails: raises instead of recording."""

    def __init__(self) -> None:
        self.num_recorded = self.num_replayed = 0
        self.fails: Exception | None = None

    def __call__(self, work: Callable[[], torch.Tensor]) -> tuple["Again", torch.Tensor]:
        if self.fails:
            raise self.fails
        self.num_recorded += 1
        result = work()
        mine = Again()
        mine.replay = lambda: self._replay(work, result)  # type: ignore[method-assign]
        return mine, result

    def _replay(self, work: Callable[[], torch.Tensor], result: torch.Tensor) -> None:
        self.num_replayed += 1
        result.copy_(work())

    def replay(self) -> None:
        raise AssertionError


def load_by_lengths(settings: Settings, record: Recorder | None = None, kernel: Any = plain) -> LoadedModel:
    """A model whose attention is by lengths."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("worker.models.loading.kernel_for", lambda *_: kernel)
        patched.setattr("worker.models.loading.recorder", lambda *_: record)
        return load(settings)
