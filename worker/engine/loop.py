"""The engine's thread: takes in what has come, ends what is overdue, and has a batch do a turn of work, for ever.

A watchdog gives everybody an error when a turn never ends. Knows no model: what a turn is, the batch knows.
"""

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

from worker.core.engine_protocol import EngineState
from worker.core.errors import EngineStopped, QueueFull
from worker.core.interpreter import wait_little_for_the_lock
from worker.core.memory import trim
from worker.engine.metering import Meter
from worker.engine.recovery import Group, Recovery, contained, last_border
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Request, Sequence

log = logging.getLogger(__name__)
GATHER_S = 0.02  # for prompts being made when the first of a burst has come
REST_S = 30.0  # without work, after which memory that was freed goes back to the system
WATCHES = 8  # in the time after which a turn is stuck


class Pulse(Protocol):
    """What a turn that takes long can do in the middle of it."""

    @property
    def is_closing(self) -> bool: ...

    def beat(self) -> None:
        """The turn is not stuck."""
        ...

    def keep_up(self) -> None:
        """Take in what has come, without waiting, and end what is overdue."""
        ...


class Batch(Protocol):
    """How prompts become tokens. meter: of the device's time for them."""

    @property
    def meter(self) -> Meter: ...

    def turn(self, pulse: Pulse) -> None:
        """Do some work for what the scheduler has. Raises only what ends the engine."""
        ...

    def rest(self) -> bool:
        """Do a piece of work that can wait while there is nothing else to do; whether there is more of it. Raises only
        what ends the engine."""
        ...

    def clear(self) -> None:
        """Let go of all memory: nothing goes on."""
        ...


class EngineLoop:
    """Runs one batch on a thread of its own. `start` it, `close` it: the thread is joined. limit: of unfinished
    requests."""

    def __init__(
        self, scheduler: Scheduler[Sequence], batch: Batch, recovery: Recovery, *, limit: int, stuck_s: float
    ) -> None:
        self._scheduler, self._batch, self._recovery = scheduler, batch, recovery
        self._limit, self._stuck_s = limit, stuck_s
        self._inbox: queue.SimpleQueue[Group | None] = queue.SimpleQueue()
        self._unfinished: set[Request] = set()
        self._num_preparing = 0
        self._lock = threading.Lock()
        self._is_closing = self._is_dead = self._is_stuck = False
        self._is_idle = True
        self._beats = 0
        self._has_ended = threading.Event()
        self._on_death: list[Callable[[], None]] = []
        self._thread = threading.Thread(target=self._run, name="engine")
        self._watchdog = threading.Thread(target=self._watch, name="engine-watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._watchdog.start()

    def close(self) -> None:
        """End now: whatever is unfinished fails with EngineStopped. Returns when the thread has ended."""
        with self._lock:
            self._is_closing = True
        self._inbox.put(None)
        if self._thread.is_alive() and not self._is_stuck:
            self._thread.join()
        self._has_ended.set()
        if self._watchdog.is_alive() and self._watchdog is not threading.current_thread():
            self._watchdog.join()

    @property
    def state(self) -> EngineState:
        if self._is_stuck:
            return "stuck"
        if self._is_dead:
            return "dead"
        return "ready" if self._thread.is_alive() and not self._is_closing else "closed"

    @property
    def is_closing(self) -> bool:
        return self._is_closing

    @property
    def num_unfinished(self) -> int:
        """Requests that are waiting or being answered."""
        return len(self._unfinished)

    def on_death(self, callback: Callable[[], None]) -> None:
        """Have it called when the loop has ended by itself, or is stuck, after everybody was told; now where that has
        happened."""
        with self._lock:
            self._on_death.append(callback)
            has_died = self._is_dead
        if has_died:
            callback()

    @contextlib.contextmanager
    def preparing(self) -> Iterator[None]:
        """A prompt is being made, on an event loop: the first of a burst waits for it, a moment."""
        self._num_preparing += 1
        try:
            yield
        finally:
            self._num_preparing -= 1

    def submit(self, request: Request, group: Group) -> None:
        """Hand over a request, from any thread. Raises QueueFull, EngineStopped."""
        with self._lock:
            if self.state != "ready":
                raise EngineStopped()
            if len(self._unfinished) >= self._limit:
                self._unfinished = {other for other in self._unfinished if not other.is_over}
            if len(self._unfinished) >= self._limit:
                raise QueueFull(detail=f"limit {self._limit} running and waiting (MAX_NUM_SEQS and MAX_QUEUE)")
            self._unfinished.add(request)
            self._inbox.put(group)

    def beat(self) -> None:
        self._beats += 1

    def keep_up(self) -> None:
        self._receive()
        self._end_overdue()

    def _run(self) -> None:
        wait_little_for_the_lock()
        try:
            with last_border(self._die):
                while not self._is_closing:
                    self.beat()
                    self.keep_up()
                    self._drop_over()
                    self._batch.turn(self)
        finally:
            self._fail_unfinished()
            self._scheduler.clear()
            self._batch.clear()
        if self._is_dead:
            self._tell_of_death()

    def _die(self) -> None:
        self._is_dead = True

    def _tell_of_death(self) -> None:
        with self._lock:
            callbacks = list(self._on_death)
        for callback in callbacks:
            callback()

    def _watch(self) -> None:
        """Give everybody an error when a turn takes `stuck_s`.

        It counts how often it woke, not the clock: in a process that was frozen nothing has been stuck.
        """
        seen, same = -1, 0
        while not self._has_ended.wait(self._stuck_s / WATCHES):
            same = same + 1 if not self._is_idle and self._beats == seen else 0
            seen = self._beats
            if same >= WATCHES:
                log.error("the engine's thread has not come back for %g s", self._stuck_s)
                self._is_stuck = self._is_dead = True
                self._fail_unfinished()
                self._tell_of_death()
                return

    def _receive(self) -> None:
        """Take in what has come; wait for it where there is nothing else to do.

        What ends a rest may be the first of a burst: prompts that are being made are waited for, a moment, so that they
        are computed together.
        """
        gather_until = 0.0
        rest_s: float | None = REST_S
        while True:
            is_idle = self._scheduler.is_idle and not self._is_closing
            self._is_idle = is_idle
            if is_idle:
                self._forget_over()
            moment = gather_until - time.monotonic() if self._num_preparing else 0.0
            if is_idle and self._inbox.empty() and self._batch.rest():
                continue
            try:
                group = self._inbox.get(block=is_idle or moment > 0, timeout=rest_s if is_idle else max(0.0, moment))
            except queue.Empty:
                if not is_idle:
                    return
                trim()
                rest_s = None
                continue
            if is_idle:
                gather_until = time.monotonic() + GATHER_S
            self._is_idle = False
            if group is None:
                return
            self._scheduler.add(group)

    def _end_overdue(self) -> None:
        """End what is still here at its deadline, or that has had its share of the device's time."""
        for sequence in list(self._scheduler.sequences()):
            if not sequence.is_over and sequence.request.is_overdue:
                with contained(partial(self._recovery.token_failed, sequence.request)):
                    sequence.run_out_of_time()

    def _drop_over(self) -> None:
        self._scheduler.drop_over()
        self._forget_over()

    def _forget_over(self) -> None:
        with self._lock:
            self._unfinished = {request for request in self._unfinished if not request.is_over}

    def _fail_unfinished(self) -> None:
        with self._lock:
            self._is_closing = True
            unfinished, self._unfinished = self._unfinished, set()
        for request in unfinished:
            request.fail(EngineStopped())
