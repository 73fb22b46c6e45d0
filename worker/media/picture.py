"""Encoded bytes to an upright RGB picture. Refuses what would cost more than its pixels are worth."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from worker.core.contract import RGB
from worker.core.errors import MediaCorrupt, MediaDimensions, MediaError, MediaUnsupportedType
from worker.core.settings import Settings
from worker.core.units import megapixels, of_pixels
from worker.media import av1
from worker.media.handing_over import InParent
from worker.media.limits import png_chunks, refuse_costly
from worker.media.sniff import PICTURES, sniff

MAX_RATIO = 200
DRAFT_RATIO = 2
# EXIF's numbers: pictures that lie on their side, counterclockwise quarters to turn, and those mirrored after it.
SIDEWAYS = (5, 6, 7, 8)
QUARTERS = {2: 0, 3: 2, 4: 2, 5: 3, 6: 3, 7: 1, 8: 1}
MIRRORED = (2, 4, 5, 7)
RGB_BYTES = 3
BAND_ROWS = 256  # that are converted to RGB at a time
# `python -m benchmarks.decode_memory` measures at most 17.9 for WebP, 13.5 for AVIF, 12.1 for JPEG, 7.7 for others.
WORKING_BYTES_PER_PIXEL = {"JPEG": 14, "PNG": 9, "WEBP": 20, "GIF": 9, "BMP": 9, "AVIF": 20}

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `check_size` tells it with numbers
_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)  # a warning where a user's filters raise it


@dataclass(frozen=True)
class Header:
    """A picture whose format and sides are known and allowed, not yet decoded. height, width: of it upright. formats:
    the only ones as which Pillow may open it. orientation: EXIF's number of how it is stored."""

    data: bytes
    formats: tuple[str, ...]
    height: int
    width: int
    orientation: int = 1

    @property
    def num_pixels(self) -> int:
        return self.width * self.height

    @property
    def decode_bytes(self) -> int:
        """About how much memory decoding takes, its result at full size included."""
        turned = RGB_BYTES if self.orientation != 1 else 0
        return self.num_pixels * (WORKING_BYTES_PER_PIXEL[self.formats[0]] + turned)


def read_header(data: bytes, settings: Settings) -> Header:
    """Raises MediaUnsupportedType, MediaCorrupt, MediaDimensions, MediaTooLarge."""
    found = sniff(data)
    if found.picture is None:
        raise MediaUnsupportedType(detail=f"this is {found.name}, supported are {PICTURES}")
    refuse_costly(data, found.picture)
    formats = ("JPEG", "MPO") if found.picture == "JPEG" else (found.picture,)
    try:
        with bounded(settings):
            image = Image.open(io.BytesIO(data), formats=formats)
            orientation = _orientation(image, data)
        width, height = reversed(image.size) if orientation in SIDEWAYS else image.size
    except BROKEN:
        raise MediaCorrupt() from None
    check_size(width, height, settings)
    if found.picture == "AVIF" and av1.largest_picture(data) > width * height:
        raise MediaCorrupt(detail="its images are larger than its header says")
    return Header(data, formats, height, width, orientation)


def _orientation(image: Image.Image, data: bytes) -> int:
    """EXIF's number, 1 for upright. A PNG may say it behind its pixels, where Pillow looks only after decoding them."""
    exif = image.getexif() if image.format != "PNG" or "exif" in image.info else Image.Exif()
    if image.format == "PNG" and "exif" not in image.info:
        exif.load(b"Exif\0\0" + next((body for kind, body in png_chunks(data) if kind == b"eXIf"), b""))
    number = exif.get(ExifTags.Base.Orientation)
    return number if isinstance(number, int) and 1 <= number <= 8 else 1


