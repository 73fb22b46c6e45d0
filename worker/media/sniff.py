"""What bytes are, told by the bytes alone: never by a name or a declared type."""

from dataclasses import dataclass
from typing import Literal

PICTURES = "JPEG, PNG, WebP, GIF, BMP, AVIF, HEIC, TIFF, ICO and JPEG 2000"
VIDEOS = "MP4, QuickTime, WebM, Matroska, MPEG-TS, MPEG-PS, AVI, FLV, Ogg and WMV"

PictureFormat = Literal["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "HEIF", "TIFF", "ICO", "JPEG2000"]
# FFmpeg's names of demuxers.
VideoFormat = Literal[
    "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts", "mpeg", "avi", "flv", "ogg", "asf",
    "h264", "hevc", "m4v", "mpegvideo", "ivf",
]  # fmt: skip


@dataclass(frozen=True)
class SniffResult:
    """`picture` or `video` is the format that it is read as; `name` is what it seems to be, with its article; `advice`:
    what to do where it is read as neither."""

    name: str
    picture: PictureFormat | None = None
    video: VideoFormat | None = None
    advice: str = ""


_PICTURE_TYPES: dict[PictureFormat, str] = {"HEIF": "image/heic", "ICO": "image/x-icon", "JPEG2000": "image/jp2"}
_VIDEO_TYPES: dict[VideoFormat, str] = {
    "mov,mp4,m4a,3gp,3g2,mj2": "video/mp4", "matroska,webm": "video/x-matroska", "mpegts": "video/mp2t",
    "mpeg": "video/mpeg", "avi": "video/x-msvideo", "flv": "video/x-flv", "ogg": "video/ogg", "asf": "video/x-ms-wmv",
    "h264": "video/h264", "hevc": "video/h265", "m4v": "video/mpeg", "mpegvideo": "video/mpeg", "ivf": "video/x-ivf",
}  # fmt: skip


def media_type(data: bytes) -> str:
    """The type by its name in HTTP; empty for what is read as no picture and no video."""
    found = sniff(data)
    if found.video == "matroska,webm" and b"webm" in data[:64]:
        return "video/webm"
    if data[4:12] == b"ftypqt  ":
        return "video/quicktime"
    if found.picture is not None:
        return _PICTURE_TYPES.get(found.picture, f"image/{found.picture.lower()}")
    return "" if found.video is None else _VIDEO_TYPES[found.video]


def _film(form: VideoFormat) -> SniffResult:
    return SniffResult("a video file", video=form)


_UNKNOWN = SniffResult("not a known image or video format")
_ISO_VIDEO = _film("mov,mp4,m4a,3gp,3g2,mj2")
_MPEG_TS = _film("mpegts")
_AS_PNG = "convert it to PNG"
_HEADS: tuple[tuple[bytes, SniffResult], ...] = (
    (b"\xff\xd8\xff", SniffResult("a JPEG", "JPEG")),
    (b"\x89PNG\r\n\x1a\n", SniffResult("a PNG", "PNG")),
    (b"GIF87a", SniffResult("a GIF", "GIF")),
    (b"GIF89a", SniffResult("a GIF", "GIF")),
    (b"BM", SniffResult("a BMP", "BMP")),
    (b"II*\x00", SniffResult("a TIFF", "TIFF")),
    (b"MM\x00*", SniffResult("a TIFF", "TIFF")),
    (b"II+\x00", SniffResult("a BigTIFF", advice=_AS_PNG)),
    (b"MM\x00+", SniffResult("a BigTIFF", advice=_AS_PNG)),
    (b"\x00\x00\x01\x00", SniffResult("an ICO", "ICO")),
    (b"\x00\x00\x02\x00", SniffResult("a Windows cursor", advice=_AS_PNG)),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", SniffResult("a JPEG 2000", "JPEG2000")),
    (b"\xff\x4f\xff\x51", SniffResult("a JPEG 2000", "JPEG2000")),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", SniffResult("a JPEG XL", advice="convert it to PNG or JPEG")),
    (b"\xff\x0a", SniffResult("a JPEG XL", advice="convert it to PNG or JPEG")),
    (b"8BPS", SniffResult("a Photoshop document", advice="export it as PNG")),
    (b"%PDF", SniffResult("a PDF", advice="send its pages as images")),
    (b"%!PS", SniffResult("a PostScript document", advice="send its pages as images")),
    (b"qoif", SniffResult("a QOI", advice=_AS_PNG)),
    (b"DDS ", SniffResult("a DDS", advice=_AS_PNG)),
    (b"\x76\x2f\x31\x01", SniffResult("an OpenEXR", advice=_AS_PNG)),
    (b"#?RADIANCE", SniffResult("a Radiance HDR", advice=_AS_PNG)),
    (b"<svg", SniffResult("an SVG", advice="render it to PNG")),
    (b"<?xml", SniffResult("an XML text")),
    (b"\x1aE\xdf\xa3", _film("matroska,webm")),
    (b"\x00\x00\x01\xba", _film("mpeg")),
    (b"FLV\x01", _film("flv")),
    (b"OggS", _film("ogg")),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c", _film("asf")),
    (b"DKIF", _film("ivf")),
    (b"\x00\x00\x01\xb3", _film("mpegvideo")),
    (b".RMF", SniffResult("a RealMedia file", advice="convert it to MP4")),
)  # fmt: skip
_AVIF, _HEIC = SniffResult("an AVIF", "AVIF"), SniffResult("a HEIC", "HEIF")
_BRANDS: dict[bytes, SniffResult] = {
    **dict.fromkeys((b"avif", b"avis"), _AVIF),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), _HEIC),
}
# What an ISO file may begin with: those with a brand, and those of QuickTime before there were brands.
_BRANDED = (b"ftyp", b"styp")
_UNBRANDED = (b"moov", b"mdat", b"moof", b"wide", b"free", b"skip", b"pnot", b"uuid", b"sidx", b"emsg")
_MAX_LEADING_BOXES = 64
_TS_SIZES = (188, 192, 204)  # of packets: plain, with a time before each (AVCHD, Blu-ray), with check bytes behind
_TS_PACKETS = 5  # in a row that begin with the synchronisation byte


