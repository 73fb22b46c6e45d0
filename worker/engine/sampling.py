"""From logits to tokens, the same for a row whatever else is in the batch.

The order is transformers': penalties and bias, then temperature, top-k, top-p, min-p. A row's numbers depend on the
row alone; what is done for all rows at once (penalties, the likeliest tokens, their way to the CPU) changes no value.
"""

import random
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from worker.core.sampling import Sampling
from worker.engine.guide import Guide

GREEDY_BELOW = 1e-5
MAX_SHORTLIST = 64


@dataclass(frozen=True)
class ResolvedSampling:
    """How one request's tokens are chosen, every default filled in. temperature 0 is greedy, top_k 0 means all.

    repetition_penalty: divides (multiplies, where negative) the logits of every token of prompt and answer.
    presence_penalty, frequency_penalty: subtracted once, and once for each time, for the answer's tokens.
    """

    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    @property
    def changes_logits(self) -> bool:
        """Whether a row's logits are not the model's own."""
        return (
            self.repetition_penalty != 1
            or self.presence_penalty != 0
            or self.frequency_penalty != 0
            or bool(self.logit_bias)
            or self.min_tokens > 0
        )


def resolve(sampling: Sampling, defaults: Mapping[str, Any]) -> ResolvedSampling:
    """The request's wishes over the model's sampling defaults. No seed: one from the operating system."""
    default_temperature = defaults.get("temperature", 1.0) if defaults.get("do_sample") else 0.0
    return ResolvedSampling(
        temperature=_given(sampling.temperature, default_temperature),
        top_p=_given(sampling.top_p, defaults.get("top_p") or 1.0),
        top_k=_given(sampling.top_k, defaults.get("top_k") or 0),
        seed=_given(sampling.seed, secrets.randbits(63)),
        min_p=_given(sampling.min_p, defaults.get("min_p") or 0.0),
        repetition_penalty=_given(sampling.repetition_penalty, defaults.get("repetition_penalty") or 1.0),
        presence_penalty=_given(sampling.presence_penalty, defaults.get("presence_penalty") or 0.0),
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=sampling.logit_bias,
        min_tokens=sampling.min_tokens,
    )


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value


@dataclass(frozen=True, eq=False)
class Ranked:
    """Some of a row's tokens, the likeliest first: logits (k,) float32 and ids (k,), both on the CPU."""

    logits: torch.Tensor
    ids: torch.Tensor


@dataclass(frozen=True, eq=False)
class Row:
    """One row of a step. logits: (vocabulary,) float32, the model's own. adjusted: after penalties, bias and bans, the
    same tensor where nothing changes them. greedy: the likeliest token after these. is_finite: whether the likeliest
    token's own logit is a number. shortlist: the MAX_SHORTLIST likeliest tokens, where some row of the step wants
    them."""

    logits: torch.Tensor
    adjusted: torch.Tensor
    greedy: int
    is_finite: bool
    shortlist: Ranked | None


def logits_step(logits: torch.Tensor, samplers: Sequence["Sampler"]) -> list[Row]:
    """The rows of a step, logits (rows, vocabulary): what changes logits is done for all rows at once, with one copy to
    the CPU. Drawing a token from a row is its sampler's."""
    logits = logits.float()
    adjusted = adjust(logits, samplers)
    best, greedy = logits.max(-1)
    if adjusted is not logits:
        greedy = adjusted.argmax(-1)
    heads = torch.stack([greedy.double(), best.isfinite().double()]).cpu()
    shortlists: list[Ranked | None] = [None] * len(samplers)
    if any(sampler.fits_shortlist for sampler in samplers):
        top = adjusted.topk(min(MAX_SHORTLIST, adjusted.shape[-1]), dim=-1)
        shortlists = [Ranked(*pair) for pair in zip(top.values.cpu(), top.indices.cpu(), strict=True)]
    return [
        Row(logits[index], adjusted[index], int(heads[0, index]), bool(heads[1, index]), shortlists[index])
        for index in range(len(samplers))
    ]


