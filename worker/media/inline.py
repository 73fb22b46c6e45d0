"""Bytes from a data URI or bare base64. Knows no formats: what the bytes are is told by `sniff`."""

import base64
import binascii
import re

from worker.errors import MediaBase64Invalid, MediaTooLarge

_SLICE_CHARS = 2**20  # base64.b64decode holds the interpreter's lock: a slice costs about 2 ms, 20 MB would cost 40
_DATA_URI = re.compile(r"data:[^,]{0,256}?;base64,", re.IGNORECASE)
_DROPPED = str.maketrans({" ": None, "\t": None, "\r": None, "\n": None, "-": "+", "_": "/"})


def decode(data: str, max_bytes: int) -> bytes:
    """The bytes. White space, the URL-safe alphabet and missing padding are accepted.

    Raises MediaTooLarge before decoding, MediaBase64Invalid.
    """
    head = _DATA_URI.match(data)
    start = head.end() if head else 0
    if data[:5].lower() == "data:" and head is None:
        raise MediaBase64Invalid(detail="a data URI must say base64")
    if len(data) - start > max_bytes * 3 // 2 + 1024:
        raise MediaTooLarge(detail=f"at most {max_bytes} bytes")
    try:
        decoded = b"".join(_slices(data[start:].translate(_DROPPED).rstrip("=")))
    except (binascii.Error, ValueError):
        raise MediaBase64Invalid() from None
    if not decoded:
        raise MediaBase64Invalid(detail="no bytes")
    if len(decoded) > max_bytes:
        raise MediaTooLarge(detail=f"at most {max_bytes} bytes")
    return decoded


def _slices(text: str) -> list[bytes]:
    slices = []
    for start in range(0, len(text), _SLICE_CHARS):
        part = text[start : start + _SLICE_CHARS]
        slices.append(base64.b64decode(part + "=" * (-len(part) % 4), validate=True))
    return slices
