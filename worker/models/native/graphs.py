"""Decode steps recorded once and replayed: on a GPU a step of a small model is bound by the launches of its kernels.

A step's shapes depend on nothing but the pools' memory: all rows that there is room for take part, over the whole
width. So one graph serves as long as the same pools have rows, and steps are eager until that was so for a while.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from worker.models.kv_cache import KVCache

log = logging.getLogger(__name__)
EAGER_STEPS = 8  # of a layout, before it is recorded: recording costs as much as some steps
MAX_GRAPHS = 16
Step = Callable[[Tensor, KVCache, bool], Tensor]  # tokens, positions and lengths, (3, rows); is_whole


class Recorded(Protocol):
    """Work on fixed memory that can be done again."""

    def replay(self) -> None: ...


class Recorder(Protocol):
    """Does work once and records it: what it gives stays in the same memory, and so must what it reads."""

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Recorded, Tensor]: ...


class CudaRecorder:
    """Records CUDA graphs, which share one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory = torch.cuda.graph_pool_handle()
        self._aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Recorded, Tensor]:
        aside = self._aside
        aside.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(aside):
            work()  # libraries choose their kernels and take their memory before anything is recorded
        torch.cuda.current_stream(self._device).wait_stream(aside)
        # The products' workspace belongs to a stream, and would go with another graph: each graph takes its own from
        # the graphs' memory, as torch's compiler has it.
        torch._C._cuda_clearCublasWorkspaces()
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile.
        with torch.cuda.graph(graph, pool=self._memory, stream=aside, capture_error_mode="thread_local"):
            result = work()
        torch._C._cuda_clearCublasWorkspaces()
        return graph, result


@dataclass(eq=False)
class _Graph:
    """host: pinned where there is a GPU. fed: (3, rows) on the device, what the step reads; logits: what it gives."""

    host: Tensor
    fed: Tensor
    recorded: Recorded
    logits: Tensor


class StepGraphs:
    """The graphs of one model's decode step."""

    def __init__(self, step: Step, device: torch.device, record: Recorder, max_rows: int = 64) -> None:
        self._step, self._device, self._record, self._max_rows = step, device, record, max_rows
        self._graphs: dict[tuple[int, ...], _Graph] = {}
        self._seen: dict[tuple[int, ...], int] = {}
        self._is_off = False

    @property
    def num_graphs(self) -> int:
        return len(self._graphs)

    def logits(self, tokens: Sequence[int], positions: Sequence[int], slots: KVCache) -> Tensor | None:
        """(rows, vocabulary) by a replay, valid until the next one; None where the step is to be done eagerly."""
        layout = slots.layout
        if self._is_off:
            return None
        graph = self._graphs.pop(layout, None) or self._recorded(layout, slots)
        if graph is None:
            return None
        self._graphs[layout] = graph  # behind all others: the first is the one that was not used for longest
        graph.host.copy_(torch.tensor([slots.spread(row) for row in (tokens, positions, slots.lengths)]))
        graph.fed.copy_(graph.host, non_blocking=True)
        graph.recorded.replay()
        return slots.gathered(graph.logits)

    def _recorded(self, layout: tuple[int, ...], slots: KVCache) -> _Graph | None:
        """A new graph, once the layout has been seen often enough. Those whose memory is no more go."""
        if layout not in self._seen:
            present = slots.stamps
            self._graphs = {known: graph for known, graph in self._graphs.items() if present.issuperset(known)}
            self._seen = {known: times for known, times in self._seen.items() if present.issuperset(known)}
        self._seen[layout] = self._seen.get(layout, 0) + 1
        if self._seen[layout] <= EAGER_STEPS:
            return None
        lengths = slots.spread(slots.lengths)
        if len(lengths) > self._max_rows:
            return None
        if len(self._graphs) >= MAX_GRAPHS:
            oldest = next(iter(self._graphs))
            del self._graphs[oldest], self._seen[oldest]
        host = torch.zeros(3, len(lengths), dtype=torch.long, pin_memory=self._device.type == "cuda")
        fed = host.to(self._device)
        fed[2] = torch.tensor(lengths, device=self._device)  # what is recorded is done once, too
        try:
            recorded, logits = self._record(lambda: self._step(fed, slots, True))
        except torch.OutOfMemoryError:
            log.warning("no memory to record a decode step: all %d graphs go", len(self._graphs))
            self._graphs.clear()
            self._seen.clear()
            return None
        except RuntimeError as error:
            # What may not be recorded and a device that is lost are one class of error: only the first can still add.
            torch.ones(1, device=self._device).add_(1).item()
            log.warning("decode steps stay eager, recording one failed: %s", type(error).__name__)
            self._is_off = True
            self._graphs.clear()
            return None
        return _Graph(host, fed, recorded, logits)
