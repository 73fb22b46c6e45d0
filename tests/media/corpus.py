"""Opens every file of a folder as the worker would, and compares with what ImageMagick and ffmpeg show of it.

python -m tests.media.corpus FOLDER [FOLDER …] [--json FILE] [--all] [--jobs 2]

Every file that begins like a picture or a video, or has the name of one, is opened in a child process of its own. A
line for each that is refused or seen otherwise than there (with `--all` for each): what it is, what it is seen as or
its code, seconds, memory, the difference in levels (255: other sides). At the end the counts, as Markdown.
"""

import argparse
import asyncio
import json
import multiprocessing
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.media.judges import ffmpeg_size, imagemagick_picture
from worker.core.contract import Controls, Kind, Media, Upload
from worker.core.errors import WorkerError
from worker.core.opened import RGB, Picture
from worker.core.settings import Settings
from worker.media.fetch import Fetcher
from worker.media.opener import Opener
from worker.media.sniff import sniff

TIMEOUT_S = 90
SAME_LEVELS = 2.0  # of 255, on average, that a picture may be from ImageMagick's
PICTURES = "jpg jpeg jpe jfif png apng gif webp bmp dib avif heic heif tif tiff ico jp2 j2k jpx jxl svg pdf psd tga ppm"
VIDEOS = "mp4 m4v mov 3gp 3g2 webm mkv avi ts m2ts mts mpg mpeg vob flv ogv ogg wmv asf mjpeg h264 hevc ivf gifv"
NAMES: dict[str, Kind] = {
    **dict.fromkeys(("." + name for name in PICTURES.split()), "image"),
    **dict.fromkeys(("." + name for name in VIDEOS.split()), "video"),
}


@dataclass(frozen=True)
class Found:
    """One file. seen: "80x60" or "8 frames of 80x60", or a code; difference: mean levels from ImageMagick's picture,
    255 for other sides than there or in ffmpeg; None where nothing was there to compare with."""

    path: str
    kind: Kind
    name: str
    seen: str
    warnings: tuple[str, ...]
    seconds: float
    mib: float
    difference: float | None = None
    detail: str = ""


class AtItsOwnSize:
    """A size policy that resizes nothing."""

    max_tokens = 10**9

    def picture(self, height: int, width: int, controls: Controls) -> tuple[int, int, int]:
        return height, width, 1

    def clip(self, height: int, width: int, num_frames: int, controls: Controls) -> tuple[int, int, int]:
        return height, width, 1

    def max_pixels(self, kind: Kind) -> int:
        return 10**7

    def resized(self, rgb: RGB, height: int, width: int) -> RGB:
        return rgb


def files(folders: list[Path]) -> Iterator[tuple[Path, Kind]]:
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink() and path.stat().st_size:
                with path.open("rb") as file:
                    found = sniff(file.read(4096))
                kind: Kind | None = (
                    "image" if found.picture else "video" if found.video else NAMES.get(path.suffix.lower())
                )
                if kind is not None and (path.suffix.lower() in NAMES or found.video is None):
                    yield path, kind


def _open(path: Path, kind: Kind, told: Any) -> None:
    """In a child process."""
    data = path.read_bytes()
    settings = Settings(media_isolate="thread")
    opener = Opener(settings, Fetcher(settings), AtItsOwnSize())
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    warnings: tuple[str, ...] = ()
    difference, detail = None, ""
    try:
        media = Media(kind=kind, source=Upload(data=data), where=kind)
        [[opened]] = asyncio.run(opener.open([media]))
        height, width = opened.size
        rgb = opened.rgb if isinstance(opened, Picture) else opened.frames[0]
        seen = (
            f"{width}x{height}" if isinstance(opened, Picture) else f"{len(opened.frames)} frames of {width}x{height}"
        )
        if opened.source is not None:
            warnings = tuple(each.code for each in opened.source.warnings)
        seconds, taken = time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        difference = _difference(path, kind, rgb)
    except WorkerError as error:
        seen, detail = error.code, error.message
        seconds, taken = time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    told.send((seen, warnings, seconds, taken / 1024, difference, detail))
    opener.close()


def examined(path: Path, kind: Kind) -> Found:
    """The file opened in a process of its own, and compared."""
    with path.open("rb") as file:
        name = sniff(file.read(4096)).name
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_open, args=(path, kind, theirs))
    process.start()
    theirs.close()
    try:
        told = ours.recv() if ours.poll(TIMEOUT_S) else None
    except EOFError:
        told = ("CRASHED", (), 0.0, 0.0, None, "")
    process.kill()
    process.join()
    if told is None:
        return Found(str(path), kind, name, "TOO SLOW", (), TIMEOUT_S, 0.0)
    seen, warnings, seconds, mib, difference, detail = told
    return Found(
        str(path),
        kind,
        name,
        seen,
        warnings,
        round(seconds, 3),
        round(mib, 1),
        difference,
        detail,
    )


def _difference(path: Path, kind: Kind, rgb: RGB) -> float | None:
    """255 where the sides differ."""
    try:
        if kind == "image" and shutil.which("identify"):
            theirs = imagemagick_picture(
                path, "-background", "white", "-alpha", "remove", "-alpha", "off", "+repage", "-colorspace", "sRGB"
            )
            return 255.0 if theirs.shape != rgb.shape else float(np.abs(rgb.astype(int) - theirs.astype(int)).mean())
        if kind == "video" and shutil.which("ffprobe"):
            size = ffmpeg_size(path)
            return None if size is None else 255.0 * (size != rgb.shape[1::-1])
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return None


def summary(found: list[Found]) -> str:
    rows = ["| files | pictures | videos |", "|---|---|---|"]

    def row(name: str, holds: Any) -> None:
        counts = [sum(1 for each in found if each.kind == kind and holds(each)) for kind in ("image", "video")]
        if any(counts):
            rows.append(f"| {name} | {counts[0]} | {counts[1]} |")

    row("opened", lambda _: True)
    row("seen", _is_seen)
    row("seen, and compared with ImageMagick or ffmpeg", lambda each: _is_seen(each) and each.difference is not None)
    row(
        "seen alike",
        lambda each: _is_seen(each) and each.difference is not None and each.difference <= SAME_LEVELS,
    )
    for code, _ in Counter(each.seen for each in found if not _is_seen(each)).most_common():
        row(f"`{code}`" if code.isupper() and "_" in code else code, lambda each, code=code: each.seen == code)
    for code, _ in Counter(code for each in found for code in each.warnings).most_common():
        row(f"seen, with `{code}`", lambda each, code=code: code in each.warnings)
    return "\n".join(rows) + "\n"


def _is_seen(found: Found) -> bool:
    return found.seen[:1].isdigit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--json", type=Path, help="a file for what was found of each")
    parser.add_argument("--all", action="store_true", help="a line for every file")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    with ThreadPoolExecutor(options.jobs) as pool:
        found = []
        for each in pool.map(lambda item: examined(*item), files(options.folders)):
            found.append(each)
            is_odd = not _is_seen(each) or (each.difference or 0) > SAME_LEVELS
            if options.all or is_odd:
                shown = "" if each.difference is None else f", difference {each.difference:.1f}"
                print(
                    f"{each.path}: {each.name}: {each.seen}{shown}, {each.seconds} s, {each.mib} MiB {each.detail}",
                    file=sys.stderr,
                )
    if options.json:
        options.json.write_text(json.dumps([asdict(each) for each in found], indent=1), encoding="utf-8")
    print(summary(found))


if __name__ == "__main__":
    main()
