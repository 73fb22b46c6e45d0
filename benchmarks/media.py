"""CPU seconds and memory from files to patches: this worker, and the references as their users call them.

python -m benchmarks.media [--rounds 3] [--save] [--before FOLDER]      in the environment of `make parity`

`--before`: another checkout of this worker instead of the references, as to see what a change costs.

Every case runs in a process of its own, by turns: qwen-vl-utils and transformers' image processor, or transformers'
PyAV reader and video processor; and this worker's opener and patches. Both are measured when they hand over what goes
to the device: the references float32 patches, the worker bytes, which the device turns into numbers. "In float32" goes
on until the worker has the same numbers on the CPU. CPU seconds are of all threads; memory is what the process has at
the most, beyond what its imports took.
"""

import argparse
import asyncio
import http.server
import importlib
import io
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image, ImageDraw

from benchmarks.report import environment, save
from worker.checkpoint.family_rules import QWEN3_VL_PIXELS as RULES
from worker.core.contract import Controls, Media, Upload, Url
from worker.core.opened import Clip, Picture
from worker.core.safe_json import JsonObject
from worker.core.settings import load
from worker.media.fetch import Fetcher
from worker.media.opener import Opener
from worker.models.pixel_values import pixel_values
from worker.prompt import patches
from worker.prompt.size_policy import SmartResizePolicy
from worker.prompt.sizes import Size, image_size

ROOT = Path(__file__).parents[1]
MAX_TOKENS = 1280  # of a picture, for both
CPU = torch.device("cpu")
Mark = Callable[[], None]  # called when what goes to the device is there


# What is opened.


