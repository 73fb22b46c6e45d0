"""Continuous batching: some tokens of prompts, then one step of all running answers. Answers join and leave at every
turn."""

from functools import partial
from weakref import WeakKeyDictionary

from worker.engine.caches import EngineCaches
from worker.engine.loop import Pulse
from worker.engine.masks import MaskWorker
from worker.engine.prefill import Prefill
from worker.engine.prefix_cache import share_a_beginning
from worker.engine.recovery import Failure, Group, Recovery, contained
from worker.engine.sampling import Row, logits_step
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Sequence
from worker.models.runner import Runner

SMALLEST_CHUNK = 64


class ContinuousBatch:
    """See `loop.Batch`. prefill_chunk: tokens of prompts computed between two tokens of running answers."""

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler[Sequence],
        caches: EngineCaches,
        recovery: Recovery,
        prefill_chunk: int,
    ) -> None:
        self._runner, self._scheduler, self._caches, self._recovery = runner, scheduler, caches, recovery
        self._prefill_chunk = prefill_chunk
        self._masks = MaskWorker()
        self._prefills: WeakKeyDictionary[Group, Prefill] = WeakKeyDictionary()

    def turn(self, pulse: Pulse) -> None:  # noqa: ARG002  # a turn is short
        self._prefill_some()
        self._decode_all()

    def clear(self) -> None:
        self._caches.kv.clear()
        self._masks.close()

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
            together = self._alike(group, budget)
            budget -= self._prefill_together(together) if len(together) > 1 else self._prefill_one(group, budget)

    def _prefill_one(self, group: Group, budget: int) -> int:
        """Compute a chunk of a prompt; what it cost in tokens."""
        cost = 0
        with contained(partial(self._recovery.prefill_failed, group)):
            prefill = self._opened(group)
            cost = max(1, prefill.step(max(budget, min(SMALLEST_CHUNK, self._prefill_chunk))))
            group.num_left = prefill.left
            if not prefill.left:
                self._begin(group, prefill)
        return cost

    def _opened(self, group: Group) -> Prefill:
        """The group's prefill; at first how much of the prompt is known already is found out."""
        prefill = self._prefills.get(group)
        if prefill is None:
            request, tokens = group.sequences[0].request, group.sequences[0].tokens
            prefill = Prefill(request.prompt, tokens, self._runner, self._caches.features, self._caches.prefixes)
            request.num_cached, group.num_left = prefill.reused, prefill.left
            request.has_begun = True
            self._prefills[group] = prefill
        return prefill

    def _alike(self, first: Group, budget: int) -> list[Group]:
        """The group, and others whose short prompts can be computed in one forward with it.

        Those that begin like one of them come later: then they need only what follows.
        """
        together: list[Group] = []
        longest = 0
        for group in (first, *(other for other in self._scheduler.prefilling if other is not first)):
            length = group.num_prompt_tokens
            longest = max(longest, length)
            is_fitting = longest * (len(together) + 1) <= budget and longest <= 2 * length
            if not is_fitting or not self._may_join_others(group):
                break
            prompt = group.sequences[0].request.prompt
            if any(share_a_beginning(prompt, other.sequences[0].request.prompt) for other in together):
                continue
            if not self._is_plain(group):
                break
            together.append(group)
        return together

    def _may_join_others(self, group: Group) -> bool:
        can_pad = not self._caches.kv.has_states
        return can_pad and not (group.is_apart or group.must_be_alone or group.is_over)

    def _is_plain(self, group: Group) -> bool:
        """Whether it is a prompt without pictures of which nothing is computed yet. What fails in finding that out
        fails again, and is told, when the group's own turn comes."""
        opened: list[Prefill] = []
        with contained(_leave_for_later):
            opened.append(self._opened(group))
        return bool(opened) and opened[0].is_plain

    def _prefill_together(self, groups: list[Group]) -> int:
        """Compute whole prompts in one forward; what it cost in tokens."""
        cost = 0
        with contained(partial(self._recovery.joint_prefill_failed, groups)):
            logits, caches = self._runner.prefill_together([group.sequences[0].request.prompt for group in groups])
            cost = len(groups) * max(group.num_prompt_tokens for group in groups)
        if not cost:
            return 0
        for group, row, cache in zip(groups, logits, caches, strict=True):
            with contained(partial(self._recovery.prefill_failed, group)):
                prefill = self._prefills[group]
                prefill.finish(row, cache)
                self._begin(group, prefill)
        return cost

    def _begin(self, group: Group, prefill: Prefill) -> None:
        """First tokens from a whole prefill, and rows for the answers that go on."""
        assert prefill.logits is not None
        length = group.num_prompt_tokens + len(group.sequences[0].tokens)
        (row,) = logits_step(prefill.logits[None], [group.sequences[0].sampler])
        if row.is_finite:
            prefill.keep()
        else:  # what it was computed from may be kept already
            self._caches.release()
        at_most = self._tokens_at_once(len(self._scheduler.running) + len(group.sequences))
        for sequence in group.sequences:
            sequence.take(row, at_most)
            if not sequence.is_over:
                self._scheduler.begin(sequence, self._caches.kv.join(prefill.cache, length, group.num_positions))
        self._scheduler.prefilling.remove(group)

    def _decode_all(self) -> None:
        """One step for every running answer: a token, and those that follow from it."""
        running = self._scheduler.running
        rows: list[Row] = []
        if not running:
            return
        at_most = self._tokens_at_once(len(running))
        with contained(self._recovery.step_failed):
            samplers = [sequence.sampler for sequence in running]
            with self._masks.preparing(samplers):
                logits = self._runner.decode(
                    [sequence.tokens[-1] for sequence in running],
                    [sequence.next_position for sequence in running],
                    self._caches.kv,
                    [sequence.tokens[-sequence.num_fresh : -1] for sequence in running],
                )
            rows = logits_step(logits, samplers)
            self._caches.kv.end_step()
        for sequence, row in zip(running, rows, strict=False):  # no rows where the step failed
            if not sequence.is_over:  # cancelled, or another answer to the same prompt has just failed
                take(sequence, row, self._recovery, at_most)

    def _tokens_at_once(self, num_rows: int) -> int:
        """Tokens of one answer that a step may be fed: where several are certain, the others wait for them, no longer
        than for a chunk of a prompt."""
        return max(1, self._prefill_chunk // num_rows) if self._runner.takes_several else 1


def take(sequence: Sequence, row: Row, recovery: Recovery, at_most: int = 1) -> None:
    """Choose an answer's next token, and those that follow from it; what fails in that is its request's own."""
    with contained(partial(recovery.token_failed, sequence.request)):
        sequence.take(row, at_most)


def _leave_for_later(_: Failure) -> None:
    pass
