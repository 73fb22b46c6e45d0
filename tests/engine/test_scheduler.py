"""Who begins next, with rows that count bytes and answers that are numbers. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from tests.processes import printed
from worker.engine.scheduler import MAX_OVERTAKEN, PrefillGroup, Scheduler
from worker.models.kv_widths import POOLS, Wanted, most_answers, rows_for, width_for


@dataclass(eq=False)
class Number:
    """An answer. positions: with its prompt, as long as it may become."""

    positions: int
    prompt: int = 10
    is_over: bool = False

    @property
    def num_positions(self) -> int:
        return self.positions

    @property
    def num_prompt_tokens(self) -> int:
        return self.prompt

    @property
    def num_tokens(self) -> int:
        return self.prompt


class FakeRows:
    """Rows of a byte a position."""

    layout = POOLS

    def __init__(self) -> None:
        self.held: list[int] = []

    @property
    def num_live(self) -> int:
        return len(self.held)

    def bytes_with(self, wanted: Sequence[Wanted]) -> int:
        return sum(self.held) + sum(most_answers(wanted)) + sum(each.now for each in wanted)

    def leave(self, row: int) -> int:
        last = len(self.held) - 1
        self.held[row] = self.held[last]
        self.held.pop()
        return last


def scheduler(max_rows: int = 4, max_bytes: int = 1000) -> tuple[Scheduler[Number], FakeRows]:
    rows = FakeRows()
    return Scheduler(rows, max_rows, max_bytes, bytes_per_token=1), rows


def group(*positions: int, **more: bool) -> PrefillGroup[Number]:
    return PrefillGroup([Number(each) for each in positions], **more)  # type: ignore[arg-type]


def begin_all(made: Scheduler[Number], rows: FakeRows) -> None:
    """All that is prefilling is decoded from here on."""
    for each in made.prefilling:
        for sequence in each.sequences:
            made.begin(sequence, len(rows.held))
            rows.held.append(sequence.positions)
    made.prefilling.clear()


def test_first_come_first_served_as_far_as_rows_allow() -> None:
    made, _ = scheduler(max_rows=3)
    groups = [group(10), group(10, 10), group(10)]
    for each in groups:
        made.add(each)
    made.admit()
    assert made.prefilling == groups[:2]
    assert list(made.waiting) == groups[2:]


def test_a_small_one_passes_a_large_one_but_only_so_often() -> None:
    made, rows = scheduler(max_rows=100, max_bytes=100)
    made.add(group(50))
    made.admit()
    begin_all(made, rows)
    large = group(90)
    made.add(large)
    for _ in range(MAX_OVERTAKEN + 5):
        made.add(group(1))
    passed = 0
    while True:
        made.admit()
        if not made.prefilling:
            break
        passed += len(made.prefilling)
        made.prefilling.clear()  # they are over at once
    assert passed == MAX_OVERTAKEN
    made.leave(0)
    made.admit()
    assert made.prefilling == [large]


def test_what_must_be_alone_waits_for_all_others_and_they_for_it() -> None:
    made, rows = scheduler()
    first, alone, last = group(10), group(10, must_be_alone=True), group(10)
    for each in (first, alone, last):
        made.add(each)
    made.admit()
    assert made.prefilling == [first]
    begin_all(made, rows)
    made.admit()
    assert made.prefilling == []
    made.leave(0)
    made.admit()
    assert made.prefilling == [alone]


def test_what_is_tried_again_comes_first() -> None:
    made, _ = scheduler()
    made.add(group(1))
    again = [group(2), group(3)]
    made.retry(again)
    assert [each.num_positions for each in made.waiting] == [3, 2, 1]


def test_short_prompts_and_the_first_take_turns() -> None:
    made, _ = scheduler()
    first, short = group(10), group(10)
    first.num_left, short.num_left = 90, 5
    made.prefilling = [first, short]
    assert [made.next_to_prefill() for _ in range(4)] == [first, short, first, short]


def test_rows_move_as_the_cache_moves_them() -> None:
    made, rows = scheduler()
    made.add(group(1, 2, 3))
    made.admit()
    begin_all(made, rows)
    first, _, last = made.running
    made.leave(0)
    assert (made.running[0], len(made.running)) == (last, 2)
    assert first not in made.running
    made.running[0].is_over = True
    made.drop_over()
    assert [sequence.positions for sequence in made.running] == rows.held == [2]


def test_what_is_over_is_forgotten_wherever_it_is() -> None:
    made, _ = scheduler()
    waiting, prefilling = group(10), group(10)
    made.add(waiting)
    made.prefilling.append(prefilling)
    assert len(list(made.sequences())) == 2
    for each in (waiting, prefilling):
        each.sequences[0].is_over = True
    made.drop_over()
    assert made.is_idle


@pytest.mark.parametrize("answers", [1, 3])
def test_alone_a_request_needs_its_rows_and_its_prompt(answers: int) -> None:
    made, _ = scheduler()
    assert made.bytes_alone(100, 300, answers) == rows_for(answers) * width_for(300) + 100


def test_it_needs_no_torch() -> None:
    code = "import sys, worker.engine.scheduler; print('torch' in sys.modules)"
    assert printed(code) == "False"