def decode(header: Header, wanted: tuple[int, int] | None = None, resize: InParent | None = None) -> RGB:
    """(height, width, 3) pixels, upright, on white where the picture is transparent. Raises MediaCorrupt.

    wanted: the height and width at which it will be seen, and to which `resize` brings it. A JPEG at least twice as
    large on each side is decoded at a half, a quarter or an eighth of its size, never below what is wanted: the same
    picture in a third of the time.
    """
    try:
        image = Image.open(io.BytesIO(header.data), formats=header.formats)
        if wanted is not None and image.format in ("JPEG", "MPO"):
            _draft(image, header, *wanted)
        image.load()
        rgb = pixels_of(image, None if resize is None else resize.allocate(image.height, image.width))
        image.close()
        del image
        rgb = upright(rgb, header.orientation)
        return rgb if wanted is None or resize is None else resize(rgb, *wanted)
    except MediaError:
        raise
    except BROKEN:
        raise MediaCorrupt() from None


def _draft(image: Image.Image, header: Header, height: int, width: int) -> None:
    if min(header.height / height, header.width / width) >= DRAFT_RATIO:
        is_turned = header.width != image.width
        image.draft(None, (height, width) if is_turned else (width, height))


# What Pillow raises for broken files, whatever the format; its texts carry addresses and are never shown.
BROKEN = (
    UnidentifiedImageError, OSError, EOFError, ValueError, SyntaxError, TypeError, KeyError, IndexError, OverflowError,
    struct.error, zlib.error, AttributeError, ZeroDivisionError, RuntimeError,
)  # fmt: skip


@contextmanager
def bounded(settings: Settings) -> Iterator[None]:
    """What Pillow makes beside the picture that its header announces, it makes no larger than twice our limit. Raises
    MediaDimensions."""
    Image.MAX_IMAGE_PIXELS = settings.max_image_pixels
    try:
        yield
    except _BOMB:
        raise MediaDimensions(detail=f"limit {megapixels(settings.max_image_pixels)} (MAX_IMAGE_PIXELS)") from None


def check_size(width: int, height: int, settings: Settings) -> None:
    """Raises MediaCorrupt, MediaDimensions."""
    if width < 1 or height < 1:
        raise MediaCorrupt()
    if max(width, height) > settings.max_image_side:
        raise MediaDimensions(
            detail=f"{width}x{height}, longest side {settings.max_image_side} (MAX_IMAGE_SIDE): resize it first"
        )
    if width * height > settings.max_image_pixels:
        limit = megapixels(settings.max_image_pixels)
        raise MediaDimensions(detail=f"{of_pixels(width, height)}, limit {limit} (MAX_IMAGE_PIXELS): resize it first")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise MediaDimensions(
            detail=f"{width}x{height}, the longer side may be {MAX_RATIO} times the shorter: crop it first"
        )


def pixels_of(image: Image.Image, room: RGB | None = None) -> RGB:
    """(height, width, 3), on white where it is transparent, in `room` where that is given; converted band by band,
    which takes no second picture."""
    width, height = image.size
    rgb = np.empty((height, width, RGB_BYTES), np.uint8) if room is None else room
    for top in range(0, height, BAND_ROWS):
        bottom = min(top + BAND_ROWS, height)
        rgb[top:bottom] = np.asarray(_as_rgb(image.crop((0, top, width, bottom))))
    return rgb


def upright(rgb: RGB, orientation: int) -> RGB:
    """Pixels as they are stored, to be turned and mirrored by EXIF's number."""
    if orientation == 1:
        return rgb
    turned = np.rot90(rgb, QUARTERS[orientation])
    return np.ascontiguousarray(turned[:, ::-1] if orientation in MIRRORED else turned)


def _as_rgb(image: Image.Image) -> Image.Image:
    """Eight bits a colour, on white where it is transparent."""
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep(image)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_deep(image: Image.Image) -> Image.Image:
    """16-bit greys lose their lower byte; Pillow's own conversion would clip them to white."""
    values = np.asarray(image).astype(np.int64)
    return Image.fromarray((values >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
