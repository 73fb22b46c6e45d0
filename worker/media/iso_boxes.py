"""What the boxes of an ISO file (MP4, QuickTime, AVIF) say, walked as FFmpeg walks them, before a demuxer opens it.

A demuxer makes an entry of some forty bytes for every sample that a table announces, and an edit list repeats them; a
table of twenty bytes can announce four thousand million.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from worker.core.errors import MediaTooLarge, MediaUnsupportedType

MAX_BOXES = 500_000
MAX_DEPTH = 16
MAX_DESCRIPTION_BYTES = 2**20  # of `stsd`
_CONTAINERS = frozenset(
    {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"dinf", b"edts", b"udta", b"ilst", b"moof", b"traf", b"mvex"}
    | {b"tref", b"wave", b"sinf", b"schi", b"gmhd", b"iprp", b"ipco", b"mfra"}
)
# Where each table keeps its number of entries, behind the box's head.
_COUNT_AT = {
    b"stsz": 8, b"stz2": 8, b"stts": 4, b"ctts": 4, b"stsc": 4, b"stco": 4, b"co64": 4, b"stss": 4, b"stps": 4,
    b"elst": 4, b"trun": 4, b"senc": 4, b"sbgp": 8, b"sgpd": 12, b"saiz": 5, b"saio": 4, b"tfra": 12,
}  # fmt: skip
_TABLE = re.compile(b"|".join(map(re.escape, _COUNT_AT)))
_HEADS = re.compile(b"mvhd|tkhd")
_MATRIX_AT = {b"mvhd": 36, b"tkhd": 40}
_STRAIGHT = b"\0\1\0\0" + bytes(12) + b"\0\1\0\0" + bytes(12)
_LEAST_PCM_SAMPLES = 160  # that a demuxer makes one entry of


@dataclass(frozen=True)
class Box:
    """A box: its type, and where what is in it begins and ends."""

    kind: bytes
    begin: int
    end: int


@dataclass
class _Track:
    """What the tables of a track announce."""

    kind: bytes = b""
    entries: int = 0
    samples: int = 0
    edits: int = 0
    times: list[Box] = field(default_factory=list)
    runs: list[Box] = field(default_factory=list)
    num_chunks: int = 0


def boxes(data: bytes, begin: int, end: int) -> Iterator[Box]:
    """The boxes of a range, side by side."""
    at = begin
    while at + 8 <= end:
        size, head = int.from_bytes(data[at : at + 4], "big"), 8
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        elif size == 0:
            size = end - at
        if size < head:
            return
        yield Box(data[at + 4 : at + 8], at + head, min(at + size, end))
        at += size


def inner(data: bytes, box: Box) -> list[Box]:
    """A range for each place from which a demuxer may read boxes inside of this one."""
    if box.kind in _CONTAINERS:
        return [box]
    if box.kind == b"meta":  # with a version before its boxes, or, in QuickTime, without
        return [box, Box(box.kind, box.begin + 4, box.end)]
    if box.kind in (b"free", b"hoov", b"skip") and data[box.begin + 4 : box.begin + 8] == b"moov":
        return [box]
    return []


def refuse_large_index(data: bytes, limit: int) -> None:
    """Raises MediaTooLarge where the tables announce more than `limit` entries, MediaUnsupportedType for an index that
    is compressed itself."""
    _Weigher(data, limit).weigh(Box(b"", 0, len(data)), _Track(), 0)


def announced_end(data: bytes) -> int:
    """Where the last of the outermost boxes ends by what it says, in bytes."""
    at, end = 0, 0
    for _ in range(MAX_BOXES):
        if at + 8 > len(data):
            break
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8:  # to the end of the file, or no box
            break
        at = end = at + size
    return end


def readable(data: bytes) -> bytes:
    """The file as a demuxer can read it: without an index of a fragment that was cut off, and without what somebody put
    before its `ftyp`."""
    outer = list(islice(boxes(data, 0, len(data)), MAX_BOXES))
    if outer and outer[-1].kind == b"moof" and announced_end(data) > len(data):
        data = data[: outer.pop().begin - 8]
    return data if data[4:8] == b"ftyp" else _aligned(data, outer)


def _aligned(data: bytes, outer: list[Box]) -> bytes:
    """Without the boxes before `ftyp` that the table of chunks does not count: where they count, or nothing tells, it
    stays as it is."""
    lead = next((box.begin - 8 for box in outer if box.kind == b"ftyp"), 0)
    first = _first_chunk(data, outer)
    if not lead or first is None:
        return data
    media = [box for box in outer if box.kind == b"mdat"]
    is_counted = any(box.begin <= first < box.end for box in media)
    is_left_out = any(box.begin <= first + lead < box.end for box in media)
    return data[lead:] if is_left_out and not is_counted else data


def _first_chunk(data: bytes, outer: list[Box]) -> int | None:
    """Where the first table of chunks says that its first one is."""
    level = outer
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
        found = next((box for box in level if box.kind == kind), None)
        if found is None:
            return None
        level = list(islice(boxes(data, found.begin, found.end), MAX_BOXES))
    for box in level:
        if box.kind in (b"stco", b"co64") and int.from_bytes(data[box.begin + 4 : box.begin + 8], "big"):
            width = 4 if box.kind == b"stco" else 8
            return int.from_bytes(data[box.begin + 8 : box.begin + 8 + width], "big")
    return None


def has_display_matrix(data: bytes) -> bool:
    """Whether a track or the film is to be shown otherwise than stored."""
    moov = next((box for box in islice(boxes(data, 0, len(data)), MAX_BOXES) if box.kind == b"moov"), None)
    for found in () if moov is None else _HEADS.finditer(data, moov.begin, moov.end):
        version = data[found.end() : found.end() + 1]
        at = found.end() + (_MATRIX_AT[found.group()] + (12 if version == b"\1" else 0))
        if data[at : at + 32] != _STRAIGHT:
            return True
    return False


class _Weigher:
    def __init__(self, data: bytes, limit: int) -> None:
        self._data, self._limit, self._left, self._num_boxes = data, limit, limit, 0

    def weigh(self, within: Box, track: _Track, depth: int) -> None:
        for box in boxes(self._data, within.begin, within.end):
            self._num_boxes += 1
            if self._num_boxes > MAX_BOXES or depth > MAX_DEPTH:
                raise MediaTooLarge(detail="its index has too many boxes")
            if box.kind == b"cmov":
                raise MediaUnsupportedType(
                    detail="QuickTime files with a compressed index are not read: remux it to MP4"
                )
            of_box = _Track() if box.kind in (b"trak", b"traf") else track
            self._read(box, of_box)
            for part in inner(self._data, box):
                self.weigh(part, of_box, depth + 1)
            if of_box is not track:
                self._take(of_box)
        if not depth:
            self._take(track)

    def _read(self, box: Box, track: _Track) -> None:
        data = self._data
        if box.kind == b"stsd":
            if box.end - box.begin > MAX_DESCRIPTION_BYTES:
                raise MediaTooLarge(detail="its description is larger than 1 MiB")
            for found in _TABLE.finditer(data, box.begin, box.end):
                self._count(Box(found.group(), found.end(), box.end), track)
        elif box.kind == b"hdlr":
            track.kind = track.kind or data[box.begin + 8 : box.begin + 12]
        else:
            self._count(box, track)

    def _count(self, box: Box, track: _Track) -> None:
        at = _COUNT_AT.get(box.kind)
        if at is None:
            return
        count = int.from_bytes(self._data[box.begin + at : box.begin + at + 4], "big")
        match box.kind:
            case b"stsz" | b"stz2" | b"trun":
                track.samples += count
            case b"elst":
                track.edits += count
            case b"stts" | b"ctts":
                track.times.append(box)
                track.entries += count
            case b"stsc":
                track.runs.append(box)
                track.entries += count
            case b"stco" | b"co64":
                track.num_chunks += count
                track.entries += count
            case _:
                track.entries += count

    def _take(self, track: _Track) -> None:
        samples = track.samples
        if self._is_pcm(track):
            samples = min(samples, self._pcm_entries(track))
        else:
            samples = max([samples, *(self._total(box) for box in track.times)])
        self._left -= samples * max(1, track.edits) + track.entries
        if self._left < 0:
            raise MediaTooLarge(detail=f"its index has more than {self._limit} entries")

    def _is_pcm(self, track: _Track) -> bool:
        """Whether a demuxer makes one entry of many samples: sound of which each sample lasts one unit of time."""
        if track.kind != b"soun" or [box.kind for box in track.times] != [b"stts"]:
            return False
        rows = self._rows(track.times[0], 2)
        return len(rows) == 1 and int(rows[0, 1]) == 1

    def _pcm_entries(self, track: _Track) -> int:
        most = 0
        for box in track.runs:
            rows = self._rows(box, 3)
            most = max([most, *(-(-int(samples) // _LEAST_PCM_SAMPLES) for samples in rows[:, 1])])
        return most * track.num_chunks

    def _total(self, box: Box) -> int:
        return int(self._rows(box, 2)[:, 0].sum())

    def _rows(self, box: Box, columns: int) -> np.ndarray:
        """The entries of a table that are there, (entries, columns) as Python could count them."""
        count = int.from_bytes(self._data[box.begin + 4 : box.begin + 8], "big")
        size = 4 * columns
        count = max(0, min(count, (box.end - box.begin - 8) // size))
        entries = self._data[box.begin + 8 : box.begin + 8 + count * size]
        return np.frombuffer(entries, ">u4").reshape(count, columns).astype(np.int64)
