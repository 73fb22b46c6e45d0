"""What a failure costs. The border of the engine's turn: whatever a model raises ends here, and nowhere else.

Without memory the largest goes back, to be tried again alone; where it cannot be told by whom a step failed, all go
back, one after the other, so that only the one at fault fails. A device that is lost ends the engine.
"""

import logging
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from worker.core.errors import InternalError, OutOfMemory, WorkerError
from worker.engine.caches import EngineCaches
from worker.engine.scheduler import PrefillGroup, Scheduler
from worker.engine.sequence import Request, Sequence
from worker.models.kv_cache import NoRoom

log = logging.getLogger(__name__)
Group = PrefillGroup[Sequence]


@dataclass(frozen=True)
class Failure:
    """What ended a piece of the engine's work."""

    error: BaseException

    @property
    def is_memory(self) -> bool:
        return isinstance(self.error, torch.OutOfMemoryError)

    @property
    def is_room(self) -> bool:
        """Whether the KV cache has no room now: that is nobody's fault, and passes."""
        return isinstance(self.error, NoRoom)

    def for_caller(self) -> WorkerError:
        """The error as whoever asked may see it."""
        if isinstance(self.error, WorkerError):
            return self.error
        return OutOfMemory() if self.is_memory else InternalError()


@contextmanager
def contained(on_failure: Callable[[Failure], None]) -> Iterator[None]:
    """What fails inside is told to `on_failure`, and goes no further. A lost device does."""
    try:
        yield
    except torch.AcceleratorError:
        raise
    # A model may raise anything, a panic in a library written in Rust is no Exception, and the other requests go on.
    except BaseException as error:
        on_failure(Failure(error))


@contextmanager
def last_border(on_end: Callable[[], None]) -> Iterator[None]:
    """What fails inside ends the engine: it is logged and told, and the thread ends."""
    try:
        yield
    except BaseException:  # a panic in a library written in Rust is no Exception
        log.exception("the engine has ended")
        on_end()


class Recovery:
    """Decides who is tried again and who fails, and gives memory back."""

    def __init__(self, scheduler: Scheduler[Sequence], caches: EngineCaches) -> None:
        self._scheduler, self._caches = scheduler, caches

    def token_failed(self, request: Request, failure: Failure) -> None:
        """A token could not be chosen or turned into text: that is its request's own."""
        if not isinstance(failure.error, WorkerError):
            log.error("a token could not be chosen or turned into text", exc_info=failure.error)
        request.fail(failure.for_caller())

    def prefill_failed(self, group: Group, failure: Failure) -> None:
        """Without memory a prompt is tried once more, alone; all other failures are its own."""
        if failure.is_room and (len(self._scheduler.prefilling) > 1 or self._scheduler.running):
            self.put_off(group)
            return
        self._scheduler.prefilling.remove(group)
        request = group.sequences[0].request
        if not failure.is_memory:
            if not isinstance(failure.error, WorkerError):
                log.error("a prefill failed", exc_info=failure.error)
            request.fail(failure.for_caller())
            return
        self._caches.release()
        if group.must_be_alone:
            request.fail(failure.for_caller())
            return
        log.warning("no memory for a prompt: it is tried again alone")
        begun, fresh = self._not_running(group)
        again = [PrefillGroup([sequence], must_be_alone=True) for sequence in begun]
        self._scheduler.retry([*again, *([PrefillGroup(fresh, must_be_alone=True)] if fresh else [])])

    def put_off(self, group: Group) -> None:
        """Have a prompt begin again, before all others, once there is room; those of its answers that run go on."""
        self._scheduler.prefilling.remove(group)
        begun, fresh = self._not_running(group)
        again = [PrefillGroup([sequence]) for sequence in begun]
        self._scheduler.retry([*([PrefillGroup(fresh, group.must_be_alone)] if fresh else []), *again])

    def _not_running(self, group: Group) -> tuple[list[Sequence], list[Sequence]]:
        """The answers to a prompt that are neither over nor decoded: those with tokens, and those without."""
        running = self._scheduler.running
        left = [sequence for sequence in group.sequences if not sequence.is_over and sequence not in running]
        return [each for each in left if each.tokens], [each for each in left if not each.tokens]

    def send_back(self, sequence: Sequence) -> None:
        """Have an answer go on later, from the tokens that it has, to make room for others."""
        self._scheduler.leave(self._scheduler.running.index(sequence))
        if not sequence.is_over:
            self._scheduler.retry([PrefillGroup([sequence])])

    def joint_prefill_failed(self, groups: Items[Group], failure: Failure) -> None:
        """Prompts that were computed together are tried apart."""
        log.warning("%d prompts could not be computed together: each is tried apart", len(groups))
        if failure.is_memory:
            self._caches.release()
        for group in groups:
            group.is_apart = True

    def step_failed(self, failure: Failure) -> None:
        """Without memory the longest answer goes back to be tried again alone; else all do."""
        running, cache = self._scheduler.running, self._caches.kv
        if failure.is_memory:
            self._caches.release()
            log.warning("no memory for a step of %d answers", len(running))
        else:
            log.error("a step of %d answers failed", len(running), exc_info=failure.error)
        if failure.is_memory and not cache.has_states:
            lengths = cache.lengths
            taken = [max(range(len(lengths)), key=lengths.__getitem__)]
        else:  # recurrent states may be half a step further: none of the rows can go on
            taken = list(range(len(running)))
        for row in reversed(taken):
            self._take_back(row, failure)
        cache.trim()

    def _take_back(self, row: int, failure: Failure) -> None:
        sequence = self._scheduler.running[row]
        self._scheduler.leave(row)
        if sequence.is_over:
            return
        if sequence.is_retried:
            sequence.request.fail(failure.for_caller())
        else:
            sequence.is_retried = True
            self._scheduler.retry([PrefillGroup([sequence], must_be_alone=True)])

    def batch_failed(self, groups: Items[Group], failure: Failure) -> None:
        """A whole batch failed: who has said nothing yet is tried again alone, once."""
        trace = None if failure.is_memory else failure.error
        log.error("a batch of %d requests failed", len(groups), exc_info=trace)
        for group in reversed(groups):
            if group.is_over:
                continue
            if group.must_be_alone or any(sequence.tokens for sequence in group.sequences):
                group.sequences[0].request.fail(failure.for_caller())
            else:
                group.must_be_alone = True
                self._scheduler.retry([group])
