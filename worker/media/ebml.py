"""What the elements of a Matroska or WebM file say, walked before a demuxer opens it.

A demuxer makes a structure of up to some hundred bytes for every element of its index, its tags and its tracks, of
which two bytes are enough, and inflates blocks of tracks that are compressed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from worker.core.errors import MediaCorrupt, MediaTooLarge, MediaUnsupportedType

MAX_ELEMENTS = 200_000
MAX_TRACKS = 64
MAX_DEPTH = 16

_SEGMENT, _CLUSTER, _TRACK_ENTRY, _SEEK_POSITION = 0x18538067, 0x1F43B675, 0xAE, 0x53AC
_SEEK_HEAD, _INFO, _TRACKS, _CUES, _TAGS = 0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1254C367
_CHAPTERS, _ATTACHMENTS, _EBML = 0x1043A770, 0x1941A469, 0x1A45DFA3
_LEVEL_1 = frozenset({_SEEK_HEAD, _INFO, _TRACKS, _CUES, _TAGS, _CHAPTERS, _ATTACHMENTS, _CLUSTER})
_TRACK_TYPE, _ENCODING, _COMPRESSION, _ALGORITHM, _ENCRYPTION = 0x83, 0x6240, 0x5034, 0x4254, 0x5035
_VIDEO, _HEADER_STRIPPING = 1, 3
_MASTERS = frozenset(
    {_SEEK_HEAD, _INFO, _TRACKS, _CUES, _TAGS, _CHAPTERS, _ATTACHMENTS, _TRACK_ENTRY, _ENCODING, _COMPRESSION}
    | {_ENCRYPTION, 0x4DBB, 0xE0, 0xE1, 0x6D80, 0x47E7, 0xE2, 0xE3, 0xE4, 0xE9, 0x41E4, 0x55B0, 0x55D0, 0x7670, 0x6624}
    | {0xBB, 0xB7, 0xDB, 0x7373, 0x63C0, 0x67C8, 0x45B9, 0xB6, 0x80, 0x8F, 0x6944, 0x6911, 0x61A7}
)


@dataclass(frozen=True)
class Element:
    """An element: where it stands, its id, and where what is in it begins and ends. is_sized: whether it says its
    size."""

    at: int
    id: int
    begin: int
    end: int
    is_sized: bool = True


def elements(data: bytes, begin: int, end: int) -> Iterator[Element]:
    """The elements of a range, side by side; one without a size goes on to the end."""
    at = begin
    while at < end:
        head, length = at, 9 - data[at].bit_length()
        identity = int.from_bytes(data[at : at + length], "big")
        at += length
        if length > 4 or at >= end:
            return
        length = 9 - data[at].bit_length()
        if length > 8:
            return
        most = (1 << 7 * length) - 1
        size = int.from_bytes(data[at : at + length], "big") & most
        at += length
        is_sized = size != most
        yield Element(head, identity, at, min(at + size, end) if is_sized else end, is_sized)
        at = at + size if is_sized else end


def is_master(identity: int) -> bool:
    """Whether elements of this id have others in them."""
    return identity in _MASTERS or identity in (_SEGMENT, _CLUSTER, _EBML)


def refuse_large_index(data: bytes) -> None:
    """Raises MediaTooLarge, MediaUnsupportedType for a video that is compressed once more, MediaCorrupt."""
    _Weigher(data).weigh()


def announced_end(data: bytes) -> int:
    """Where the file's segment ends by what it says, in bytes; 0 where it does not say."""
    outer = islice(elements(data, 0, len(data)), MAX_TRACKS)
    segment = next((element for element in outer if element.id == _SEGMENT), None)
    if segment is None or not segment.is_sized:
        return 0
    size_bytes = segment.begin - segment.at - 4
    return segment.begin + (int.from_bytes(data[segment.at + 4 : segment.begin], "big") & ((1 << 7 * size_bytes) - 1))


class _Weigher:
    def __init__(self, data: bytes) -> None:
        self._data, self._num_elements, self._num_tracks = data, 0, 0

    def weigh(self) -> None:
        for element in elements(self._data, 0, len(self._data)):
            self._tick()
            if element.id == _SEGMENT:
                self._segment(element)

    def _segment(self, segment: Element) -> None:
        at = segment.begin
        while (element := next(elements(self._data, at, segment.end), None)) is not None:
            self._tick()
            at = element.end
            if element.id == _CLUSTER and not element.is_sized:
                at = self._end_of_cluster(element)
            elif element.id in _LEVEL_1 and element.id != _CLUSTER:
                self._index(element, 0)
                if element.id == _SEEK_HEAD:
                    self._sought(element, segment)

    def _end_of_cluster(self, cluster: Element) -> int:
        for element in elements(self._data, cluster.begin, cluster.end):
            self._tick()
            if element.id in _LEVEL_1 or element.id in (_SEGMENT, _EBML):
                return element.at
        return cluster.end

    def _sought(self, seek_head: Element, segment: Element) -> None:
        """A demuxer jumps to where a seek head points, into the middle of anything."""
        for seek in elements(self._data, seek_head.begin, seek_head.end):
            for part in elements(self._data, seek.begin, seek.end):
                if part.id == _SEEK_POSITION:
                    at = segment.begin + self._value(part)
                    target = next(elements(self._data, at, segment.end), None)
                    if target is not None and target.id in _MASTERS and target.id != _SEEK_HEAD:
                        self._index(target, 0)

    def _index(self, master: Element, depth: int) -> None:
        if not master.is_sized or depth > MAX_DEPTH:
            raise MediaCorrupt(detail="its index has no length")
        for element in elements(self._data, master.begin, master.end):
            self._tick()
            if element.id == _TRACK_ENTRY:
                self._num_tracks += 1
                if self._num_tracks > MAX_TRACKS:
                    raise MediaTooLarge(detail=f"more than {MAX_TRACKS} tracks")
                self._track(element)
            if element.id in _MASTERS:
                self._index(element, depth + 1)

    def _track(self, entry: Element) -> None:
        if self._uint(entry, _TRACK_TYPE) != _VIDEO:
            return  # its blocks are not read
        for encoding in self._all(entry, _ENCODING, 0):
            algorithms = [self._uint(packing, _ALGORITHM) or 0 for packing in self._all(encoding, _COMPRESSION, 0)]
            if algorithms != [_HEADER_STRIPPING]:
                raise MediaUnsupportedType(detail="its container compresses or encrypts the video: remux it")

    def _all(self, within: Element, identity: int, depth: int) -> Iterator[Element]:
        for element in elements(self._data, within.begin, within.end):
            self._tick()
            if element.id == identity:
                yield element
            elif element.id in _MASTERS and depth < MAX_DEPTH:
                yield from self._all(element, identity, depth + 1)

    def _uint(self, within: Element, identity: int) -> int | None:
        inside = elements(self._data, within.begin, within.end)
        found = next((element for element in inside if element.id == identity), None)
        return None if found is None else self._value(found)

    def _value(self, element: Element) -> int:
        return int.from_bytes(self._data[element.begin : min(element.end, element.begin + 8)], "big")

    def _tick(self) -> None:
        self._num_elements += 1
        if self._num_elements > MAX_ELEMENTS:
            raise MediaTooLarge(detail=f"its index has more than {MAX_ELEMENTS} elements")