def photo(width: int, height: int, quality: int) -> bytes:
    """A JPEG with as much detail as a camera's."""
    rng = np.random.default_rng(1)
    coarse = Image.fromarray(rng.integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8))
    image = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    image += rng.integers(-12, 12, image.shape, dtype=np.int16)
    buffer = io.BytesIO()
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def screenshot() -> bytes:
    """A PNG of flat areas and text."""
    image = Image.new("RGB", (2560, 1440), "white")
    draw, rng = ImageDraw.Draw(image), random.Random(1)
    for line in range(90):
        draw.text((40, 16 * line), " ".join(f"{rng.randrange(10**8)}" for _ in range(30)), fill="black")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def film(seconds: int, target: Path) -> None:
    """1080p at 30 frames a second: half a minute encoded, again and again."""
    part = io.BytesIO()
    base = np.asarray(Image.open(io.BytesIO(photo(2048, 1080, 80))))
    with av.open(part, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=30, options={"preset": "veryfast", "crf": "23", "g": "60"})
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        for number in range(300):
            at = 4 * number % 128
            shown = av.VideoFrame.from_ndarray(np.ascontiguousarray(base[:, at : at + 1920]), format="rgb24")
            container.mux(stream.encode(shown))
        container.mux(stream.encode(None))
    with av.open(str(target), "w", format="mp4") as out:
        copy: Any = None
        for turn in range(seconds // 10):
            part.seek(0)
            source: Any
            with av.open(part, "r") as source:
                stream = source.streams.video[0]
                copy = copy or out.add_stream_from_template(stream)
                shift = round(turn * 10 / stream.time_base)
                for packet in source.demux(stream):
                    if packet.dts is not None:
                        packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, copy
                        out.mux(packet)


def write_files(folder: Path) -> None:
    (folder / "12 MP photo").write_bytes(photo(4032, 3024, 90))
    (folder / "1024 px picture").write_bytes(photo(1024, 768, 90))
    (folder / "8K photo of 20 MB").write_bytes(photo(7680, 4320, 92))
    (folder / "PNG screenshot").write_bytes(screenshot())
    film(30, folder / "30 s of 1080p")
    film(300, folder / "5 min of 1080p")


CASES: dict[str, tuple[str, JsonObject]] = {
    "12 MP photo": ("12 MP photo", {}),
    "1024 px picture": ("1024 px picture", {}),
    "8K photo of 20 MB": ("8K photo of 20 MB", {}),
    "PNG screenshot": ("PNG screenshot", {}),
    "16 photos of 12 MP": ("12 MP photo", {"count": 16}),
    "12 MP photo from an address": ("12 MP photo", {"fetch": True}),
    "30 s of 1080p, 1 fps": ("30 s of 1080p", {"fps": 1.0}),
    "30 s of 1080p, 2 fps": ("30 s of 1080p", {"fps": 2.0}),
    "5 min of 1080p, 1 fps": ("5 min of 1080p", {"fps": 1.0}),
    "5 min of 1080p, 2 fps": ("5 min of 1080p", {"fps": 2.0}),
}


# The two ways.


def ours(path: Path, fields: JsonObject, address: str | None) -> Callable[[Mark], int]:
    variables = {"MAX_IMAGE_TOKENS": MAX_TOKENS, "MAX_VIDEO_TOKENS": 24_576, "MAX_FRAMES": 768, "MAX_JOB_PIXELS": 10**9}
    settings = load({**{name: str(value) for name, value in variables.items()}, "MEDIA_ALLOW_LOOPBACK": "1"})
    opener = Opener(settings, Fetcher(settings), SmartResizePolicy(RULES, settings))
    data = path.read_bytes()
    is_video = "fps" in fields
    source = Url(url=address) if address else Upload(data=data)
    controls = Controls(fps=fields.get("fps"))
    kind: Any = "video" if is_video else "image"
    items = [
        Media(kind=kind, source=source, where=str(index), controls=controls) for index in range(fields.get("count", 1))
    ]

    def run(mark: Mark) -> int:
        seen = []
        for item in (item for opened in asyncio.run(opener.open(items)) for item in opened):
            if isinstance(item, Picture):
                seen.append(patches.of_picture(item.rgb, image_size(*item.size, RULES, MAX_TOKENS), RULES))
            else:
                assert isinstance(item, Clip)
                height, width = item.frames[0].shape[:2]
                shown = [*item.frames, *item.frames[-1:] * (len(item.frames) % 2)]
                seen.append(patches.of_frames(shown, Size(height, width), RULES))
        mark()
        return sum(len(pixel_values([item], RULES, CPU, torch.float32)) for item in seen)

    return run


def theirs(path: Path, fields: JsonObject, address: str | None) -> Callable[[Mark], int]:
    for schema in ("nms", "qnms"):
        operators: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        operators.define(f"{schema}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(operators)
    vision = importlib.import_module("qwen_vl_utils.vision_process")
    qwen2 = importlib.import_module("transformers.models.qwen2_vl.image_processing_qwen2_vl")
    qwen3 = importlib.import_module("transformers.models.qwen3_vl.video_processing_qwen3_vl")
    load_video = importlib.import_module("transformers.video_utils").load_video
    shared = {
        "patch_size": 16,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    if "fps" in fields:
        processor = qwen3.Qwen3VLVideoProcessor(**shared, size={"shortest_edge": 4096, "longest_edge": 25165824})

        def sample(metadata: Any, **_: Any) -> Any:
            return processor.sample_frames(metadata, fps=fields["fps"])

        def run_video(mark: Mark) -> int:
            frames, metadata = load_video(str(path), backend="pyav", sample_indices_fn=sample)
            made = processor(videos=[frames], video_metadata=[metadata], do_sample_frames=False, return_tensors="pt")
            mark()
            return len(made["pixel_values_videos"])

        return run_video
    images = qwen2.Qwen2VLImageProcessor(**shared, size={"shortest_edge": 65536, "longest_edge": MAX_TOKENS * 1024})
    limit = {"max_pixels": MAX_TOKENS * 1024, "min_pixels": 65536}

    def run(mark: Mark) -> int:
        source = address or f"file://{path}"
        shown = [
            vision.fetch_image({"image": source, **limit}, image_patch_size=16) for _ in range(fields.get("count", 1))
        ]
        made = images(images=shown, do_resize=False, return_tensors="pt")
        mark()
        return len(made["pixel_values"])

    return run


_KEPT: list[Any] = []
WAYS = {"references": theirs, "this worker": ours}


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def measure_case(way: str, case: str, folder: Path) -> dict[str, float]:
    """One case in this process."""
    torch.set_num_threads(2)
    name, fields = CASES[case]
    address = None
    if fields.get("fetch"):
        handler = lambda *more: _Quiet(*more, directory=str(folder))  # noqa: E731
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/{name.replace(' ', '%20')}"
    run = WAYS[way](folder / name, fields, address)
    before = _mib("VmRSS")
    wall, cpu = time.perf_counter(), time.process_time()
    seen: dict[str, float] = {}

    def mark(end: str = "") -> None:
        seen.update(
            {
                f"{end}cpu": time.process_time() - cpu,
                f"{end}wall": time.perf_counter() - wall,
                f"{end}mib": _mib("VmHWM") - before,
            }
        )

    count = run(mark)
    mark("float32_")
    return {**seen, "patches": count}


def _mib(name: str) -> float:
    """Of this process; `getrusage` would give the parent's at the fork where that is more."""
    return int(Path("/proc/self/status").read_text(encoding="ascii").partition(f"{name}:")[2].split()[0]) / 1024


def measure(folder: Path, rounds: int, before: Path | None = None) -> list[JsonObject]:
    """By turns; `before`: a checkout that takes the references' place."""
    rows = []
    others = {"references": ROOT} if before is None else {"before": before}
    checkouts = {**others, "this worker": ROOT}
    for case in CASES:
        seen: dict[str, list[dict[str, float]]] = {way: [] for way in checkouts}
        for _ in range(rounds):
            for way, checkout in checkouts.items():
                name = way if way in WAYS else "this worker"
                command = [sys.executable, "-W", "ignore", "-m", "benchmarks.media", "--case", name, case, str(folder)]
                done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise RuntimeError(f"{way}, {case}: {done.stderr[-2000:]}")
                seen[way].append(json.loads(done.stdout.splitlines()[-1]))
        row: JsonObject = {"case": case}
        for way, found in seen.items():
            row[way] = {name: statistics.median(sample[name] for sample in found) for name in found[0]}
        rows.append(row)
        print(case, row, file=sys.stderr, flush=True)
    return rows


def table(rows: list[JsonObject]) -> str:
    other = "before" if "before" in rows[0] else "references"
    lines = [
        f"| file | {other}: CPU, s | MiB | this worker: CPU, s | MiB | CPU | memory | time "
        "| with float32: CPU | memory | time |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        a, b = row[other], row["this worker"]
        # The references hand over float32, an earlier version bytes, as this one does.
        shares = [
            b[f"{end}{what}"] / a[f"{end if other == 'before' else ''}{what}"]
            for end in ("", "float32_")
            for what in ("cpu", "mib", "wall")
        ]
        lines.append(
            f"| {row['case']} | {a['cpu']:.2f} | {a['mib']:.0f} | {b['cpu']:.2f} | {b['mib']:.0f} | "
            + " | ".join(f"{share:.2f}x" for share in shares)
            + " |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--before", type=Path, help="another checkout, instead of the references")
    parser.add_argument("--case", nargs=3, metavar=("WAY", "CASE", "FOLDER"), help="one case, in this process")
    arguments = parser.parse_args()
    if arguments.case:
        way, case, folder = arguments.case
        print(json.dumps(measure_case(way, case, Path(folder))))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder))
        rows = measure(Path(folder), arguments.rounds, arguments.before)
    print(table(rows))
    if arguments.save:
        command = f"python -m benchmarks.media --rounds {arguments.rounds}"
        save("media-cpu", environment(command, rows=rows), table(rows))


if __name__ == "__main__":
    main()