def sniff(data: bytes) -> SniffResult:
    """The kind of these bytes."""
    for head, found in _HEADS:
        if data.startswith(head):
            return found
    if data[:4] == b"RIFF":
        return {b"WEBP": SniffResult("a WebP", "WEBP"), b"AVI ": _film("avi")}.get(data[8:12], _UNKNOWN)
    if data[4:8] in _BRANDED:
        return _iso_brand(data, 0)
    if data[4:8] in _UNBRANDED:
        return _iso_after_boxes(data)
    if transport_packets(data) is not None:
        return _MPEG_TS
    return _elementary_stream(data)


def _iso_after_boxes(data: bytes) -> SniffResult:
    """Behind boxes that say nothing, the brand does."""
    at = 0
    for _ in range(_MAX_LEADING_BOXES):
        if data[at + 4 : at + 8] == b"ftyp":
            return _iso_brand(data, at)
        size = int.from_bytes(data[at : at + 4], "big")
        if size < 8 or data[at + 4 : at + 8] in (b"moov", b"mdat", b"moof"):
            break
        at += size
    return _ISO_VIDEO


def _iso_brand(data: bytes, at: int) -> SniffResult:
    """ISO files say what they are in their major brand, or among the compatible ones."""
    end = at + min(int.from_bytes(data[at : at + 4], "big"), 256)
    brands = [data[at + 8 : at + 12], *(data[place : place + 4] for place in range(at + 16, end, 4))]
    pictures = [_BRANDS[brand] for brand in brands if brand in _BRANDS]
    if _AVIF in pictures:
        return _AVIF
    return pictures[0] if pictures else _ISO_VIDEO


def transport_packets(data: bytes) -> tuple[int, int] | None:
    """Where the first whole packet of a transport stream begins, and how many bytes there are from one to the next: a
    stream may be cut anywhere. None where it is none."""
    for size in _TS_SIZES:
        most = min(_TS_PACKETS, len(data) // size)
        if most < 3:
            continue
        for first in range(size):
            if data[first] == 0x47 and all(data[first + size * turn] == 0x47 for turn in range(most)):
                return first, size
    return None


def _elementary_stream(data: bytes) -> SniffResult:
    """Video without a container: what its first units are."""
    start = data.find(b"\x00\x00\x01", 0, 8)
    if start not in (0, 1) or len(data) < start + 5:
        return _UNKNOWN
    first = data[start + 3]
    if first in (0x67, 0x27, 0x47, 0x09, 0x06) and not first & 0x80:  # a parameter set, a delimiter, information
        return _film("h264")
    if first in (0x40, 0x42, 0x44, 0x46, 0x4E):  # VPS, SPS, PPS, a delimiter, information
        return _film("hevc")
    if first == 0xB0 or 0 < first <= 0x1F:
        return _film("m4v")
    return _UNKNOWN
