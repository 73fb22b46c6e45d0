"""Pictures as people really have them: metadata that is broken, formats of phones and old programs, color profiles.
What is seen is what independent decoders show."""

import asyncio
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.fakes import encoded
from tests.media import picture_kinds as kinds
from tests.media.film_kinds import box
from tests.media.judges import imagemagick_picture, needs_imagemagick
from tests.media.picture_kinds import chunk, exif, four_colors, png_with
from tests.media.test_opener import AsItIs, Slow
from worker.core.contract import Controls, Frames, Media, Upload
from worker.core.errors import MediaCorrupt, MediaError, MediaTooLarge
from worker.core.opened import RGB, Picture
from worker.core.settings import Settings
from worker.media.opener import Opener
from worker.media.picture import Header, decode, read_header

RED, GREEN, BLUE, YELLOW, WHITE = [255, 0, 0], [0, 200, 0], [0, 0, 255], [255, 255, 0], [255, 255, 255]
SETTINGS = Settings()


def header(data: bytes, **more: Any) -> Header:
    return read_header(data, SETTINGS, **more)


def seen(data: bytes, **more: Any) -> RGB:
    return decode(header(data, **more))


def codes(data: bytes, **more: Any) -> list[str]:
    return [told.code for told in header(data, **more).warnings]


def corners(rgb: RGB) -> list[list[int]]:
    return [rgb[2, 2].tolist(), rgb[2, -3].tolist(), rgb[-3, 2].tolist(), rgb[-3, -3].tolist()]


def are_four_colors(rgb: RGB, tolerance: int = 6) -> bool:
    found, expected = np.array(corners(rgb)), np.array([RED, GREEN, BLUE, YELLOW])
    return bool(np.abs(found - expected).max() <= tolerance)


MEGABYTES = bytes(3_000_000)
IGNORED, NO_PROFILE = "IMAGE_METADATA_IGNORED", "IMAGE_PROFILE_IGNORED"
BROKEN_METADATA = {
    "eXIf that is none": (chunk(b"eXIf", b"junk" * 9), IGNORED),
    "eXIf that ends in its head": (chunk(b"eXIf", b"II*\0\x08\0\0\0"), IGNORED),
    "eXIf with a wrong checksum": (chunk(b"eXIf", exif(6)[6:], 1), IGNORED),
    "a raw profile that is none": (kinds.text_chunk(b"Raw profile type exif", b"\nexif\n 8\nzz"), IGNORED),
    "a text of three megabytes": (kinds.text_chunk(b"Comment", MEGABYTES), IGNORED),
    "an international text of three megabytes": (
        chunk(b"iTXt", b"Comment\0\1\0en\0Comment\0" + zlib.compress(MEGABYTES)),
        IGNORED,
    ),
    "a packed text that is none": (chunk(b"zTXt", b"Comment\0\0junk"), IGNORED),
    "a text with a wrong checksum": (chunk(b"tEXt", b"Comment\0words", 1), IGNORED),
    "a profile of five megabytes": (kinds.profile_chunk(bytes(5 * 2**20)), NO_PROFILE),
    "a profile that is none": (kinds.profile_chunk(b"junk" * 99), NO_PROFILE),
    "a profile that is not packed": (chunk(b"iCCP", b"profile\0\0junk"), NO_PROFILE),
    "a profile with a wrong checksum": (chunk(b"iCCP", b"profile\0\0" + zlib.compress(b"x"), 1), NO_PROFILE),
    "sides of its pixels that end early": (chunk(b"pHYs", b"\0\0"), None),
    "a time that is none": (chunk(b"tIME", b""), None),
    "chunks of its own": (chunk(b"prVt", b"x" * 100, 5), IGNORED),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN_METADATA)
def test_metadata_alone_costs_no_png(name: str) -> None:
    extra, code = BROKEN_METADATA[name]
    for data in (png_with(extra), png_with(kinds.text_chunk(b"a", b"b"), extra)):
        assert are_four_colors(seen(data))
        assert codes(data) == ([code] if code else [])


