"""From logits to tokens, for all rows of a step at once, on the device that has the logits: one copy comes back.

A token is drawn from the likeliest ones alone: their share of the whole is known exactly, so a draw that falls among
them is the draw from all, and one that does not is repeated on the whole row (`Sampler.choose`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from worker.engine.logits_processors import LOGITS_PROCESSORS, LogitsProcessor
from worker.engine.sampling import SHORTLIST, Row, Sampler, StepLogits, uniforms
from worker.models.transfer import downloading, uploaded

LONGLIST = 1024  # tokens that are looked at where some row may want any
TINY = 5e-324  # as top_p: the likeliest token alone


class LogitsStep:
    """The steps of rows that are decoded together. What does not change from step to step is kept until rows come or
    go."""

    def __init__(self) -> None:
        self._rows: _Rows | None = None

    def __call__(self, logits: Tensor, samplers: Sequence[Sampler]) -> list[Row]:
        """The rows of a step, logits (rows, vocabulary)."""
        return self.launch(logits, samplers).rows()

    def launch(self, logits: Tensor, samplers: Sequence[Sampler], late: Sequence[int] = ()) -> "Launched":
        """A step whose tokens are read later. late: of each row, how many tokens it has that its sampler was not told
        of."""
        logits = logits.float()
        if self._rows is None or not self._rows.are(samplers, logits):
            self._rows = _Rows(samplers, logits, () if self._rows is None else self._rows.processors)
        return self._rows.launch(logits, late or [0] * len(samplers))


class _Rows:
    """Of certain samplers."""

    def __init__(self, samplers: Sequence[Sampler], logits: Tensor, before: Sequence[LogitsProcessor]) -> None:
        self._samplers, self._device, self._vocabulary = tuple(samplers), logits.device, logits.shape[1]
        self.processors = [
            make(samplers, logits, before)
            for is_wanted, make in LOGITS_PROCESSORS
            if any(is_wanted(sampler) for sampler in samplers)
        ]
        # How many tokens of a row are looked at depends on the row alone: among more, equal ones may lie otherwise.
        self._draws = [
            _Draw(self._samplers, rows, logits, looked_at)
            for looked_at, is_short in ((SHORTLIST, True), (LONGLIST, False))
            if (rows := [row for row, sampler in enumerate(samplers) if _is_drawn(sampler, is_short=is_short)])
        ]
        self._named = [row for row, sampler in enumerate(samplers) if sampler.num_logprobs is not None]
        self._num_named = min(
            self._vocabulary, max((samplers[row].num_logprobs or 0 for row in self._named), default=0)
        )
        self._named_rows = uploaded(torch.tensor(self._named), self._device) if self._named else None

    def are(self, samplers: Sequence[Sampler], logits: Tensor) -> bool:
        return (
            len(samplers) == len(self._samplers)
            and self._vocabulary == logits.shape[1]
            and all(one is other for one, other in zip(samplers, self._samplers, strict=True))
        )

    def launch(self, logits: Tensor, late: Sequence[int]) -> "Launched":
        adjusted = logits
        if self.processors:
            adjusted = logits.clone()
            for processor in self.processors:
                processor(adjusted)
        best, tokens = logits.max(-1)
        if adjusted is not logits:
            tokens = adjusted.argmax(-1)
        is_known: Tensor | None = None
        for draw in self._draws:
            tokens, is_known = draw(adjusted, tokens, is_known, late)
        parts = [tokens, best] if is_known is None else [tokens, best, is_known]
        if self._named_rows is not None:
            logprobs = torch.log_softmax(logits[self._named_rows], -1)
            top = logprobs.topk(self._num_named)
            chosen = logprobs.gather(1, tokens[self._named_rows, None])
            parts += [chosen.flatten(), top.values.flatten(), top.indices.flatten()]
        read = downloading(torch.cat([part.double() for part in parts]))
        step = StepLogits(logits, adjusted)
        return Launched(tokens, lambda: self._read(step, read(), has_unknown=is_known is not None))

    def _read(self, step: StepLogits, numbers: npt.NDArray[np.float64], *, has_unknown: bool) -> list[Row]:
        """Rows of what was computed, which has come to the CPU in one piece."""
        count, named = len(self._samplers), len(self._named)
        tokens: list[int | None] = numbers[:count].astype(np.int64).tolist()
        is_finite = np.isfinite(numbers[count : 2 * count]).tolist()
        at = 2 * count
        if has_unknown:
            tokens = [token if known else None for token, known in zip(tokens, numbers[at : at + count], strict=True)]
            at += count
        tops: dict[int, tuple[float, list[tuple[int, float]]]] = {}
        if named:
            chosen, rest = np.split(numbers[at:], [named])
            values, ids = rest.reshape(2, named, self._num_named)
            for row, own, of_row, ids_of_row in zip(self._named, chosen, values, ids, strict=True):
                tops[row] = float(own), list(zip(ids_of_row.astype(int).tolist(), of_row.tolist(), strict=True))
        return [Row(step, row, tokens[row], is_finite[row], tops.get(row)) for row in range(count)]


def _is_drawn(sampler: Sampler, *, is_short: bool) -> bool:
    return not sampler.resolved.is_greedy and sampler.resolved.fits_shortlist == is_short


@dataclass(frozen=True, eq=False)
class Launched:
    """A step on its way. tokens: (rows,) int64 on the device; rows: waits for them."""

    tokens: Tensor
    rows: Callable[[], list[Row]]


class _Draw:
    """Temperature, top-k, top-p and min-p of rows that are not greedy, and a token of each. looked_at: tokens of a row,
    the likeliest."""

    def __init__(self, samplers: Sequence[Sampler], drawing: Sequence[int], logits: Tensor, looked_at: int) -> None:
        self._drawing, self._samplers = list(drawing), [samplers[row] for row in drawing]
        self._keys = np.array([sampler.key for sampler in self._samplers], np.uint64)
        self._places = uploaded(torch.tensor(drawing), logits.device)
        self._are_all = len(drawing) == len(samplers)
        vocabulary, rules = logits.shape[1], [sampler.resolved for sampler in self._samplers]
        self._count = min(vocabulary, looked_at)
        # Rows whose `top_k` or vocabulary is within what is looked at; those with a larger `top_k` are never known.
        fits = [0 < rule.top_k <= self._count or self._count == vocabulary for rule in rules]
        is_known = [fit or not rule.top_k for rule, fit in zip(rules, fits, strict=True)]
        numbers = [
            (rule.temperature, rule.top_k or vocabulary, max(rule.top_p, TINY), rule.min_p, fit, known)
            for rule, fit, known in zip(rules, fits, is_known, strict=True)
        ]
        columns = uploaded(torch.tensor(numbers, dtype=torch.float64), logits.device).T[:, :, None]
        self._temperature, top_k, self._top_p, self._min_p = columns[:4]
        self._fits, self._is_looked_at = columns[4:].bool()
        self._is_beyond = torch.arange(self._count, device=logits.device) >= top_k
        self._has_top_p, self._has_min_p = any(rule.top_p < 1 for rule in rules), any(rule.min_p for rule in rules)
        self._is_plain = (self._top_p >= 1) & (self._min_p <= 0)
        self._is_all_there = all(fits)

    def __call__(
        self, adjusted: Tensor, others: Tensor, is_known: Tensor | None, late: Sequence[int]
    ) -> tuple[Tensor, Tensor | None]:
        """(rows,) tokens, from those of other rows; and which are known, None for all."""
        said = [sampler.num_said + late[row] for row, sampler in zip(self._drawing, self._samplers, strict=True)]
        positions = np.array(said, np.uint64)
        uniform = uploaded(torch.from_numpy(uniforms(self._keys, positions)), adjusted.device)[:, None]
        part = adjusted if self._are_all else adjusted[self._places]
        top = part.topk(self._count, dim=-1)
        scaled = (top.values / self._temperature).masked_fill_(self._is_beyond, -torch.inf)
        probabilities = scaled.softmax(-1) if self._is_all_there else (scaled - self._total(part, scaled)).exp()
        cumulative = probabilities.cumsum(-1)
        is_out = self._left_out(probabilities, cumulative)
        # What is left are the first ones: their sum is the largest cumulative one among them.
        total = cumulative[:, -1:] if is_out is None else cumulative.masked_fill(is_out, 0).amax(-1, keepdim=True)
        is_found = None
        if not self._is_all_there:
            ends_here = self._fits if is_out is None else self._fits | is_out[:, -1:]
            total = torch.where(ends_here, total, 1.0)
            is_found = (ends_here | (self._is_plain & (cumulative[:, -1:] > uniform))) & self._is_looked_at
        at = (cumulative <= uniform * total).sum(-1, keepdim=True).clamp_(max=self._count - 1)
        drawn = top.indices.gather(1, at)[:, 0]
        if self._are_all:
            return drawn, None if is_found is None else is_found[:, 0]
        tokens = others.index_copy(0, self._places, drawn)
        if is_found is not None:
            known = torch.ones_like(tokens) if is_known is None else is_known
            is_known = known.index_copy(0, self._places, is_found[:, 0].long())
        return tokens, is_known

    def _total(self, part: Tensor, scaled: Tensor) -> Tensor:
        """The logarithm of the sum of all exponentials: of the `top_k` likeliest, or of the whole row."""
        whole = (part / self._temperature.float()).logsumexp(-1, keepdim=True).double()
        return torch.where(self._fits, scaled.logsumexp(-1, keepdim=True), whole)

    def _left_out(self, probabilities: Tensor, cumulative: Tensor) -> Tensor | None:
        """What top-p and min-p leave out; None where they leave nothing out."""
        is_out = None
        if self._has_top_p:
            is_out = cumulative - probabilities >= self._top_p
        if self._has_min_p:
            is_small = probabilities < self._min_p * probabilities[:, :1]
            is_out = is_small if is_out is None else is_out | is_small
        return is_out
