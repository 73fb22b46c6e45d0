"""Encoded bytes to an upright RGB picture. Refuses what would cost more than its pixels are worth."""

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from worker.contract import RGB
from worker.errors import MediaCorrupt, MediaDimensions, MediaError, MediaUnsupportedType
from worker.media.sniff import sniff
from worker.media.weigh import refuse_costly
from worker.settings import Settings

MAX_RATIO = 200
WORKING_BYTES_PER_PIXEL = 30  # measured: WebP with alpha and 16-bit PNG need 28, JPEG 18

Image.MAX_IMAGE_PIXELS = None  # `_check_size` refuses by our own limits, before any pixel is decoded


@dataclass(frozen=True)
class Header:
    """A picture whose format and sides are known and allowed, not yet decoded."""

    image: Image.Image
    where: str

    @property
    def num_pixels(self) -> int:
        return self.image.width * self.image.height

    @property
    def decode_bytes(self) -> int:
        """About how much memory decoding takes."""
        return self.num_pixels * WORKING_BYTES_PER_PIXEL


def read_header(data: bytes, where: str, settings: Settings) -> Header:
    """Raises MediaUnsupportedType, MediaCorrupt, MediaDimensions, MediaTooLarge."""
    found = sniff(data)
    if found.picture is None:
        raise MediaUnsupportedType(where=where, detail=f"this is {found.name}; a picture is needed")
    try:
        refuse_costly(data, found.picture)
    except MediaError as error:
        raise error.at(where) from None
    formats = ("JPEG", "MPO") if found.picture == "JPEG" else (found.picture,)
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except _BROKEN:
        raise MediaCorrupt(where=where) from None
    _check_size(image.width, image.height, where, settings)
    return Header(image, where)


def decode(header: Header) -> RGB:
    """(height, width, 3) pixels, upright, on white where the picture is transparent. Raises MediaCorrupt."""
    try:
        header.image.seek(0)
        header.image.load()
        upright = ImageOps.exif_transpose(header.image)
        return np.array(_as_rgb(upright))
    except MediaError:
        raise
    except _BROKEN:
        raise MediaCorrupt(where=header.where) from None


# What Pillow raises for broken files, whatever the format; its texts carry addresses and are never shown.
_BROKEN = (
    UnidentifiedImageError, OSError, EOFError, ValueError, SyntaxError, TypeError, KeyError, IndexError, OverflowError,
    struct.error, zlib.error, AttributeError, ZeroDivisionError, RuntimeError,
)  # fmt: skip


def _check_size(width: int, height: int, where: str, settings: Settings) -> None:
    if width < 1 or height < 1:
        raise MediaCorrupt(where=where)
    if max(width, height) > settings.max_image_side:
        raise MediaDimensions(where=where, detail=f"{width}x{height}, at most {settings.max_image_side} a side")
    if width * height > settings.max_image_pixels:
        raise MediaDimensions(where=where, detail=f"{width}x{height}, at most {settings.max_image_pixels} pixels")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise MediaDimensions(where=where, detail=f"{width}x{height}, sides at most 1 to {MAX_RATIO}")


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep(image)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _from_deep(image: Image.Image) -> Image.Image:
    """16-bit greys lose their lower byte; Pillow's own conversion would clip them to white."""
    values = np.asarray(image).astype(np.int64)
    return Image.fromarray((values >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