def test_a_thousand_packed_texts_are_not_all_unpacked() -> None:
    bomb = kinds.text_chunk(b"Comment", bytes(2**20 - 9))
    assert are_four_colors(seen(png_with(*[bomb] * 5000)))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("wrong", [(), *((entry,) for entry in kinds.WRONG_ENTRIES), kinds.WRONG_ENTRIES])
def test_a_wrong_tag_beside_the_orientation_changes_nothing(wrong: tuple[bytes, ...], order: str) -> None:
    block = exif(6, *wrong, order=order)
    for data in (kinds.jpeg_with_exif(block), png_with(chunk(b"eXIf", block[6:]))):
        assert header(data).orientation == 6
        assert corners(seen(data))[1][0] > 240  # the red corner has gone to the right
        assert codes(data) == []


@pytest.mark.parametrize(
    "block",
    [b"Exif\0\0", b"Exif\0\0junkjunkjunk", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"],
)
@pytest.mark.parametrize("form", ["JPEG", "WEBP", "AVIF"])
def test_exif_that_cannot_be_read_is_left_out(form: str, block: bytes) -> None:
    if form == "JPEG":
        data = kinds.jpeg_with_exif(block)
    else:
        good = exif(1, struct.pack("<HHII", 0x0131, 2, 4, 0x41414141), struct.pack("<HHII", 0x0132, 2, 4, 0x42424242))
        options: dict[str, Any] = {"lossless": True} if form == "WEBP" else {"quality": 100}
        whole = encoded(four_colors(), form, exif=good, **options)
        at = next(whole.index(head) for head in (b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08") if head in whole)
        data = whole[:at] + block[6:].ljust(20, b"\xff")[:20] + whole[at + 20 :]
    assert are_four_colors(seen(data), 12)
    assert header(data).orientation == 1


def _jpeg(**options: Any) -> bytes:
    noise = np.asarray(Image.effect_noise((160, 120), 60).convert("RGB"))
    return encoded(Image.fromarray(noise), "JPEG", quality=90, **options)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}], ids=str)
@pytest.mark.parametrize("missing", [1, 2])
def test_a_jpeg_without_its_end_marker_is_seen_whole(options: dict[str, Any], missing: int) -> None:
    data = _jpeg(**options)
    assert np.array_equal(seen(data[:-missing]), seen(data))
    assert codes(data[:-missing]) == ["IMAGE_END_MISSING"]
    assert codes(data) == []


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=str)
@pytest.mark.parametrize("part", [0.3, 0.7, 0.98])
def test_a_jpeg_that_ends_before_its_last_pixels_is_not(options: dict[str, Any], part: float) -> None:
    data = _jpeg(**options)
    for tail in (b"", b"\0" * 8, b"\x12" * 40):
        with pytest.raises(MediaCorrupt):
            seen(data[: int(len(data) * part)] + tail)


