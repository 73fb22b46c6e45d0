"""The largest picture of an ICO: a PNG, or a bitmap with a mask."""

import struct
from dataclasses import dataclass

from worker.core.errors import MediaCorrupt

MAX_SIDE = 1024  # of a bitmap in it; larger ones are PNGs
_HEAD_BYTES, _ENTRY_BYTES = 6, 16
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Icon:
    """data: a PNG, or an ICO of this one picture; count: of pictures in the file."""

    data: bytes
    is_png: bool
    count: int


def largest(data: bytes) -> Icon:
    """Raises MediaCorrupt."""
    count = int.from_bytes(data[4:6], "little")
    found = []
    for at in range(_HEAD_BYTES, min(_HEAD_BYTES + count * _ENTRY_BYTES, len(data) - _ENTRY_BYTES + 1), _ENTRY_BYTES):
        width, height, bits = data[at] or 256, data[at + 1] or 256, int.from_bytes(data[at + 6 : at + 8], "little")
        size, begin = struct.unpack_from("<II", data, at + 8)
        if size and begin + size <= len(data):
            found.append((width * height, bits, at, begin, size))
    if not found:
        raise MediaCorrupt()
    _, _, at, begin, size = max(found)
    body = data[begin : begin + size]
    if body.startswith(_PNG):
        return Icon(body, True, count)
    width, height = struct.unpack_from("<ii", body, 4) if len(body) >= 16 else (0, 0)
    if not (0 < width <= MAX_SIDE and 0 < height <= 2 * MAX_SIDE):
        raise MediaCorrupt()
    entry = data[at : at + 12] + struct.pack("<I", _HEAD_BYTES + _ENTRY_BYTES)
    return Icon(data[:4] + struct.pack("<H", 1) + entry + body, False, count)
