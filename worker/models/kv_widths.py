"""How sequences fill a KV cache, in pools by width or in one arena, and what a request needs there. Pure arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

SMALLEST_WIDTH = 256
UNIT = 64  # tokens; memory of an arena is given out in so many
HEADROOM = 256  # tokens that a sequence in an arena has room for beside those it has, when it is moved or begins


@dataclass(frozen=True)
class Wanted:
    """A request that wants rows. now: tokens of the prompt, and of its answer so far; most: of the prompt and of an
    answer as long as it may become."""

    now: int
    most: int
    num_answers: int = 1


class KVLayout(Protocol):
    """How tokens of sequences lie in memory."""

    def alone(self, num_prompt_tokens: int, num_positions: int, num_answers: int) -> int:
        """Tokens that there must be memory for when there is no other request: the answers at their longest, and the
        prompt on the way there."""
        ...

    def max_positions(self, num_prompt_tokens: int, num_answers: int, num_tokens: int) -> int:
        """The longest that prompt and answer may become so that `alone` is at most `num_tokens`; 0 for none."""
        ...

    def at_once(self, length: int, num_tokens: int) -> int:
        """How many requests of `length` tokens are answered beside each other in memory for `num_tokens`."""
        ...


class PoolLayout:
    """Each answer has a row that is as wide as it may become, in a pool of such rows; a prompt lies elsewhere until it
    is whole."""

    def alone(self, num_prompt_tokens: int, num_positions: int, num_answers: int) -> int:
        return rows_for(num_answers) * width_for(num_positions) + num_prompt_tokens

    def max_positions(self, num_prompt_tokens: int, num_answers: int, num_tokens: int) -> int:
        widest = (num_tokens - num_prompt_tokens) // rows_for(num_answers)
        width = SMALLEST_WIDTH
        while (wider := width_for(width + 1)) <= widest:
            width = wider
        return width if width <= widest else 0

    def at_once(self, length: int, num_tokens: int) -> int:
        rows = max(0, num_tokens - length) // width_for(length)
        while rows > 0 and rows_for(rows) > rows:  # a pool has memory for certain numbers of rows only
            rows -= 1
        return rows


class ArenaLayout:
    """All lie in one range of tokens, each in one piece that grows with it; the first `UNIT` tokens are nobody's."""

    def alone(self, num_prompt_tokens: int, num_positions: int, num_answers: int) -> int:  # noqa: ARG002  # it is within
        return UNIT + num_answers * rounded(num_positions)

    def max_positions(self, num_prompt_tokens: int, num_answers: int, num_tokens: int) -> int:  # noqa: ARG002
        return max(0, (num_tokens - UNIT) // num_answers // UNIT * UNIT)

    def at_once(self, length: int, num_tokens: int) -> int:
        return max(0, num_tokens - UNIT) // rounded(length)


POOLS, ARENA = PoolLayout(), ArenaLayout()


def rounded(tokens: int) -> int:
    """Up to whole units."""
    return -(-tokens // UNIT) * UNIT


def token_bytes(layers: int, kv_heads: int, head_dim: int, itemsize: int) -> int:
    """Keys and values of a token in all layers that attend."""
    return 2 * layers * kv_heads * head_dim * itemsize


def width_for(tokens: int) -> int:
    """The width of the pool for a sequence of up to `tokens`: 256, 384, 512, 768, 1024, … tokens."""
    width = SMALLEST_WIDTH
    while width < tokens:
        width = width * 3 // 2 if width & (width - 1) == 0 else width * 4 // 3
    return width


def rows_for(count: int) -> int:
    """The rows that a pool has memory for when it holds `count`: doubled up to 8, then eight more at a time."""
    return 1 << (count - 1).bit_length() if count <= 8 else -(-count // 8) * 8


def most_answers(wanted: Sequence[Wanted]) -> list[int]:
    """How long each answer may become."""
    return [each.most for each in wanted for _ in range(each.num_answers)]
