"""Encoded bytes to an upright RGB picture. Refuses what would cost more than its pixels are worth."""

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import av
import numpy as np
from PIL import Image, UnidentifiedImageError

from worker.core.contract import Color
from worker.core.errors import MediaCorrupt, MediaDimensions, MediaError, MediaUnsupportedType
from worker.core.media_warnings import MediaWarning, warning
from worker.core.opened import RGB
from worker.core.settings import Settings
from worker.core.units import megapixels, of_pixels
from worker.media import av1, bmp, color
from worker.media.handing_over import InParent
from worker.media.orientation import SIDEWAYS, UPRIGHT, upright
from worker.media.sniff import PICTURES, sniff
from worker.media.still import Still, opened, oriented, prepared

MAX_RATIO = 200
DRAFT_RATIO = 2
RGB_BYTES = 3
BAND_ROWS = 256  # that are converted to RGB at a time
# `python -m benchmarks.decode_memory` measures at most 24.6 for JPEG 2000, 17.9 for WebP, 13.5 for AVIF, 12.1 for JPEG,
# 8.9 for HEIC (16 where it has ten bits) and 8.2 for others.
WORKING_BYTES_PER_PIXEL = {
    "JPEG": 14, "PNG": 9, "WEBP": 20, "GIF": 9, "BMP": 9, "AVIF": 20, "HEIF": 20, "TIFF": 14, "ICO": 14, "JPEG2000": 32,
}  # fmt: skip
SIXTEEN_BITS_BYTES_PER_PIXEL = 32  # of a PNG that FFmpeg decodes: 24.2
_PROBE = bytes(1 + at * 37 % 254 for at in range(256))  # behind a JPEG without an end

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `check_size` tells it with numbers
warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # of metadata, a line for each broken tag
_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)  # a warning where a user's filters raise it


@dataclass(frozen=True)
class Header:
    """A picture whose format and sides are known and allowed, not yet decoded. height, width: of it upright.
    orientation: EXIF's number of how it is stored. profile: where its colors are to be converted."""

    still: Still
    height: int
    width: int
    orientation: int = UPRIGHT
    profile: color.Profile | None = None

    @property
    def num_pixels(self) -> int:
        return self.width * self.height

    @property
    def warnings(self) -> tuple[MediaWarning, ...]:
        """What the report says of it."""
        return self.still.warnings

    @property
    def decode_bytes(self) -> int:
        """About how much memory decoding takes, its result at full size included."""
        turned = RGB_BYTES if self.orientation != UPRIGHT else 0
        is_sixteen_bits = self.still.is_exact and self.still.form == "PNG"
        working = SIXTEEN_BITS_BYTES_PER_PIXEL if is_sixteen_bits else WORKING_BYTES_PER_PIXEL[self.still.form]
        return self.num_pixels * (working + turned)


def read_header(data: bytes, settings: Settings, wanted_color: Color | None = None) -> Header:
    """Raises MediaUnsupportedType, MediaCorrupt, MediaDimensions, MediaTooLarge."""
    found = sniff(data)
    if found.picture is None:
        raise MediaUnsupportedType(detail=f"this is {found.name}, {_advice(found.advice)}")
    try:
        still = prepared(data, found.picture)
        with bounded(settings):
            if still.is_exact and still.form == "BMP":
                (width, height), mode, orientation = bmp.size(data), "RGB", UPRIGHT
            else:
                image = opened(still)
                orientation, still = oriented(still, image)
                width, height = reversed(image.size) if orientation in SIDEWAYS else image.size
                mode = image.mode
                if still.profile is None:
                    still = replace(still, profile=image.info.get("icc_profile"))
    except MediaError:
        raise
    except BROKEN:
        raise MediaCorrupt() from None
    check_size(width, height, settings)
    if found.picture == "AVIF" and av1.largest_picture(data) > width * height:
        raise MediaCorrupt(detail="its images are larger than its header says")
    profile, still = (None, still) if wanted_color == "as_is" else _profile(still, mode)
    return Header(replace(still, exif=None, profile=None), height, width, orientation, profile)


def _advice(advice: str) -> str:
    return f"{advice}; supported are {PICTURES}" if advice else f"supported are {PICTURES}"


def _profile(still: Still, mode: str) -> tuple[color.Profile | None, Still]:
    match color.judged(still.profile or b"", mode):
        case "none":
            return None, still
        case "unusable":
            return None, replace(still, warnings=(*still.warnings, warning("IMAGE_PROFILE_IGNORED")))
        case "converts":
            assert still.profile is not None
            told = replace(still, warnings=(*still.warnings, warning("IMAGE_COLOR_CONVERTED")))
            return color.Profile(still.profile, color.base_mode(mode)), told


