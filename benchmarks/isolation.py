"""What decoding in child processes costs beside threads: milliseconds from a file to pixels at the model's size.

python -m benchmarks.isolation [--rounds 15] [--save]

Both ways take turns in one process, one file after the other; the child processes have been used once before.
"""

import argparse
import asyncio
import io
import statistics
import time
from collections.abc import Sequence

import numpy as np
from PIL import Image

from benchmarks.media import photo
from benchmarks.report import environment, save
from tests.media.films import film
from worker.checkpoint.family_rules import QWEN3_VL_PIXELS as QWEN3_VL
from worker.core.contract import Kind, Media, Upload
from worker.core.settings import Settings
from worker.media.fetch import Fetcher
from worker.media.opener import Opener
from worker.prompt.size_policy import SmartResizePolicy

WAYS = ("thread", "process")


def _png(width: int, height: int) -> bytes:
    coarse = np.random.default_rng(1).integers(0, 255, (height // 40, width // 40, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


def files() -> dict[str, tuple[Kind, bytes]]:
    """What is opened."""
    return {
        "JPEG, 32x32": ("image", photo(32, 32, 90)),
        "JPEG, 1024x1024": ("image", photo(1024, 1024, 90)),
        "JPEG, 4000x3000": ("image", photo(4000, 3000, 90)),
        "PNG, 1920x1080": ("image", _png(1920, 1080)),
        "PNG, 4000x3000": ("image", _png(4000, 3000)),
        "film, 320x240, 60 frames": ("video", film(60, size=(320, 240))),
        "film, 1920x1080, 60 frames": ("video", film(60, size=(1920, 1080))),
    }


async def measure(rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds by file and way."""
    openers = {}
    for way in WAYS:
        settings = Settings(media_isolate=way)
        openers[way] = Opener(settings, Fetcher(settings), SmartResizePolicy(QWEN3_VL, settings))
    found: dict[str, dict[str, float]] = {}
    for name, (kind, data) in files().items():
        taken: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(rounds + 1):
            for way, opener in openers.items():
                began = time.perf_counter()
                await opener.open([Media(kind=kind, source=Upload(data=data), where="file")])
                taken[way].append((time.perf_counter() - began) * 1000)
        found[name] = {way: statistics.median(times[1:]) for way, times in taken.items()}
    for opener in openers.values():
        opener.close()
    return found


def table(found: dict[str, dict[str, float]]) -> str:
    lines = ["| file | threads, ms | child processes, ms | difference, ms |", "|---|---|---|---|"]
    for name, by_way in found.items():
        plain, isolated = (by_way[way] for way in WAYS)
        lines.append(f"| {name} | {plain:.1f} | {isolated:.1f} | {isolated - plain:+.1f} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--save", action="store_true", help="write JSON and the table into benchmarks/results/")
    options = parser.parse_args(arguments)
    found = asyncio.run(measure(options.rounds))
    print(table(found))
    if options.save:
        save("isolation-cpu", environment("python -m benchmarks.isolation", milliseconds=found), table(found))


if __name__ == "__main__":
    main()
