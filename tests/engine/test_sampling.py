"""Choosing tokens: transformers' processors and warpers, counted draws, defaults."""

import random
from collections import Counter
from dataclasses import replace

import numpy as np
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
from worker.engine import logits_step, sampling
from worker.engine.logits_step import LogitsStep
from worker.engine.sampling import (
    ResolvedSampling,
    Row,
    Sampler,
    chances,
    draw,
    likeliest,
    resolve,
    uniforms,
)

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, 1.2])
DRAWS = 20_000
# Chi-square that is passed by chance once in a thousand seeds, by degrees of freedom.
CRITICAL = {1: 10.8, 2: 13.8, 3: 16.3, 4: 18.5, 5: 20.5}


def sampler(resolved: ResolvedSampling, said: tuple[int, ...] = ()) -> Sampler:
    """One that has said these tokens already."""
    made = Sampler(resolved, torch.empty(0, dtype=torch.long), ())
    for token in said:
        made.accept(token)
    return made


def only_row(logits: torch.Tensor, sampler: Sampler) -> Row:
    (row,) = LogitsStep()(logits[None], [sampler])
    return row


def adjusted(logits: torch.Tensor, samplers: list[Sampler]) -> torch.Tensor:
    """(rows, vocabulary) after penalties, bias and bans."""
    return torch.stack([row.adjusted for row in LogitsStep()(logits, samplers)])


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
    torch.testing.assert_close(adjusted(LOGITS[None], [biased])[0], expected)


def said_next(chooses: Sampler) -> int:
    token = chooses.choose(only_row(LOGITS, chooses))
    chooses.accept(token)
    return token


