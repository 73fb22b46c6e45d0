"""The sides that an AVIF file's pictures really have, as their own streams say, whatever the container claims."""

from collections.abc import Iterator

from worker.media.iso_boxes import Box, boxes, inner

_SEQUENCE_HEADER = 1
MAX_ITEMS = 4096
MAX_OBUS = 64  # of an item; a sequence header comes first


class _Bits:
    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "big"), len(data) * 8

    def read(self, count: int) -> int:
        self._left -= count
        return (self._value >> self._left) & ((1 << count) - 1) if self._left >= 0 else 0

    def skip_uvlc(self) -> None:
        zeros = 0
        while not self.read(1) and self._left > 0:
            zeros += 1
        self.read(min(zeros, 32))


def largest_picture(data: bytes) -> int:
    """Pixels of the largest picture that a sequence header of the file announces; 0 where there is none."""
    return max((height * width for part in _streams(data) for height, width in _sequence_sizes(part)), default=0)


def _streams(data: bytes) -> Iterator[bytes]:
    """The beginning of each item and of each track's chunks."""
    for number, (begin, size) in enumerate(_places(data, Box(b"", 0, len(data)), 0)):
        if number >= MAX_ITEMS:
            return
        yield data[begin : begin + min(size, 4096)]


def _places(data: bytes, within: Box, depth: int) -> Iterator[tuple[int, int]]:
    idat = next((box.begin for box in boxes(data, within.begin, within.end) if box.kind == b"idat"), 0)
    for box in boxes(data, within.begin, within.end):
        if box.kind == b"iloc":
            yield from _item_places(data, box, idat)
        elif box.kind in (b"stco", b"co64"):
            size = 4 if box.kind == b"stco" else 8
            count = min(int.from_bytes(data[box.begin + 4 : box.begin + 8], "big"), (box.end - box.begin - 8) // size)
            for index in range(min(count, MAX_ITEMS)):
                at = box.begin + 8 + index * size
                yield int.from_bytes(data[at : at + size], "big"), 4096
        elif depth < 12:
            for part in inner(data, box):
                yield from _places(data, part, depth + 1)


def _item_places(data: bytes, box: Box, idat: int) -> Iterator[tuple[int, int]]:
    """Source: ISO/IEC 14496-12, 8.11.3."""
    at, version = box.begin, int.from_bytes(data[box.begin : box.begin + 1], "big")
    sizes = int.from_bytes(data[at + 4 : at + 6], "big")
    offset_size, length_size, base_size, index_size = ((sizes >> shift) & 15 for shift in (12, 8, 4, 0))
    at += 6

    def number(size: int) -> int:
        nonlocal at
        at += size
        return int.from_bytes(data[at - size : at], "big")

    for _ in range(min(number(4 if version == 2 else 2), MAX_ITEMS)):
        number(4 if version == 2 else 2)
        in_idat = version > 0 and number(2) & 15 == 1
        number(2)
        base = number(base_size) + (idat if in_idat else 0)
        for _ in range(min(number(2), MAX_ITEMS)):
            if version > 0:
                number(index_size)
            begin, length = base + number(offset_size), number(length_size)
            yield begin, length or len(data)
            if at > box.end:
                return


def _sequence_sizes(stream: bytes) -> Iterator[tuple[int, int]]:
    """Of each sequence header among the first units. Source: the AV1 specification, 5.3 to 5.5."""
    at = 0
    for _ in range(MAX_OBUS):
        if at + 2 > len(stream):
            return
        head, kind = stream[at], (stream[at] >> 3) & 15
        at += 2 if head & 4 else 1
        size, shift = 0, 0
        if not head & 2:
            size = len(stream) - at
        else:
            while at < len(stream) and shift < 56:
                byte = stream[at]
                at, size, shift = at + 1, size | (byte & 127) << shift, shift + 7
                if not byte & 128:
                    break
        if kind == _SEQUENCE_HEADER:
            yield _sides(_Bits(stream[at : at + min(size, 256)]))
        at += size


def _sides(bits: _Bits) -> tuple[int, int]:
    bits.read(4)  # profile, still picture
    if bits.read(1):  # a reduced header
        bits.read(5)
    else:
        _skip_timing_and_points(bits)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    width, height = bits.read(width_bits) + 1, bits.read(height_bits) + 1
    return height, width


def _skip_timing_and_points(bits: _Bits) -> None:
    has_model, delay_bits = False, 0
    if bits.read(1):  # timing
        bits.read(64)
        if bits.read(1):
            bits.skip_uvlc()
        has_model = bool(bits.read(1))
        if has_model:
            delay_bits = bits.read(5) + 1
            bits.read(42)
    has_display_delay = bits.read(1)
    for _ in range(bits.read(5) + 1):
        bits.read(12)
        if bits.read(5) > 7:
            bits.read(1)
        if has_model and bits.read(1):
            bits.read(2 * delay_bits + 1)
        if has_display_delay and bits.read(1):
            bits.read(4)
