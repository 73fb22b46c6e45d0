"""The worker as a process, as the platform starts it, and the patience to wait for what it does."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tests.platform.stand_in import FINAL, Job, Platform

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60


def until(is_so: Callable[[], Any], seconds: float = PATIENCE_S) -> Any:
    """What `is_so` gives as soon as it is true."""
    end = time.monotonic() + seconds
    while not (found := is_so()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)
    return found


def ended(job: Job) -> Job:
    until(lambda: job.status in FINAL)
    return job


@contextmanager
def worker(
    platform: Platform, *command: str, output: int | IO[str] = subprocess.PIPE, **variables: str
) -> Iterator[subprocess.Popen[str]]:
    """The worker as the platform starts it. A pipe is read at the end only; over 64 KiB of log needs a file."""
    process = subprocess.Popen(
        [sys.executable, *(command or ("handler.py",))],
        cwd=ROOT,
        env={**os.environ, "DEVICE": "cpu", "OMP_NUM_THREADS": "1", **platform.environment(), **variables},
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
