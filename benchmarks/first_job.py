"""The first job after a start beside the second and third, with the warm-up and without.

python -m benchmarks.first_job [--rounds 5] [--save]

Half a billion random parameters in bfloat16, baked as an image carries them (1 GB). Each start is a process of its own,
which then answers three jobs one after the other, each about other pixels, as they come from the platform: JSON in,
JSON out. Once a picture of 320x240, once a film of two seconds. Starts with and without the warm-up take turns.
"""

import argparse
import asyncio
import base64
import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from unittest import mock

import av
import numpy as np
from PIL import Image

from benchmarks import models
from benchmarks.report import environment, in_a_process, save
from builder.bake import bake
from worker.core.safe_json import JsonObject
from worker.core.settings import load as settings
from worker.engine.engine import Engine
from worker.service import Service
from worker.startup import engines
from worker.startup.build import start

WAYS = ("with the warm-up", "without")
KINDS = ("image", "video")
NUM_JOBS = 3


class NoWarmUp:
    """In its place: nothing is asked."""

    def __init__(self, engine: Engine, *, ends: bool = False, **_: object) -> None:
        self._ending = engine if ends else None

    def wait(self) -> None:
        self.close()

    def close(self) -> None:
        if self._ending is not None:
            self._ending.close()


def shown(kind: str, seed: int) -> str:
    """A picture or film of noise, in base64."""
    generator, buffer = np.random.default_rng(seed), io.BytesIO()
    frames = [
        Image.fromarray(generator.integers(0, 256, (15, 20, 3), dtype=np.uint8)).resize((320, 240)) for _ in range(20)
    ]
    if kind == "image":
        frames[0].save(buffer, "JPEG")
        return base64.b64encode(buffer.getvalue()).decode()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10, width=320, height=240, pix_fmt="yuv420p")
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(frame), format="rgb24")))
        container.mux(stream.encode(None))
    return base64.b64encode(buffer.getvalue()).decode()


async def seconds(service: Service, body: JsonObject, name: str) -> float:
    began = time.perf_counter()
    values = [value async for value in service.answer(body, name)]
    took = time.perf_counter() - began
    if not values or not isinstance(values[-1], dict) or "error" in values[-1]:
        raise RuntimeError(f"no answer: {values}")
    return took


def child(way: str, kind: str, folder: Path) -> None:
    """Prints the seconds of each job as JSON."""
    chosen = settings({"DEVICE": "cpu", "DTYPE": "bfloat16", "MODEL_PATH": str(folder)})
    bodies = json.loads((folder.parent / f"{kind}.json").read_text(encoding="utf-8"))
    spared = mock.patch.object(engines, "WarmUp", NoWarmUp) if way == "without" else contextlib.nullcontext()
    with spared:
        serving = start(chosen)

    async def answer_all() -> list[float]:
        return [await seconds(serving.service, body, str(index)) for index, body in enumerate(bodies)]

    try:
        print(json.dumps(asyncio.run(answer_all())))
    finally:
        serving.close()


def measure(folder: Path, rounds: int) -> list[JsonObject]:
    """A row for each way and kind, ms, medians of all rounds."""
    for kind in KINDS:
        asked = {"prompt": "?", "max_tokens": 2, "temperature": 0}
        bodies = [{**asked, kind: shown(kind, seed)} for seed in range(NUM_JOBS)]
        (folder.parent / f"{kind}.json").write_text(json.dumps(bodies), encoding="utf-8")
    taken: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    for _ in range(rounds):
        for kind in KINDS:
            for way in WAYS:
                taken[kind, way].append(in_a_process("benchmarks.first_job", "--child", way, kind, folder))
                print(kind, way, [round(one, 3) for one in taken[kind, way][-1]], file=sys.stderr, flush=True)
    rows = []
    for (kind, way), runs in taken.items():
        middle = [round(1000 * statistics.median(column)) for column in zip(*runs, strict=True)]
        rows.append({"kind": kind, "way": way, "ms": middle, "all": runs})
    return rows


def table(rows: list[JsonObject]) -> str:
    lines = [
        "| request | start | first, ms | second, ms | third, ms | first vs. second |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        first, second, third = row["ms"]
        lines.append(f"| {row['kind']} | {row['way']} | {first} | {second} | {third} | {first / second:.2f}x |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", nargs=3, metavar=("WAY", "KIND", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--save", action="store_true", help="write JSON and the table into benchmarks/results/")
    options = parser.parse_args()
    if options.child:
        way, kind, where = options.child
        child(way, kind, Path(where))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        models.write_real_size(folder)
        bake(folder)
        rows = measure(folder, options.rounds)
    shown_table = table(rows)
    print(shown_table)
    if options.save:
        save(
            "first-job-cpu",
            environment(f"python -m benchmarks.first_job --rounds {options.rounds}", rows=rows),
            shown_table,
        )


if __name__ == "__main__":
    main()
