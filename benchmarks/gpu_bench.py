"""Where `benchmarks.gpu` runs, how it measures, and the tables in which it says what it found."""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.gpu_model import Drawn, drawn
from worker.models.native.graphs import CudaRecorder
from worker.models.varlen import Varlen

MIB, GIB = 2**20, 2**30


@dataclass
class Bench:
    """Where it runs, and what has been found. scale: of the amounts of work, below one for a trial."""

    device: torch.device
    shape: str
    scale: float
    kernel: Varlen
    facts: dict[str, Any] = field(default_factory=dict)
    _drawn: Drawn | None = None

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def model(self) -> Drawn:
        """The model of the shape, made when it is first asked for; its steps can be recorded."""
        if self._drawn is None:
            record = CudaRecorder(self.device) if self.is_gpu else None
            self._drawn = drawn(self.shape, self.device, kernel=self.kernel, record=record)
        return self._drawn

    def forget_model(self) -> None:
        self._drawn = None
        gc.collect()
        if self.is_gpu:
            torch.cuda.empty_cache()

    def sync(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize(self.device)

    def held(self) -> int:
        return torch.cuda.memory_reserved(self.device) if self.is_gpu else 0

    def peak(self, work: Callable[[], object]) -> int:
        """Bytes that `work` takes at its highest, beside what there is."""
        if not self.is_gpu:
            work()
            return 0
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        work()
        self.sync()
        return torch.cuda.max_memory_allocated(self.device) - before

    def amount(self, count: int) -> int:
        return max(2, round(count * self.scale))

    def ms(self, work: Callable[[], object], times: int = 20, warm: int = 2) -> float:
        """Milliseconds of one `work`, the median of `times` after some for warming up."""
        took = []
        for index in range(times + warm):
            self.sync()
            begin = time.perf_counter()
            work()
            self.sync()
            took += [(time.perf_counter() - begin) * 1e3] if index >= warm else []
        return statistics.median(took)

    def host_ms(self, work: Callable[[], object], times: int = 20) -> float:
        """Milliseconds until `work` has handed over what it has for the device, the device being idle before."""
        took = []
        for _ in range(times):
            self.sync()
            begin = time.perf_counter()
            work()
            took.append((time.perf_counter() - begin) * 1e3)
        self.sync()
        return statistics.median(took)


def table(head: str, rows: list[list[object]]) -> str:
    """Markdown; numbers to two places."""
    names = head.split(" | ")
    cells = [[f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in (names, ["---"] * len(names), *cells))