class Sampler:
    """Chooses one answer's tokens: its rules, its own source of chance, and what it has said so far.

    prompt: (tokens,) its ids, each once. ending: the tokens that would end the answer; `min_tokens` keeps them away.
    guide: what its tokens are held to.
    """

    def __init__(
        self,
        resolved: ResolvedSampling,
        prompt: torch.Tensor,
        ending: Iterable[int],
        index: int = 0,
        guide: Guide | None = None,
    ) -> None:
        self.resolved = resolved
        self.guide = guide or Guide()
        self.ending = sorted(ending)
        self.said: Counter[int] = Counter()
        self._prompt = prompt
        self._known_ids: torch.Tensor | None = None
        self._source = random.Random(f"{resolved.seed}/{index}" if index else resolved.seed)

    @property
    def fits_shortlist(self) -> bool:
        """Whether the step's likeliest tokens are all that it chooses among."""
        return not self.resolved.is_greedy and 0 < self.resolved.top_k <= MAX_SHORTLIST

    @property
    def must_go_on(self) -> bool:
        """Whether the answer may not end yet."""
        has_enough = self.resolved.min_tokens == 0 or self.said.total() >= self.resolved.min_tokens
        return not self.guide.may_end(self.ending, has_enough=has_enough)

    @property
    def changes_logits(self) -> bool:
        """Whether the row's logits are not the model's own."""
        return self.resolved.changes_logits or self.guide.has_grammar

    def choose(self, row: Row) -> int:
        """The next token."""
        token = self.guide.forced
        if token is None:
            token = row.greedy if self.resolved.is_greedy else self._drawn(row)
        return token

    def follow(self, token: int) -> None:
        """Take one of the guide's `following`. Those after it are drawn as if it had been drawn itself, so that a seed
        means the same wherever tokens are taken one by one. Raises GrammarTooComplex."""
        if self.guide.forced is None and not self.resolved.is_greedy:
            self._source.random()
        self.accept(token)

    def accept(self, token: int) -> None:
        """Take it as the next token. Raises GrammarTooComplex."""
        self.guide.accept(token)
        if self._known_ids is not None and token not in self.said:
            self._known_ids = torch.cat([self._known_ids, self._known_ids.new_tensor([token])])
        self.said[token] += 1

    def known_ids(self, vocabulary: int, device: torch.device) -> torch.Tensor:
        """(tokens,) ids of prompt and answer on the device, made once and then longer by what is new. Some models'
        picture tokens are beyond the vocabulary of their logits, and never said."""
        if self._known_ids is None:
            ids = torch.cat([self._prompt, torch.tensor(list(self.said), dtype=torch.long)])
            self._known_ids = ids[ids < vocabulary].to(device)
        return self._known_ids

    def _drawn(self, row: Row) -> int:
        is_short = row.shortlist is not None and self.fits_shortlist
        ranked = row.shortlist if is_short and row.shortlist is not None else _ranked(row.adjusted, self.resolved.top_k)
        return int(ranked.ids[draw(chances(ranked.logits, self.resolved), self._source.random())])


Place = tuple[int, Sequence[int]]  # a row, and tokens in it


def adjust(logits: torch.Tensor, samplers: Sequence[Sampler]) -> torch.Tensor:
    """(rows, vocabulary) logits after each row's penalties, bias and bans; the same tensor where there are none."""
    if not any(sampler.changes_logits for sampler in samplers):
        return logits
    adjusted = logits.clone()
    for processor in LOGITS_PROCESSORS:
        processor(adjusted, samplers)
    return adjusted


def _penalise_repetition(logits: torch.Tensor, samplers: Sequence[Sampler]) -> None:
    found = [(row, sampler) for row, sampler in enumerate(samplers) if sampler.resolved.repetition_penalty != 1]
    if not found:
        return
    device = logits.device
    known = [sampler.known_ids(logits.shape[-1], device) for _, sampler in found]
    counts = torch.tensor([len(ids) for ids in known], device=device)
    rows = torch.tensor([row for row, _ in found], device=device).repeat_interleave(counts)
    values = torch.tensor([sampler.resolved.repetition_penalty for _, sampler in found], dtype=logits.dtype)
    penalties = values.to(device).repeat_interleave(counts)
    at = rows, torch.cat(known)
    old = logits[at]
    logits[at] = torch.where(old < 0, old * penalties, old / penalties)


def _penalise_said(logits: torch.Tensor, samplers: Sequence[Sampler]) -> None:
    """Presence once, frequency for each time."""
    found = [
        (row, sampler)
        for row, sampler in enumerate(samplers)
        if sampler.resolved.presence_penalty or sampler.resolved.frequency_penalty
    ]
    places: list[Place] = [(row, list(sampler.said)) for row, sampler in found]
    if (at := _indices(places, logits.device)) is None:
        return
    presence = _spread([sampler.resolved.presence_penalty for _, sampler in found], places, logits)
    frequency = _spread([sampler.resolved.frequency_penalty for _, sampler in found], places, logits)
    times = torch.tensor([count for _, sampler in found for count in sampler.said.values()], dtype=logits.dtype)
    logits[at] -= presence + frequency * times.to(logits.device)


