"""What a start does before the slow imports, so that nothing waits for what could run beside it.

- Nothing is collected while modules are imported: their objects live for ever, and going through them again and again
  takes a quarter of the time. `settle` turns collection on, with all that is there then left out of it.
- The platform's SDK asks a child process for the processor's name while it is imported, which is a second of waiting:
  it is imported first, on a thread, and once it asks, everything else is imported beside it. After that question it
  imports nothing that anything else does, so no two threads wait for each other's half-made modules.
- The weights are read by native code while Python imports the model's code.
"""

import asyncio  # noqa: F401  what both imports need of the standard library comes before they run beside each other
import concurrent.futures  # noqa: F401
import gc
import importlib
import multiprocessing
import os
import signal
import sys
import threading
from dataclasses import dataclass
from typing import Any

from worker import settings as worker_settings
from worker.settings import SettingError
from worker.timeline import Timeline

PROBE = "cpuinfo"  # the module with which the SDK asks


@dataclass
class Boot:
    """A start under way. weights: what `engine.weights.begin` returned."""

    timeline: Timeline
    weights: Any = None


def begin(*sdk: str) -> Boot:
    """Import what is slow in the order that waits least, and begin to read the weights. `sdk` is imported beside torch.

    Raises SystemExit with the reason where the start cannot be.
    """
    boot = Boot(Timeline())
    boot.timeline.end("interpreter")
    gc.disable()
    try:
        settings = worker_settings.load()
    except SettingError as error:
        sys.exit(f"worker-qwen-vl cannot start: {error}")
    if settings.is_on_platform:
        signal.signal(signal.SIGTERM, _leave)  # until the SDK puts its own handler there
    for name in sdk:
        thread = threading.Thread(target=importlib.import_module, args=(name,), daemon=True)
        thread.start()
        while thread.is_alive() and PROBE not in sys.modules:
            thread.join(0.002)
    boot.timeline.end("importing the SDK")
    importlib.import_module("torch")
    boot.timeline.end("importing torch")
    weights = importlib.import_module("worker.engine.weights")
    try:
        boot.weights = weights.begin(settings)
    except weights.ModelError as error:
        sys.exit(f"worker-qwen-vl cannot start: {error}")
    importlib.import_module("worker.start")
    boot.timeline.end("importing the rest")
    return boot


def _leave(*_: object) -> None:
    """Told to stop while loading: no job was taken, nothing is lost."""
    os._exit(143)


def leave(status: int, *, at_once: bool) -> None:
    """End the process. `at_once`: without waiting for threads, one of which would never end. The SDK's child, which
    pings the platform, must not outlive it."""
    if at_once:
        for child in multiprocessing.active_children():
            child.terminate()
        os._exit(status)
    sys.exit(status)


def settle() -> None:
    """The start is over: collect from now on, but not what the start has left."""
    gc.freeze()
    gc.enable()
