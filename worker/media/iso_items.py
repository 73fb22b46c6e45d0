"""How many pictures it takes to show one of a HEIC: items may be made of other items, and those of others again, so
that a file of ten kilobytes asks for millions.
"""

import struct
from collections.abc import Iterator, Mapping

from worker.core.errors import MediaCorrupt, MediaTooLarge
from worker.media.iso_boxes import Box, boxes, inner

MAX_CODED_PICTURES = 4096  # that one is made of: the tiles of a phone's largest are some hundred
MAX_REFERENCES = 100_000
MAX_DEPTH = 8
_MADE_OF = b"dimg"


def refuse_costly(data: bytes) -> None:
    """Raises MediaTooLarge, MediaCorrupt."""
    made_of: dict[int, list[int]] = {}
    for item, others in _references(data):
        made_of.setdefault(item, []).extend(others)
        if sum(map(len, made_of.values())) > MAX_REFERENCES:
            raise MediaTooLarge(detail="its pictures are made of too many others")
    counts: dict[int, int] = {}
    for item in made_of:
        if _count(item, made_of, counts, 0) > MAX_CODED_PICTURES:
            raise MediaTooLarge(detail=f"one of its pictures is made of more than {MAX_CODED_PICTURES} others")


def _count(item: int, made_of: Mapping[int, list[int]], counts: dict[int, int], depth: int) -> int:
    """Coded pictures that an item takes."""
    if item not in made_of:
        return 1
    if depth > MAX_DEPTH:
        raise MediaTooLarge(detail="its pictures are made of others too many times over")
    if item not in counts:
        counts[item] = sum(_count(other, made_of, counts, depth + 1) for other in made_of[item])
    return counts[item]


def _references(data: bytes) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Each item that is made of others, and those."""
    try:
        for meta in boxes(data, 0, len(data)):
            for part in inner(data, meta) if meta.kind == b"meta" else ():
                for box in boxes(data, part.begin, part.end):
                    if box.kind == b"iref":
                        yield from _of_box(data, box)
    except struct.error:
        raise MediaCorrupt() from None


def _of_box(data: bytes, iref: Box) -> Iterator[tuple[int, tuple[int, ...]]]:
    form = "I" if data[iref.begin : iref.begin + 1] == b"\1" else "H"
    size = struct.calcsize(form)
    for box in boxes(data, iref.begin + 4, iref.end):
        if box.kind == _MADE_OF:
            item, count = struct.unpack_from(f">{form}H", data, box.begin)
            yield item, struct.unpack_from(f">{count}{form}", data, box.begin + size + 2)
