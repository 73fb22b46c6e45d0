"""The directories of a TIFF, counted before Pillow reads them: an entry may name any part of the file, again and again,
and directories may form a circle."""

import struct
from collections.abc import Collection

from worker.core.errors import MediaCorrupt, MediaTooLarge

MAX_PAGES = 10_000
MAX_ENTRIES = 1024
_BYTES_OF = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_ENTRY_BYTES = 12
MAX_TILE_SHARE, LEAST_TILE_PIXELS = 4, 2**20
_WIDTH, _HEIGHT, _COMPRESSION, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 259, 322, 323
_SHORT = 3
# None, CCITT's, LZW, JPEG old and new, Deflate, PackBits, LZMA, Zstandard: what Pillow's libtiff decodes.
DECODED = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 32771, 32773, 32946, 34925, 50000})


def count_pages(data: bytes) -> int:
    """How many pictures there are. Raises MediaTooLarge where the first directory announces more than is in the file,
    MediaCorrupt."""
    order = "<" if data[:2] == b"II" else ">"
    at, seen, announced = _number(data, order + "I", 4), set[int](), 0
    while at and at not in seen and len(seen) < MAX_PAGES:
        if at + 2 > len(data):
            break
        count = _number(data, order + "H", at)
        if not seen:
            if count > MAX_ENTRIES:
                raise MediaTooLarge(detail=f"more than {MAX_ENTRIES} entries in its directory")
            for entry in range(at + 2, min(at + 2 + count * _ENTRY_BYTES, len(data) - _ENTRY_BYTES), _ENTRY_BYTES):
                _, kind, size = struct.unpack_from(order + "HHI", data, entry)
                announced += _BYTES_OF.get(kind, 1) * size
            if announced > len(data) + MAX_ENTRIES * _ENTRY_BYTES:
                raise MediaTooLarge(detail="its directory announces more than the file has")
        seen.add(at)
        after = at + 2 + count * _ENTRY_BYTES
        at = _number(data, order + "I", after) if after + 4 <= len(data) else 0
    if not seen:
        raise MediaCorrupt()
    return len(seen)


def compression(data: bytes) -> int:
    """The number of the first picture's. Raises MediaCorrupt, and MediaTooLarge where its tiles are far larger than
    itself."""
    values = _values(data, (_COMPRESSION, _WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT))
    tile = values.get(_TILE_WIDTH, 0) * values.get(_TILE_HEIGHT, 0)
    if tile > max(MAX_TILE_SHARE * values.get(_WIDTH, 0) * values.get(_HEIGHT, 0), LEAST_TILE_PIXELS):
        raise MediaTooLarge(detail="its tiles are far larger than the picture")
    return values.get(_COMPRESSION, 1)


def _values(data: bytes, tags: Collection[int]) -> dict[int, int]:
    """The first value of these tags in the first directory."""
    order = "<" if data[:2] == b"II" else ">"
    at = _number(data, order + "I", 4)
    count = min(_number(data, order + "H", at), MAX_ENTRIES)
    found = {}
    for entry in range(at + 2, min(at + 2 + count * _ENTRY_BYTES, len(data) - _ENTRY_BYTES + 1), _ENTRY_BYTES):
        tag, kind = struct.unpack_from(order + "HH", data, entry)
        if tag in tags:
            found[tag] = _number(data, order + ("H" if kind == _SHORT else "I"), entry + 8)
    return found


def _number(data: bytes, form: str, at: int) -> int:
    try:
        number: int = struct.unpack_from(form, data, at)[0]
    except struct.error:
        raise MediaCorrupt() from None
    return number
