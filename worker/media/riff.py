"""What the index of an AVI file announces, counted before a demuxer opens it."""

import re

from worker.core.errors import MediaTooLarge

_ENTRY_BYTES = 16  # of `idx1`, and of an index of indexes
_INDEX = re.compile(b"idx1|indx")
_OF_INDEXES = 0


def refuse_large_index(data: bytes, limit: int) -> None:
    """Raises MediaTooLarge where the indexes have more than `limit` entries. An index of indexes may name one of them
    again and again: each time counts."""
    left, at = limit, 0
    movie = _movie(data)
    while (found := _INDEX.search(data, at)) is not None:
        at = found.end()
        if movie[0] <= at < movie[1]:
            at = movie[1]
            continue
        size = int.from_bytes(data[at : at + 4], "little")
        left -= min(size, len(data) - at) // _ENTRY_BYTES
        if found.group() == b"indx" and data[at + 7 : at + 8] == bytes([_OF_INDEXES]):
            left -= _entries_of_indexes(data, at + 4)
        if left < 0:
            raise MediaTooLarge(detail=f"its index has more than {limit} entries")


def announced_end(data: bytes) -> int:
    """Where the file's first RIFF ends by what it says, in bytes; 0 where nothing tells (a writer that was cut off)."""
    size = int.from_bytes(data[4:8], "little")
    return 0 if size in (0, 2**32 - 1) else 8 + size


def _entries_of_indexes(data: bytes, begin: int) -> int:
    count = min(int.from_bytes(data[begin + 4 : begin + 8], "little"), (len(data) - begin) // _ENTRY_BYTES)
    total = 0
    for index in range(count):
        at = begin + 24 + index * _ENTRY_BYTES
        target = int.from_bytes(data[at : at + 8], "little")
        total += int.from_bytes(data[target + 12 : target + 16], "little") if target < len(data) else 0
    return total


def _movie(data: bytes) -> tuple[int, int]:
    """Where the pictures and the sound lie, which are no index."""
    at = data.find(b"movi")
    if at < 8 or data[at - 8 : at - 4] != b"LIST":
        return (0, 0)
    size = int.from_bytes(data[at - 4 : at], "little")
    return at, min(at + size, len(data))
