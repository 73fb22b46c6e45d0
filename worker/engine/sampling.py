"""How one answer's tokens are chosen: its rules, its own chance, and what it has said. `logits_step` applies them to
all rows of a step at once.

The order is transformers': penalties and bias, then temperature, top-k, top-p, min-p. What a row gives depends on the
row alone: its number for a token comes from the request's seed and from how many tokens the answer has.
"""

import hashlib
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from worker.core.sampling import Sampling
from worker.engine.guide import Guide

GREEDY_BELOW = 1e-5
SHORTLIST = 64  # tokens that a step looks at where every row wants one of its `top_k` likeliest, of no more than these
_STEP, _MIX, _MIX_AGAIN = (np.uint64(number) for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


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
    def fits_shortlist(self) -> bool:
        """Whether one of the likeliest tokens is chosen, of no more than SHORTLIST."""
        return 0 < self.top_k <= SHORTLIST

    @property
    def has_penalties(self) -> bool:
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


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
class StepLogits:
    """Of all rows of a step. logits: (rows, vocabulary) float32, the model's own. adjusted: after penalties, bias and
    bans, the same tensor where nothing changes them."""

    logits: torch.Tensor
    adjusted: torch.Tensor


@dataclass(slots=True, eq=False)
class Row:
    """One row of a step, its number being `index`. token: what its sampler's rules and chance choose; None where that
    takes more of the row than the step looked at. is_finite: whether the likeliest token's own logit is a number. top:
    the natural log-probability of `token` in the model's own distribution and the likeliest tokens with theirs, where
    they were asked for."""

    step: StepLogits
    index: int
    token: int | None
    is_finite: bool
    top: tuple[float, list[tuple[int, float]]] | None = None

    @property
    def logits(self) -> torch.Tensor:
        """(vocabulary,) float32, the model's own."""
        return self.step.logits[self.index]

    @property
    def adjusted(self) -> torch.Tensor:
        """(vocabulary,) after penalties, bias and bans."""
        return self.step.adjusted[self.index]


class Sampler:
    """Chooses one answer's tokens: its rules, its own source of chance, and what it has said so far.

    prompt: (tokens,) its ids, each once. ending: the tokens that would end the answer; `min_tokens` keeps them away.
    guide: what its tokens are held to. num_logprobs: how many likeliest tokens are named with each, None for none.
    key: its chance is a function of this and of how many tokens there are. fresh: tokens said since `logits_step` has
    counted them.
    """

    def __init__(
        self,
        resolved: ResolvedSampling,
        prompt: torch.Tensor,
        ending: Iterable[int],
        index: int = 0,
        guide: Guide | None = None,
        num_logprobs: int | None = None,
    ) -> None:
        self.resolved = resolved
        self.guide = guide or Guide()
        self.ending = sorted(ending)
        self.prompt = prompt.numpy()
        self.num_logprobs = num_logprobs
        self.said: Counter[int] = Counter()
        self.num_said = 0
        self.fresh: list[int] = []
        digest = hashlib.blake2b(f"{resolved.seed}/{index}".encode(), digest_size=8).digest()
        self.key = int.from_bytes(digest, "little")

    @property
    def is_free(self) -> bool:
        """Whether a token can be drawn before the last one is known, but for the logits: by its number alone, from the
        tokens that a step looks at."""
        is_drawn = self.resolved.is_greedy or self.resolved.fits_shortlist
        return is_drawn and self.guide.is_free and not self.resolved.has_penalties and not self.may_be_kept_going

    @property
    def may_be_kept_going(self) -> bool:
        """Whether there can be a time when the answer may not end."""
        return bool(self.ending) and (self.resolved.min_tokens > 0 or self.guide.has_grammar)

    @property
    def must_go_on(self) -> bool:
        """Whether the answer may not end yet."""
        has_enough = self.num_said >= self.resolved.min_tokens
        return not self.guide.may_end(self.ending, has_enough=has_enough)

    def choose(self, row: Row) -> int:
        """The next token."""
        if self.guide.forced is not None:
            return self.guide.forced
        return self._drawn(row) if row.token is None else row.token

    def accept(self, token: int) -> None:
        """Take it as the next token. Raises GrammarTooComplex."""
        self.guide.accept(token)
        self.num_said += 1
        if self.resolved.has_penalties:
            self.said[token] += 1
            self.fresh.append(token)

    def _drawn(self, row: Row) -> int:
        """From the whole row."""
        top = row.adjusted.topk(min(self.resolved.top_k or len(row.adjusted), len(row.adjusted)))
        (uniform,) = uniforms(np.array([self.key], np.uint64), np.array([self.num_said], np.uint64))
        return int(top.indices[draw(chances(top.values.cpu(), self.resolved), float(uniform))])


def uniforms(keys: npt.NDArray[np.uint64], positions: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """A number from [0, 1) for each answer and position in it, whatever was drawn before: SplitMix64 (Steele, Lea and
    Flood, 2014)."""
    with np.errstate(over="ignore"):
        mixed = keys + (positions + np.uint64(1)) * _STEP
        mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIX
        mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX_AGAIN
        mixed ^= mixed >> np.uint64(31)
    numbers: npt.NDArray[np.float64] = (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers


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
    if row.top is not None and token == row.token:
        return row.top[0], row.top[1][:count]
    logprobs = torch.log_softmax(row.logits, dim=-1)
    top = logprobs.topk(min(count, len(logprobs)))
    return float(logprobs[token]), list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