def test_half_a_progressive_jpeg_is_refused_at_any_size() -> None:
    data = encoded(Image.effect_noise((1600, 1200), 60).convert("RGB"), "JPEG", progressive=True)
    for wanted in ((150, 200), (600, 800), None):
        with pytest.raises(MediaCorrupt):
            decode(header(data[: len(data) * 6 // 10]), wanted)


TRAILERS = {
    "a JPEG of a camera": encoded(four_colors(), "JPEG"),
    "the beginning of one": b"\xff\xd8junk",
    "a film": box(b"ftyp", b"mp42" + bytes(4)) + bytes(range(256)) * 300,
    "a maker's trailer": b"SEFT" + bytes(500),
    "another picture, as a gain map": encoded(Image.new("L", (16, 12), 128), "JPEG"),
    "zeros": bytes(4096),
}


@pytest.mark.parametrize("name", TRAILERS)
def test_what_stands_behind_a_jpeg_changes_nothing(name: str) -> None:
    for options in ({}, {"progressive": True}):
        data = _jpeg(**options)
        assert np.array_equal(seen(data + TRAILERS[name]), seen(data))
        assert codes(data + TRAILERS[name]) == []
        assert np.array_equal(seen(data[:-2] + TRAILERS[name]), seen(data))  # and without its end


@pytest.mark.parametrize(
    "mpf", [b"MPF\0junk", b"MPF\0II*\0\xff\xff\xff\xff", b"MPF\0MM\0*\0\0\0\x08\xff\xff" + bytes(40)]
)
def test_a_broken_list_of_pictures_in_a_jpeg_changes_nothing(mpf: bytes) -> None:
    data = _jpeg()
    broken = data[:2] + b"\xff\xe2" + struct.pack(">H", len(mpf) + 2) + mpf + data[2:]
    assert np.array_equal(seen(broken), seen(data))


def test_of_a_picture_of_several_the_first_is_seen() -> None:
    mpo = encoded(four_colors(), "MPO", save_all=True, append_images=[Image.new("RGB", (64, 48), "white")], quality=95)
    assert are_four_colors(seen(mpo), 12)
    tiff = encoded(four_colors(), "TIFF", save_all=True, append_images=[Image.new("RGB", (64, 48), "white")] * 2)
    assert are_four_colors(seen(tiff))
    assert codes(tiff) == ["IMAGE_FIRST_PAGE"]
    assert "3 pages" in header(tiff).warnings[0].message


def test_one_transparent_grey_of_sixteen_bits_is_told_from_its_neighbours() -> None:
    rows = np.full((8, 8), 0x1234, np.uint16)
    rows[:, 4:], rows[4:, :4] = 0x9C00, 0x1235
    shown = seen(kinds.deep_png(rows, 0, struct.pack(">H", 0x1234)))
    assert [shown[0, 0].tolist(), shown[0, 7].tolist(), shown[7, 0].tolist()] == [WHITE, [0x9C] * 3, [0x12] * 3]


def test_so_is_one_color() -> None:
    rows = np.full((8, 8, 3), 0x1234, np.uint16)
    rows[:, 4:], rows[4:, :4, 2] = (0x9C00, 0, 0), 0x1235
    shown = seen(kinds.deep_png(rows, 2, struct.pack(">HHH", 0x1234, 0x1234, 0x1234)))
    assert [shown[0, 0].tolist(), shown[0, 7].tolist(), shown[7, 0].tolist()] == [WHITE, [0x9C, 0, 0], [0x12] * 3]
    with pytest.raises(MediaCorrupt):
        seen(kinds.deep_png(rows, 2, bytes(6))[:-40])


MASKS = {
    "565": (16, (0xF800, 0x07E0, 0x001F)),
    "555": (16, (0x7C00, 0x03E0, 0x001F)),
    "444": (16, (0x0F00, 0x00F0, 0x000F)),
    "4444 with alpha": (16, (0x0F00, 0x00F0, 0x000F, 0xF000)),
    "565, blue first": (16, (0x001F, 0x07E0, 0xF800)),
    "32 bits": (32, (0xFF0000, 0xFF00, 0xFF)),
    "32 bits, red last": (32, (0xFF, 0xFF00, 0xFF0000)),
    "32 bits with alpha": (32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000)),
    "ten bits": (32, (0x3FF00000, 0xFFC00, 0x3FF)),
}


@pytest.mark.parametrize("is_top_down", [False, True])
@pytest.mark.parametrize("name", MASKS)
def test_a_bmp_is_read_through_its_masks(name: str, is_top_down: bool) -> None:
    bits, masks = MASKS[name]
    rgb = np.asarray(four_colors(37, 22))
    shown = seen(kinds.bmp_with_masks(rgb, bits, masks, is_top_down=is_top_down))
    assert shown.shape == rgb.shape
    assert (
        np.abs(shown.astype(int) - rgb).max() <= 255 // (2 ** min(bin(mask).count("1") for mask in masks) - 1) // 2 + 1
    )


def test_transparency_in_a_bmp_lies_on_white() -> None:
    data = bytearray(kinds.bmp_with_masks(np.zeros((4, 4, 3), np.uint8), 32, MASKS["32 bits with alpha"][1]))
    data[-1] = 0  # of the last pixel, at the top right
    shown = seen(bytes(data))
    assert [shown[0, 3].tolist(), shown[0, 2].tolist()] == [WHITE, [0, 0, 0]]


@needs_imagemagick
@pytest.mark.parametrize("name", MASKS)
def test_imagemagick_reads_the_same_bmp(name: str, tmp_path: Path) -> None:
    bits, masks = MASKS[name]
    rgb = np.asarray(Image.effect_noise((37, 22), 80).convert("RGB"))
    data = kinds.bmp_with_masks(rgb, bits, masks)
    (tmp_path / "picture.bmp").write_bytes(data)
    difference = np.abs(seen(data).astype(int) - imagemagick_picture(tmp_path / "picture.bmp").astype(int))
    if name == "ten bits":
        return  # ImageMagick shows the picture of its lower eight
    assert difference.max() <= (15 if name.startswith("444") else 1)  # four bits ImageMagick does not stretch to white


def _run_lengths(rgb: np.ndarray, bits: int) -> bytes:
    """A BMP of runs: a palette of two colors, each row one run of each."""
    height, width = rgb.shape[:2]
    palette = bytes([0, 0, 255, 0, 255, 0, 0, 0]) + bytes(4 * (2**bits - 2))
    left = width // 2
    row = bytes([left, 0, width - left, 0x11 if bits == 4 else 1, 0, 0])
    body = row * height + b"\0\1"
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 1 if bits == 8 else 2, len(body), 0, 0, 2**bits, 0)
    at = 14 + 40 + len(palette)
    made: bytes = b"BM" + struct.pack("<IHHI", at + len(body), 0, 0, at) + head + palette + body
    return made


@pytest.mark.parametrize("bits", [4, 8])
def test_run_lengths_are_read(bits: int) -> None:
    shown = seen(_run_lengths(np.zeros((33, 127, 3)), bits))
    assert shown.shape == (33, 127, 3)
    assert (shown[:, :63] == RED).all()
    assert (shown[:, 63:] == BLUE).all()
    with pytest.raises(MediaCorrupt):
        seen(_run_lengths(np.zeros((33, 127, 3)), bits)[:60])


def test_a_tiff_whose_compression_is_not_decoded_is_named() -> None:
    data = bytearray(encoded(four_colors(), "TIFF"))
    at = data.index(struct.pack("<HHI", 259, 3, 1)) + 8
    data[at : at + 2] = struct.pack("<H", 50001)
    with pytest.raises(MediaError, match="compression is not decoded"):
        seen(bytes(data))


@pytest.mark.parametrize("kind", [b"acTL", b"fcTL"])
def test_a_broken_animation_is_a_picture(kind: bytes) -> None:
    frames = [four_colors(), Image.new("RGB", (64, 48), "white")]
    data = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])
    at = data.index(kind)
    assert are_four_colors(seen(data[:at] + b"prVt" + data[at + 4 :]))


