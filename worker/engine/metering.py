"""Whose work the device was busy with: its wall time, shared among requests. What all were charged is what it was busy.

Knows no model. A device that works by itself is given a mark behind each piece of work; when the host has waited for
one, the wall time until then is shared by what the device took between the marks before it.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from worker.engine.sequence import Request

TICK_S = 1e-6  # the least that work takes: devices tell no shorter times apart


class OfDevice(Protocol):
    """A place in what a device does."""

    def seconds_since(self, other: Self) -> float:
        """Of the device, from the other one to this; waits for both."""
        ...


@dataclass(frozen=True)
class Mark:
    """The `number`-th of a meter."""

    number: int
    of_device: OfDevice


@dataclass(frozen=True)
class _Work:
    """What was launched for requests, by their shares. mark: where it ends, None where it was over at once."""

    shares: Sequence[tuple[Request, float]]
    mark: Mark | None
    is_vision: bool = False


class Meter:
    """Of one engine, on its own thread. busy_s: charged to requests so far. Charge before a request is told of its end:
    what its last step took is in what it is told. marker: of a device that works by itself."""

    def __init__(
        self, timer: Callable[[], float] = time.perf_counter, marker: Callable[[], OfDevice] | None = None
    ) -> None:
        self.busy_s = 0.0
        self._timer, self._marker = timer, marker
        self._since = timer()
        self._marked: Mark | None = None  # at `_since`
        self._num_marks = 0
        self._launched: list[_Work] = []  # that nobody has waited for

    def begin(self) -> None:
        """Work begins after a rest: what has passed until now is nobody's."""
        self._launched.clear()
        self._since, self._marked = self._timer(), self.mark()

    def mark(self) -> Mark | None:
        """Where what has been launched until now ends; None for a device that is waited for anyway."""
        if self._marker is None:
            return None
        self._num_marks += 1
        return Mark(self._num_marks, self._marker())

    def launched(self, shares: Iterable[tuple[Request, float]], *, is_vision: bool = False) -> None:
        """A pass over prompts for these requests. is_vision: it counts to their `vision_s`, whole to each."""
        work = _Work(list(shares), self.mark(), is_vision)
        if work.mark is None:
            self._charge([work])
        else:
            self._launched.append(work)

    def charge(self, shares: Iterable[tuple[Request, float]], mark: Mark | None = None) -> None:
        """A step that has been waited for, and what was launched before it. mark: where it ends, where that is not the
        newest work: what was launched behind it is charged later. Requests that are over are charged nothing more; time
        that nobody can be charged for is left to those that come next."""
        mark = mark or self.mark()
        before: list[_Work] = []
        if mark is not None:
            before = [work for work in self._launched if work.mark is not None and work.mark.number < mark.number]
            del self._launched[: len(before)]
        self._charge([*before, _Work(list(shares), mark)])

    def _charge(self, works: Sequence[_Work]) -> None:
        """By what the device took for each; where it has no marks, there is one."""
        seconds = self._seconds(works)
        charged = [
            (work, live, taken)
            for work, taken in zip(works, seconds, strict=True)
            if (live := [(request, weight) for request, weight in work.shares if weight and not request.is_over])
        ]
        total = sum(taken for *_, taken in charged)
        if not total:
            return
        now = self._timer()
        elapsed, self._since, self._marked = now - self._since, now, works[-1].mark
        self.busy_s += elapsed
        for work, live, taken in charged:
            of_work, weights = elapsed * taken / total, sum(weight for _, weight in live)
            for request, weight in live:
                request.gpu_seconds += of_work * weight / weights
                request.vision_s += of_work if work.is_vision else 0.0

    def _seconds(self, works: Sequence[_Work]) -> list[float]:
        """Of the device for each, in order."""
        seconds, last = [], self._marked
        for work in works:
            taken = TICK_S if last is None or work.mark is None else work.mark.of_device.seconds_since(last.of_device)
            seconds.append(max(TICK_S, taken))
            last = work.mark or last
        return seconds
