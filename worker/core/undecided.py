"""Text that comes in parts: how much of its end may be the beginning of something that is looked for."""

from collections.abc import Sequence


def num_undecided(text: str, wanted: Sequence[str]) -> int:
    """Length of the longest end of `text` that begins one of the `wanted` strings without being all of it."""
    longest = min(len(text), max(map(len, wanted), default=1) - 1)
    for length in range(longest, 0, -1):
        if any(one.startswith(text[-length:]) for one in wanted):
            return length
    return 0
