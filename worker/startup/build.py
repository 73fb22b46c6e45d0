"""Everything that serves, made from the settings: engine, opener, service. RunPod's handler and the HTTP server start
here."""

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from worker.core.engine_protocol import Engine
from worker.core.errors import EngineStopped, StartError
from worker.core.media_protocol import MediaOpener
from worker.core.settings import Settings
from worker.core.threads import on_thread
from worker.core.timeline import Timeline
from worker.dialects.table import DIALECTS, DialectTable
from worker.media.fetch import Fetcher
from worker.media.opener import Opener
from worker.metrics import Metrics
from worker.service import Service
from worker.startup.engines import LoadedEngine, load_engine

log = logging.getLogger(__name__)
OnFailure = Callable[[BaseException], None]


@dataclass(frozen=True)
class Serving:
    """A started engine and what stands before it. checking: answers the worker's own question before the first job; its
    picture is decoded on a thread, so that nobody waits for child processes. Close it when done."""

    engine: Engine
    opener: MediaOpener
    service: Service
    close_opener: Callable[[], None] = lambda: None
    checking: Service | None = None

    def close(self) -> None:
        """End what runs, and return when all threads have."""
        self.engine.close()
        self.close_opener()
        self.service.history.close()


def why(failure: BaseException) -> str:
    """What the last line of a process says whose model could not be loaded."""
    return str(failure) if isinstance(failure, StartError) else "an unexpected error, see above"


class ModelHandle:
    """A model on its way, here, or gone. on_failure: hears why it could not be loaded."""

    def __init__(self, load: Callable[[], Serving], on_failure: OnFailure = lambda _: None) -> None:
        self._load = load
        self._on_failure = on_failure
        self._loading: asyncio.Task[Serving] | None = None
        self._stop_at = math.inf
        self.serving_now: Serving | None = None
        self.failure: BaseException | None = None

    @property
    def state(self) -> Literal["loading", "ready", "dead"]:
        if self.serving_now is not None:
            return "ready" if self.serving_now.engine.state == "ready" else "dead"
        return "loading" if self.failure is None else "dead"

    def load(self) -> Serving:
        """What serves, now. Raises ModelError."""
        serving = self._load()
        self.serving_now = serving
        serving.service.stop_by(self._stop_at)
        return serving

    def open(self) -> None:
        """Begin to load; again does nothing."""
        if self.serving_now is None and self._loading is None:
            self._loading = asyncio.create_task(on_thread(None, self.load))
            self._loading.add_done_callback(self._loaded)

    def _loaded(self, loading: asyncio.Task[Serving]) -> None:
        if not loading.cancelled() and (error := loading.exception()) is not None:
            self.failure = error
            if isinstance(error, StartError):
                log.error("the model could not be loaded: %s", error)
            else:
                log.error("the model could not be loaded", exc_info=error)
            self._on_failure(error)

    async def serving(self) -> Serving:
        """What serves, as soon as it does. Raises EngineStopped where it never will."""
        if self.serving_now is not None:
            return self.serving_now
        self.open()
        assert self._loading is not None
        await asyncio.wait([self._loading])
        if self._loading.cancelled() or self._loading.exception() is not None:
            raise EngineStopped(detail="the model could not be loaded, the worker's log says why")
        return self._loading.result()

    def stop_by(self, at: float) -> None:
        """See `Service.stop_by`; of a model on its way too."""
        self._stop_at = at
        if self.serving_now is not None:
            self.serving_now.service.stop_by(at)

    async def close(self) -> None:
        if self._loading is not None:
            await asyncio.wait([self._loading])
        await on_thread(None, self.close_now)

    def close_now(self) -> None:
        """`close` where no loop runs any more."""
        if self.serving_now is not None:
            self.serving_now.close()


def start(
    settings: Settings,
    on_death: Callable[[], None] = lambda: None,
    timeline: Timeline | None = None,
    loaded: LoadedEngine | None = None,
    dialects: DialectTable = DIALECTS,
) -> Serving:
    """A model with its engine, warm. `on_death`: called when the engine ended by itself. `timeline`, `loaded`: what was
    begun before. Raises ModelError."""
    timeline = timeline or Timeline()
    if loaded is None:
        timeline.end("before_load")
        loaded = load_engine(settings, None, timeline)
    with contextlib.ExitStack() as stack:
        stack.callback(loaded.close)
        loaded.engine.on_death(on_death)
        serving = assemble(loaded, settings, timeline, dialects)
        stack.callback(serving.close_opener)
        loaded.wait(timeline)
        stack.pop_all()
    timeline.end("warmup")
    log.info("ready", extra={"seconds": timeline.report})
    return serving


def assemble(
    loaded: LoadedEngine, settings: Settings, timeline: Timeline | None = None, dialects: DialectTable = DIALECTS
) -> Serving:
    """What stands before an engine, of whatever kind it is."""
    engine = loaded.engine
    opener = Opener(settings, Fetcher(settings), loaded.size_policy, keeps_files=loaded.reads_files)
    service = Service(engine, opener, settings, timeline=timeline, dialects=dialects)
    show_stats(service.metrics, engine, settings.gpu_usd_per_second)
    trusting = settings.model_copy(update={"media_isolate": "thread"})
    checker = Opener(trusting, Fetcher(trusting), loaded.size_policy, keeps_files=loaded.reads_files)

    def close() -> None:
        opener.close()
        checker.close()

    checking = Service(engine, checker, trusting, history=service.history)
    return Serving(engine, opener, service, close, checking)


def show_stats(metrics: Metrics, engine: Engine, usd_per_second: float | None = None) -> None:
    """The engine's numbers among the metrics, read whenever somebody asks. usd_per_second: what the device costs."""
    gauge, stats = metrics.gauge, engine.stats
    gauge("answers_running", "Answers being decoded", lambda: stats().num_running)
    gauge("requests_waiting", "Requests of which nothing is computed yet", lambda: stats().num_waiting)
    gauge("requests_unfinished", "Requests waiting or being answered", lambda: stats().num_unfinished)
    gauge("device_busy_seconds", "Seconds in which the device worked for requests", lambda: stats().busy_s)
    if usd_per_second is not None:
        price = usd_per_second
        gauge("device_busy_usd", "What those seconds cost", lambda: stats().busy_s * price)
    for name in stats().caches:
        _show_cache(metrics, engine, name)
    gauge("device_memory_bytes", "Memory of the device that is held", lambda: stats().device_bytes)
    gauge("kv_cache_bytes", "Keys and values of what is being decoded", lambda: stats().kv_cache_bytes)


def _show_cache(metrics: Metrics, engine: Engine, name: str) -> None:
    metrics.gauge(
        f"cache_hits_{name}", f"How often kept {name} were used again", lambda: engine.stats().caches[name].num_hits
    )
    metrics.gauge(f"cache_bytes_{name}", f"Memory of kept {name}", lambda: engine.stats().caches[name].num_bytes)
