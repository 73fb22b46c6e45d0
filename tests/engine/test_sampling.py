"""Choosing tokens: the reference's warpers, the shape of the distribution, and defaults."""

import random

import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from worker.contract import Sampling
from worker.engine.sampling import Choice, draw, pick, probabilities, resolve

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, 1.0])


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [0, 1, 3, 100])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 0.01])
def test_the_distribution_is_transformers(temperature: float, top_k: int, top_p: float) -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(3)) * 2
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    expected = torch.softmax(warpers(torch.zeros(1, 1, dtype=torch.long), logits[None]), -1)[0]
    torch.testing.assert_close(probabilities(logits, Choice(temperature, top_p, top_k, 0)), expected)


def test_draws_follow_the_distribution() -> None:
    """Chi-square over 20,000 draws, 5 degrees of freedom: 20.5 is passed by chance once in a thousand seeds."""
    chances = probabilities(LOGITS, Choice(1.0, 1.0, 0, 0))
    source = random.Random(5)
    counts = [0] * len(LOGITS)
    for _ in range(20_000):
        counts[draw(chances, source.random())] += 1
    expected = [float(chance) * 20_000 for chance in chances]
    assert sum((count - mean) ** 2 / mean for count, mean in zip(counts, expected, strict=True)) < 20.5


@pytest.mark.parametrize("uniform", [0.0, 0.5, 0.999999999, 1.0 - 2**-53])
def test_a_token_without_chance_is_never_drawn(uniform: float) -> None:
    assert draw(torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0]), uniform) in (1, 3)


def test_rows_are_chosen_each_by_its_own_rules() -> None:
    logits = torch.stack([LOGITS, -LOGITS, LOGITS])
    greedy, narrow = Choice(0, 1.0, 0, 0), Choice(5.0, 1.0, 1, 0)
    assert pick(logits, [greedy, greedy, narrow], [random.Random(0)] * 3) == [0, 4, 0]


def test_wishes_come_before_the_checkpoint_and_nothing_means_greedy() -> None:
    generation = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20}
    assert resolve(Sampling(seed=1), generation) == Choice(0.7, 0.8, 20, 1)
    assert resolve(Sampling(temperature=0, top_p=1, top_k=0, seed=1), generation) == Choice(0, 1, 0, 1)
    assert resolve(Sampling(seed=1), {}).is_greedy


def test_no_seed_is_a_fresh_one() -> None:
    assert len({resolve(Sampling(), {}).seed for _ in range(10)}) == 10
