"""Whose work the device was busy with: its wall time, shared among requests. What all were charged is what it was busy.

Knows no model. On a GPU a prompt's kernels are launched, not waited for: their time is charged with the pass that is
waited for next, which is of the same turn of the engine.
"""

import time
from collections.abc import Callable, Iterable

from worker.engine.sequence import Request


class Meter:
    """Of one engine, on its own thread. busy_s: charged to requests so far. Charge before a request is told of its end:
    what its last step took is in what it is told."""

    def __init__(self, timer: Callable[[], float] = time.perf_counter) -> None:
        self.busy_s = 0.0
        self._timer = timer
        self._since = timer()

    def begin(self) -> None:
        """Work begins after a rest: what has passed until now is nobody's."""
        self._since = self._timer()

    def charge(self, shares: Iterable[tuple[Request, float]]) -> float:
        """The time since the last mark, to requests by their shares; how long it was. Without any it is left to those
        that come next."""
        weights = list(shares)
        total = sum(weight for _, weight in weights)
        if not total:
            return 0.0
        now = self._timer()
        elapsed, self._since = now - self._since, now
        self.busy_s += elapsed
        for request, weight in weights:
            request.gpu_seconds += elapsed * weight / total
        return elapsed
