"""Who begins next: first come, first served, as far as rows and bytes allow.

Where the first in line does not fit yet, one behind it that does may go before it, but only so often: a huge request
is not starved by small ones, and small ones do not wait for a huge one longer than need be.
"""

from collections import deque
from dataclasses import dataclass

from worker.engine.prefill import Prefill
from worker.engine.sequence import Request, Sequence
from worker.models.kv_cache import SlotCache, rows_for, width_for

MAX_OVERTAKEN = 16
MAX_LOOKED_AT = 64


@dataclass(eq=False)
class Entry:
    """A prompt with the answers that begin when it is prefilled. must_be_alone: it failed beside others, and is
    tried once more with nobody else on the device. is_apart: it is not prefilled in one forward with others."""

    sequences: list[Sequence]
    must_be_alone: bool = False
    is_apart: bool = False
    num_overtaken: int = 0
    prefill: Prefill | None = None

    @property
    def request(self) -> Request:
        return self.sequences[0].request

    @property
    def is_over(self) -> bool:
        return all(sequence.is_over for sequence in self.sequences)


class Admission:
    """The waiting entries, in order, and the limits that let them in. max_bytes: for keys and values."""

    def __init__(self, max_rows: int, max_bytes: int, cache: SlotCache, bytes_per_token: int) -> None:
        self.waiting: deque[Entry] = deque()
        self.max_bytes = max_bytes
        self._max_rows = max_rows
        self._cache = cache
        self._bytes_per_token = bytes_per_token

    def bytes_alone(self, request: Request) -> int:
        """Memory that a request needs when there is no other: its rows, and its prompt on the way there."""
        width = width_for(request.num_positions)
        rows = rows_for(request.num_answers)
        return (rows * width + len(request.prompt.ids)) * self._bytes_per_token

    def next(self, beginning: list[Entry]) -> Entry | None:
        """Take the next entry that may begin beside the live rows and those already `beginning`."""
        is_idle = not beginning and not self._cache.num_live
        if any(entry.must_be_alone for entry in beginning):
            return None
        for place, entry in enumerate(self.waiting):
            if place == MAX_LOOKED_AT:
                return None
            if is_idle or (not entry.must_be_alone and self._fits(entry, beginning)):
                for passed in list(self.waiting)[:place]:
                    passed.num_overtaken += 1
                del self.waiting[place]
                return entry
            if entry.must_be_alone or entry.num_overtaken >= MAX_OVERTAKEN:
                return None
        return None

    def drop_over(self) -> None:
        """Forget what was cancelled while it waited."""
        self.waiting = deque(entry for entry in self.waiting if not entry.is_over)

    def _fits(self, entry: Entry, beginning: list[Entry]) -> bool:
        together = [*beginning, entry]
        wanted = [one.request.num_positions for one in together for _ in one.sequences]
        if self._cache.num_live + len(wanted) > self._max_rows:
            return False
        prefilling = sum(len(one.request.prompt.ids) for one in together) * self._bytes_per_token
        return self._cache.bytes_with(wanted) + prefilling <= self.max_bytes
