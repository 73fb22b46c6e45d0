"""What decoding a picture takes at the most, in bytes for each pixel, by format: the numbers of `media/picture.py`.

python -m benchmarks.decode_memory [--side 4800]

Each format is decoded in a process of its own, which resets its peak before and reads it after. Exit status 1 where a
format takes more than the worker counts for it.
"""

import argparse
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from worker.core.settings import Settings
from worker.media.picture import WORKING_BYTES_PER_PIXEL, decode, read_header

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
}


def _peak() -> int:
    line = next(line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def measure(name: str, side: int) -> float:
    """Bytes for each pixel, in this process."""
    form, make, options = FORMS[name]
    buffer = io.BytesIO()
    make(side).save(buffer, form, **options)
    header = read_header(buffer.getvalue(), Settings())
    del buffer
    return growth(lambda: decode(header)) / header.num_pixels


def growth(work: Callable[[], object]) -> int:
    """Bytes by which the memory of this process grows at the most while it works."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _peak()
    work()
    return _peak() - before


def in_process(name: str, side: int) -> float:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.decode_memory", "--side", str(side), "--only", name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=4800, help="pixels")
    parser.add_argument("--only", choices=FORMS)
    options = parser.parse_args()
    if options.only:
        print(measure(options.only, options.side))
        return
    print("| picture | bytes a pixel | counted |\n|---|---|---|")
    worst = 0.0
    for name, (form, *_) in FORMS.items():
        taken, counted = in_process(name, options.side), WORKING_BYTES_PER_PIXEL[form]
        worst = max(worst, taken / counted)
        print(f"| {name} | {taken:.1f} | {counted} |", flush=True)
    if worst > 1:
        sys.exit("a format takes more than is counted for it")


if __name__ == "__main__":
    main()
