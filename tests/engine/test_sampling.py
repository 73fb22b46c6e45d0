"""Choosing tokens: transformers' processors and warpers, counted draws, defaults."""

import random
from collections import Counter
from dataclasses import replace

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

from worker.core.sampling import Sampling
from worker.engine.sampling import (
    ResolvedSampling,
    Row,
    Sampler,
    adjust,
    chances,
    draw,
    likeliest,
    logits_step,
    resolve,
)

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, 1.2])
DRAWS = 20_000
# Chi-square that is passed by chance once in a thousand seeds, by degrees of freedom.
CRITICAL = {1: 10.8, 2: 13.8, 3: 16.3, 4: 18.5, 5: 20.5}


def sampler(resolved: ResolvedSampling, said: tuple[int, ...] = ()) -> Sampler:
    """One that has said these tokens already."""
    made = Sampler(resolved, torch.empty(0, dtype=torch.long), ())
    made.said.update(said)
    return made


def only_row(logits: torch.Tensor, sampler: Sampler) -> Row:
    (row,) = logits_step(logits[None], [sampler])
    return row


def probabilities(logits: torch.Tensor, choice: ResolvedSampling) -> torch.Tensor:
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
    found = probabilities(logits, ResolvedSampling(temperature, top_p, top_k, 0, min_p))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("penalty", [0.5, 1.3, 5.0])
def test_the_repetition_penalty_is_transformers(penalty: float) -> None:
    prompt, said = [0, 4, 4], [2]
    biased = Sampler(
        ResolvedSampling(0, repetition_penalty=penalty, logit_bias=((2, 100.0),)), torch.tensor(prompt), ()
    )
    assert said_next(biased) == 2
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([prompt + said]), LOGITS[None])[0]
    expected[2] += 100
    torch.testing.assert_close(adjust(LOGITS[None], [biased])[0], expected)


def said_next(chooses: Sampler) -> int:
    token = chooses.choose(only_row(LOGITS, chooses))
    chooses.accept(token)
    return token


def counted(resolved: ResolvedSampling, said: tuple[int, ...] = ()) -> list[int]:
    """How often each token is drawn from the row after `said`."""
    drawing = sampler(replace(resolved, seed=5), said)
    row = only_row(LOGITS, drawing)
    counts = Counter(drawing.choose(row) for _ in range(DRAWS))
    return [counts[token] for token in range(len(LOGITS))]


def assert_follows(counts: list[int], expected: torch.Tensor) -> None:
    assert all(count == 0 for count, chance in zip(counts, expected, strict=True) if chance == 0)
    pairs = [(count, float(chance) * DRAWS) for count, chance in zip(counts, expected, strict=True) if chance > 0]
    statistic = sum((count - mean) ** 2 / mean for count, mean in pairs)
    assert statistic < CRITICAL[len(pairs) - 1]


@pytest.mark.parametrize("top_k", [0, 4])
def test_draws_follow_the_distribution(top_k: int) -> None:
    expected = torch.softmax(LOGITS.where((LOGITS < 0.5).logical_not() if top_k else LOGITS < 9, -torch.inf), -1)
    assert_follows(counted(ResolvedSampling(1.0, top_k=top_k)), expected)


def test_penalties_are_subtracted_once_and_for_each_time() -> None:
    choice = ResolvedSampling(1.0, presence_penalty=0.7, frequency_penalty=0.4)
    by_hand = LOGITS - torch.tensor([0.7 + 0.4 * 3, 0, 0.7 + 0.4, 0, 0, 0])
    assert_follows(counted(choice, said=(0, 0, 0, 2)), torch.softmax(by_hand, -1))


def test_a_bias_is_added() -> None:
    by_hand = LOGITS + torch.tensor([0, 0, 0, 3.0, 0, -2.0])
    assert_follows(counted(ResolvedSampling(1.0, logit_bias=((3, 3.0), (5, -2.0)))), torch.softmax(by_hand, -1))


def test_no_end_before_min_tokens() -> None:
    patient = Sampler(ResolvedSampling(0, min_tokens=2), torch.empty(0, dtype=torch.long), ending=(0, 5))
    assert [said_next(patient) for _ in range(3)] == [1, 1, 0]


@pytest.mark.parametrize("uniform", [0.0, 0.5, 0.999999999, 1.0 - 2**-53])
def test_a_token_without_chance_is_never_drawn(uniform: float) -> None:
    assert draw(torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0]), uniform) in (1, 3)


