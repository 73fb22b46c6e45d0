"""What bytes are, told by the bytes alone: never by a name or a declared type."""

from dataclasses import dataclass
from typing import Literal

PICTURES = "JPEG, PNG, WebP, GIF, BMP and AVIF"
VIDEOS = "MP4, QuickTime, WebM, Matroska, MPEG-TS and AVI"

PictureFormat = Literal["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF"]
VideoFormat = Literal["mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts", "avi"]  # FFmpeg's names of demuxers


@dataclass(frozen=True)
class SniffResult:
    """`picture` or `video` is the format that it is read as; `name` is what it seems to be, with its article."""

    name: str
    picture: PictureFormat | None = None
    video: VideoFormat | None = None


_UNKNOWN = SniffResult("not a known image or video format")
_ISO_VIDEO = SniffResult("a video file", video="mov,mp4,m4a,3gp,3g2,mj2")
_AVI = SniffResult("a video file", video="avi")
_MPEG_TS = SniffResult("a video file", video="mpegts")
_HEADS: tuple[tuple[bytes, SniffResult], ...] = (
    (b"\xff\xd8\xff", SniffResult("a JPEG", "JPEG")),
    (b"\x89PNG\r\n\x1a\n", SniffResult("a PNG", "PNG")),
    (b"GIF87a", SniffResult("a GIF", "GIF")),
    (b"GIF89a", SniffResult("a GIF", "GIF")),
    (b"BM", SniffResult("a BMP", "BMP")),
    (b"II*\x00", SniffResult("a TIFF")),
    (b"MM\x00*", SniffResult("a TIFF")),
    (b"%PDF", SniffResult("a PDF")),
    (b"\x1aE\xdf\xa3", SniffResult("a video file", video="matroska,webm")),
    (b"<svg", SniffResult("an SVG")),
    (b"<?xml", SniffResult("an XML text")),
)
_BRANDS: dict[bytes, SniffResult] = {
    b"avif": SniffResult("an AVIF", "AVIF"),
    b"avis": SniffResult("an AVIF", "AVIF"),
    b"heic": SniffResult("a HEIC"),
    b"heix": SniffResult("a HEIC"),
    b"hevc": SniffResult("a HEIC"),
    b"mif1": SniffResult("a HEIC"),
    b"msf1": SniffResult("a HEIC"),
}


def sniff(data: bytes) -> SniffResult:
    """The kind of these bytes."""
    for head, found in _HEADS:
        if data.startswith(head):
            return found
    if data[:4] == b"RIFF":
        return {b"WEBP": SniffResult("a WebP", "WEBP"), b"AVI ": _AVI}.get(data[8:12], _UNKNOWN)
    if data[4:8] == b"ftyp":
        return _iso_brand(data)
    if data[4:8] in (b"moov", b"mdat", b"wide", b"free"):  # QuickTime before there were brands
        return _ISO_VIDEO
    if len(data) > 376 and data[0] == data[188] == data[376] == 0x47:
        return _MPEG_TS
    return _UNKNOWN


def _iso_brand(data: bytes) -> SniffResult:
    """ISO files say what they are in their major brand, or among the compatible ones."""
    end = min(int.from_bytes(data[:4], "big"), 256)
    brands = [data[8:12], *(data[at : at + 4] for at in range(16, end, 4))]
    pictures = [_BRANDS[brand] for brand in brands if brand in _BRANDS]
    if any(found.picture for found in pictures):
        return next(found for found in pictures if found.picture)
    return pictures[0] if pictures else _ISO_VIDEO
