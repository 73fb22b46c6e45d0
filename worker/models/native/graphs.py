"""Decode steps recorded once and replayed: on a GPU a step of a small model is bound by the launches of its kernels.

A recorded step has a number of rows and a longest row, and serves every step that has no more of either: where each row
lies and how long it is are numbers that it reads. Rows that a step has not write where nobody reads. Steps are recorded
while the engine has nothing else to do, one at a time; until one that serves is there, steps are eager.
"""

import contextlib
import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from worker.models.runner import Newest
from worker.models.transfer import uploaded

log = logging.getLogger(__name__)
FED = 5  # numbers of a row: token, position, where its keys and values go, where it begins, how long it is with them
LONGEST = (4_096, 32_768, 262_144, 2**21)  # tokens of the rows that a recorded step serves
FIRST_ROWS = (1, 2, 4, 8)
MORE_ROWS = 8  # beyond those
Key = tuple[int, int]  # rows and tokens of the longest
Step = Callable[[Tensor, int], Tensor]  # (FED, rows + 1) int64, tokens of the longest -> (rows, vocabulary)


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
        current, aside = torch.cuda.current_stream(self._device), self._aside
        aside.wait_stream(current)
        try:
            with torch.cuda.stream(aside):
                work()  # libraries choose their kernels and take their memory before anything is recorded
                # The products' workspace belongs to a stream, and would go with another graph: each graph takes its own
                # from the graphs' memory, as torch's compiler has it.
                torch._C._cuda_clearCublasWorkspaces()
                torch.cuda.synchronize(self._device)
                return self._captured(work)
        finally:
            torch.cuda.set_stream(current)
            current.wait_stream(aside)
            torch._C._cuda_clearCublasWorkspaces()

    def _captured(self, work: Callable[[], Tensor]) -> tuple[Recorded, Tensor]:
        """Not by `torch.cuda.graph`, which empties the cache of memory each time, and leaves the thread on its stream
        where a capture fails."""
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=self._memory, capture_error_mode="thread_local")  # others may use the device meanwhile
        with contextlib.ExitStack() as where_it_fails:
            where_it_fails.callback(self._abandon, graph)
            result = work()
            graph.capture_end()
            where_it_fails.pop_all()
        return graph, result

    def _abandon(self, graph: torch.cuda.CUDAGraph) -> None:
        """What a capture that failed leaves would take all later memory from the graphs' pool."""
        with contextlib.suppress(RuntimeError):
            graph.capture_end()
        with contextlib.suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(self._device.index or 0, self._memory)


@dataclass(frozen=True, eq=False)
class _Graph:
    """fed: (FED, rows + 1) on the device, what the step reads; logits: what it gives."""

    fed: Tensor
    recorded: Recorded
    logits: Tensor


class StepGraphs:
    """The graphs of one model's decode step. max_rows: a step has no more."""

    def __init__(self, step: Step, device: torch.device, record: Recorder, max_rows: int = 256) -> None:
        self._step, self._device, self._record, self._max_rows = step, device, record, max_rows
        self._graphs: dict[Key, _Graph] = {}
        self._wanted: list[Key] = [(rows, LONGEST[0]) for rows in FIRST_ROWS]
        self._is_off = False

    @property
    def num_graphs(self) -> int:
        return len(self._graphs)

    def logits(self, rows: Sequence[Sequence[int]], newest: Newest | None = None) -> Tensor | None:
        """(rows, vocabulary) by a replay, valid until the next one, from the FED numbers of each and the tokens that
        only the device has; None where the step is to be done eagerly, and will be recorded."""
        count, longest = len(rows), max(row[-1] for row in rows)
        key = self._key(count, longest)
        if self._is_off or count > self._max_rows:
            return None
        serving = key if key in self._graphs else self._larger(key)
        if serving != key and key not in self._wanted:
            self._wanted.insert(0, key)
        if serving is None:
            return None
        graph = self._graphs[serving]
        graph.fed.copy_(uploaded(fed_numbers(rows, serving[0]), self._device), non_blocking=True)
        if newest is not None:
            feed_newest(graph.fed, newest)
        graph.recorded.replay()
        return graph.logits[:count]

    def _key(self, rows: int, longest: int) -> Key:
        if rows <= FIRST_ROWS[-1]:
            most = FIRST_ROWS[bisect_left(FIRST_ROWS, rows)]
        else:
            most = -(-rows // MORE_ROWS) * MORE_ROWS
        return most, LONGEST[bisect_left(LONGEST, longest)]

    def _larger(self, key: Key) -> Key | None:
        """A graph of more rows, up to twice as many, or of longer ones."""
        serving = [known for known in self._graphs if key[0] <= known[0] <= 2 * key[0] and key[1] <= known[1]]
        return min(serving, default=None)

    def forget(self) -> None:
        """Drop all graphs: what they read is no more."""
        self._wanted = [*self._graphs, *(key for key in self._wanted if key not in self._graphs)]
        self._graphs.clear()

    def record_one(self) -> bool:
        """Record the step that is wanted first; whether another one is wanted."""
        if self._wanted and not self._is_off:
            self._record_step(self._wanted.pop(0))
        return bool(self._wanted) and not self._is_off

    def _record_step(self, key: Key) -> None:
        fed = fed_numbers([], key[0]).to(self._device)
        try:
            recorded, logits = self._record(lambda: self._step(fed, key[1]))
        except torch.OutOfMemoryError:
            log.warning("no memory to record a decode step of %d rows", key[0])
            self._wanted.clear()
        except RuntimeError as error:
            # What may not be recorded and a device that is lost are one class of error: only the first can still add.
            torch.ones(1, device=self._device).add_(1).item()
            log.warning("decode steps stay eager, recording one failed: %s: %s", type(error).__name__, error)
            self._is_off = True
            self._graphs.clear()
        else:
            self._graphs[key] = _Graph(fed, recorded, logits)


def fed_numbers(rows: Sequence[Sequence[int]], num_rows: int) -> Tensor:
    """(FED, num_rows + 1) int64 from the numbers of each row. Those that there are not write into the first token of
    the cache, which is nobody's, and read it."""
    nobody = [0] * (FED - 1) + [1]
    return torch.tensor([*rows, *[nobody] * (num_rows + 1 - len(rows))]).T.contiguous()


def feed_newest(fed: Tensor, newest: Newest) -> None:
    """Where a row's token is negative, put the one that the device has."""
    tokens = fed[0, : len(newest.rows)]
    rows = uploaded(torch.tensor(newest.rows), fed.device)
    torch.where(tokens < 0, newest.tokens[rows], tokens, out=tokens)