def _dib(image: Image.Image) -> bytes:
    """A bitmap as it stands in an ICO: twice as high, with a mask below."""
    data: bytes = encoded(image, "ICO", sizes=[image.size], bitmap_format="bmp")
    return data[22:]


def test_of_an_icon_the_largest_picture_is_seen() -> None:
    small, large = Image.new("RGB", (16, 16), "white"), four_colors(64, 64)
    for data in (
        kinds.icon(encoded(small), encoded(large), sides=(16, 64)),
        kinds.icon(encoded(large), encoded(small), sides=(64, 16)),
        kinds.icon(_dib(small.convert("RGBA")), _dib(large.convert("RGBA")), sides=(16, 64)),
        encoded(four_colors(256, 256), "ICO", sizes=[(16, 16), (256, 256)]),
    ):
        shown = seen(data)
        assert are_four_colors(shown)
        assert shown.shape[0] in (64, 256)


@pytest.mark.parametrize(
    "data",
    [
        b"\0\0\1\0" + bytes(20),
        b"\0\0\1\0\xff\xff" + b"\xff" * 40,
        kinds.icon(struct.pack("<Iii", 40, 2**30, 2**30) + bytes(60), sides=(16,)),
        kinds.icon(b"\x89PNG\r\n\x1a\n" + bytes(40), sides=(16,)),
    ],
)
def test_a_broken_icon_is_refused(data: bytes) -> None:
    with pytest.raises(MediaCorrupt):
        seen(data)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4"])
