"""What programs that nobody here wrote make of a file: ffmpeg's command line, ImageMagick's. A test that needs one that
is not installed is skipped and says so."""

import io
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.media.films import number_of

TIMEOUT_S = 60
# ffmpeg's filters from HDR to what a common screen shows.
TO_SDR = (
    "zscale=t=linear:npl=100,format=gbrpf32le,zscale=p=bt709,tonemap=tonemap=hable:desat=0",
    "zscale=t=bt709:m=gbr:r=pc,format=gbrp",
)
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
needs_imagemagick = pytest.mark.skipif(shutil.which("identify") is None, reason="ImageMagick is not installed")


def _output(*command: str) -> bytes:
    return subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=False).stdout


def ffmpeg_frames(path: Path) -> tuple[list[int], list[float | None]]:
    """The numbers that the frames of a film show, and their times in seconds from the first; None where ffmpeg knows
    none."""
    found = json.loads(
        _output(
            "ffprobe", "-v", "quiet", "-select_streams", "V:0", "-of", "json",
            "-show_entries", "frame=best_effort_timestamp_time,width,height", str(path),
        )
    ).get("frames", [])  # fmt: skip
    stamps = [None if (at := each.get("best_effort_timestamp_time")) is None else float(at) for each in found]
    first = next((at for at in stamps if at is not None), 0.0)
    return numbers(path), [None if at is None else at - first for at in stamps]


def numbers(path: Path) -> list[int]:
    """The numbers that ffmpeg's frames show, those of the stream that it chooses, at one size."""
    size = 160, 96
    raw = _output(
        "ffmpeg", "-v", "quiet", "-i", str(path), "-fps_mode", "passthrough", "-s", f"{size[0]}x{size[1]}",
        "-sws_flags", "area", "-f", "rawvideo", "-pix_fmt", "rgb24", "-",
    )  # fmt: skip
    return [number_of(rgb) for rgb in np.frombuffer(raw, np.uint8).reshape(-1, size[1], size[0], 3)]


def ffmpeg_picture(path: Path, *filters: str) -> np.ndarray:
    """The first frame, (height, width, 3), through filters."""
    command = ["ffmpeg", "-v", "quiet", "-i", str(path), *(("-vf", ",".join(filters)) if filters else ())]
    png = _output(*command, "-frames:v", "1", "-f", "image2pipe", "-c:v", "png", "-")
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def imagemagick_picture(path: Path, *operations: str) -> np.ndarray:
    """The first picture of a file, (height, width, 3), upright, through operations."""
    ppm = _output("convert", f"{path}[0]", "-auto-orient", *operations, "-depth", "8", "ppm:-")
    return np.asarray(Image.open(io.BytesIO(ppm)).convert("RGB"))


def ffmpeg_size(path: Path) -> tuple[int, int] | None:
    """Width and height at which ffmpeg shows the stream that it chooses; None where it shows none."""
    png = _output(
        "ffmpeg", "-v", "quiet", "-i", str(path), "-frames:v", "1", "-f", "image2pipe", "-c:v", "png", "-"
    )  # fmt: skip
    return Image.open(io.BytesIO(png)).size if png else None
