"""What opening a file would cost beyond its pixels, told by walking its segments without decoding any.

Pillow reads every segment when it opens a file, and every scan when it decodes one: a small file made of a hundred
thousand segments or of three hundred scans costs seconds.
"""

import re

from worker.core.errors import MediaTooLarge

MAX_JPEG_SCANS = 64
MAX_JPEG_SEGMENTS = 2048

_START_OF_IMAGE, _END_OF_IMAGE, _START_OF_SCAN = 0xD8, 0xD9, 0xDA
_FIRST_MARKER = 0xC0  # of those that mean anything in an image
_NEXT_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")


def weigh_jpeg(data: bytes) -> int | None:
    """Counts segments and scans up to the end of the image; what follows it (a film, say) does not count. None where it
    has an end marker; else where it ends at the latest: at the file's end, a marker that no scan has, or a film. Raises
    MediaTooLarge."""
    num_segments = num_scans = scan = 0
    found = _NEXT_MARKER.search(data, 2)
    while found and data[found.end() - 1] != _END_OF_IMAGE:
        num_segments += 1
        kind = data[found.end() - 1]
        if num_scans and (kind == _START_OF_IMAGE or kind < _FIRST_MARKER):
            break
        if kind == _START_OF_SCAN:
            num_scans, scan = num_scans + 1, found.end()
        if num_scans > MAX_JPEG_SCANS:
            raise MediaTooLarge(detail=f"more than {MAX_JPEG_SCANS} scans")
        if num_segments > MAX_JPEG_SEGMENTS:
            raise MediaTooLarge(detail=f"more than {MAX_JPEG_SEGMENTS} segments")
        found = _NEXT_MARKER.search(data, found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big"))
    if found is not None and data[found.end() - 1] == _END_OF_IMAGE:
        return None
    end = len(data) if found is None else found.start()
    film = data.find(b"ftyp", scan, end)
    return end if film < 0 else film - 4
