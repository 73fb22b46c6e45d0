"""Loops are cut soon; documents that repeat themselves are not."""

import random
from collections.abc import Iterator

import pytest

from tests.engine import documents
from worker.checkpoint.tokenizer import Tokenizer
from worker.engine.loop_guard import MARGIN, PERIODS, PLAIN_MARGIN, LoopGuard
from worker.models.loading import LoadedModel

NUM_DOCUMENTS = 10_000
NUM_LOOPS = 1_000


@pytest.fixture(scope="module")
def tokenizer(tiny: LoadedModel) -> Tokenizer:
    return tiny.spec.tokenizer


def guard_for(tokenizer: Tokenizer) -> LoopGuard:
    return LoopGuard(tokenizer.bytes_of)


def loops(tokenizer: Tokenizer, count: int) -> Iterator[tuple[list[int], list[int]]]:
    """What came before, and the period."""
    for seed in range(count):
        rng = random.Random(f"loop {seed}")
        yield tokenizer.encode(documents.document(rng)), tokenizer.encode(documents.looped(rng))


def cut_after(guard: LoopGuard, before: list[int], period: list[int], most: int) -> int | None:
    """Tokens of the loop until it is cut."""
    for token in before:
        assert not guard.push(token)
    for index in range(most):
        if guard.push(period[index % len(period)]):
            return index + 1
    return None


def test_no_true_document_is_cut(tokenizer: Tokenizer) -> None:
    cut = []
    for seed in range(NUM_DOCUMENTS):
        guard = guard_for(tokenizer)
        text = documents.document(random.Random(seed))
        if any(guard.push(token) for token in tokenizer.encode(text)):
            cut.append(text)
    assert cut == []


def test_loops_are_cut_within_three_periods_and_some_tokens(tokenizer: Tokenizer) -> None:
    late = 0
    for before, period in loops(tokenizer, NUM_LOOPS):
        limit = PERIODS * len(period) + MARGIN
        late += cut_after(guard_for(tokenizer), before, period, limit) is None
    assert late <= NUM_LOOPS // 100


PLAIN = (
    *("0, ", ".", "-", "| | |\n", "null, ", "<td></td>", "\n", "| $0.00 | 0% |\n", "0x00, ", "☐ ☐\n", "| x | |\n"),
    *("0.0 & 0.0 \\\\\n", "0.00 EUR\n", "20.0 °C\n", '{"name": "", "value": null},\n', "1970-01-01T00:00:00Z;\n"),
)
WORDS = ("!", "？", "🔴", "的", "a ", "No. ", "<b>no</b>", '{"name": "a", "value": null},\n', "0 of them\n", "x red ")


@pytest.mark.parametrize("text", PLAIN)
def test_what_has_no_words_may_go_on_for_longer(tokenizer: Tokenizer, text: str) -> None:
    period = tokenizer.encode(text)
    assert cut_after(guard_for(tokenizer), [], period, 700) is None
    assert cut_after(guard_for(tokenizer), [], period, PERIODS * len(period) + PLAIN_MARGIN) is not None


@pytest.mark.parametrize("text", WORDS)
def test_what_has_words_may_not(tokenizer: Tokenizer, text: str) -> None:
    period = tokenizer.encode(text)
    assert cut_after(guard_for(tokenizer), [], period, PERIODS * len(period) + MARGIN) is not None


def test_what_a_grammar_repeats_is_no_loop_of_the_models(tokenizer: Tokenizer) -> None:
    guard, row = guard_for(tokenizer), tokenizer.encode('{"name": "a"}, ')
    assert not any(guard.push(token, is_certain=True) for token in row * 100)
    assert not guard.push(row[0]), "one choice is none in each round"
    guard.clear()
    told = [guard.push(token, is_certain=place > 0) for _ in range(100) for place, token in enumerate(row)]
    first = told.index(True)
    assert first % len(row) == 0, "where the model chooses"
    assert first <= PERIODS * len(row) + MARGIN + len(row)


def test_a_repetition_that_ends_is_forgotten(tokenizer: Tokenizer) -> None:
    guard = guard_for(tokenizer)
    row = tokenizer.encode("the same row again\n")
    assert not any(guard.push(token) for token in row * 3)
    assert guard.is_repeating
    assert not any(guard.push(token) for token in tokenizer.encode("and now another"))
    assert not guard.is_repeating
