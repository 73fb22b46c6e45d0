"""From logits to a token: row by row, whatever else is in the batch.

The order is transformers': penalties and bias, then temperature, top-k, top-p, min-p. A row's numbers depend on the
row alone; what is done for all rows at once (the likeliest tokens, their way to the CPU) changes no value.
"""

import random
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from worker.core.contract import Sampling

GREEDY_BELOW = 1e-5
MAX_SHORTLIST = 64


@dataclass(frozen=True)
class Choice:
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


def resolve(sampling: Sampling, defaults: Mapping[str, Any]) -> Choice:
    """The request's wishes over the checkpoint's generation config. No seed: one from the operating system."""
    default_temperature = defaults.get("temperature", 1.0) if defaults.get("do_sample") else 0.0
    return Choice(
        temperature=_given(sampling.temperature, default_temperature),
        top_p=_given(sampling.top_p, defaults.get("top_p") or 1.0),
        top_k=_given(sampling.top_k, defaults.get("top_k") or 0),
        seed=_given(sampling.seed, secrets.randbits(63)),
        min_p=_given(sampling.min_p, defaults.get("min_p") or 0.0),
        repetition_penalty=_given(sampling.repetition_penalty, defaults.get("repetition_penalty") or 1.0),
        presence_penalty=sampling.presence_penalty,
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
    """One row of a step as the model left it, with what was found out about all rows at once.

    greedy: its likeliest token. is_finite: whether that token's logit is a number. shortlist: its
    MAX_SHORTLIST likeliest tokens, where some row of the step wanted them.
    """

    logits: torch.Tensor
    greedy: int
    is_finite: bool
    shortlist: Ranked | None


def rows(logits: torch.Tensor, choices: Sequence[Choice]) -> list[Row]:
    """The rows of a step, logits (rows, vocabulary), with one copy to the CPU for all of them."""
    logits = logits.float()
    best, greedy = logits.max(-1)
    heads = torch.stack([greedy.double(), best.isfinite().double()]).cpu()
    shortlists: list[Ranked | None] = [None] * len(choices)
    if any(_fits_shortlist(choice) for choice in choices):
        top = logits.topk(min(MAX_SHORTLIST, logits.shape[-1]), dim=-1)
        shortlists = [Ranked(*pair) for pair in zip(top.values.cpu(), top.indices.cpu(), strict=True)]
    return [
        Row(logits[index], int(heads[0, index]), bool(heads[1, index]), shortlists[index])
        for index in range(len(choices))
    ]


def _fits_shortlist(choice: Choice) -> bool:
    return not choice.is_greedy and not choice.changes_logits and 0 < choice.top_k <= MAX_SHORTLIST


class Chooser:
    """Chooses one answer's tokens: its rules, its own source of chance, and what it has said so far.

    ending: the tokens that would end the answer; `min_tokens` keeps them away.
    """

    def __init__(self, choice: Choice, prompt: Iterable[int], ending: Iterable[int], index: int = 0) -> None:
        self.choice = choice
        self._source = random.Random(f"{choice.seed}/{index}" if index else choice.seed)
        self._ending = torch.tensor(sorted(ending), dtype=torch.long)
        self._prompt = frozenset(prompt if choice.repetition_penalty != 1 else ())
        self._said: Counter[int] = Counter()
        self._bias_ids = torch.tensor([token for token, _ in choice.logit_bias], dtype=torch.long)
        self._bias = torch.tensor([bias for _, bias in choice.logit_bias])

    def choose(self, row: Row) -> int:
        """The next token."""
        token = self._next(row)
        self._said[token] += 1
        return token

    def _next(self, row: Row) -> int:
        choice = self.choice
        if choice.changes_logits:
            logits = self.adjusted(row.logits)
            if choice.is_greedy:
                return int(logits.argmax())
            ranked = _ranked(logits, choice.top_k)
        elif choice.is_greedy:
            return row.greedy
        elif row.shortlist is not None and _fits_shortlist(choice):
            ranked = row.shortlist
        else:
            ranked = _ranked(row.logits, choice.top_k)
        return int(ranked.ids[draw(chances(ranked.logits, choice), self._source.random())])

    def adjusted(self, logits: torch.Tensor) -> torch.Tensor:
        """(vocabulary,) logits after penalties, bias and the ban on ending early."""
        choice, device, logits = self.choice, logits.device, logits.clone()
        said = torch.tensor(list(self._said), dtype=torch.long)
        if choice.repetition_penalty != 1:
            known = [token for token in sorted(self._prompt.union(self._said)) if token < len(logits)]
            ids = torch.tensor(known, dtype=torch.long, device=device)  # some models' picture tokens are never said
            old = logits[ids]
            logits[ids] = torch.where(old < 0, old * choice.repetition_penalty, old / choice.repetition_penalty)
        if len(said) and (choice.presence_penalty or choice.frequency_penalty):
            times = torch.tensor(list(self._said.values()), dtype=logits.dtype)
            logits[said.to(device)] -= (choice.presence_penalty + choice.frequency_penalty * times).to(device)
        if choice.logit_bias:
            logits[self._bias_ids.to(device)] += self._bias.to(device)
        if self._said.total() < choice.min_tokens:
            logits[self._ending.to(device)] = -torch.inf
        return logits


def _ranked(logits: torch.Tensor, top_k: int) -> Ranked:
    """All tokens in order, or the `top_k` likeliest."""
    top = logits.topk(min(top_k or len(logits), len(logits)))
    return Ranked(top.values.cpu(), top.indices.cpu())


def chances(logits: torch.Tensor, choice: Choice) -> torch.Tensor:
    """The distribution that is drawn from, over logits in falling order: temperature, top-k, top-p, min-p.

    The same rules as transformers' warpers: top-p keeps the smallest set of likeliest tokens that reaches p, min-p
    those with at least that share of the likeliest one's probability.
    """
    scaled = logits.double() / choice.temperature
    if choice.top_k:
        scaled[choice.top_k :] = -torch.inf
    kept = torch.softmax(scaled, dim=-1)
    if choice.top_p < 1:
        before = kept.cumsum(-1) - kept
        before[0] = -1  # the likeliest token stays, however small top_p is
        kept[before >= choice.top_p] = 0
    if choice.min_p > 0:
        kept[kept < choice.min_p * kept[0]] = 0
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
