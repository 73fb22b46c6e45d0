"""What changes logits before a token is drawn: penalties, bias, endings that are not due, grammars. Each is made for
the rows that are decoded together, and then applied step by step to all of them at once, on the device.

What does not change from step to step is put on the device when rows come or go. The tokens that each answer has said
are counted there too: what a step costs does not grow with an answer's length.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from worker.engine.sampling import Sampler
from worker.models.transfer import uploaded


class LogitsProcessor(Protocol):
    """Changes (rows, vocabulary) logits in place, for the rows that it was made for."""

    def __call__(self, logits: Tensor) -> None: ...


class Penalties:
    """Repetition: divides (multiplies, where negative) the logits of every token of prompt and answer. Presence once
    and frequency for each time: subtracted for the answer's tokens. counts: (rows with penalties, vocabulary) int32 of
    the answer's tokens; known: the same, bool, of the prompt's, where some row has a repetition penalty."""

    def __init__(self, samplers: Sequence[Sampler], logits: Tensor, before: "Sequence[LogitsProcessor]" = ()) -> None:
        self._places = [place for place, sampler in enumerate(samplers) if sampler.resolved.has_penalties]
        self._samplers = [samplers[place] for place in self._places]
        self._has_all = len(self._places) == len(samplers)
        device, shape = logits.device, (len(self._places), logits.shape[1])
        rules = [sampler.resolved for sampler in self._samplers]
        self._repeats = any(rule.repetition_penalty != 1 for rule in rules)
        self._subtracts = any(rule.presence_penalty or rule.frequency_penalty for rule in rules)
        numbers = [(rule.repetition_penalty, rule.presence_penalty, rule.frequency_penalty) for rule in rules]
        self._numbers = uploaded(torch.tensor(numbers, dtype=logits.dtype), device).T[:, :, None]
        self._rows = uploaded(torch.tensor(self._places), device)
        self.counts = torch.zeros(shape, dtype=torch.int32, device=device)
        self.known = torch.zeros(shape if self._repeats else (0, 0), dtype=torch.bool, device=device)
        self._one = torch.ones(1, dtype=torch.int32, device=device)
        self._num_counted = [0] * len(self._samplers)
        old = next((each for each in before if isinstance(each, Penalties)), None)
        self._fill(old)

    def _fill(self, old: "Penalties | None") -> None:
        """Rows that were there before are copied; the others are counted from what their answers have said."""
        places = {} if old is None else {id(sampler): row for row, sampler in enumerate(old._samplers)}
        if old is not None:
            old.count_fresh()
            kept = [(row, places[id(each)]) for row, each in enumerate(self._samplers) if id(each) in places]
            if kept and (old._repeats or not self._repeats):
                to, fro = uploaded(torch.tensor(kept), self._rows.device).T
                self.counts[to] = old.counts[fro]
                if self._repeats:
                    self.known[to] = old.known[fro]
                for row, before in kept:
                    self._num_counted[row] = old._num_counted[before]
            else:
                places = {}
        fresh = [row for row, sampler in enumerate(self._samplers) if id(sampler) not in places]
        self._count_all(fresh)
        for row in fresh if self._repeats else ():
            vocabulary = self.counts.shape[1]  # some models' picture tokens are beyond it, and never said
            ids = self._samplers[row].prompt
            self.known[row].index_fill_(0, uploaded(torch.from_numpy(ids[ids < vocabulary]), self._rows.device), True)

    def _count_all(self, rows: Sequence[int]) -> None:
        """Count all that the answers of these rows have said."""
        said: list[tuple[int, int, int]] = []
        for row in rows:
            sampler = self._samplers[row]
            sampler.fresh.clear()
            self._num_counted[row] = sampler.num_said
            self.counts[row].zero_()
            said += [(row, token, count) for token, count in sampler.said.items()]
        if said:
            at, tokens, counts = uploaded(torch.tensor(said), self._rows.device).T
            self.counts.index_put_((at, tokens), counts.int())

    def count_fresh(self) -> None:
        """Count what was said since the last step. An answer that began again in between was counted elsewhere: all of
        it is counted anew."""
        stale = [
            row
            for row, sampler in enumerate(self._samplers)
            if self._num_counted[row] + len(sampler.fresh) != sampler.num_said
        ]
        if stale:
            self._count_all(stale)
        fresh = [(row, token) for row, sampler in enumerate(self._samplers) for token in sampler.fresh]
        if not fresh:
            return
        for row, sampler in enumerate(self._samplers):
            self._num_counted[row] += len(sampler.fresh)
            sampler.fresh.clear()
        rows, tokens = uploaded(torch.tensor(fresh), self.counts.device).T
        self.counts.index_put_((rows, tokens), self._one, accumulate=True)

    def __call__(self, logits: Tensor) -> None:
        self.count_fresh()
        part = logits if self._has_all else logits[self._rows]
        repetition, presence, frequency = self._numbers
        is_said = self.counts > 0
        if self._repeats:
            divided = torch.where(part < 0, part * repetition, part / repetition)
            part = torch.where(is_said | self.known, divided, part)
        if self._subtracts:
            part = part - (is_said * presence + self.counts * frequency)
        logits.copy_(part) if self._has_all else logits.index_copy_(0, self._rows, part)


class Bias:
    """Added to single tokens."""

    def __init__(self, samplers: Sequence[Sampler], logits: Tensor, _: Sequence[LogitsProcessor] = ()) -> None:
        biases = [(row, *bias) for row, sampler in enumerate(samplers) for bias in sampler.resolved.logit_bias]
        places = torch.tensor([(row, token) for row, token, _ in biases])
        self._rows, self._tokens = uploaded(places, logits.device).T
        self._values = uploaded(torch.tensor([value for *_, value in biases], dtype=logits.dtype), logits.device)

    def __call__(self, logits: Tensor) -> None:
        logits.index_put_((self._rows, self._tokens), self._values, accumulate=True)


class Endings:
    """Tokens that would end an answer which may not end yet are taken out of its row."""

    def __init__(self, samplers: Sequence[Sampler], *_: object) -> None:
        self._samplers = [(row, sampler) for row, sampler in enumerate(samplers) if sampler.may_be_kept_going]

    def __call__(self, logits: Tensor) -> None:
        places = [(row, token) for row, sampler in self._samplers if sampler.must_go_on for token in sampler.ending]
        if places:
            rows, tokens = uploaded(torch.tensor(places), logits.device).T
            logits.index_put_((rows, tokens), logits.new_full((1,), -torch.inf))


class GrammarMasks:
    """Tokens that an answer's grammar does not allow are taken out of its row."""

    def __init__(self, samplers: Sequence[Sampler], logits: Tensor, _: Sequence[LogitsProcessor] = ()) -> None:
        self._samplers = [(row, sampler) for row, sampler in enumerate(samplers) if sampler.guide.has_grammar]
        self._bits = torch.arange(8, dtype=torch.uint8, device=logits.device)

    def __call__(self, logits: Tensor) -> None:
        held = [(row, grammar) for row, sampler in self._samplers if (grammar := sampler.guide.grammar) is not None]
        if not held:
            return
        packed = torch.from_numpy(np.stack([grammar.mask for _, grammar in held]).view(np.uint8))
        masks = uploaded(packed, logits.device)
        is_allowed = ((masks[..., None] >> self._bits) & 1).bool().flatten(1)[:, : logits.shape[-1]]
        if len(held) == len(logits):
            logits.masked_fill_(is_allowed.logical_not(), -torch.inf)
            return
        rows = uploaded(torch.tensor([row for row, _ in held]), logits.device)
        logits.index_copy_(0, rows, logits[rows].masked_fill_(is_allowed.logical_not(), -torch.inf))


Make = Callable[[Sequence[Sampler], Tensor, Sequence[LogitsProcessor]], LogitsProcessor]
# In transformers' order: whether a row wants it, and how it is made for the rows of a step.
LOGITS_PROCESSORS: tuple[tuple[Callable[[Sampler], bool], Make], ...] = (
    (lambda sampler: sampler.resolved.has_penalties, Penalties),
    (lambda sampler: bool(sampler.resolved.logit_bias), Bias),
    (lambda sampler: sampler.may_be_kept_going, Endings),
    (lambda sampler: sampler.guide.has_grammar, GrammarMasks),
)
