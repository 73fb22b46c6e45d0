"""The chunks of a PNG: what Pillow is given of them, and what is read of the rest.

Pillow refuses a whole picture for a text whose checksum is wrong or that unpacks to more than a megabyte. It is given
the chunks that pixels depend on.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from worker.core.errors import MediaTooLarge
from worker.media.color import MAX_PROFILE_BYTES

MAX_CHUNKS = 10_000
MAX_UNPACKED_BYTES = 2**20  # of a text
MAX_TEXTS = 16  # that are looked at
_RGB, _DEEP = 2, 16  # the kind of color without a palette and without transparency, bits a channel
_HEAD_BYTES, _CHECKSUM_BYTES = 8, 4
_MOVING = frozenset({b"acTL", b"fcTL", b"fdAT"})  # the chunks of an animation
_RAW_EXIF = (b"Raw profile type exif", b"Raw profile type APP1")


@dataclass(frozen=True)
class Chunk:
    """A chunk: its type, and where its head begins and its body ends."""

    kind: bytes
    begin: int
    end: int

    def is_of_pixels(self, *, is_moving: bool) -> bool:
        """Whether pixels depend on it; is_moving: those of an animation too."""
        return not self.kind[0] & 0x20 or self.kind == b"tRNS" or (is_moving and self.kind in _MOVING)


@dataclass(frozen=True)
class Png:
    """data: with the chunks of pixels alone; exif, profile: bodies, unpacked; ignores_metadata, ignores_profile:
    whether some could not be read; needs_sixteen_bits: one color of its 16 bits a channel is transparent, and of eight
    bits several are alike."""

    data: bytes
    exif: bytes = b""
    profile: bytes = b""
    ignores_metadata: bool = False
    ignores_profile: bool = False
    needs_sixteen_bits: bool = False


def chunks(data: bytes) -> Iterator[Chunk]:
    """All chunks, up to where the file ends."""
    at = _HEAD_BYTES
    while at + _HEAD_BYTES <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        yield Chunk(data[at + 4 : at + 8], at, min(at + _HEAD_BYTES + size, len(data)))
        at += _HEAD_BYTES + size + _CHECKSUM_BYTES


def read(data: bytes, *, is_moving: bool = False) -> Png:
    """What is in the file; is_moving: as an animation. Its sides are checked elsewhere. Raises MediaTooLarge."""
    kept = bytearray(data[:_HEAD_BYTES])
    exif = profile = b""
    ignores_metadata = ignores_profile = is_keyed = has_profile = False
    found, num_texts = list(islice(chunks(data), MAX_CHUNKS + 1)), 0
    if len(found) > MAX_CHUNKS:
        raise MediaTooLarge(detail=f"more than {MAX_CHUNKS} chunks")
    for chunk in found:
        if chunk.is_of_pixels(is_moving=True):
            is_keyed |= chunk.kind == b"tRNS"
            continue
        body = data[chunk.begin + _HEAD_BYTES : chunk.end]
        is_whole = _is_whole(data, chunk, body)
        if chunk.kind == b"eXIf" and is_whole:
            exif = body
        elif chunk.kind == b"iCCP":
            if has_profile:
                continue
            has_profile = True
            unpacked = _unpacked(body, MAX_PROFILE_BYTES) if is_whole else None
            profile, ignores_profile = unpacked or b"", unpacked is None
        elif num_texts < MAX_TEXTS:
            num_texts += 1
            ignores_metadata |= not is_whole or not _is_legible(chunk.kind, body)
    if not all(chunk.is_of_pixels(is_moving=is_moving) for chunk in found):
        for chunk in found:
            if chunk.is_of_pixels(is_moving=is_moving):
                kept += data[chunk.begin : chunk.end + _CHECKSUM_BYTES]
    is_deep_rgb = data[24:26] == bytes([_DEEP, _RGB])
    return Png(
        bytes(kept) if len(kept) > _HEAD_BYTES else data,
        exif,
        profile,
        ignores_metadata,
        ignores_profile,
        needs_sixteen_bits=is_deep_rgb and is_keyed,
    )


def _is_whole(data: bytes, chunk: Chunk, body: bytes) -> bool:
    told = data[chunk.end : chunk.end + _CHECKSUM_BYTES]
    return told == struct.pack(">I", zlib.crc32(chunk.kind + body))


def _is_legible(kind: bytes, body: bytes) -> bool:
    """Whether a text is one: what is packed is unpacked as far as is allowed, and EXIF in it is looked at."""
    name, _, rest = body.partition(b"\0")
    if kind == b"zTXt":
        text = _unpacked(body, MAX_UNPACKED_BYTES)
    elif kind == b"iTXt" and rest[:1] == b"\1":
        _, _, packed = rest[2:].partition(b"\0")[2].partition(b"\0")
        text = _inflated(packed, MAX_UNPACKED_BYTES)
    else:
        text = rest
    if text is None:
        return False
    return name not in _RAW_EXIF or _is_raw_exif(text)


def _is_raw_exif(text: bytes) -> bool:
    """ImageMagick's form: a name, a length, and hexadecimal digits."""
    try:
        block = bytes.fromhex(text.split(b"\n", 3)[3].decode("ascii"))
    except (ValueError, IndexError):
        return False
    return block.removeprefix(b"Exif\0\0")[:4] in (b"II*\0", b"MM\0*")


def _unpacked(body: bytes, limit: int) -> bytes | None:
    """What follows a name and the method of compression."""
    return _inflated(body.partition(b"\0")[2][1:], limit)


def _inflated(packed: bytes, limit: int) -> bytes | None:
    """None where it is damaged, or more than `limit` bytes."""
    inflater = zlib.decompressobj()
    try:
        unpacked = inflater.decompress(packed, limit)
    except zlib.error:
        return None
    return unpacked if inflater.eof else None
