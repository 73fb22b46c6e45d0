"""Batch after batch by the library's `generate`, each until its last answer has ended: for models that nothing else can
run.

Choosing tokens, streams, stops, seeds, log-probabilities, cancels and deadlines are those of every engine; a request
that comes while a batch runs waits for its end.
"""

import time
from functools import partial

import torch

from worker.core.errors import InternalError
from worker.core.settings import Settings
from worker.engine.caches import EngineCaches
from worker.engine.decode_steps import take
from worker.engine.engine import Engine, parts_around
from worker.engine.logits_step import LogitsStep
from worker.engine.loop import Pulse
from worker.engine.metering import Meter
from worker.engine.recovery import Group, Recovery, contained
from worker.engine.sampling import Row
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Sequence
from worker.models.hf.hf_generate import GenerateModel, HfGenerateRunner
from worker.models.hf.hf_prompt import HfPrompt


def static_engine(model: GenerateModel, settings: Settings) -> Engine:
    """An engine for a model that only `generate` can run."""
    parts = parts_around(partial(StaticBatch, model.runner), model, model.runner, settings)
    return Engine(model, model.builder, settings, parts)


class StaticBatch:
    """See `loop.Batch`."""

    def __init__(
        self, runner: HfGenerateRunner, scheduler: Scheduler[Sequence], caches: EngineCaches, recovery: Recovery
    ) -> None:
        self._runner, self._scheduler, self._caches, self._recovery = runner, scheduler, caches, recovery
        self.meter = Meter()

    def turn(self, pulse: Pulse) -> None:
        """Answer a batch whole: the first, and those like it that fit beside it when all are as long as the longest."""
        scheduler = self._scheduler
        scheduler.admit()
        left = [group for group in scheduler.prefilling if not group.is_over]
        batch: list[Group] = []
        for group in left:
            is_like = not batch or _has_pictures(group) == _has_pictures(batch[0])
            if is_like and (not batch or self._padded_bytes([*batch, group]) <= scheduler.max_bytes):
                batch.append(group)
        scheduler.prefilling = [group for group in left if group not in batch]
        if batch:
            self._answer(batch, pulse)

    def rest(self) -> bool:
        return False

    def clear(self) -> None:
        self._caches.kv.clear()

    def _padded_bytes(self, groups: list[Group]) -> int:
        """Keys and values of a batch: every row is as long as the longest prompt and the longest answer."""
        rows = sum(len(group.sequences) for group in groups)
        longest = max(group.num_prompt_tokens for group in groups)
        longest += max(group.num_positions - group.num_prompt_tokens for group in groups)
        return rows * longest * self._runner.bytes_per_token

    def _answer(self, groups: list[Group], pulse: Pulse) -> None:
        sequences = [sequence for group in groups for sequence in group.sequences]
        self._scheduler.running = sequences
        try:
            with contained(partial(self._recovery.batch_failed, groups)):
                self._generate(sequences, pulse)
        finally:
            self._scheduler.running = []

    def _generate(self, sequences: list[Sequence], pulse: Pulse) -> None:
        prompts = [sequence.request.prompt for sequence in sequences]
        samplers = [sequence.sampler for sequence in sequences]
        for sequence in sequences:
            sequence.request.has_begun, sequence.request.began_at = True, time.monotonic()
        self.meter.begin()
        logits_step = LogitsStep()

        def choose(logits: torch.Tensor) -> list[int | None]:
            rows = logits_step(logits, samplers)
            in_step = [each for each in sequences if not each.is_over]
            # The first step computes the prompts, too.
            self.meter.charge((each.request, 1 if each.tokens else each.num_prompt_tokens) for each in in_step)
            return [self._next_token(sequence, row) for sequence, row in zip(sequences, rows, strict=True)]

        def is_over() -> list[bool]:
            pulse.keep_up()  # what comes meanwhile has its deadline, too
            return [sequence.is_over or pulse.is_closing for sequence in sequences]

        most = max(sequence.request.max_tokens for sequence in sequences)
        hf_prompts = [prompt for prompt in prompts if isinstance(prompt, HfPrompt)]
        self._runner.generate(hf_prompts, most, choose, is_over, pulse.beat)
        for sequence in sequences:
            if not sequence.is_over and not pulse.is_closing:
                sequence.request.fail(InternalError(detail="the batch ended early"))

    def _next_token(self, sequence: Sequence, row: Row) -> int | None:
        """None where the answer has ended."""
        if sequence.is_over:
            return None
        take(sequence, row, self._recovery)
        return sequence.tokens[-1] if sequence.tokens else None


def _has_pictures(group: Group) -> bool:
    return bool(group.sequences[0].request.prompt.media)
