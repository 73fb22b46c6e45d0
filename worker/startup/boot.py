"""What a start does before the slow imports. Python runs one thread at a time: a start is as long as all that is
imported, and whatever is no Python has to run beside it.

- Nothing is collected while modules are imported (they live for ever), until `settle`.
- torch's native libraries are linked while Python imports and reads what links nothing.
- Weights are read by native code while Python imports the model's code.
- RunPod's SDK, and all that the model does not need, is imported while the model answers its first question.

So imports stand inside functions here: their order is what this module is about.
"""

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from worker.core import logs
from worker.core.timeline import Timeline
from worker.startup import preload

if TYPE_CHECKING:
    from worker.core.settings import Settings


class Closable(Protocol):
    """A `startup.engines.LoadedEngine`, which this module cannot import before it begins."""

    def close(self) -> None: ...


@dataclass
class Boot:
    """A start under way. loaded: the engine at its first question; None where it is still to be loaded."""

    timeline: Timeline
    loaded: Closable | None = None
    settings: Any = None  # `core.settings.Settings`, which is imported later


def begin(
    import_rest: Callable[[], None] = lambda: None, read_settings: "Callable[[], Settings] | None" = None
) -> Boot:
    """A model on its way, with `import_rest` called while it answers its first question. With LAZY_LOAD only what it
    takes to load one. read_settings: instead of those of the environment; raises StartError.

    Raises SystemExit with the reason where the start cannot be.
    """
    boot = Boot(Timeline())
    gc.disable()
    _import_before_linking()
    boot.timeline.end("interpreter")
    from worker.core.errors import StartError

    try:
        _load(boot, read_settings)
    except StartError as error:
        sys.exit(f"worker-qwen-vl cannot start: {error}")
    with contextlib.ExitStack() as stack:
        if boot.loaded is not None:
            stack.callback(boot.loaded.close)
        with preload.sparing():
            from worker.startup import build  # noqa: F401

            import_rest()
        stack.pop_all()
    boot.timeline.end("import_rest")
    return boot


def _load(boot: Boot, read_settings: "Callable[[], Settings] | None") -> None:
    """Raises StartError."""
    with preload.linking_torch():
        from worker.checkpoint import locate
        from worker.core import settings as worker_settings

        settings = (read_settings or worker_settings.current)()
        boot.settings = settings
        logs.set_up(settings.log_level, as_json=settings.logs_json)
        worker_settings.warn_of_doubtful()
        if settings.is_on_platform:
            signal.signal(signal.SIGTERM, _leave)  # until the SDK puts its own handler there
        worker_settings.stay_offline(settings)
        found = None if settings.lazy_load else locate.find(settings)
        if found is not None:
            locate.read_ahead(found.folder)
        _import_beside_linking()
        boot.timeline.end("import_during_torch_link")
        tokenizer = None
        if found is not None:
            from worker.checkpoint.tokenizer import read_tokenizer

            tokenizer = read_tokenizer(found.folder)
            boot.timeline.end("tokenizer")
    import torch  # noqa: F401

    boot.timeline.end("import_torch")
    from worker.checkpoint import load_plan

    plan = None if found is None else load_plan.begin(settings, found)
    from worker.startup import engines

    boot.timeline.end("import_engine")
    if plan is not None:
        boot.loaded = engines.load_engine(settings, plan, boot.timeline, tokenizer)


def _import_before_linking() -> None:
    """While torch's libraries are linked no other can be, and one that was never called yet waits too."""
    import asyncio  # noqa: F401
    import concurrent.futures.thread  # noqa: F401
    import csv  # noqa: F401
    import decimal  # noqa: F401
    import hashlib  # noqa: F401
    import mmap  # noqa: F401
    import random  # noqa: F401
    import shutil  # noqa: F401
    import uuid  # noqa: F401
    import zoneinfo  # noqa: F401

    import markupsafe  # noqa: F401
    import numpy  # noqa: F401
    import pydantic.types  # noqa: F401
    import tokenizers  # noqa: F401


def _import_beside_linking() -> None:
    """What links nothing."""
    import jinja2  # noqa: F401

    import worker.dialects.table
    import worker.metrics  # noqa: F401


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
