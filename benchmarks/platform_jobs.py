"""A worker of the platform as a process, and jobs that go through it: what `benchmarks.soak` and its attacks share."""

import base64
import io
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from PIL import Image, ImageDraw

from tests.platform.stand_in import FINAL, Job, Platform

ROOT = Path(__file__).parents[1]
SECONDS_PER_TICK = os.sysconf("SC_CLK_TCK")
PATIENCE_S = 120.0


class Worker:
    """A worker's process as the platform starts it, and what it uses."""

    @property
    def tree_mib(self) -> float:
        """Memory of it and of its child processes, shared pages counted once."""
        own = psutil.Process(self._process.pid)
        return sum(_pss(each.pid) for each in (own, *own.children(recursive=True))) / 2**20

    def __init__(self, platform: Platform, *command: str) -> None:
        chosen = {"DEVICE": "cpu", "LOG_LEVEL": "WARNING", **platform.environment()}
        variables = [f"{name}={value}" for name, value in chosen.items()]
        self._process = subprocess.Popen(
            ["env", *variables, sys.executable, *(command or ("handler.py",))],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    @property
    def cpu_seconds(self) -> float:
        """User and system time of the process, which the ping process of the SDK is no part of."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / SECONDS_PER_TICK

    @property
    def memory_mib(self) -> float:
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    @property
    def num_files(self) -> int:
        return len(os.listdir(f"/proc/{self._process.pid}/fd"))

    def stop(self) -> int:
        """Told to stop, as by the platform; its exit status. Again does nothing."""
        if (status := self._process.poll()) is not None:
            return status
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


@contextmanager
def running(platform: Platform, *command: str) -> Iterator[Worker]:
    """A worker that has asked for its first job; stopped at the end."""
    before = platform.calls["job-take-batch"]
    worker = Worker(platform, *command)
    try:
        until(lambda: platform.calls["job-take-batch"] > before)
        yield worker
    finally:
        worker.stop()


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:  # it has ended
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def picture() -> str:
    """A red circle on white, as a PNG in base64."""
    image = Image.new("RGB", (128, 96), "white")
    ImageDraw.Draw(image).ellipse((40, 20, 90, 70), fill=(220, 30, 30))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


PICTURE = picture()


def body(kind: str, rng: random.Random) -> Any:
    """A job's input."""
    match kind:
        case "words" | "stream":
            return {"prompt": "Who are you?", "stream": kind == "stream", "temperature": 0}
        case "picture":
            return {"prompt": "What is in the picture?", "image": PICTURE, "temperature": 0}
        case "cancelled":
            return {"prompt": "Who are you?", "ignore_eos": True, "max_tokens": 400, "stream": rng.random() < 0.5}
        case _:
            return rng.choice((None, "text", {"prompt": 5}, {"prompt": "x", "image": "%%"}, {"prompt": "x", "y": 1}))


def through(platform: Platform, bodies: list[Any], window: int) -> list[Job]:
    jobs: list[Job] = []
    for body in bodies:
        until(lambda: sum(job.status not in FINAL for job in jobs[-2 * window :]) < window)
        jobs.append(platform.submit(body))
    until(lambda: all(job.status in FINAL for job in jobs))
    return jobs


def until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not is_so():
        if time.monotonic() > end:
            raise TimeoutError("the worker did not go on")
        time.sleep(0.002)
