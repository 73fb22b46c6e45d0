"""What the header of a JPEG 2000 makes OpenJPEG keep: a structure for every precinct and code block, of which a file of
a hundred bytes can announce millions. Source: ITU-T T.800, annex A.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from worker.core.errors import MediaCorrupt, MediaTooLarge

PIXELS_PER_BLOCK = 64  # that a picture may have at the least, of each component: usual are 1024 and more
SPARE_BLOCKS = 20_000
MAX_TILE_PARTS = 65_536
MAX_TILES = 10_000
_START, _SIZE, _CODING, _COMPONENT_CODING = b"\xff\x4f\xff\x51", 0xFF51, 0xFF52, 0xFF53
_TILE_PART, _DATA = 0xFF90, 0xFF93
_WITH_PRECINCTS = 1


@dataclass(frozen=True)
class _Size:
    width: int
    height: int
    tile_width: int
    tile_height: int
    num_components: int


def refuse_costly(data: bytes) -> None:
    """Raises MediaTooLarge where more blocks are announced than its pixels are worth, MediaCorrupt."""
    begin = data.find(_START)
    try:
        size = _size(data, begin + 4)
        num_tiles = -(-size.width // size.tile_width) * -(-size.height // size.tile_height)
        allowed = size.width * size.height // PIXELS_PER_BLOCK + SPARE_BLOCKS
        is_worth_it = num_tiles <= MAX_TILES and all(
            _num_blocks(data, at, is_of_one, size) <= allowed for at, is_of_one in _codings(data, begin, size)
        )
    except (struct.error, ValueError, ZeroDivisionError, IndexError):
        raise MediaCorrupt() from None
    if not is_worth_it:
        raise MediaTooLarge(detail="its code blocks are smaller than its pixels are worth")


def _size(data: bytes, at: int) -> _Size:
    right, bottom, left, top, tile_width, tile_height = struct.unpack_from(">6I", data, at + 4)
    num_components = struct.unpack_from(">H", data, at + 36)[0]
    if right <= left or bottom <= top or not tile_width or not tile_height:
        raise ValueError("no pixels")
    return _Size(right, bottom, tile_width, tile_height, num_components)


def _codings(data: bytes, begin: int, size: _Size) -> Iterator[tuple[int, bool]]:
    """Where a coding style is told, of all components or of one, in the main header and in those of tiles."""
    at, tile_part = begin + 2, -1
    for _ in range(MAX_TILE_PARTS * 4):
        if at + 4 > len(data):
            return
        marker, length = struct.unpack_from(">HH", data, at)
        if marker == _CODING:
            yield at + 4, False
        elif marker == _COMPONENT_CODING:
            yield at + (5 if size.num_components < 257 else 6), True
        elif marker == _TILE_PART:
            tile_part = at
        elif marker == _DATA:
            part_bytes = struct.unpack_from(">I", data, tile_part + 6)[0] if tile_part >= 0 else 0
            if not part_bytes:
                return
            at = tile_part + part_bytes
            continue
        at += 2 + max(length, 2)


def _num_blocks(data: bytes, at: int, is_of_one: bool, size: _Size) -> int:
    """Of one component: precincts and code blocks of all resolutions, as if every tile were coded like this."""
    style = data[at]
    at += 1 if is_of_one else 5
    levels, block_width, block_height = data[at], (data[at + 1] & 15) + 2, (data[at + 2] & 15) + 2
    precincts = data[at + 5 : at + 6 + levels] if style & _WITH_PRECINCTS else b"\xff" * (levels + 1)
    if levels > 32 or len(precincts) < levels + 1:
        raise ValueError("no such number of resolutions")
    columns, rows = -(-size.width // size.tile_width), -(-size.height // size.tile_height)
    width, height = min(size.width, size.tile_width), min(size.height, size.tile_height)
    total = 0
    for resolution, sides in enumerate(precincts):
        shrunk = levels - resolution
        across, down = max(1, width >> shrunk), max(1, height >> shrunk)
        total += -(-across // (1 << (sides & 15))) * -(-down // (1 << (sides >> 4)))
        inner_width = min(block_width, max(0, (sides & 15) - (resolution > 0)))
        inner_height = min(block_height, max(0, (sides >> 4) - (resolution > 0)))
        total += -(-across // (1 << inner_width)) * -(-down // (1 << inner_height))
    return total * columns * rows
