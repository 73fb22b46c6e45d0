"""Who begins next, and who is under way: waiting, prefilling, running. Knows no torch, no model and no thread.

First come, first served, as far as rows and bytes allow. Where the first in line does not fit yet, one behind it that
does may pass it, but only so often: a huge request is not starved by small ones, and small ones do not wait for a huge
one longer than need be.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from worker.models.kv_widths import KVLayout, Wanted

MAX_OVERTAKEN = 16
MAX_LOOKED_AT = 64


class Answer(Protocol):
    """One answer to a prompt, as the scheduler sees it."""

    @property
    def is_over(self) -> bool: ...

    @property
    def num_prompt_tokens(self) -> int: ...

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and of the answer so far."""
        ...

    @property
    def num_positions(self) -> int:
        """Tokens of the prompt and of the answer as long as it may become."""
        ...


class Rows(Protocol):
    """The rows of a KV cache: the answers being decoded, in the cache's own order."""

    @property
    def num_live(self) -> int: ...

    @property
    def layout(self) -> KVLayout: ...

    def bytes_with(self, wanted: Sequence[Wanted]) -> int:
        """Memory that there must be if these requests began beside the rows that there are."""
        ...

    def leave(self, row: int) -> int:
        """Drop a row; the number that the row had which takes its place. Those behind that one move down by one."""
        ...


S = TypeVar("S", bound=Answer)


@dataclass(eq=False)
class PrefillGroup(Generic[S]):
    """A prompt with the answers that begin when it is prefilled. must_be_alone: it failed beside others, and is tried
    once more with nobody else on the device. is_apart: it is not prefilled in one forward with others. num_left: tokens
    of the prompt still to be computed, as far as that is known."""

    sequences: list[S]
    must_be_alone: bool = False
    is_apart: bool = False
    num_overtaken: int = 0
    num_left: int = 0

    @property
    def is_over(self) -> bool:
        return all(sequence.is_over for sequence in self.sequences)

    @property
    def num_prompt_tokens(self) -> int:
        return self.sequences[0].num_prompt_tokens

    @property
    def num_tokens(self) -> int:
        return self.sequences[0].num_tokens

    @property
    def num_positions(self) -> int:
        return self.sequences[0].num_positions


class Scheduler(Generic[S]):
    """The answers of one engine. Only the engine's thread changes it. max_bytes: for keys and values.

    `running` is in the order of the cache's rows.
    """

    def __init__(self, rows: Rows, max_rows: int, max_bytes: int, bytes_per_token: int) -> None:
        self.waiting: deque[PrefillGroup[S]] = deque()
        self.prefilling: list[PrefillGroup[S]] = []
        self.running: list[S] = []
        self.max_bytes = max_bytes
        self.max_rows = max_rows
        self._rows = rows
        self._bytes_per_token = bytes_per_token
        self._num_turns = 0

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.running and not self.prefilling and not self.waiting

    def sequences(self) -> Iterator[S]:
        """All that is under way."""
        yield from self.running
        for group in (*self.prefilling, *self.waiting):
            yield from group.sequences

    def bytes_alone(self, num_prompt_tokens: int, num_positions: int, num_answers: int) -> int:
        """Memory that a request needs when there is no other: its rows, and its prompt on the way there."""
        layout = self._rows.layout
        return layout.alone(num_prompt_tokens, num_positions, num_answers) * self._bytes_per_token

    def max_positions(self, num_prompt_tokens: int, num_answers: int) -> int:
        """The longest that prompt and answer of a request may become when there is no other."""
        num_tokens = self.max_bytes // self._bytes_per_token
        return self._rows.layout.max_positions(num_prompt_tokens, num_answers, num_tokens)

    def add(self, group: PrefillGroup[S]) -> None:
        self.waiting.append(group)

    def retry(self, groups: Iterable[PrefillGroup[S]]) -> None:
        """Put groups before all others; the last of them comes first."""
        self.waiting.extendleft(groups)

    def admit(self) -> None:
        """Let waiting groups begin, as far as rows and bytes allow."""
        while (group := self._next()) is not None:
            self.prefilling.append(group)

    def _next(self) -> PrefillGroup[S] | None:
        """Take the next group that may begin beside the live rows and those already prefilling."""
        is_alone = not self.prefilling and not self._rows.num_live
        if any(group.must_be_alone for group in self.prefilling):
            return None
        for place, group in enumerate(self.waiting):
            if place == MAX_LOOKED_AT:
                return None
            if is_alone or (not group.must_be_alone and self._fits(group)):
                for passed in list(self.waiting)[:place]:
                    passed.num_overtaken += 1
                del self.waiting[place]
                return group
            if group.must_be_alone or group.num_overtaken >= MAX_OVERTAKEN:
                return None
        return None

    def _fits(self, group: PrefillGroup[S]) -> bool:
        together = [*self.prefilling, group]
        wanted = [Wanted(each.num_tokens, each.num_positions, len(each.sequences)) for each in together]
        if self._rows.num_live + sum(each.num_answers for each in wanted) > self.max_rows:
            return False
        return self._rows.bytes_with(wanted) <= self.max_bytes

    def next_to_prefill(self) -> PrefillGroup[S]:
        """The one with the least left and the one that came first take turns: short ones pass, long ones go on."""
        self._num_turns += 1
        if self._num_turns % 2:
            return self.prefilling[0]
        return min(self.prefilling, key=lambda group: group.num_left)

    def expected_positions(self) -> list[int]:
        """Of each answer whose prompt is being prefilled."""
        return [group.num_positions for group in self.prefilling for _ in group.sequences]

    def begin(self, sequence: S, row: int) -> None:
        """An answer has the cache's new row; those from there on have moved up by one."""
        self.running.insert(row, sequence)

    def leave(self, row: int) -> None:
        """The cache moves another row into the hole, and so does the list."""
        gone = self._rows.leave(row)
        moved = self.running.pop(gone)
        if gone != row:
            self.running[row] = moved

    def drop_over(self) -> None:
        """Free the rows of what has ended, and forget what was cancelled on the way."""
        for row in reversed(range(len(self.running))):
            if self.running[row].is_over:
                self.leave(row)
        self.prefilling = [group for group in self.prefilling if not group.is_over]
        self.waiting = deque(group for group in self.waiting if not group.is_over)

    def clear(self) -> None:
        self.running.clear()
        self.prefilling.clear()
        self.waiting.clear()
