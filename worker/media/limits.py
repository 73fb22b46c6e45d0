"""What opening a file would cost beyond its pixels, told by walking its segments without decoding any.

Pillow reads every segment when it opens a file, and every scan when it decodes one: a small file made of a hundred
thousand segments or of three hundred scans costs seconds.
"""

import re

from worker.core.errors import MediaTooLarge
from worker.media import png

MAX_JPEG_SCANS = 64
MAX_JPEG_SEGMENTS = 2048

_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_NEXT_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")


def weigh_jpeg(data: bytes) -> bool:
    """Counts segments and scans up to the end of the image; what follows it (a film, say) does not count. Whether there
    is an end marker. Raises MediaTooLarge."""
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
    return found is not None


def weigh_png(data: bytes) -> None:
    """Raises MediaTooLarge."""
    for index, _ in enumerate(png.chunks(data)):
        if index >= png.MAX_CHUNKS:
            raise MediaTooLarge(detail=f"more than {png.MAX_CHUNKS} chunks")
