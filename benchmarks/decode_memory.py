"""What decoding a picture takes at the most, in bytes for each pixel, by format: the numbers of `media/picture.py`.

python -m benchmarks.decode_memory [--side 4800]

Each format is decoded in a process of its own, which resets its peak before and reads it after. Exit status 1 where a
format takes more than the worker counts for it.
"""

import argparse
import io
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.media import picture_kinds
from worker.core.settings import Settings
from worker.media.picture import decode, read_header

STATUS = Path("/proc/self/status")


def _rgb(side: int) -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 255, (side // 16, side // 16, 3), np.uint8)
    return Image.fromarray(coarse).resize((side, side))


def _rgba(side: int) -> Image.Image:
    picture = _rgb(side)
    picture.putalpha(picture.convert("L"))
    return picture


def _deep(side: int) -> Image.Image:
    return Image.fromarray(np.asarray(_rgb(side).convert("L")).astype(np.uint16) << 8)


def gamma_profile() -> bytes:
    """A screen's with another gamma than sRGB's."""
    return picture_kinds.screen_profile((0.6485, 0.3309), (0.3212, 0.5979), (0.1559, 0.0660), 1.6)


Make = Callable[[int], Image.Image]
FORMS: dict[str, tuple[str, Make, dict[str, object]]] = {
    "JPEG": ("JPEG", _rgb, {}),
    "JPEG, progressive": ("JPEG", _rgb, {"progressive": True, "subsampling": 0}),
    "JPEG, CMYK, progressive": ("JPEG", lambda side: _rgb(side).convert("CMYK"), {"progressive": True}),
    "PNG": ("PNG", _rgb, {"compress_level": 1}),
    "PNG with alpha": ("PNG", _rgba, {"compress_level": 1}),
    "PNG, 16 bits": ("PNG", _deep, {"compress_level": 1}),
    "PNG, palette, transparent": (
        "PNG",
        lambda side: _rgb(side).quantize(64),
        {"compress_level": 1, "transparency": 3},
    ),
    "WebP": ("WEBP", _rgb, {"quality": 50, "method": 0}),
    "WebP with alpha": ("WEBP", _rgba, {"quality": 50, "method": 0}),
    "WebP, lossless": ("WEBP", _rgb, {"lossless": True, "method": 0}),
    "AVIF": ("AVIF", _rgb, {"speed": 10}),
    "AVIF with alpha": ("AVIF", _rgba, {"speed": 10}),
    "AVIF 4:4:4": ("AVIF", _rgba, {"speed": 10, "subsampling": "4:4:4"}),
    "GIF": ("GIF", lambda side: _rgb(side).quantize(64), {}),
    "BMP": ("BMP", _rgb, {}),
    "TIFF": ("TIFF", _rgb, {}),
    "TIFF, LZW": ("TIFF", _rgb, {"compression": "tiff_lzw"}),
    "TIFF, JPEG": ("TIFF", _rgb, {"compression": "jpeg"}),
    "TIFF, CMYK": ("TIFF", lambda side: _rgb(side).convert("CMYK"), {}),
    "TIFF, turned": ("TIFF", _rgb, {"tiffinfo": {274: 6}}),
    "JPEG 2000": ("JPEG2000", _rgb, {"quality_layers": [40]}),
    "JPEG 2000 with alpha": ("JPEG2000", _rgba, {"quality_layers": [40]}),
    "JPEG with a profile": ("JPEG", _rgb, {"icc_profile": gamma_profile()}),
    "PNG with alpha and a profile": ("PNG", _rgba, {"compress_level": 1, "icc_profile": gamma_profile()}),
}
# Written byte by byte.
WRITTEN: dict[str, Callable[[int], bytes]] = {
    "HEIC": lambda side: picture_kinds.heic(_rgb(side)),
    "HEIC, turned": lambda side: picture_kinds.heic(_rgb(side), 1),
    "PNG, one of 16 bits is transparent": lambda side: picture_kinds.deep_png(
        np.asarray(_rgb(side)).astype(np.uint16) << 8, 2, bytes(6)
    ),
    "BMP behind masks": lambda side: picture_kinds.bmp_with_masks(
        np.asarray(_rgb(side)), 32, (0xFF, 0xFF00, 0xFF0000, 0xFF000000)
    ),
    "BMP behind masks, 16 bits": lambda side: picture_kinds.bmp_with_masks(
        np.asarray(_rgb(side)), 16, (0xF800, 0x07E0, 0x1F)
    ),
    "JPEG without its end": lambda side: _jpeg(side)[:-2],
}


def _jpeg(side: int) -> bytes:
    buffer = io.BytesIO()
    _rgb(side).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def _peak() -> int:
    line = next(line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def made(name: str, side: int) -> bytes:
    """The file."""
    if name in WRITTEN:
        return WRITTEN[name](side)
    form, make, options = FORMS[name]
    buffer = io.BytesIO()
    make(side).save(buffer, form, **options)
    return buffer.getvalue()


def measure(file: Path) -> tuple[float, float]:
    """Bytes for each pixel, in this process, and those that are counted for it."""
    header = read_header(file.read_bytes(), Settings())
    return growth(lambda: decode(header)) / header.num_pixels, header.decode_bytes / header.num_pixels


def growth(work: Callable[[], object]) -> int:
    """Bytes by which the memory of this process grows at the most while it works."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _peak()
    work()
    return _peak() - before


def in_process(name: str, side: int) -> tuple[float, float]:
    """The same in a process of its own, which has not made the file."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(made(name, side))
        file.flush()
        command = [sys.executable, "-m", "benchmarks.decode_memory", "--file", file.name]
        taken, counted = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(taken), float(counted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=4800, help="pixels")
    parser.add_argument("--file", type=Path, help="measure this one, in this process")
    options = parser.parse_args()
    if options.file:
        print(*measure(options.file))
        return
    print("| picture | bytes a pixel | counted |\n|---|---|---|")
    worst = 0.0
    for name in (*FORMS, *WRITTEN):
        taken, counted = in_process(name, options.side)
        worst = max(worst, taken / counted)
        print(f"| {name} | {taken:.1f} | {counted:.0f} |", flush=True)
    if worst > 1:
        sys.exit("a format takes more than is counted for it")


if __name__ == "__main__":
    main()
