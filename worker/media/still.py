"""A picture's file as Pillow is given it, and what else is read of it: orientation, color profile, and what is wrong
with the rest. Metadata that cannot be read never costs the picture."""

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from PIL import Image, JpegImagePlugin

from worker.core.errors import MediaUnsupportedType
from worker.core.media_warnings import MediaWarning, warning
from worker.media import bmp, ico, iso_items, jpeg2000, limits, orientation, png, tiff
from worker.media.sniff import PictureFormat

_EXIF_ITEM = re.compile(rb"(infe[\x02\x03].{7,9})Exif", re.DOTALL)  # an entry of an ISO file's list of items
_ITEMS_BYTES = 2**16  # in which that list is


@dataclass(frozen=True)
class Still:
    """data: what Pillow is given; form: as what. exif, profile: bodies where they are not left to Pillow; lacks_end: of
    a JPEG, its end marker; is_exact: pixels that Pillow does not keep apart are decoded elsewhere; warnings: what its
    report says."""

    data: bytes
    form: PictureFormat
    exif: bytes | None = None
    profile: bytes | None = None
    lacks_end: bool = False
    is_exact: bool = False
    warnings: tuple[MediaWarning, ...] = ()


def prepared(data: bytes, form: PictureFormat, *, is_moving: bool = False) -> Still:
    """is_moving: as an animation. Raises MediaTooLarge, MediaUnsupportedType, MediaCorrupt."""
    if form == "PNG":
        return _png(data, is_moving=is_moving)
    prepare = _PREPARED.get(form)
    return Still(data, form) if prepare is None else prepare(data)


def _jpeg(data: bytes) -> Still:
    end = limits.weigh_jpeg(data)
    if end is None:
        return Still(data, "JPEG")
    return Still(data[:end], "JPEG", lacks_end=True, warnings=(warning("IMAGE_END_MISSING"),))


def _png(data: bytes, *, is_moving: bool) -> Still:
    found = png.read(data, is_moving=is_moving)
    warnings = []
    if found.ignores_metadata:
        warnings.append(warning("IMAGE_METADATA_IGNORED"))
    if found.ignores_profile:
        warnings.append(warning("IMAGE_PROFILE_IGNORED"))
    return Still(
        found.data, "PNG", found.exif, found.profile, is_exact=found.needs_sixteen_bits, warnings=tuple(warnings)
    )


def _ico(data: bytes) -> Still:
    found = ico.largest(data)
    return prepared(found.data, "PNG") if found.is_png else Still(found.data, "ICO")


def _tiff(data: bytes) -> Still:
    count = tiff.count_pages(data)
    if tiff.compression(data) not in tiff.DECODED:
        raise MediaUnsupportedType(detail="a TIFF with this compression is not decoded: convert it to PNG")
    return Still(data, "TIFF", warnings=() if count == 1 else (warning("IMAGE_FIRST_PAGE", count=count),))


def _jpeg2000(data: bytes) -> Still:
    jpeg2000.refuse_costly(data)
    return Still(data, "JPEG2000")


def _heif(data: bytes) -> Still:
    iso_items.refuse_costly(data)
    return Still(data, "HEIF")


def _avif(data: bytes) -> Still:
    """Without its EXIF, which says nothing about how it is turned and which libavif refuses the picture for."""
    items = data[:_ITEMS_BYTES]
    return Still(_EXIF_ITEM.sub(rb"\1skip", items) + data[_ITEMS_BYTES:] if b"Exif" in items else data, "AVIF")


def _bmp(data: bytes) -> Still:
    return Still(data, "BMP", is_exact=bmp.has_masks(data) or bmp.is_run_length_coded(data))


_PREPARED: Mapping[PictureFormat, Callable[[bytes], Still]] = {
    "JPEG": _jpeg, "ICO": _ico, "TIFF": _tiff, "BMP": _bmp, "AVIF": _avif, "JPEG2000": _jpeg2000, "HEIF": _heif,
}  # fmt: skip


class _Jpeg(JpegImagePlugin.JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """Nobody wants it, and Pillow reads all of the EXIF for it."""


def opened(still: Still) -> Image.Image:
    """The picture, its header read. Raises what `BROKEN` names."""
    file = io.BytesIO(still.data)
    match still.form:
        case "JPEG":  # whatever follows the picture, as a film or other sizes of it, is none of its business
            return _Jpeg(file)
        case "HEIF":
            from worker.media.heif import Photo  # no other picture needs it

            return Photo(still.data)
        case _:
            return Image.open(file, formats=(still.form,))


def oriented(still: Still, image: Image.Image) -> tuple[int, Still]:
    """EXIF's number of how the picture is stored, 1 for upright and for formats whose decoders turn it themselves."""
    if still.form in ("HEIF", "TIFF"):
        return orientation.UPRIGHT, still
    exif = image.info.get("exif") if still.exif is None else still.exif
    if not isinstance(exif, bytes) or not exif:
        return orientation.UPRIGHT, still
    number = orientation.of_exif(exif)
    if number is not None:
        return number, still
    return orientation.UPRIGHT, replace(still, warnings=(*still.warnings, warning("IMAGE_METADATA_IGNORED")))
