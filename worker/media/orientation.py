"""How stored pixels are to be turned and mirrored: EXIF's number, from a picture's EXIF or a film's display matrix."""

import struct
from collections.abc import Sequence

import numpy as np

from worker.core.opened import RGB

UPRIGHT = 1
# Pictures that lie on their side, counterclockwise quarters to turn, and those mirrored after it.
SIDEWAYS = (5, 6, 7, 8)
QUARTERS = {2: 0, 3: 2, 4: 2, 5: 3, 6: 3, 7: 1, 8: 1}
MIRRORED = (2, 4, 5, 7)
_TAG, _SHORT, _LONG = 0x0112, 3, 4
_ENTRY_BYTES = 12
_MAX_ENTRIES = 1000
# The signs of a matrix that leaves the axes, or of one that swaps them.
_STRAIGHT = {(1, 1): 1, (-1, 1): 2, (-1, -1): 3, (1, -1): 4}
_SWAPPED = {(1, 1): 5, (1, -1): 6, (-1, -1): 7, (-1, 1): 8}


def upright(rgb: RGB, orientation: int) -> RGB:
    """Pixels as they are stored, to be turned and mirrored by EXIF's number."""
    if orientation == UPRIGHT:
        return rgb
    turned = np.rot90(rgb, QUARTERS[orientation])
    return np.ascontiguousarray(turned[:, ::-1] if orientation in MIRRORED else turned)


def of_exif(exif: bytes) -> int | None:
    """EXIF's number, 1 where the block says none; None where it cannot be read. Looks at that one tag: whatever is
    wrong with the others does not count."""
    block = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        return None
    try:
        at = struct.unpack_from(order + "I", block, 4)[0]
        count = struct.unpack_from(order + "H", block, at)[0]
        for entry in range(at + 2, at + 2 + min(count, _MAX_ENTRIES) * _ENTRY_BYTES, _ENTRY_BYTES):
            tag, kind, _ = struct.unpack_from(order + "HHI", block, entry)
            if tag == _TAG and kind in (_SHORT, _LONG):
                number: int = struct.unpack_from(order + ("H" if kind == _SHORT else "I"), block, entry + 8)[0]
                return number if 1 <= number <= 8 else UPRIGHT
    except struct.error:
        return None
    return UPRIGHT


def of_matrix(matrix: Sequence[int]) -> int:
    """The number for a display matrix of nine values, as in ISO files and FFmpeg: turned to the nearest quarter, and
    mirrored where its determinant is negative."""
    a, b, _, c, d = matrix[:5]
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return _STRAIGHT.get((_sign(a), _sign(d)), UPRIGHT)
    return _SWAPPED.get((_sign(b), _sign(c)), UPRIGHT)


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)
