"""Pictures as cameras, editors and old programs leave them, written byte by byte where Pillow would not."""

import io
import struct
import zlib
from typing import Any

import av
import numpy as np
from PIL import Image

from tests.media.film_kinds import box

PNG_HEAD = b"\x89PNG\r\n\x1a\n"


def four_colors(width: int = 64, height: int = 48) -> Image.Image:
    """Red and green above blue and yellow."""
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[: height // 2, : width // 2] = (255, 0, 0)
    rgb[: height // 2, width // 2 :] = (0, 200, 0)
    rgb[height // 2 :, : width // 2] = (0, 0, 255)
    rgb[height // 2 :, width // 2 :] = (255, 255, 0)
    return Image.fromarray(rgb)


def chunk(kind: bytes, body: bytes, checksum: int | None = None) -> bytes:
    total = zlib.crc32(kind + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", total)


def png_with(*extra: bytes, image: Image.Image | None = None) -> bytes:
    """A PNG with more chunks behind its header."""
    out = io.BytesIO()
    (image or four_colors()).save(out, "PNG")
    data = out.getvalue()
    return data[:33] + b"".join(extra) + data[33:]


def deep_png(rows: np.ndarray, color: int, clear: bytes) -> bytes:
    """A PNG of 16 bits a channel, (height, width[, 3]), one color of which is transparent."""
    height, width = rows.shape[:2]
    packed = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)
    return (
        PNG_HEAD
        + chunk(b"IHDR", head)
        + chunk(b"tRNS", clear)
        + chunk(b"IDAT", zlib.compress(packed))
        + chunk(b"IEND", b"")
    )


def exif(orientation: int | None, *wrong: bytes, order: str = "<") -> bytes:
    """A block with an orientation beside entries of twelve bytes, whatever is in them."""
    entries = list(wrong)
    if orientation is not None:
        entries.append(struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return b"Exif\0\0" + head + struct.pack(order + "H", len(entries)) + b"".join(entries) + bytes(4)


# An entry of a type that there is not, one whose values lie behind the end, one that has four thousand million of them.
WRONG_ENTRIES = (
    struct.pack("<HHII", 0x010F, 99, 5, 7),
    struct.pack("<HHII", 0x8769, 4, 1, 2**31),
    struct.pack("<HHII", 0x9286, 7, 2**32 - 1, 8),
)


def jpeg_with_exif(block: bytes, image: Image.Image | None = None) -> bytes:
    out = io.BytesIO()
    (image or four_colors()).save(out, "JPEG", quality=95, subsampling=0)
    data = out.getvalue()
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]


def bmp_with_masks(rgb: np.ndarray, bits: int, masks: tuple[int, ...], *, is_top_down: bool = False) -> bytes:
    """A BMP of 16 or 32 bits a pixel whose channels lie behind these masks; the fourth one is of transparency."""
    height, width = rgb.shape[:2]
    channels = [rgb[..., index].astype(np.uint64) for index in range(3)] + [np.full((height, width), 255, np.uint64)]
    words = np.zeros((height, width), np.uint64)
    for values, mask in zip(channels, masks, strict=False):
        if mask:
            shift = (mask & -mask).bit_length() - 1
            words |= ((values * (mask >> shift) + 127) // 255) << np.uint64(shift)
    stored = words.astype("<u2" if bits == 16 else "<u4")
    rows = [row.tobytes() + bytes(-len(row.tobytes()) % 4) for row in (stored if is_top_down else stored[::-1])]
    head_bytes = 40 if len(masks) == 3 else 56
    pixels_at = 14 + head_bytes + (12 if len(masks) == 3 else 0)
    info = struct.pack("<IiiHHIIiiII", head_bytes, width, -height if is_top_down else height, 1, bits, 3, 0, 0, 0, 0, 0)
    body = b"".join(rows)
    head = b"BM" + struct.pack("<IHHI", pixels_at + len(body), 0, 0, pixels_at)
    return head + info + b"".join(struct.pack("<I", mask) for mask in masks) + body


def icon(*pictures: bytes, sides: tuple[int, ...]) -> bytes:
    """An ICO of PNGs or bitmaps."""
    at, entries = 6 + 16 * len(pictures), b""
    for body, side in zip(pictures, sides, strict=True):
        entries += struct.pack("<BBBBHHII", side % 256, side % 256, 0, 0, 1, 32, len(body), at)
        at += len(body)
    return struct.pack("<HHH", 0, 1, len(pictures)) + entries + b"".join(pictures)


def heic(image: Image.Image, quarters: int = 0, mirror: int | None = None) -> bytes:
    """A HEIC as a phone writes it: one HEVC picture, to be turned by so many quarters counterclockwise."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream: Any = container.add_stream(
            "libx265", rate=1, options={"x265-params": "log-level=none:qp=10:keyint=1:repeat-headers=0"}
        )
        stream.width, stream.height, stream.pix_fmt = *image.size, "yuv420p"
        packets = stream.encode(av.VideoFrame.from_image(image)) + stream.encode(None)
        for packet in packets:
            container.mux(packet)
    data = out.getvalue()
    at = data.index(b"hvcC") - 4
    hvcc = data[at : at + int.from_bytes(data[at : at + 4], "big")]
    source: Any
    with av.open(io.BytesIO(data), "r") as source:
        coded = b"".join(bytes(packet) for packet in source.demux(video=0) if packet.size)

    def full(kind: bytes, body: bytes, version: int = 0) -> bytes:
        return box(kind, struct.pack(">I", version << 24) + body)

    properties = [hvcc, full(b"ispe", struct.pack(">II", *image.size)), box(b"irot", bytes([quarters]))]
    if mirror is not None:
        properties.append(box(b"imir", bytes([mirror])))
    associated = bytes([0x81, *range(2, 3), *(0x80 | index for index in range(3, len(properties) + 1))])
    ipma = full(b"ipma", struct.pack(">IHB", 1, 1, len(properties)) + associated)
    infe = full(b"infe", struct.pack(">HH", 1, 0) + b"hvc1" + b"\0", version=2)
    ftyp = box(b"ftyp", b"heic" + bytes(4) + b"mif1heic")

    def meta(begin: int) -> bytes:
        iloc = full(b"iloc", bytes([0x44, 0]) + struct.pack(">HHHHII", 1, 1, 0, 1, begin, len(coded)))
        return full(
            b"meta",
            full(b"hdlr", bytes(4) + b"pict" + bytes(13))
            + full(b"pitm", struct.pack(">H", 1))
            + full(b"iinf", struct.pack(">H", 1) + infe)
            + box(b"iprp", box(b"ipco", b"".join(properties)) + ipma)
            + iloc,
        )

    begin = len(ftyp) + len(meta(0)) + 8
    return ftyp + meta(begin) + box(b"mdat", coded)


def text_chunk(name: bytes, unpacked: bytes) -> bytes:
    """zTXt."""
    return chunk(b"zTXt", name + b"\0\0" + zlib.compress(unpacked))


def profile_chunk(profile: bytes) -> bytes:
    return chunk(b"iCCP", b"profile\0\0" + zlib.compress(profile))


def screen_profile(
    red: tuple[float, float], green: tuple[float, float], blue: tuple[float, float], gamma: float
) -> bytes:
    """A profile of a screen with these primaries, D50 white, as its maker would write it."""

    def xyz(x: float, y: float) -> np.ndarray:
        return np.array([x / y, 1, (1 - x - y) / y])

    white = np.array([0.9642, 1, 0.8249])
    primaries = np.stack([xyz(*each) for each in (red, green, blue)], axis=1)
    columns = primaries * np.linalg.solve(primaries, white)
    tags = [(b"desc", b"desc" + bytes(4) + struct.pack(">I", 5) + b"Test\0" + bytes(78 + 3))]
    for name, value in ((b"wtpt", white), *zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns.T, strict=True)):
        tags.append((name, b"XYZ " + bytes(4) + struct.pack(">3i", *(round(part * 65536) for part in value))))
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    tags += [(name, curve) for name in (b"rTRC", b"gTRC", b"bTRC")]
    at, table, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, value in tags:
        table += struct.pack(">4sII", name, at + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    head = struct.pack(">I4sI4s4s4s", at + len(body), b"lcms", 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    head = head.ljust(36, b"\0") + b"acsp" + bytes(28)
    return (head + struct.pack(">3i", 63190, 65536, 54061)).ljust(128, b"\0") + table + body


def j2k(width: int, height: int, coding: bytes) -> bytes:
    """A codestream of nothing but its header."""

    def segment(marker: bytes, body: bytes) -> bytes:
        return marker + struct.pack(">H", len(body) + 2) + body

    size = struct.pack(">HIIIIIIIIH", 0, width, height, 0, 0, width, height, 0, 0, 3) + bytes([7, 1, 1]) * 3
    head = segment(b"\xff\x51", size) + segment(b"\xff\x52", coding) + segment(b"\xff\x5c", bytes([0x40, 64]))
    return (
        b"\xff\x4f" + head + b"\xff\x90" + struct.pack(">HHIBB", 10, 0, 18, 0, 1) + b"\xff\x93" + bytes(4) + b"\xff\xd9"
    )


def tiled_tiff(side: int, tile: int) -> bytes:
    packed = zlib.compress(bytes(3 * side * side))
    tags = [(256, 4, side), (257, 4, side), (258, 3, 8), (259, 3, 8), (262, 3, 2), (277, 3, 3), (322, 4, tile)]
    tags += [(323, 4, tile), (324, 4, 200), (325, 4, len(packed))]
    directory = struct.pack("<H", len(tags)) + b"".join(
        struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags
    )
    return (b"II*\0" + struct.pack("<I", 8) + directory + bytes(4)).ljust(200, b"\0") + packed


def nested_heic() -> bytes:
    """Items made of ten others each, five times over."""
    refs = b""
    for level in range(1, 6):
        for index in range(10):
            below = [(level - 1) * 10 + other + 1 for other in range(10)]
            refs += box(b"dimg", struct.pack(">HH10H", level * 10 + index + 1, 10, *below))
    data = heic(four_colors())
    at = data.index(b"meta") - 4
    size = int.from_bytes(data[at : at + 4], "big")
    iref = box(b"iref", bytes(4) + refs)
    return data[:at] + struct.pack(">I", size + len(iref)) + data[at + 4 : at + size] + iref + data[at + size :]