def test_rows_are_chosen_each_by_its_own_rules() -> None:
    samplers = [
        sampler(ResolvedSampling(0)),
        sampler(ResolvedSampling(0)),
        sampler(ResolvedSampling(5.0, top_k=1)),
        sampler(ResolvedSampling(0, logit_bias=((3, 50.0),))),
        sampler(ResolvedSampling(0, presence_penalty=2.0), said=(0,)),
    ]
    rows = logits_step(torch.stack([LOGITS, -LOGITS, LOGITS, LOGITS, LOGITS]), samplers)
    assert [chooses.choose(row) for chooses, row in zip(samplers, rows, strict=True)] == [0, 4, 0, 3, 5]


def test_what_is_done_for_all_rows_at_once_is_what_is_done_for_each_alone() -> None:
    logits = torch.randn(5, 80, generator=torch.Generator().manual_seed(2))
    resolved = [
        ResolvedSampling(0),
        ResolvedSampling(1.0, repetition_penalty=1.3, min_tokens=9),
        ResolvedSampling(1.0, presence_penalty=0.5, frequency_penalty=0.25),
        ResolvedSampling(1.0, logit_bias=((3, 2.0), (70, -1.0)), repetition_penalty=0.8),
        ResolvedSampling(1.0, min_tokens=1),
    ]
    samplers = [Sampler(one, torch.arange(index, 40), (7, 9)) for index, one in enumerate(resolved)]
    for index, one in enumerate(samplers):
        one.said.update([index, 50, 50])
    together = adjust(logits, samplers)
    for index, one in enumerate(samplers):
        assert torch.equal(together[index], adjust(logits[index : index + 1], [one])[0])
    assert torch.equal(together[0], logits[0])


@pytest.mark.parametrize(
    "choice",
    [ResolvedSampling(1.5, top_k=5, seed=3), ResolvedSampling(1.5, seed=3), ResolvedSampling(1, 0.9, 9, 3, 0.1)],
)
def test_a_row_is_chosen_alike_whatever_else_is_in_the_step(choice: ResolvedSampling) -> None:
    logits = torch.randn(40, 100, generator=torch.Generator().manual_seed(1))
    alone, crowded = sampler(choice), sampler(choice)
    before, behind = ResolvedSampling(2.0, top_k=3), ResolvedSampling(0.5, repetition_penalty=2.0)
    for row in logits:
        samplers = [sampler(ResolvedSampling(0)), sampler(before), crowded, sampler(behind)]
        step = logits_step(torch.stack([-row, row * 2, row, row]), samplers)
        assert crowded.choose(step[2]) == alone.choose(only_row(row, alone))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_row_without_numbers_is_seen_and_the_others_are_not_touched(bad: float) -> None:
    logits = torch.stack([LOGITS, LOGITS])
    logits[0, 3] = bad
    greedy = [sampler(ResolvedSampling(0)), sampler(ResolvedSampling(0))]
    assert [row.is_finite for row in logits_step(logits, greedy)] == [False, True]


def test_log_probabilities_are_the_model_s_own() -> None:
    row = only_row(LOGITS, sampler(ResolvedSampling(0.1, logit_bias=((4, 9.0),))))
    logprob, top = likeliest(row, 4, 3)
    own = torch.log_softmax(LOGITS, -1)
    assert logprob == pytest.approx(float(own[4]))
    assert top == [(token, pytest.approx(float(own[token]))) for token in (0, 5, 1)]


def test_wishes_come_before_the_checkpoint_and_nothing_means_greedy() -> None:
    generation = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    assert resolve(Sampling(seed=1), generation) == ResolvedSampling(0.7, 0.8, 20, 1, repetition_penalty=1.05)
    wished = Sampling(temperature=0, top_p=1, top_k=0, seed=1, repetition_penalty=1)
    assert resolve(wished, generation) == ResolvedSampling(0, 1, 0, 1)
    assert resolve(Sampling(seed=1), {}).is_greedy


def test_no_seed_is_a_fresh_one_from_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was frozen and started twice from one picture of its memory must not repeat itself."""
    random.seed(1)
    first = {resolve(Sampling(), {}).seed for _ in range(10)}
    random.seed(1)
    assert len(first | {resolve(Sampling(), {}).seed for _ in range(10)}) == 20


def test_the_answers_of_one_seed_differ_and_the_first_is_the_one_of_n_1() -> None:
    choice = ResolvedSampling(1.0, seed=4)
    row = only_row(torch.zeros(100), sampler(choice))
    said = [
        tuple(Sampler(choice, torch.empty(0, dtype=torch.long), (), index).choose(row) for _ in range(1))
        for index in (0, 1, 2, 0)
    ]
    assert said[0] == said[3]
    assert len(set(said)) > 1