def test_tiffs_are_read(compression: str) -> None:
    if compression == "group4":
        shown = seen(encoded(Image.new("1", (64, 48), 1), "TIFF", compression=compression))
        assert shown.shape == (48, 64, 3)
        assert shown.min() == 255
        return
    assert are_four_colors(seen(encoded(four_colors(), "TIFF", compression=compression)), 60)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_turned_as_it_says(orientation: int) -> None:
    stored = encoded(four_colors(), "TIFF", tiffinfo={274: orientation})
    expected = encoded(four_colors(), "PNG", exif=_oriented(orientation))
    assert np.array_equal(seen(stored), seen(expected))
    assert (header(stored).height, header(stored).width) == seen(stored).shape[:2]


def _oriented(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block


def test_a_tiff_that_announces_more_than_there_is_is_refused() -> None:
    data = encoded(four_colors(), "TIFF")
    at = int.from_bytes(data[4:8], "little")
    entries = struct.pack("<H", 400) + struct.pack("<HHII", 700, 1, len(data), 8) * 400
    with pytest.raises(MediaTooLarge):
        seen(data[:4] + struct.pack("<I", len(data)) + data[8:] + entries + bytes(4))
    looped = bytearray(data)
    after = at + 2 + 12 * int.from_bytes(data[at : at + 2], "little")
    looped[after : after + 4] = struct.pack("<I", at)
    assert are_four_colors(seen(bytes(looped)))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_jpeg_2000_is_read(mode: str) -> None:
    image = four_colors().convert(mode)
    for data in (encoded(image, "JPEG2000"), encoded(image, "JPEG2000", no_jp2=True)):
        assert np.abs(seen(data).astype(int) - np.asarray(image.convert("RGB"))).max() <= 2


@pytest.mark.parametrize("quarters", range(4))
@pytest.mark.parametrize("mirror", [None, 0, 1])
def test_a_heic_is_seen_upright(quarters: int, mirror: int | None) -> None:
    shown = seen(kinds.heic(four_colors(), quarters, mirror))
    expected = np.rot90(np.asarray(four_colors()), quarters)
    if mirror is not None:
        expected = expected[::-1] if mirror == 0 else expected[:, ::-1]
    assert shown.shape == expected.shape
    assert np.abs(np.array(corners(shown)) - np.array(corners(expected))).max() <= 8


@needs_imagemagick
def test_imagemagick_sees_the_same_heic(tmp_path: Path) -> None:
    data = kinds.heic(Image.effect_noise((64, 48), 60).convert("RGB"), 1)
    (tmp_path / "photo.heic").write_bytes(data)
    theirs = imagemagick_picture(tmp_path / "photo.heic").astype(int)
    assert np.abs(seen(data).astype(int) - theirs).mean() < 2


def test_a_heic_that_is_cut_off_is_refused() -> None:
    data = kinds.heic(four_colors())
    for size in (40, 200, len(data) - 50):
        with pytest.raises(MediaError) as failure:
            seen(data[:size])
        assert failure.value.code == "MEDIA_CORRUPT"


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"\xff\x0a" + bytes(60), "JPEG XL, convert it"),
        (b"8BPS\0\1" + bytes(60), "Photoshop document, export"),
        (b"%PDF-1.7", "PDF, send its pages as images"),
        (b"<svg xmlns=''/>", "SVG, render it"),
        (b"II+\0\x08\0\0\0" + bytes(60), "BigTIFF, convert it"),
    ],
)
def test_what_stays_refused_is_named_with_what_to_do(data: bytes, word: str) -> None:
    with pytest.raises(MediaError, match=word):
        seen(data)


