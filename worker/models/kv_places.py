"""Where sequences lie in a range of tokens: each in one piece, which may grow, or move where there is more room. Pure
arithmetic."""

from bisect import bisect_left
from dataclasses import dataclass
from operator import attrgetter

from worker.models.kv_widths import UNIT, rounded


@dataclass(eq=False)
class Place:
    """A sequence's piece of the range."""

    start: int
    size: int

    @property
    def end(self) -> int:
        return self.start + self.size


@dataclass(frozen=True)
class Move:
    """What is to be copied: `size` tokens from `source` to `target`."""

    source: int
    target: int
    size: int


class Places:
    """The range. num_tokens: whole units of `UNIT`."""

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens // UNIT * UNIT
        self.num_free = self.num_tokens
        self._taken: list[Place] = []  # by start

    def take(self, tokens: int) -> Place | None:
        """The first gap that holds so many tokens; None where there is none."""
        size, start = rounded(tokens), 0
        for index, place in enumerate(self._taken):
            if place.start - start >= size:
                return self._put(index, Place(start, size))
            start = place.end
        return self._put(len(self._taken), Place(start, size)) if self.num_tokens - start >= size else None

    def _put(self, index: int, place: Place) -> Place:
        self._taken.insert(index, place)
        self.num_free -= place.size
        return place

    def free(self, place: Place) -> None:
        del self._taken[self._index(place)]
        self.num_free += place.size

    def grow(self, place: Place, tokens: int) -> bool:
        """Have the place hold so many tokens where it is. Whether that was possible."""
        index, more = self._index(place), rounded(tokens) - place.size
        end = self._taken[index + 1].start if index + 1 < len(self._taken) else self.num_tokens
        if end - place.end < more:
            return False
        place.size += more
        self.num_free -= more
        return True

    def squeeze(self) -> list[Move]:
        """Close all gaps: what has to be copied, in this order."""
        moves, start = [], 0
        for place in self._taken:
            if place.start != start:
                moves.append(Move(place.start, start, place.size))
                place.start = start
            start = place.end
        return moves

    def open_behind(self, place: Place, tokens: int) -> list[Move]:
        """Have the place hold so many tokens where it is, when all that is free lies at the end: those behind it move
        up. What has to be copied, in this order."""
        index, more = self._index(place), rounded(tokens) - place.size
        moves = []
        for other in reversed(self._taken[index + 1 :]):
            moves.append(Move(other.start, other.start + more, other.size))
            other.start += more
        place.size += more
        self.num_free -= more
        return moves

    def _index(self, place: Place) -> int:
        return bisect_left(self._taken, place.start, key=attrgetter("start"))