def counted(resolved: ResolvedSampling, said: tuple[int, ...] = (), logits: torch.Tensor = LOGITS) -> list[int]:
    """How often each token is drawn from the row after `said`: all draws are rows of one step, each of its own seed."""
    drawing = [sampler(replace(resolved, seed=seed), said) for seed in range(DRAWS)]
    rows = LogitsStep()(logits.expand(DRAWS, -1), drawing)
    assert all(row.token is not None for row in rows)
    counts = Counter(chooses.choose(row) for chooses, row in zip(drawing, rows, strict=True))
    return [counts[token] for token in range(len(logits))]


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
    rows = LogitsStep()(torch.stack([LOGITS, -LOGITS, LOGITS, LOGITS, LOGITS]), samplers)
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
        for token in (index, 50, 50)[: 3 if one.resolved.min_tokens != 1 else 0]:
            one.accept(token)
    together = adjusted(logits, samplers)
    for index, one in enumerate(samplers):
        assert torch.equal(together[index], adjusted(logits[index : index + 1], [one])[0])
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
        step = LogitsStep()(torch.stack([-row, row * 2, row, row]), samplers)
        chosen = crowded.choose(step[2])
        assert chosen == alone.choose(only_row(row, alone))
        crowded.accept(chosen)
        alone.accept(chosen)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_row_without_numbers_is_seen_and_the_others_are_not_touched(bad: float) -> None:
    logits = torch.stack([LOGITS, LOGITS])
    logits[0, 3] = bad
    greedy = [sampler(ResolvedSampling(0)), sampler(ResolvedSampling(0))]
    assert [row.is_finite for row in LogitsStep()(logits, greedy)] == [False, True]


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


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("top_k", [0, 3, 20, 200])
@pytest.mark.parametrize("top_p", [1.0, 0.8])
@pytest.mark.parametrize("min_p", [0.0, 0.2])
@pytest.mark.parametrize("looked_at", [8, 1024])
def test_tokens_are_drawn_from_what_transformers_warpers_leave(
    temperature: float, top_k: int, top_p: float, min_p: float, looked_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rules at once, for 4,000 rows of a step, and where a step looks at the eight likeliest tokens only: those
    that fall elsewhere are drawn from the whole row."""
    for module in (logits_step, sampling):
        monkeypatch.setattr(module, "SHORTLIST", min(64, looked_at))
    monkeypatch.setattr(logits_step, "LONGLIST", looked_at)
    logits = torch.randn(300, generator=torch.Generator().manual_seed(5)) * 1.5
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    warpers += [MinPLogitsWarper(min_p)] if min_p else []
    expected = torch.softmax(warpers(torch.zeros(1, 1, dtype=torch.long), logits[None]), -1)[0].double()
    rules = ResolvedSampling(temperature, top_p, top_k, 0, min_p)
    drawing = [sampler(replace(rules, seed=seed)) for seed in range(4_000)]
    rows = LogitsStep()(logits.expand(len(drawing), -1), drawing)
    found = torch.tensor([chooses.choose(row) for chooses, row in zip(drawing, rows, strict=True)])
    counts = found.bincount(minlength=300).double()
    assert counts[expected == 0].sum() == 0
    # Where each uniform number falls among the shares, which both know: the same token for all but ties of rounding.
    order = logits.argsort(descending=True)
    keys, zeros = np.array([one.key for one in drawing], np.uint64), np.zeros(len(drawing), np.uint64)
    heaps = expected[order].cumsum(0)
    wanted = order[torch.searchsorted(heaps, torch.from_numpy(uniforms(keys, zeros)) * heaps[-1], right=True)]
    assert (wanted == found).float().mean() > 0.999
    has_more = int((expected > 0).sum()) > 8 or top_k > 8
    assert any(row.token is None for row in rows) == (looked_at == 8 and has_more)


def test_random_numbers_are_even_and_none_is_like_its_neighbours() -> None:
    """By Kolmogorov and Smirnov's bound at one in a thousand, along the positions of one answer and over the seeds of
    many, and by the correlation of each with the next."""
    count = 50_000
    keys = np.array([sampler(ResolvedSampling(1.0, seed=seed)).key for seed in range(count)], np.uint64)
    for numbers in (uniforms(keys[:1], np.arange(count, dtype=np.uint64)), uniforms(keys, np.zeros(count, np.uint64))):
        assert numbers.min() >= 0 and numbers.max() < 1
        steps = np.arange(1, count + 1) / count
        assert np.abs(np.sort(numbers) - steps).max() < 1.95 / count**0.5
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 3.3 / count**0.5


def test_what_answers_have_said_is_counted_while_rows_come_and_go() -> None:
    """Against transformers' own processor and by hand, for a hundred steps in which rows join, leave and change
    places."""
    rng, step = random.Random(2), LogitsStep()
    rules = [
        ResolvedSampling(0, repetition_penalty=1.3),
        ResolvedSampling(0, presence_penalty=0.5, frequency_penalty=0.25),
        ResolvedSampling(0),
        ResolvedSampling(0, repetition_penalty=0.8, presence_penalty=-0.5),
    ]
    rows: list[tuple[Sampler, list[int], list[int]]] = []
    for turn in range(100):
        if rows and rng.random() < 0.2:
            rows.pop(rng.randrange(len(rows)))
        if rng.random() < 0.3 or not rows:
            prompt = [rng.randrange(90) for _ in range(rng.randrange(6))]
            made = Sampler(rng.choice(rules), torch.tensor(sorted(set(prompt)), dtype=torch.long), ())
            rows.insert(rng.randrange(len(rows) + 1), (made, prompt, []))
        logits = torch.randn(len(rows), 80, generator=torch.Generator().manual_seed(turn))
        found = step(logits, [made for made, *_ in rows])
        for (made, prompt, said), own, row in zip(rows, logits, found, strict=True):
            rule, ids = made.resolved, [token for token in prompt + said if token < 80]
            expected = own[None]
            if ids:
                expected = RepetitionPenaltyLogitsProcessor(rule.repetition_penalty)(torch.tensor([ids]), expected)
            counts = torch.tensor(said, dtype=torch.long).bincount(minlength=80)
            expected = expected[0] - (counts > 0) * rule.presence_penalty - counts * rule.frequency_penalty
            torch.testing.assert_close(row.adjusted, expected)
            assert row.token == int(row.adjusted.argmax())
            said.append(rng.randrange(80))
            made.accept(said[-1])


def test_what_an_answer_said_is_counted_after_it_began_again() -> None:
    """Its first token then is drawn by a step of its own, which counts for itself."""
    step, rule = LogitsStep(), ResolvedSampling(0, frequency_penalty=1.0)
    made = sampler(rule)
    step(LOGITS[None], [made])
    for _ in range(3):
        made.accept(3)
    assert only_row(LOGITS, made).adjusted[3] == LOGITS[3] - 3
    made.accept(3)
    assert step(LOGITS[None], [made])[0].adjusted[3] == LOGITS[3] - 4
    made.accept(3)
    assert step(LOGITS[None], [made])[0].adjusted[3] == LOGITS[3] - 5


def test_equal_logits_are_drawn_alike_beside_rows_of_other_rules() -> None:
    """In 16 bits many logits are equal: which of them are looked at, and in which order, is the row's own."""
    rule, other = ResolvedSampling(1.0, top_k=20, seed=4), ResolvedSampling(1.0, top_p=0.9, seed=5)
    rows = torch.randn(60, 20_000, generator=torch.Generator().manual_seed(1)).bfloat16().float()
    alone, crowded = sampler(rule), sampler(rule)
    for row in rows:
        beside = LogitsStep()(torch.stack([row.flip(0), row]), [sampler(other), crowded])
        token = only_row(row, alone).token
        assert beside[1].token == token
        assert token is not None
        for each in (alone, crowded):
            each.accept(token)


def test_log_probabilities_of_rows_that_want_them_come_with_the_tokens() -> None:
    rows = [LOGITS, LOGITS * 2, LOGITS.flip(0)]
    wants = (3, None, 1)
    samplers = [
        Sampler(ResolvedSampling(0), torch.empty(0, dtype=torch.long), (), num_logprobs=count) for count in wants
    ]
    found = LogitsStep()(torch.stack(rows), samplers)
    assert [row.top is not None for row in found] == [True, False, True]
    for row, count in zip(found, (3, 2, 1), strict=True):
        assert row.token is not None
        for token in (row.token, 4):
            logprob, top = likeliest(row, token, count)
            own = torch.log_softmax(row.logits, -1)
            assert logprob == pytest.approx(float(own[token]))
            assert top == [(int(other), pytest.approx(float(own[other]))) for other in own.topk(count).indices]


def test_the_answers_of_one_seed_differ_and_the_first_is_the_one_of_n_1() -> None:
    choice = ResolvedSampling(1.0, seed=4)
    answers = [Sampler(choice, torch.empty(0, dtype=torch.long), (), index) for index in (0, 1, 2, 0)]
    said = [only_row(torch.zeros(100), each).token for each in answers]
    assert said[0] == said[3]
    assert len(set(said)) > 1
