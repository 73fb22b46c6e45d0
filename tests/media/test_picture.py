"""Files to upright RGB pictures: every mode, and every file that is refused."""

import contextlib
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.fakes import encoded
from worker.core.errors import MediaCorrupt, MediaDimensions, MediaError, MediaTooLarge, MediaUnsupportedType
from worker.core.opened import RGB
from worker.core.settings import Settings
from worker.media.picture import decode, read_header
from worker.media.sniff import sniff

RED, WHITE = [255, 0, 0], [255, 255, 255]


def opened(data: bytes, **settings: Any) -> RGB:
    return decode(read_header(data, Settings(**settings)))


def corners() -> Image.Image:
    """Red at the top left, else black: 30 wide, 20 high."""
    image = Image.new("RGB", (30, 20))
    image.paste((255, 0, 0), (0, 0, 10, 10))
    return image


@pytest.mark.parametrize("form", ["PNG", "BMP", "GIF", "WEBP", "JPEG", "AVIF", "MPO", "TIFF", "JPEG2000"])
def test_these_formats_are_read(form: str) -> None:
    options = {"quality": 100} if form in ("JPEG", "AVIF", "MPO") else {"lossless": True} if form == "WEBP" else {}
    pixels = opened(encoded(Image.new("RGB", (40, 24), (255, 0, 0)), form, **options))
    assert pixels.shape == (24, 40, 3)
    assert np.abs(pixels.astype(int) - RED).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(orientation: int) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = corners().transpose(undo[orientation]) if orientation in undo else corners()
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = opened(encoded(stored, "PNG", exif=exif))
    assert np.array_equal(pixels, np.array(corners()))


def test_transparency_lies_on_white() -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((0, 0), (255, 0, 0, 255))
    pixels = opened(encoded(image))
    assert pixels[0, 0].tolist() == RED
    assert pixels[1, 1].tolist() == WHITE


def test_a_transparent_palette_lies_on_white() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((0, 0), 0)
    pixels = opened(encoded(image, "PNG", transparency=1))
    assert pixels[0, 0].tolist() == RED
    assert pixels[1, 1].tolist() == WHITE


def test_grey_with_alpha_lies_on_white() -> None:
    assert opened(encoded(Image.new("LA", (2, 2), (10, 0))))[0, 0].tolist() == WHITE


def test_sixteen_bits_keep_their_upper_byte() -> None:
    deep = Image.fromarray(np.array([[0, 255, 256, 32768, 65535]], np.uint16))
    assert opened(encoded(deep))[0, :, 0].tolist() == [0, 0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["1", "L", "CMYK"])
def test_other_modes_become_rgb(mode: str) -> None:
    form = "JPEG" if mode == "CMYK" else "PNG"
    assert opened(encoded(Image.new(mode, (9, 5)), form)).shape == (5, 9, 3)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_read(form: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    data = encoded(
        frames[0], form, save_all=True, append_images=frames[1:], **({"lossless": True} if form == "WEBP" else {})
    )
    assert opened(data)[0, 0].tolist() == RED


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1), (3, 600)])
def test_small_and_slim_pictures_are_read(size: tuple[int, int]) -> None:
    assert opened(encoded(Image.new("RGB", size))).shape == (size[1], size[0], 3)


def png(width: int, height: int, packed: bytes | None = None, bits: int = 8, colours: int = 2) -> bytes:
    """A PNG whose header says these sides; without `packed` rows are missing."""
    head = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", packed or zlib.compress(b"\x00" * 64)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def jpeg_with_scans(count: int) -> bytes:
    data = encoded(Image.new("RGB", (64, 64), "red"), "JPEG", progressive=True)
    at = data.index(b"\xff\xda")
    scan = data[at : data.index(b"\xff", at + 2)]
    return data[:at] + scan * count + data[at:]


