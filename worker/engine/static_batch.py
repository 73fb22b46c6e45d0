"""The engine for models that only `generate` can run: batch after batch, each until its last answer has ended.

Choosing tokens, streams, stops, seeds, log-probabilities, cancels and deadlines are those of `Engine`; a request that
comes while a batch runs waits for its end.
"""

import logging
from collections.abc import Callable

import torch

from worker.core.errors import InternalError, OutOfMemory
from worker.core.settings import Settings
from worker.engine.engine import Engine
from worker.engine.sampling import Row, rows
from worker.engine.scheduler import Entry
from worker.engine.sequence import Sequence
from worker.models.hf.hf_generate import ForeignPrompt, ForeignRunner
from worker.models.loading import ServedModel

log = logging.getLogger(__name__)


class WindowEngine(Engine):
    """See `Engine`. One model, by `generate`."""

    def __init__(self, model: ServedModel, settings: Settings, on_death: Callable[[], None] = lambda: None) -> None:
        runner = model.runner
        assert isinstance(runner, ForeignRunner)
        super().__init__(model, settings, on_death, builder=runner.builder)
        self._generate_by = runner.generate

    def _prefill_some(self) -> None:
        """Prompts are computed with their batch."""
        self._admit()

    def _decode_all(self) -> None:
        """Answer a batch whole: the first, and those like it that fit beside it when all are as long as the longest."""
        left = [entry for entry in self._beginning if not entry.is_over]
        batch: list[Entry] = []
        for entry in left:
            is_like = not batch or bool(entry.request.prompt.seen) == bool(batch[0].request.prompt.seen)
            if is_like and (not batch or self._padded_bytes([*batch, entry]) <= self._admission.max_bytes):
                batch.append(entry)
        self._beginning = [entry for entry in left if entry not in batch]
        if batch:
            self._answer(batch)

    def _padded_bytes(self, entries: list[Entry]) -> int:
        """Keys and values of a batch: every row is as long as the longest prompt and the longest answer."""
        rows = sum(len(entry.sequences) for entry in entries)
        longest = max(len(entry.request.prompt.ids) for entry in entries)
        longest += max(entry.request.max_tokens for entry in entries)
        return rows * longest * self._runner.bytes_per_token

    def _answer(self, entries: list[Entry]) -> None:
        self._live = [sequence for entry in entries for sequence in entry.sequences]
        try:
            self._generate(self._live)
        except torch.AcceleratorError:
            raise
        except Exception as error:
            self._take_apart(entries, error)
        finally:
            self._live = []

    def _generate(self, sequences: list[Sequence]) -> None:
        prompts = [sequence.request.prompt for sequence in sequences]
        foreign = [prompt for prompt in prompts if isinstance(prompt, ForeignPrompt)]
        choices = [sequence.chooser.choice for sequence in sequences]

        def choose(logits: torch.Tensor) -> list[int | None]:
            found = rows(logits.float(), choices)
            return [self._choose(sequence, row) for sequence, row in zip(sequences, found, strict=True)]

        def is_over() -> list[bool]:
            self._receive()  # what comes meanwhile has its deadline, too
            self._end_overdue()
            return [sequence.is_over or self._is_closing for sequence in sequences]

        most = max(sequence.request.max_tokens for sequence in sequences)
        self._generate_by(foreign, most, choose, is_over, self._beat)
        for sequence in sequences:
            if not sequence.is_over and not self._is_closing:
                sequence.request.fail(InternalError(detail="the batch ended early"))

    def _beat(self) -> None:
        self._beats += 1

    def _choose(self, sequence: Sequence, row: Row) -> int | None:
        if sequence.is_over:
            return None
        self._take(sequence, row)
        return sequence.tokens[-1] if sequence.tokens else None

    def _take_apart(self, entries: list[Entry], error: Exception) -> None:
        """A batch failed, and it cannot be told by whom: who has said nothing yet is tried again alone, once."""
        is_memory = isinstance(error, torch.OutOfMemoryError)
        log.error("a batch of %d requests failed", len(entries), exc_info=None if is_memory else error)
        for entry in reversed(entries):
            if entry.is_over:
                continue
            if entry.must_be_alone or any(sequence.tokens for sequence in entry.sequences):
                entry.request.fail(OutOfMemory() if is_memory else InternalError())
            else:
                entry.must_be_alone = True
                self._admission.waiting.appendleft(entry)
