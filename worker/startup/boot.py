"""What a start does before the slow imports. Python runs one thread at a time: a start is as long as all that is
imported, and whatever is no Python has to run beside it.

- Nothing is collected while modules are imported (they live for ever), until `settle`.
- torch's native libraries are linked while Python imports and reads what links nothing.
- Weights are read by native code while Python imports the model's code.
- The platform's SDK, and all that the model does not need, is imported while the model answers its first question.
"""

import gc
import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from worker.core import logs
from worker.core.timeline import Timeline
from worker.startup import preload

# While torch's libraries are linked no other can be, and one that was never called yet waits too: these come before,
_BEFORE = (
    *(
        "asyncio",
        "concurrent.futures.thread",
        "csv",
        "decimal",
        "hashlib",
        "mmap",
        "random",
        "shutil",
        "uuid",
        "zoneinfo",
    ),
    *("numpy", "pydantic.types", "tokenizers", "markupsafe"),
)
_BESIDE = ("worker.dialects", "worker.metrics", "jinja2")  # and these, which link nothing, beside


@dataclass
class Boot:
    """A start under way. made: what `engine.making.make` returned. on_death: called when the engine ended by itself."""

    timeline: Timeline
    made: Any = None
    on_death: Callable[[], None] = lambda: None

    def died(self) -> None:
        self.on_death()


def begin(*others: str) -> Boot:
    """A model on its way, with the modules `others` imported while it answers its first question. With LAZY_LOAD only
    what it takes to load one.

    Raises SystemExit with the reason where the start cannot be.
    """
    boot = Boot(Timeline())
    gc.disable()
    for name in _BEFORE:
        importlib.import_module(name)
    boot.timeline.end("interpreter")
    with preload.linking_torch():
        worker_settings = importlib.import_module("worker.core.settings")
        checkpoint = importlib.import_module("worker.checkpoint.locate")
        try:
            settings = worker_settings.load()
            logs.set_up(settings.log_level, as_json=settings.is_on_platform)
            if settings.is_on_platform:
                signal.signal(signal.SIGTERM, _leave)  # until the SDK puts its own handler there
            worker_settings.stay_offline(settings)
            found = None if settings.lazy_load else checkpoint.find(settings)
            if found is not None:
                checkpoint.read_ahead(found.folder)
            for name in _BESIDE:
                importlib.import_module(name)
            boot.timeline.end("importing beside torch's linking")
            if found is not None:
                tokens = importlib.import_module("worker.checkpoint.tokenizer").read_tokens(found.folder)
                boot.timeline.end("tokenizer")
        except (worker_settings.SettingError, checkpoint.ModelError) as error:
            sys.exit(f"worker-qwen-vl cannot start: {error}")
    importlib.import_module("torch")
    boot.timeline.end("importing torch")
    weights = importlib.import_module("worker.checkpoint.weights")
    try:
        begun = None if found is None else weights.begin(settings, found)
        making = importlib.import_module("worker.startup.engines")
        boot.timeline.end("importing the engine")
        if begun is not None:
            boot.made = making.make(settings, boot.died, begun, boot.timeline, tokens)
    except checkpoint.ModelError as error:
        sys.exit(f"worker-qwen-vl cannot start: {error}")
    try:
        with preload.sparing():
            for name in ("worker.startup.build", *others):
                importlib.import_module(name)
    except BaseException:
        if boot.made is not None:
            boot.made.close()
        raise
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
