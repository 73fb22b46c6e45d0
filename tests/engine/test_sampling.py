"""Choosing tokens: transformers' processors and warpers, counted draws, defaults."""

import random
from collections import Counter
from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from worker.core.contract import Sampling
from worker.engine.sampling import Choice, Chooser, chances, draw, likeliest, resolve, rows

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, 1.2])
DRAWS = 20_000
# Chi-square that is passed by chance once in a thousand seeds, by degrees of freedom.
CRITICAL = {1: 10.8, 2: 13.8, 3: 16.3, 4: 18.5, 5: 20.5}


def probabilities(logits: torch.Tensor, choice: Choice) -> torch.Tensor:
    """(vocabulary,) what is drawn from."""
    top = logits.topk(len(logits))
    return torch.zeros(len(logits)).scatter_(0, top.indices, chances(top.values, choice).float())


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [0, 1, 3, 100])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 0.01])
@pytest.mark.parametrize("min_p", [0.0, 0.1, 1.0])
def test_the_distribution_is_transformers(temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(3)) * 2
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    if min_p:
        warpers.append(MinPLogitsWarper(min_p))
    expected = torch.softmax(warpers(torch.zeros(1, 1, dtype=torch.long), logits[None]), -1)[0]
    found = probabilities(logits, Choice(temperature, top_p, top_k, 0, min_p))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("penalty", [0.5, 1.3, 5.0])
def test_the_repetition_penalty_is_transformers(penalty: float) -> None:
    prompt, said = [0, 4, 4], [2]
    chooser = Chooser(Choice(0, repetition_penalty=penalty, logit_bias=((2, 100.0),)), prompt, ())
    assert chooser.choose(rows(LOGITS[None], [chooser.choice])[0]) == 2
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([prompt + said]), LOGITS[None])[0]
    expected[2] += 100
    torch.testing.assert_close(chooser.adjusted(LOGITS), expected)


def counted(choice: Choice, said: tuple[int, ...] = (), seed: int = 5, **options: Any) -> list[int]:
    """How often each token is drawn after `said`, each time anew."""
    counts: Counter[int] = Counter()
    (row,) = rows(LOGITS[None], [choice])
    chooser = Chooser(choice, (), (), **options)
    source = random.Random(seed)
    for _ in range(DRAWS):
        chooser._said, chooser._source = Counter(said), source
        counts[chooser.choose(row)] += 1
    return [counts[token] for token in range(len(LOGITS))]


def assert_follows(counts: list[int], expected: torch.Tensor) -> None:
    assert all(count == 0 for count, chance in zip(counts, expected, strict=True) if chance == 0)
    pairs = [(count, float(chance) * DRAWS) for count, chance in zip(counts, expected, strict=True) if chance > 0]
    statistic = sum((count - mean) ** 2 / mean for count, mean in pairs)
    assert statistic < CRITICAL[len(pairs) - 1]


@pytest.mark.parametrize("top_k", [0, 4])
def test_draws_follow_the_distribution(top_k: int) -> None:
    expected = torch.softmax(LOGITS.where((LOGITS < 0.5).logical_not() if top_k else LOGITS < 9, -torch.inf), -1)
    assert_follows(counted(Choice(1.0, top_k=top_k)), expected)


def test_penalties_are_subtracted_once_and_for_each_time() -> None:
    choice = Choice(1.0, presence_penalty=0.7, frequency_penalty=0.4)
    by_hand = LOGITS - torch.tensor([0.7 + 0.4 * 3, 0, 0.7 + 0.4, 0, 0, 0])
    assert_follows(counted(choice, said=(0, 0, 0, 2)), torch.softmax(by_hand, -1))


def test_a_bias_is_added() -> None:
    by_hand = LOGITS + torch.tensor([0, 0, 0, 3.0, 0, -2.0])
    assert_follows(counted(Choice(1.0, logit_bias=((3, 3.0), (5, -2.0)))), torch.softmax(by_hand, -1))


def test_no_end_before_min_tokens() -> None:
    chooser = Chooser(Choice(0, min_tokens=2), (), ending=(0, 5))
    (row,) = rows(LOGITS[None], [chooser.choice])
    assert [chooser.choose(row) for _ in range(3)] == [1, 1, 0]


@pytest.mark.parametrize("uniform", [0.0, 0.5, 0.999999999, 1.0 - 2**-53])
def test_a_token_without_chance_is_never_drawn(uniform: float) -> None:
    assert draw(torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0]), uniform) in (1, 3)


def test_rows_are_chosen_each_by_its_own_rules() -> None:
    choices = [Choice(0), Choice(0), Choice(5.0, top_k=1), Choice(0, logit_bias=((3, 50.0),))]
    found = rows(torch.stack([LOGITS, -LOGITS, LOGITS, LOGITS]), choices)
    chosen = [Chooser(choice, (), ()).choose(row) for choice, row in zip(choices, found, strict=True)]
    assert chosen == [0, 4, 0, 3]


@pytest.mark.parametrize("choice", [Choice(1.5, top_k=5, seed=3), Choice(1.5, seed=3), Choice(1, 0.9, 9, 3, 0.1)])
def test_a_row_is_chosen_alike_whatever_else_is_in_the_step(choice: Choice) -> None:
    logits = torch.randn(40, 100, generator=torch.Generator().manual_seed(1))
    alone, crowded = Chooser(choice, (), ()), Chooser(choice, (), ())
    for row in logits:
        others = [Choice(0), Choice(2.0, top_k=3), choice, Choice(0.5, repetition_penalty=2.0)]
        step = rows(torch.stack([-row, row * 2, row, row]), others)
        assert crowded.choose(step[2]) == alone.choose(rows(row[None], [choice])[0])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_row_without_numbers_is_seen_and_the_others_are_not_touched(bad: float) -> None:
    logits = torch.stack([LOGITS, LOGITS])
    logits[0, 3] = bad
    assert [row.is_finite for row in rows(logits, [Choice(0)] * 2)] == [False, True]


def test_log_probabilities_are_the_model_s_own() -> None:
    (row,) = rows(LOGITS[None], [Choice(0.1, logit_bias=((4, 9.0),))])
    logprob, top = likeliest(row, 4, 3)
    own = torch.log_softmax(LOGITS, -1)
    assert logprob == pytest.approx(float(own[4]))
    assert top == [(token, pytest.approx(float(own[token]))) for token in (0, 5, 1)]


def test_wishes_come_before_the_checkpoint_and_nothing_means_greedy() -> None:
    generation = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    assert resolve(Sampling(seed=1), generation) == Choice(0.7, 0.8, 20, 1, repetition_penalty=1.05)
    wished = Sampling(temperature=0, top_p=1, top_k=0, seed=1, repetition_penalty=1)
    assert resolve(wished, generation) == Choice(0, 1, 0, 1)
    assert resolve(Sampling(seed=1), {}).is_greedy


def test_no_seed_is_a_fresh_one_from_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was frozen and started twice from one picture of its memory must not repeat itself."""
    random.seed(1)
    first = {resolve(Sampling(), {}).seed for _ in range(10)}
    random.seed(1)
    assert len(first | {resolve(Sampling(), {}).seed for _ in range(10)}) == 20


def test_the_answers_of_one_seed_differ_and_the_first_is_the_one_of_n_1() -> None:
    choice = Choice(1.0, seed=4)
    (row,) = rows(torch.zeros(1, 100), [choice])
    said = [tuple(Chooser(choice, (), (), index).choose(row) for _ in range(1)) for index in (0, 1, 2, 0)]
    assert said[0] == said[3]
    assert len(set(said)) > 1