# Display P3 and ProPhoto RGB, their primaries adapted to D50.
WIDE = {
    "Display P3": kinds.screen_profile((0.6809, 0.3190), (0.2816, 0.6748), (0.1523, 0.0640), 2.2),
    "ProPhoto RGB": kinds.screen_profile((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001), 1.8),
}
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _photo(mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(3)
    rgb = rng.integers(30, 226, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(rgb).resize((96, 72), Image.Resampling.BICUBIC).convert(mode)


def _lcms(image: Image.Image, profile: bytes) -> np.ndarray:
    """What LittleCMS makes of it on its own."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    shown = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert shown is not None
    return np.asarray(shown).astype(int)


LOSSLESS: dict[str, dict[str, Any]] = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}


@pytest.mark.parametrize("form", LOSSLESS)
@pytest.mark.parametrize("name", WIDE)
def test_a_color_profile_is_converted_by_littlecms(name: str, form: str) -> None:
    image, profile = _photo(), WIDE[name]
    data = encoded(image, form, icc_profile=profile, **LOSSLESS[form])
    assert np.abs(seen(data).astype(int) - _lcms(image, profile)).max() <= 1
    assert codes(data) == ["IMAGE_COLOR_CONVERTED"]
    assert np.abs(seen(data).astype(int) - np.asarray(image)).mean() > 3
    assert np.array_equal(seen(data, wanted_color="as_is"), np.asarray(image))
    assert codes(data, wanted_color="as_is") == []


@needs_imagemagick
@pytest.mark.parametrize("name", WIDE)
def test_imagemagick_converts_it_to_the_same(name: str, tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(encoded(_photo(), "PNG", icc_profile=WIDE[name]))
    (tmp_path / "srgb.icc").write_bytes(SRGB)
    theirs = imagemagick_picture(
        tmp_path / "picture.png", "-intent", "Perceptual", "-profile", str(tmp_path / "srgb.icc")
    )
    difference = np.abs(seen((tmp_path / "picture.png").read_bytes()).astype(int) - theirs.astype(int))
    assert difference.max() <= 2


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L"])
def test_pictures_that_are_srgb_pay_for_no_conversion(mode: str) -> None:
    data = encoded(_photo().convert(mode), "PNG", icc_profile=SRGB)
    assert header(data).profile is None
    assert "IMAGE_COLOR_CONVERTED" not in codes(data)


def test_transparency_is_kept_by_a_conversion() -> None:
    image = _photo("RGBA")
    image.putpixel((0, 0), (10, 200, 30, 0))
    shown = seen(encoded(image, "PNG", icc_profile=WIDE["Display P3"]))
    assert shown[0, 0].tolist() == WHITE
    assert np.abs(shown[5:, 5:].astype(int) - _lcms(_photo(), WIDE["Display P3"])[5:, 5:]).max() <= 1


def test_a_palette_is_converted_too() -> None:
    image = _photo().quantize(64)
    shown = seen(encoded(image, "PNG", icc_profile=WIDE["ProPhoto RGB"]))
    assert np.abs(shown.astype(int) - _lcms(image.convert("RGB"), WIDE["ProPhoto RGB"])).max() <= 1


def test_a_large_photo_is_converted_at_the_part_of_its_size_that_is_needed() -> None:
    image = _photo().resize((960, 720))
    data = encoded(image, "JPEG", quality=95, icc_profile=WIDE["Display P3"])
    shown = decode(header(data), (180, 240))
    assert shown.shape == (180, 240, 3)
    expected = _lcms(image, WIDE["Display P3"]).reshape(180, 4, 240, 4, 3).mean((1, 3))
    assert np.abs(shown - expected).mean() < 3


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk_with_a_profile_for_other_pixels_is_seen_without_it(form: str) -> None:
    data = encoded(_photo("CMYK"), form, icc_profile=WIDE["Display P3"])
    assert codes(data) == ["IMAGE_PROFILE_IGNORED"]
    assert seen(data).shape == (72, 96, 3)


COSTLY = {
    "precincts of one pixel": kinds.j2k(2000, 2000, bytes([1, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0])),
    "code blocks of four pixels": kinds.j2k(4000, 4000, bytes([0, 0, 0, 1, 0, 0, 0, 0, 0, 1])),
    "a TIFF in one huge tile": lambda: kinds.tiled_tiff(64, 26752),
    "pictures made of pictures": kinds.nested_heic,
}


@pytest.mark.parametrize("name", COSTLY)
def test_small_files_that_would_cost_much_are_refused_before_they_are_decoded(name: str) -> None:
    made = COSTLY[name]
    with pytest.raises(MediaTooLarge):
        header(made() if callable(made) else made)  # type: ignore[arg-type]


def test_a_profile_of_a_long_chain_of_elements_is_left_out() -> None:
    profile = bytearray(WIDE["Display P3"])
    at = int.from_bytes(profile[136:140], "big")
    profile[at : at + 4] = b"mpet"
    assert codes(encoded(_photo(), "PNG", icc_profile=bytes(profile))) == ["IMAGE_PROFILE_IGNORED"]


def test_of_many_profiles_in_a_png_one_is_unpacked() -> None:
    bomb = kinds.profile_chunk(bytes(4 * 2**20 + 100))
    assert codes(png_with(*[bomb] * 2000)) == ["IMAGE_PROFILE_IGNORED"]


@pytest.mark.parametrize("form", ["WEBP", "PNG"])
def test_the_frames_of_an_animation_are_converted_too(form: str) -> None:
    options: dict[str, Any] = {"lossless": True} if form == "WEBP" else {}
    frames = [_photo(), _photo().rotate(180)]
    data = encoded(
        frames[0], form, save_all=True, append_images=frames[1:], icc_profile=WIDE["ProPhoto RGB"], **options
    )
    clip = _isolated("video", data)
    assert np.abs(clip.frames[0].astype(int) - _lcms(_photo(), WIDE["ProPhoto RGB"])).max() <= 1
    assert [told.code for told in clip.source.warnings] == ["IMAGE_COLOR_CONVERTED"]
    assert np.array_equal(_isolated("video", data, color="as_is").frames[0], np.asarray(_photo()))


def _isolated(kind: Any, data: bytes | Frames, **controls: Any) -> Any:
    """Through the opener and child processes, as where the worker is deployed."""
    settings = Settings(media_isolate="process")
    source = data if isinstance(data, Frames) else Upload(data=data)
    opener = Opener(settings, Slow(), AsItIs())
    try:
        [[opened]] = asyncio.run(
            opener.open([Media(kind=kind, source=source, where=kind, controls=Controls(**controls))])
        )
    finally:
        opener.close()
    return opened


def test_kinds_are_seen_alike_in_child_processes() -> None:
    settings = Settings(media_isolate="process")
    files = [
        encoded(_photo(), "PNG", icc_profile=WIDE["Display P3"]),
        png_with(*(extra for extra, _ in BROKEN_METADATA.values())),
        kinds.jpeg_with_exif(exif(6, *kinds.WRONG_ENTRIES)),
        _jpeg()[:-2],
        kinds.heic(four_colors(), 1),
        encoded(four_colors(), "TIFF", save_all=True, append_images=[four_colors()]),
        encoded(four_colors(), "JPEG2000"),
        kinds.bmp_with_masks(np.asarray(four_colors()), 16, MASKS["444"][1]),
        _run_lengths(np.zeros((8, 9, 3)), 8),
    ]
    opener = Opener(settings, Slow(), AsItIs())
    items = [Media(kind="image", source=Upload(data=data), where=str(index)) for index, data in enumerate(files)]
    try:
        opened = [each for [each] in asyncio.run(opener.open(items))]
    finally:
        opener.close()
    for data, each in zip(files, opened, strict=True):
        assert isinstance(each, Picture)
        assert np.array_equal(each.rgb, seen(data))
        assert each.source is not None
        assert [told.code for told in each.source.warnings] == codes(data)


def test_damaged_frames_of_a_list_are_refused_where_that_is_asked_for() -> None:
    frames = Frames(frames=tuple(Upload(data=data) for data in (_jpeg(), _jpeg()[:-2])))
    assert [told.code for told in _isolated("video", frames).source.warnings] == ["IMAGE_END_MISSING"]
    with pytest.raises(MediaCorrupt, match="strict_media"):
        _isolated("video", frames, strict_media=True)
    with pytest.raises(MediaCorrupt, match="strict_media"):
        _isolated("image", _jpeg()[:-2], strict_media=True)