REFUSED: dict[str, tuple[bytes, type[MediaError]]] = {
    "no bytes that mean anything": (b"hello world, this is text", MediaUnsupportedType),
    "one byte": (b"x", MediaUnsupportedType),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", MediaUnsupportedType),
    "PDF": (b"%PDF-1.7\n", MediaUnsupportedType),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0", MediaUnsupportedType),
    "JPEG XL": (b"\xff\x0a" + bytes(64), MediaUnsupportedType),
    "Photoshop": (b"8BPS\0\1" + bytes(64), MediaUnsupportedType),
    "PPM": (encoded(Image.new("RGB", (8, 8)), "PPM"), MediaUnsupportedType),
    "a HEIC without pictures": (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(64), MediaCorrupt),
    "mp4": (b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isommp41" + bytes(64), MediaUnsupportedType),
    "webm": (b"\x1aE\xdf\xa3" + bytes(64), MediaUnsupportedType),
    "cut PNG": (encoded(corners())[:-30], MediaCorrupt),
    "cut JPEG": (encoded(Image.effect_noise((200, 200), 90), "JPEG")[:3000], MediaCorrupt),
    "cut WebP": (encoded(Image.effect_noise((200, 200), 90).convert("RGB"), "WEBP")[:3000], MediaCorrupt),
    "only a head": (b"\x89PNG\r\n\x1a\n", MediaCorrupt),
    "only a JPEG head": (b"\xff\xd8\xff\xe0", MediaCorrupt),
    "a wrong checksum": (encoded(corners()).replace(b"IDAT", b"IDAT\x00", 1), MediaCorrupt),
    "no pixels": (png(0, 10), MediaCorrupt),
    "16385 a side": (png(16385, 100), MediaDimensions),
    "51 million pixels": (png(10_200, 5_000), MediaDimensions),
    "169 million pixels": (png(13_000, 13_000), MediaDimensions),
    "201 to 1": (png(201, 1), MediaDimensions),
    "1 to 300": (png(1, 300), MediaDimensions),
    "310 scans": (jpeg_with_scans(310), MediaTooLarge),
    "3,000 segments": (
        encoded(corners(), "JPEG").replace(b"\xff\xdb", b"\xff\xfe\x00\x02" * 3000 + b"\xff\xdb", 1),
        MediaTooLarge,
    ),
    "20,000 chunks": (b"\x89PNG\r\n\x1a\n" + b"\x00\x00\x00\x00aaAa\x00\x00\x00\x00" * 20_000, MediaTooLarge),
    "run lengths that are none": (
        b"BM" + bytes(12) + struct.pack("<IiiHHI", 40, 8, 8, 1, 8, 1) + bytes(64),
        MediaCorrupt,
    ),
}


@pytest.mark.parametrize(("data", "error"), REFUSED.values(), ids=REFUSED.keys())
def test_these_are_refused_with_a_code(data: bytes, error: type[MediaError]) -> None:
    with pytest.raises(MediaError) as failure:
        opened(data)
    assert type(failure.value) is error
    assert " at 0x" not in failure.value.message
    assert "PIL" not in failure.value.message


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bits_are_an_error_or_a_picture(seed: int) -> None:
    form = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "AVIF")[seed % 6]
    data = bytearray(encoded(Image.effect_noise((40, 30), 80).convert("RGB"), form))
    chance = np.random.default_rng(seed)
    for at in chance.integers(4, len(data), 12):
        data[at] ^= 1 << int(chance.integers(8))
    with contextlib.suppress(MediaError):
        assert opened(bytes(data)).ndim == 3


def test_a_file_may_be_two_things_but_is_read_as_what_its_head_says() -> None:
    picture = encoded(Image.new("RGB", (6, 6), "red"), "GIF")
    assert opened(picture + b"<?php system('id'); ?>%PDF-1.4")[0, 0].tolist() == RED


@pytest.mark.parametrize(
    ("data", "word"),
    [(b"\x00\x00\x00\x20ftypqt  " + bytes(40), "video"), (b"RIFF\x00\x00\x00\x00AVI LIST", "video"),
     (b"\x47" + (bytes(187) + b"\x47") * 3, "video"), (b"RIFF\x00\x00\x00\x00WAVEfmt ", "not a known")],
)  # fmt: skip
def test_what_is_not_a_picture_is_named(data: bytes, word: str) -> None:
    assert word in sniff(data).name
    assert sniff(data).picture is None


def test_memory_for_decoding_is_known_from_the_header() -> None:
    header = read_header(encoded(Image.new("RGB", (100, 50))), Settings())
    assert header.decode_bytes == 100 * 50 * 9
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = read_header(encoded(Image.new("RGB", (100, 50)), "JPEG", exif=exif), Settings())
    assert turned.decode_bytes == 100 * 50 * (14 + 3)


def test_what_follows_the_picture_is_not_weighed() -> None:
    """A phone's moving photo is a JPEG with a film behind it."""
    film = np.random.default_rng(1).integers(0, 256, 8_000_000, np.uint8).tobytes()
    assert film.count(b"\xff\xda") > 64
    assert opened(encoded(corners(), "JPEG") + film).shape == (20, 30, 3)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_photo_with_much_detail_is_read(progressive: bool) -> None:
    photo = Image.effect_noise((900, 700), 100).convert("RGB")
    assert opened(encoded(photo, "JPEG", quality=98, progressive=progressive)).shape == (700, 900, 3)


def photo(width: int, height: int, turned: int = 1) -> bytes:
    """A JPEG with much detail, and an orientation in its EXIF."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (height // 20, width // 20, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = turned
    out = io.BytesIO()
    small.resize((width, height), Image.Resampling.BICUBIC).save(out, "JPEG", quality=92, exif=exif)
    return out.getvalue()


@pytest.mark.parametrize("turned", range(1, 9))
def test_the_header_knows_the_sides_of_the_upright_picture(turned: int) -> None:
    header = read_header(photo(80, 40, turned), Settings())
    assert (header.height, header.width) == decode(read_header(photo(80, 40, turned), Settings())).shape[:2]


@pytest.mark.parametrize("turned", [1, 6, 8])
@pytest.mark.parametrize("part", [1.5, 2, 3, 5, 9])
def test_a_large_jpeg_is_decoded_at_a_part_of_its_size_and_looks_the_same(turned: int, part: float) -> None:
    data = photo(1200, 800, turned)
    whole = decode(read_header(data, Settings()))
    wanted = round(whole.shape[0] / part), round(whole.shape[1] / part)
    drafted = decode(read_header(data, Settings()), wanted)
    if part < 2:
        assert np.array_equal(drafted, whole)
        return
    assert wanted[0] <= drafted.shape[0] < whole.shape[0]
    assert wanted[1] <= drafted.shape[1] < whole.shape[1]
    size = wanted[1], wanted[0]
    seen, expected = (
        np.array(Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC)).astype(int) for rgb in (drafted, whole)
    )
    difference = np.abs(seen - expected)
    assert difference.mean() < 2
    assert np.percentile(difference, 99) <= 8


def test_what_is_no_jpeg_is_decoded_whole() -> None:
    data = encoded(Image.new("RGB", (400, 300)))
    assert decode(read_header(data, Settings()), (30, 40)).shape == (300, 400, 3)
