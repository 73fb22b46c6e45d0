"""The end of a thought, its budget, and the form that begins behind it: in tokens, without a model."""

from collections.abc import Iterable

import numpy as np
import pytest
import torch

from worker.engine.guide import Guide, ThinkingTokens
from worker.engine.logits_step import LogitsStep
from worker.engine.sampling import ResolvedSampling, Sampler

BEGIN, END, GAP, WORD, EOS = 1, 2, 3, 4, 5
TOKENS = ThinkingTokens(BEGIN, END, (GAP,))


class Three:
    """A form of three tokens, whatever they are. See `guide.State`."""

    def __init__(self) -> None:
        self.accepted: list[int] = []

    @property
    def mask(self) -> np.ndarray:
        return np.ones(1, np.int32)

    @property
    def is_complete(self) -> bool:
        return len(self.accepted) == 3

    def prepare(self) -> None:
        pass

    def allows_other_than(self, tokens: Iterable[int]) -> bool:
        return not self.is_complete

    def accept(self, token: int) -> None:
        self.accepted.append(token)


def said(guide: Guide, *words: int) -> list[int]:
    """The tokens that come out when the model says these: forced ones instead of its own."""
    tokens = []
    for word in words:
        token = word if guide.forced is None else guide.forced
        guide.accept(token)
        tokens.append(token)
    return tokens


def test_without_a_thought_the_form_begins_at_once_and_ends_the_answer() -> None:
    state = Three()
    guide = Guide(TOKENS, state=state)
    assert guide.grammar is state
    said(guide, WORD, WORD)
    assert not guide.is_complete
    said(guide, WORD)
    assert guide.is_complete
    assert guide.num_reasoning == 0


def test_the_form_begins_behind_the_thought_and_the_gap() -> None:
    state = Three()
    guide = Guide(TOKENS, opens_thought=True, state=state)
    assert guide.grammar is None
    assert said(guide, WORD, WORD, END, WORD, 9) == [WORD, WORD, END, GAP, 9]
    assert state.accepted == [9]
    assert guide.num_reasoning == 3


def test_without_a_form_nothing_is_forced_behind_a_thought() -> None:
    guide = Guide(TOKENS, opens_thought=True)
    assert said(guide, WORD, END, WORD) == [WORD, END, WORD]
    assert (guide.num_reasoning, guide.is_thinking) == (2, False)


@pytest.mark.parametrize("budget", [0, 1, 3])
def test_a_budget_ends_the_thought(budget: int) -> None:
    guide = Guide(TOKENS, opens_thought=True, budget=budget)
    assert said(guide, *[WORD] * (budget + 3)) == [*[WORD] * budget, END, GAP, WORD]
    assert guide.num_reasoning == budget + 1


def test_a_thought_within_its_budget_ends_as_the_model_ends_it() -> None:
    guide = Guide(TOKENS, opens_thought=True, budget=5)
    assert said(guide, WORD, END, WORD, WORD) == [WORD, END, WORD, WORD]


def test_a_thought_that_the_model_opens_counts_and_has_a_budget() -> None:
    guide = Guide(TOKENS, budget=2)
    assert said(guide, BEGIN, WORD, WORD, WORD, WORD) == [BEGIN, WORD, END, GAP, WORD]
    assert guide.num_reasoning == 3
    plain = Guide(TOKENS)
    said(plain, WORD, BEGIN, WORD)
    assert plain.num_reasoning == 0


def test_an_answer_with_a_form_does_not_end_within_its_thought() -> None:
    guide = Guide(TOKENS, opens_thought=True, state=Three())
    assert not guide.may_end([EOS], has_enough=True)
    assert Guide(TOKENS, opens_thought=True).may_end([EOS], has_enough=True)


def test_enough_tokens_are_waited_for_unless_the_form_allows_no_more() -> None:
    state = Three()
    guide = Guide(TOKENS, state=state)
    assert not guide.may_end([EOS], has_enough=False)
    said(guide, WORD, WORD, WORD)
    assert guide.may_end([EOS], has_enough=False)


def test_a_model_without_thoughts_has_none() -> None:
    guide = Guide(ThinkingTokens(), opens_thought=True, budget=0)
    assert not guide.is_thinking
    assert said(guide, WORD, WORD) == [WORD, WORD]


class Only(Three):
    """A form that allows these tokens."""

    def __init__(self, tokens: set[int], vocabulary: int) -> None:
        super().__init__()
        bits = np.zeros(-(-vocabulary // 32), np.uint32)
        for token in tokens:
            bits[token // 32] |= np.uint32(1 << token % 32)
        self._mask = bits.view(np.int32)

    @property
    def mask(self) -> np.ndarray:
        return self._mask


@pytest.mark.parametrize("vocabulary", [1024, 1000, 37])
@pytest.mark.parametrize("allowed", [[{1, 31, 32, 36}, None, {0, 5}], [{1, 36}, {0}], [None, None]])
def test_rows_with_a_form_keep_what_it_allows_and_others_everything(
    allowed: list[set[int] | None], vocabulary: int
) -> None:
    samplers = [
        Sampler(
            ResolvedSampling(0.0),
            torch.empty(0, dtype=torch.long),
            [],
            guide=Guide(state=None if tokens is None else Only(tokens, vocabulary)),
        )
        for tokens in allowed
    ]
    logits = torch.randn(len(allowed), vocabulary, generator=torch.Generator().manual_seed(0))
    rows = LogitsStep()(logits.clone(), samplers)
    for row, tokens, before in zip(rows, allowed, logits, strict=True):
        is_kept = [tokens is None or token in tokens for token in range(vocabulary)]
        assert row.adjusted.equal(before.masked_fill(~torch.tensor(is_kept), -torch.inf))
        assert row.token == int(row.adjusted.argmax())
        assert row.logits.equal(before)