def _bias(logits: torch.Tensor, samplers: Sequence[Sampler]) -> None:
    places: list[Place] = [
        (row, [token for token, _ in sampler.resolved.logit_bias]) for row, sampler in enumerate(samplers)
    ]
    if (at := _indices(places, logits.device)) is None:
        return
    biases = [bias for sampler in samplers for _, bias in sampler.resolved.logit_bias]
    logits[at] += torch.tensor(biases, dtype=logits.dtype, device=logits.device)


def _ban_ending(logits: torch.Tensor, samplers: Sequence[Sampler]) -> None:
    places: list[Place] = [(row, sampler.ending) for row, sampler in enumerate(samplers) if sampler.must_go_on]
    if (at := _indices(places, logits.device)) is not None:
        logits[at] = -torch.inf


def _mask_by_grammar(logits: torch.Tensor, samplers: Sequence[Sampler]) -> None:
    """Tokens that an answer's grammar does not allow are taken out of its row."""
    held = [(row, grammar) for row, sampler in enumerate(samplers) if (grammar := sampler.guide.grammar) is not None]
    if not held:
        return
    masks = torch.from_numpy(np.stack([grammar.mask for _, grammar in held]).view(np.uint8))
    if logits.is_cuda:
        masks = masks.pin_memory().to(logits.device, non_blocking=True)
    bits = torch.arange(8, dtype=torch.uint8, device=logits.device)
    is_allowed = ((masks[..., None] >> bits) & 1).bool().flatten(1)[:, : logits.shape[-1]]
    if len(held) == len(samplers):
        logits.masked_fill_(~is_allowed, -torch.inf)
        return
    rows = torch.tensor([row for row, _ in held], device=logits.device)
    logits[rows] = logits[rows].masked_fill(~is_allowed, -torch.inf)


LogitsProcessor = Callable[[torch.Tensor, Sequence[Sampler]], None]
# Each changes (rows, vocabulary) logits in place, for all rows at once; in transformers' order.
LOGITS_PROCESSORS: tuple[LogitsProcessor, ...] = (
    *(_penalise_repetition, _penalise_said, _bias, _ban_ending),
    _mask_by_grammar,
)


def _indices(places: Sequence[Place], device: torch.device) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Rows and tokens as an index of logits; None for no token."""
    rows = [row for row, tokens in places for _ in tokens]
    if not rows:
        return None
    both = torch.tensor([rows, [token for _, tokens in places for token in tokens]], device=device)
    return both[0], both[1]


def _spread(values: Sequence[float], places: Sequence[Place], logits: torch.Tensor) -> torch.Tensor:
    """Each row's value for each of its tokens."""
    spread = [value for value, (_, tokens) in zip(values, places, strict=True) for _ in tokens]
    return torch.tensor(spread, dtype=logits.dtype, device=logits.device)


def _ranked(logits: torch.Tensor, top_k: int) -> Ranked:
    """All tokens in order, or the `top_k` likeliest."""
    top = logits.topk(min(top_k or len(logits), len(logits)))
    return Ranked(top.values.cpu(), top.indices.cpu())


def chances(logits: torch.Tensor, resolved: ResolvedSampling) -> torch.Tensor:
    """The distribution that is drawn from, over logits in falling order: temperature, top-k, top-p, min-p.

    The same rules as transformers' warpers: top-p keeps the smallest set of likeliest tokens that reaches p, min-p
    those with at least that share of the likeliest one's probability.
    """
    scaled = logits.double() / resolved.temperature
    if resolved.top_k:
        scaled[resolved.top_k :] = -torch.inf
    kept = torch.softmax(scaled, dim=-1)
    if resolved.top_p < 1:
        before = kept.cumsum(-1) - kept
        before[0] = -1  # the likeliest token stays, however small top_p is
        kept[before >= resolved.top_p] = 0
    if resolved.min_p > 0:
        kept[kept < resolved.min_p * kept[0]] = 0
    return kept / kept.sum()


def draw(chances: torch.Tensor, uniform: float) -> int:
    """The place whose share of [0, 1) holds `uniform`."""
    heaps = chances.double().cumsum(-1)
    found = int(torch.searchsorted(heaps, uniform * float(heaps[-1]), right=True))
    return min(found, int(chances.nonzero()[-1]))


def likeliest(row: Row, token: int, count: int) -> tuple[float, list[tuple[int, float]]]:
    """The natural log-probability of `token` in the model's own distribution, and the `count` likeliest tokens'."""
    logprobs = torch.log_softmax(row.logits, dim=-1)
    top = logprobs.topk(min(count, len(logprobs)))
    return float(logprobs[token]), list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