def decode(header: Header, wanted: tuple[int, int] | None = None, resize: InParent | None = None) -> RGB:
    """(height, width, 3) pixels, upright, on white where the picture is transparent. Raises MediaCorrupt.

    wanted: the height and width at which it will be seen, and to which `resize` brings it. A JPEG at least twice as
    large on each side is decoded at a half, a quarter or an eighth of its size, never below what is wanted: the same
    picture in a third of the time.
    """
    try:
        rgb = _stored_pixels(header, wanted, resize)
        rgb = upright(rgb, header.orientation)
        return rgb if wanted is None or resize is None else resize(rgb, *wanted)
    except MediaError:
        raise
    except BROKEN:
        raise MediaCorrupt() from None


def _stored_pixels(header: Header, wanted: tuple[int, int] | None, resize: InParent | None) -> RGB:
    """Pixels as they are stored. Raises MediaCorrupt and what `BROKEN` names."""
    still = header.still
    if still.is_exact:
        return bmp.decode(still.data) if still.form == "BMP" else _sixteen_bits(still.data, header.profile)
    if still.lacks_end:
        return _without_end(header)
    image = _loaded(header, still, wanted)
    rgb = pixels_of(image, None if resize is None else resize.allocate(image.height, image.width), header.profile)
    image.close()
    return rgb


def _loaded(header: Header, still: Still, wanted: tuple[int, int] | None) -> Image.Image:
    image = opened(still)
    if wanted is not None and still.form == "JPEG":
        _draft(image, header, *wanted)
    image.load()
    return image


def _without_end(header: Header) -> RGB:
    """A JPEG that lacks its end marker is whole if what would come next changes nothing, at full size. Raises
    MediaCorrupt."""
    body = header.still.data.rstrip(b"\xff")
    ends = (body + b"\xff\xd9", body + _PROBE + b"\xff\xd9")
    rgb, other = (
        pixels_of(_loaded(header, replace(header.still, data=data), None), None, header.profile) for data in ends
    )
    if not np.array_equal(rgb, other):
        raise MediaCorrupt(detail="the file ends before its last pixels")
    return rgb


def _sixteen_bits(data: bytes, profile: color.Profile | None) -> RGB:
    """A PNG with one transparent color of 16 bits a channel, on white."""
    context = av.CodecContext.create("png", "r")
    try:
        [frame] = [*context.decode(av.Packet(data)), *context.decode(None)]
    except av.FFmpegError:
        raise MediaCorrupt() from None
    rgba = (frame.to_ndarray(format="rgba64le").astype(np.uint16) >> 8).astype(np.uint8)
    return pixels_of(Image.fromarray(rgba), None, profile)


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


def pixels_of(image: Image.Image, room: RGB | None = None, profile: color.Profile | None = None) -> RGB:
    """(height, width, 3), on white where it is transparent, in `room` where that is given; converted band by band,
    which takes no second picture. profile: of its colors, where they are not sRGB's."""
    width, height = image.size
    rgb = np.empty((height, width, RGB_BYTES), np.uint8) if room is None else room
    for top in range(0, height, BAND_ROWS):
        bottom = min(top + BAND_ROWS, height)
        rgb[top:bottom] = np.asarray(_as_rgb(image.crop((0, top, width, bottom)), profile))
    return rgb


def _as_rgb(image: Image.Image, profile: color.Profile | None) -> Image.Image:
    """Eight bits a color, on white where it is transparent."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _from_deep(image)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        if profile is not None:
            rgba = _with_alpha_of(rgba, _converted(rgba, profile))
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    if profile is not None:
        return _converted(image, profile)
    return image if image.mode == "RGB" else image.convert("RGB")


def _converted(image: Image.Image, profile: color.Profile) -> Image.Image:
    return profile.converted(image if image.mode == profile.mode else image.convert("RGB").convert(profile.mode))


def _with_alpha_of(rgba: Image.Image, rgb: Image.Image) -> Image.Image:
    rgb.putalpha(rgba.getchannel("A"))
    return rgb


def _from_deep(image: Image.Image) -> Image.Image:
    """16-bit greys lose their lower byte; Pillow's own conversion would clip them to white. The one that is transparent
    is told apart before that."""
    values = np.asarray(image)
    if values.dtype.kind == "f":
        values = values.astype(np.float64) * (65535 if values.max(initial=0) <= 1 else 256)
    grey = Image.fromarray((values.astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    clear = image.info.get("transparency")
    if not isinstance(clear, int):
        return grey
    grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey
