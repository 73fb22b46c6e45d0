"""Continuous batching: some tokens of prompts, then one step of all running answers. Answers join and leave at every
turn."""

import time
from functools import partial
from weakref import WeakKeyDictionary

from worker.engine.caches import EngineCaches
from worker.engine.decode_steps import DecodeSteps
from worker.engine.event_bridge import woken_together
from worker.engine.logits_step import LogitsStep
from worker.engine.loop import Pulse
from worker.engine.metering import Meter
from worker.engine.prefill import Pass, Prefill, advance
from worker.engine.prefix_cache import SHORTEST_PREFIX
from worker.engine.recovery import Failure, Group, Recovery, contained
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Sequence
from worker.models.runner import Runner
from worker.models.transfer import marker_for
from worker.prompt.types import BLOCK

SMALLEST_CHUNK = 64
# Tokens of several prompts in one forward on a CPU: with more, products are no faster, and who comes first would wait.
PACKED_ON_CPU = 256


class ContinuousBatch:
    """See `loop.Batch`. prefill_chunk: tokens of prompts computed between two tokens of running answers; runs_ahead:
    see `DecodeSteps`."""

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler[Sequence],
        caches: EngineCaches,
        recovery: Recovery,
        prefill_chunk: int,
        runs_ahead: bool | None = None,
    ) -> None:
        self._runner, self._scheduler, self._caches, self._recovery = runner, scheduler, caches, recovery
        self._prefill_chunk = prefill_chunk
        self.meter = Meter(marker=marker_for(caches.device))
        self.steps = DecodeSteps(runner, scheduler, caches, recovery, self.meter, self._forget, runs_ahead=runs_ahead)
        self._prefills: WeakKeyDictionary[Group, Prefill] = WeakKeyDictionary()
        self._has_answered = False

    def turn(self, pulse: Pulse) -> None:  # noqa: ARG002  # a turn is short
        running = list(self._scheduler.running)
        if not running and not self._scheduler.prefilling:
            self.meter.begin()
        self._prefill_some()
        self.steps.step(self._tokens_at_once(len(self._scheduler.running)))
        if not self._has_answered and any(sequence.is_finished for sequence in running):
            self._has_answered = True
            self._runner.begin_tuning()

    def rest(self) -> bool:
        return self._runner.tidy()

    def clear(self) -> None:
        self._caches.kv.clear()
        self.steps.close()
        self._runner.close()

    def _prefill_some(self) -> None:
        """Compute prompts for at most `prefill_chunk` tokens, and a picture's worth where it is larger."""
        scheduler = self._scheduler
        scheduler.admit()
        self._caches.kv.expect(scheduler.expected_positions())
        budget = self._prefill_chunk
        while scheduler.prefilling and budget > 0:
            group = scheduler.next_to_prefill()
            if group.is_over:
                scheduler.prefilling.remove(group)
                continue
            budget -= self._prefill(group, max(budget, min(SMALLEST_CHUNK, self._prefill_chunk)))

    def _prefill(self, first: Group, budget: int) -> int:
        """Compute a chunk of a prompt, and others with it as far as the budget has tokens for all that is left of them;
        what it cost in tokens."""
        together: list[Group] = []
        passed: list[Pass] = []
        with contained(partial(self._recovery.prefill_failed, first)):
            self._opened(first)
            together.append(first)
        if not together:
            return 0
        together += self._joining(first, budget)
        prefills = [self._prefills[group] for group in together]
        with contained(partial(self._prefill_failed, together)):
            done = advance(self._runner, prefills, self._caches.features, budget)
            self._charge(together, done)
            passed.append(done)
        if not passed:
            return 0
        [done] = passed
        with woken_together():
            for group, prefill in zip(together, prefills, strict=True):
                group.num_left = prefill.left
                if not prefill.left:
                    with contained(partial(self._recovery.prefill_failed, group)):
                        self._begin(group, prefill)
        return done.cost

    def _charge(self, groups: list[Group], done: Pass) -> None:
        requests = [group.sequences[0].request for group in groups]
        self.meter.launched(zip(requests, done.tokens, strict=True), is_vision=done.is_vision)

    def _prefill_failed(self, groups: list[Group], failure: Failure) -> None:
        """Some of their layers may be further than others: what is tried again begins anew."""
        if len(groups) == 1:
            self._recovery.prefill_failed(groups[0], failure)
            return
        for group in groups:
            del self._prefills[group]
        self._recovery.joint_prefill_failed(groups, failure)

    def _opened(self, group: Group) -> Prefill:
        """The group's prefill; at first how much of the prompt is known already is found out."""
        prefill = self._prefills.get(group)
        if prefill is None:
            request, tokens = group.sequences[0].request, group.sequences[0].tokens
            prefill = Prefill(request.prompt, tokens, group.num_positions, self._caches)
            group.num_left = prefill.left
            if not request.has_begun:  # what it finds of its own when it begins again was computed for it
                request.num_cached, request.cached_media = prefill.reused, prefill.cached
                request.began_at = time.monotonic()
            request.has_begun = True
            self._prefills[group] = prefill
        return prefill

    def _joining(self, first: Group, budget: int) -> list[Group]:
        """Others whose prompts can be computed in one forward with the group's.

        Those that begin like one of them come later: then they need only what follows.
        """
        joining: list[Group] = []
        if not self._may_join_others(first):
            return joining
        most = budget if self._caches.device.type == "cuda" else min(budget, PACKED_ON_CPU)
        room = most - self._prefills[first].left
        for group in (other for other in self._scheduler.prefilling if other is not first):
            if room <= 0:
                break
            if not self._may_join_others(group) or self._waits_for_one(group, [first, *joining]):
                continue
            left = self._left(group)
            if 0 < left <= room:
                joining.append(group)
                room -= left
        return joining

    def _forget(self, group: Group) -> None:
        self._prefills.pop(group, None)

    def _may_join_others(self, group: Group) -> bool:
        return not (group.is_apart or group.must_be_alone or group.is_over)

    def _waits_for_one(self, group: Group, others: list[Group]) -> bool:
        """Whether the prompt begins like one of the others' for longer than what is known of it."""
        prefixes = self._caches.prefixes
        if prefixes is None or group in self._prefills:
            return False
        prompt = group.sequences[0].request.prompt
        shared = max(prompt.shared_blocks(other.sequences[0].request.prompt) * BLOCK for other in others)
        return shared >= SHORTEST_PREFIX and shared > prefixes.known(prompt)

    def _left(self, group: Group) -> int:
        """Tokens of a prompt that are still to be computed. What fails in finding that out fails again, and is told,
        when the group's own turn comes: 0."""
        left: list[int] = []
        with contained(_leave_for_later):
            left.append(self._opened(group).left)
        return sum(left)

    def _begin(self, group: Group, prefill: Prefill) -> None:
        """First tokens from a whole prefill, and rows for the answers that go on."""
        assert prefill.logits is not None
        length = group.num_prompt_tokens + len(group.sequences[0].tokens)
        samplers = [sequence.sampler for sequence in group.sequences]
        rows = LogitsStep()(prefill.logits.expand(len(samplers), -1), samplers)
        self.meter.charge([(group.sequences[0].request, 1.0)])
        if rows[0].is_finite:
            prefill.keep()
        else:  # what it was computed from may be kept already
            self._caches.release()
        at_most = self._tokens_at_once(len(self._scheduler.running) + len(group.sequences))
        for sequence, row in zip(group.sequences, rows, strict=True):
            sequence.take(row, at_most)
            if not sequence.is_over:
                self._scheduler.begin(sequence, self._caches.kv.join(prefill.cache, length, group.num_positions))
        self._scheduler.prefilling.remove(group)

    def _tokens_at_once(self, num_rows: int) -> int:
        """Tokens of one answer that a step may be fed: where several are certain, the others wait for them, no longer
        than for a chunk of a prompt."""
        return max(1, self._prefill_chunk // max(1, num_rows)) if self._runner.takes_several else 1


def _leave_for_later(_: Failure) -> None:
    pass
