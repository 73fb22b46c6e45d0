"""Two contact sheets for docs/media.md: kinds of pictures and films beyond the plain ones, on the left as Chromium,
ImageMagick or ffmpeg show them, on the right what the model gets.

python -m tests.media.sheets

Needs chromium, chromedriver, ImageMagick and ffmpeg.
"""

import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageCms

from builder.contact_sheets import film, opened, page, photo, saved, scene, seen, shoot, tag
from tests.media import film_kinds, judges, picture_kinds
from tests.media.test_picture_kinds import WIDE
from worker.core.opened import Clip

STEADY = [index / 15 for index in range(60)]


def pictures() -> Iterator[tuple[str, str, bytes]]:
    """Name, file name, bytes."""
    whole = photo().crop((0, 60, 512, 444))
    wide = ImageCms.profileToProfile(
        whole, ImageCms.createProfile("sRGB"), ImageCms.ImageCmsProfile(io.BytesIO(WIDE["ProPhoto RGB"]))
    )
    assert wide is not None
    rgb = np.asarray(whole)
    turned = picture_kinds.exif(6, *picture_kinds.WRONG_ENTRIES)
    deep = np.asarray(whole.convert("L"), np.uint16) * 257
    yield "ProPhoto RGB", "a.jpg", saved(wide, "JPEG", icc_profile=WIDE["ProPhoto RGB"])
    yield "wrong EXIF beside an orientation", "b.jpg", picture_kinds.jpeg_with_exif(turned, whole)
    yield "no end marker", "c.jpg", saved(whole, "JPEG")[:-2]
    yield (
        "text of 3 MB, wrong checksum",
        "d.png",
        picture_kinds.png_with(
            picture_kinds.text_chunk(b"Comment", bytes(3_000_000)),
            picture_kinds.chunk(b"tEXt", b"a\0b", 7),
            image=whole,
        ),
    )
    yield "16 bits, black is transparent", "e.png", picture_kinds.deep_png(np.where(deep < 9000, 0, deep), 0, b"\0\0")
    yield "BMP behind masks of 4 bits", "f.bmp", picture_kinds.bmp_with_masks(rgb, 16, (0x0F00, 0x00F0, 0x000F))
    yield "HEIC", "g.heic", picture_kinds.heic(whole.resize((512, 384)), 1)
    yield "TIFF of two pages", "h.tif", saved(whole, "TIFF", save_all=True, append_images=[Image.new("RGB", (9, 9))])
    yield "JPEG 2000", "i.jp2", saved(whole, "JPEG2000", quality_layers=[20])
    yield "CMYK TIFF", "j.tif", saved(whole.convert("CMYK"), "TIFF")


def films() -> Iterator[tuple[str, bytes]]:
    steady = film("libx264", "mp4", STEADY)
    units, first = film_kinds.media_units(steady), film_kinds.first_media_time(steady)
    yield "trimmed to 1.5-3 s", film_kinds.with_edits(steady, [(1500, first + units * 3 // 2, 1)])
    yield "mirrored and turned", film_kinds.with_matrix(steady, 5)
    yield "a bad packet", film_kinds.with_noise(film("libx264", "mp4", STEADY, g="15", bf="0"), 30)
    yield "cut off", film_kinds.faststart(steady)[: len(steady) * 6 // 10]
    yield "H.264 with B-frames, AVI", film("libx264", "avi", STEADY, bf="3")
    yield "Motion JPEG, AVI", film("mjpeg", "avi", STEADY, "yuvj420p")
    yield "Sorenson, FLV", film("flv", "flv", STEADY, b="4M")
    yield "WMV 2", film("wmv2", "asf", STEADY, b="4M")
    yield "HDR (HLG)", _hdr()


_709_TO_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])


def _hdr() -> bytes:
    """The scene as a phone films it in HLG: its white at 203 of 1000 cd/m²."""
    light = 0.203 * (np.asarray(scene(1)) / 255) ** 2.4 @ _709_TO_2020.T
    seen_light = light ** (1 / 1.2)
    upper = 0.17883277 * np.log(np.maximum(12 * seen_light - 0.28466892, 1e-6)) + 0.55991073
    signal = np.where(seen_light <= 1 / 12, np.sqrt(3 * seen_light), upper)
    rgb = (signal * 255).round().clip(0, 255).astype(np.uint8)
    shown = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(
        format="yuv420p10le", dst_colorspace="BT2020", dst_color_range="MPEG"
    )
    params = "log-level=none:colorprim=bt2020:transfer=arib-std-b67:colormatrix=bt2020nc"
    return film_kinds.encoded(shown, "libx265", {"x265-params": params}, 18)


def picture_sheet() -> str:
    rows = []
    for name, file, data in pictures():
        [pixels] = seen(opened(data, "image"))
        kind = file.rpartition(".")[2]
        if kind in ("jpg", "png", "bmp"):
            left = tag(data, {"jpg": "jpeg"}.get(kind, kind))
        else:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / file
                path.write_bytes(data)
                left = tag(saved(Image.fromarray(judges.imagemagick_picture(path)), "PNG"), "png")
        rows.append(f"<figure><figcaption>{name}</figcaption>{left}{tag(saved(pixels, 'PNG'), 'png')}</figure>")
    return page(rows, 2)


def film_sheet() -> str:
    rows = []
    for name, data in films():
        clip = opened(data, "video")
        assert isinstance(clip, Clip)
        assert clip.times is not None
        theirs = [Image.fromarray(rgb) for rgb in _as_ffmpeg_shows(data, clip.times)]
        pairs = [each for pair in zip(theirs, seen(clip), strict=False) for each in pair]
        shown = "".join(tag(saved(image, "PNG"), "png") for image in pairs).replace('"190"', '"86"')
        times = ", ".join(f"{at:.2f}" for at in clip.times)
        rows.append(f"<figure><figcaption>{name}: {times} s</figcaption>{shown}</figure>")
    return page(rows, 1)


def _as_ffmpeg_shows(data: bytes, times: tuple[float, ...]) -> list[Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film"
        path.write_bytes(data)
        _, stamps = judges.ffmpeg_frames(path)
        known = [at if at is not None else index / 15 for index, at in enumerate(stamps)]
        nearest = [min(range(len(known)), key=lambda index: abs(known[index] - known[0] - at)) for at in times]
        more = judges.TO_SDR if b"hvcC" in data else ()
        return [judges.ffmpeg_picture(path, f"select=eq(n\\,{index})", *more) for index in nearest]


if __name__ == "__main__":
    shoot({"sheet_picture_kinds": picture_sheet, "sheet_film_kinds": film_sheet})
