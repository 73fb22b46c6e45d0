"""Decode steps of the running answers, one ahead of what has been read where the device works by itself.

The next step takes its tokens from the device, and is launched before the last one's have come back: the host chooses,
detokenises and sends while the device computes. An answer that has ended took part in one step too many, which is
dropped. Where a next token depends on the last one's text or count (a grammar, penalties, a budget of thinking), the
steps of all are read one by one.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from worker.engine.caches import EngineCaches
from worker.engine.event_bridge import woken_together
from worker.engine.logits_step import Launched, LogitsStep
from worker.engine.masks import MaskWorker
from worker.engine.metering import Mark, Meter
from worker.engine.recovery import Failure, Group, Recovery, contained
from worker.engine.sampling import Row
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Sequence as Answer
from worker.models.kv_widths import ARENA
from worker.models.runner import Newest, Runner

log = logging.getLogger(__name__)
ON_DEVICE = -1  # a token that only the device has


@dataclass(frozen=True, eq=False)
class _Step:
    """Under way. places: the number of each answer that took part, by identity; at_most: tokens that each may take;
    mark: where it ends, of a device that works by itself."""

    answers: list[Answer]
    places: dict[int, int]
    launched: Launched
    at_most: int
    mark: Mark | None


class DecodeSteps:
    """Of one engine. forget: told of a prompt that makes room for others. runs_ahead: whether the device works while
    the host reads; None: as the device is. Rows of pools are read one by one."""

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler[Answer],
        caches: EngineCaches,
        recovery: Recovery,
        meter: Meter,
        forget: Callable[[Group], None],
        *,
        runs_ahead: bool | None = None,
    ) -> None:
        self._runner, self._scheduler, self._caches, self._recovery = runner, scheduler, caches, recovery
        self._meter, self._forget = meter, forget
        works_by_itself = caches.device.type == "cuda" and caches.kv.layout is ARENA
        self._runs_ahead = works_by_itself if runs_ahead is None else runs_ahead
        self._masks = MaskWorker()
        self._logits_step = LogitsStep()
        self._ahead: _Step | None = None
        self.num_ahead = 0  # steps launched before the last one was read

    def close(self) -> None:
        self._ahead = None
        self._masks.close()

    def step(self, at_most: int) -> None:
        """Launch a step of all running answers, and read the one before; where none runs ahead, that very one. at_most:
        tokens that a row may be fed with the next one."""
        if not self._can_run_ahead:
            self._catch_up()
        launched: _Step | None = None
        with contained(self._step_failed):
            self._make_room()
        counts = self._counts()
        if any(counts):
            with contained(self._step_failed):
                launched = self._launched(counts, at_most)
        # What was launched behind a step that could not be read has nothing to follow.
        if self._read() and launched is not None and not all(answer.is_over for answer in launched.answers):
            self._ahead = launched
            if not self._can_run_ahead:
                self._read()

    @property
    def _can_run_ahead(self) -> bool:
        return self._runs_ahead and all(answer.sampler.is_free for answer in self._scheduler.running)

    def _catch_up(self) -> None:
        """Read what has been launched, and free the rows of what ends with it."""
        if self._ahead is not None:
            self._read()
            self._scheduler.drop_over()

    def _counts(self) -> list[int]:
        """Tokens that each row is fed: none where the one that is not read yet is the last that it may have."""
        late = self._ahead.places if self._ahead is not None else {}
        return [
            answer.num_fresh if id(answer) not in late else int(len(answer.tokens) + 1 < answer.request.max_tokens)
            for answer in self._scheduler.running
        ]

    def _launched(self, counts: list[int], at_most: int) -> _Step:
        answers, before = list(self._scheduler.running), self._ahead
        places = before.places if before is not None else {}
        late = [int(id(answer) in places) for answer in answers]
        newest = None
        if before is not None and any(late):
            newest = Newest(before.launched.tokens, [places.get(id(answer), 0) for answer in answers])
            self.num_ahead += 1
        samplers = [answer.sampler for answer in answers]
        with self._masks.preparing(samplers):
            logits = self._runner.decode(
                [ON_DEVICE if is_late else answer.tokens[-1] for answer, is_late in zip(answers, late, strict=True)],
                [answer.next_position + is_late for answer, is_late in zip(answers, late, strict=True)],
                self._caches.kv,
                [answer.tokens[-answer.num_fresh : -1] for answer in answers] if newest is None else (),
                newest,
                [row for row, count in enumerate(counts) if not count],
            )
        launched = self._logits_step.launch(logits, samplers, late)
        self._caches.kv.end_step()
        took_part = {id(answer): row for row, answer in enumerate(answers) if counts[row]}
        return _Step(answers, took_part, launched, at_most, self._meter.mark())

    def _step_failed(self, failure: Failure) -> None:
        """What the step before said is not lost: it is read first."""
        self._read()
        self._recovery.step_failed(failure)

    def _read(self) -> bool:
        """Read the step under way, if any; whether that was possible."""
        step, self._ahead = self._ahead, None
        if step is None:
            return True
        rows: list[Row] = []
        with contained(self._recovery.step_failed):
            rows = step.launched.rows()
            taking_part = [answer for answer in step.answers if id(answer) in step.places and not answer.is_over]
            self._meter.charge(((answer.request, 1.0) for answer in taking_part), step.mark)
        with woken_together():
            for answer, row in zip(step.answers, rows, strict=False):  # no rows where the step failed
                # Cancelled, or ended, or another answer to the same prompt has just failed.
                if id(answer) in step.places and not answer.is_over:
                    take(answer, row, self._recovery, step.at_most)
        return bool(rows)

    def _make_room(self) -> None:
        """Where the cache has no room for a step the youngest waits, with the tokens that it has: nobody fails."""
        scheduler = self._scheduler
        running = scheduler.running
        while len(running) + len(scheduler.prefilling) > 1:
            if self._caches.kv.make_room(self._counts()):
                return
            if self._ahead is not None:
                self._catch_up()
                continue
            log.info("no room for the next step of %d answers: the youngest goes on later", len(running))
            prompt = max(scheduler.prefilling, key=_came_at, default=None)
            answer = max(running, key=lambda answer: answer.request.came_at, default=None)
            if prompt is not None and (answer is None or _came_at(prompt) >= answer.request.came_at):
                self._forget(prompt)
                self._recovery.put_off(prompt)
            elif answer is not None:
                self._recovery.send_back(answer)


def _came_at(group: Group) -> float:
    return group.sequences[0].request.came_at


def take(answer: Answer, row: Row, recovery: Recovery, at_most: int = 1) -> None:
    """Choose an answer's next token, and those that follow from it; what fails in that is its request's own."""
    with contained(partial(recovery.token_failed, answer.request)):
        answer.take(row, at_most)
