"""What opening a file would cost beyond its pixels, told by walking its segments without decoding any.

Pillow reads every segment when it opens a file, and every scan when it decodes one: a small file made of a hundred
thousand segments or of three hundred scans costs seconds.
"""

import re
import struct
from collections.abc import Iterator

from worker.core.errors import MediaTooLarge, MediaUnsupportedType
from worker.media.sniff import PictureFormat

MAX_JPEG_SCANS = 64
MAX_JPEG_SEGMENTS = 2048
MAX_PNG_CHUNKS = 10_000
_RUN_LENGTH_CODED = (1, 2)

_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_NEXT_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")


def refuse_costly(data: bytes, form: PictureFormat) -> None:
    """Raises MediaTooLarge, MediaUnsupportedType."""
    match form:
        case "JPEG":
            _weigh_jpeg(data)
        case "PNG":
            _weigh_png(data)
        case "BMP":
            _weigh_bmp(data)
        case "WEBP" | "GIF" | "AVIF":
            pass


def _weigh_jpeg(data: bytes) -> None:
    """Counts segments and scans up to the end of the image; what follows it (a film, say) does not count."""
    num_segments = num_scans = 0
    found = _NEXT_MARKER.search(data, 2)
    while found and data[found.end() - 1] != _END_OF_IMAGE:
        num_segments += 1
        num_scans += data[found.end() - 1] == _START_OF_SCAN
        if num_scans > MAX_JPEG_SCANS:
            raise MediaTooLarge(detail=f"more than {MAX_JPEG_SCANS} scans")
        if num_segments > MAX_JPEG_SEGMENTS:
            raise MediaTooLarge(detail=f"more than {MAX_JPEG_SEGMENTS} segments")
        found = _NEXT_MARKER.search(data, found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big"))


def _weigh_png(data: bytes) -> None:
    for index, _ in enumerate(png_chunks(data)):
        if index >= MAX_PNG_CHUNKS:
            raise MediaTooLarge(detail=f"more than {MAX_PNG_CHUNKS} chunks")


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and body of each chunk."""
    at = 8
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        yield kind, data[at + 8 : at + 8 + size] if kind == b"eXIf" else b""
        at += 12 + size


def _weigh_bmp(data: bytes) -> None:
    """Pillow decodes run lengths byte by byte in Python."""
    is_modern = len(data) >= 34 and struct.unpack_from("<I", data, 14)[0] >= 40
    if is_modern and struct.unpack_from("<I", data, 30)[0] in _RUN_LENGTH_CODED:
        raise MediaUnsupportedType(detail="run-length encoded BMP is not read: convert it to PNG")
