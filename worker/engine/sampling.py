"""From logits to a token: pure functions, row by row, whatever else is in the batch."""

import random
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from worker.contract import Sampling

GREEDY_BELOW = 1e-5


@dataclass(frozen=True)
class Choice:
    """How one request's tokens are chosen, every default filled in. temperature 0 is greedy, top_k 0 means all."""

    temperature: float
    top_p: float
    top_k: int
    seed: int

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW


def resolve(sampling: Sampling, defaults: Mapping[str, Any]) -> Choice:
    """The request's wishes over the checkpoint's generation config. No seed: one from the operating system."""
    default_temperature = defaults.get("temperature", 1.0) if defaults.get("do_sample") else 0.0
    return Choice(
        temperature=_given(sampling.temperature, default_temperature),
        top_p=_given(sampling.top_p, defaults.get("top_p") or 1.0),
        top_k=_given(sampling.top_k, defaults.get("top_k") or 0),
        seed=_given(sampling.seed, secrets.randbits(63)),
    )


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value


def generator(choice: Choice) -> random.Random:
    """The request's own source of chance: one uniform number a token."""
    return random.Random(choice.seed)


def probabilities(logits: torch.Tensor, choice: Choice) -> torch.Tensor:
    """(vocabulary,) float32 logits to the distribution that is drawn from: temperature, then top-k, then top-p.

    The same rules as transformers' warpers: top-p keeps the smallest set of likeliest tokens that reaches p.
    """
    ordered, order = torch.sort(logits / choice.temperature, descending=True, stable=True)
    if choice.top_k:
        ordered[choice.top_k :] = -torch.inf
    chances = torch.softmax(ordered, dim=-1)
    if choice.top_p < 1:
        before = chances.cumsum(-1) - chances
        before[0] = -1  # the likeliest token stays, however small top_p is
        chances[before >= choice.top_p] = 0
        chances /= chances.sum()
    return torch.zeros_like(chances).scatter_(0, order, chances)


def draw(chances: torch.Tensor, uniform: float) -> int:
    """The token whose share of [0, 1) holds `uniform`."""
    heaps = chances.double().cumsum(-1)
    found = int(torch.searchsorted(heaps, uniform * float(heaps[-1]), right=True))
    return min(found, int(chances.nonzero()[-1]))


def pick(logits: torch.Tensor, choices: list[Choice], sources: list[random.Random]) -> list[int]:
    """A token for each row. logits: (rows, vocabulary)."""
    logits = logits.float()
    tokens: list[int] = logits.argmax(-1).tolist()
    for row, choice in enumerate(choices):
        if not choice.is_greedy:
            tokens[row] = draw(probabilities(logits[row].cpu(), choice), sources[row].random())
    return tokens
