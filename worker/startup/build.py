"""Everything that serves, made from the settings: model, engine, opener, service. Both doors start here."""

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from worker.checkpoint.locate import ModelError
from worker.core.errors import EngineStopped
from worker.core.settings import MIB, Settings
from worker.core.timeline import Timeline
from worker.engine.engine import Engine
from worker.media.fetch import Fetcher
from worker.media.opener import Opener
from worker.metrics import Metrics
from worker.models.loading import ServedModel
from worker.service import Service
from worker.startup.boot import Boot
from worker.startup.engines import make

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Serving:
    """A started engine and what stands before it. Close it when done."""

    model: ServedModel
    engine: Engine
    opener: Opener
    service: Service

    def close(self) -> None:
        """End what runs, and return when all threads have."""
        self.engine.close()
        self.opener.close()
        self.service.history.close()


class Door:
    """The model behind a door: on its way, here, or gone. on_failure: called where it could not be loaded."""

    def __init__(self, load: Callable[[], Serving], on_failure: Callable[[], None] = lambda: None) -> None:
        self._load = load
        self._on_failure = on_failure
        self._loading: asyncio.Task[Serving] | None = None
        self._stop_at = math.inf
        self.here: Serving | None = None
        self.failure: BaseException | None = None

    @property
    def state(self) -> Literal["loading", "ready", "dead"]:
        if self.here is not None:
            return "ready" if self.here.engine.is_healthy else "dead"
        return "loading" if self.failure is None else "dead"

    def load(self) -> Serving:
        """What serves, now. Raises ModelError."""
        try:
            self.here = self._load()
        except BaseException as error:
            self.failure = error
            raise
        self.here.service.stop_by(self._stop_at)
        return self.here

    def open(self) -> None:
        """Begin to load; again does nothing."""
        if self.here is None and self._loading is None:
            self._loading = asyncio.create_task(asyncio.to_thread(self.load))
            self._loading.add_done_callback(self._loaded)

    def _loaded(self, loading: asyncio.Task[Serving]) -> None:
        if not loading.cancelled() and (error := loading.exception()) is not None:
            log.error("the model could not be loaded: %s", error)
            self._on_failure()

    async def serving(self) -> Serving:
        """What serves, as soon as it does. Raises EngineStopped where it never will."""
        if self.here is not None:
            return self.here
        self.open()
        assert self._loading is not None
        try:
            return await asyncio.shield(self._loading)
        except ModelError:
            raise EngineStopped(detail="the model could not be loaded") from None

    def stop_by(self, at: float) -> None:
        """See `Service.stop_by`; of a model on its way too."""
        self._stop_at = at
        if self.here is not None:
            self.here.service.stop_by(at)

    async def close(self) -> None:
        if self._loading is not None:
            with contextlib.suppress(ModelError):
                await self._loading
        await asyncio.to_thread(self.shut)

    def shut(self) -> None:
        """`close` where no loop runs any more."""
        if self.here is not None:
            self.here.close()


def start(settings: Settings, on_death: Callable[[], None] = lambda: None, boot: Boot | None = None) -> Serving:
    """A model with its engine, warm. `on_death`: called when the engine ended by itself. `boot`: what was begun before.
    Raises ModelError."""
    boot = boot or Boot(Timeline())
    if boot.made is None:
        boot.timeline.end("before loading")
    boot.on_death = on_death
    made = boot.made or make(settings, boot.died, None, boot.timeline)
    engine = made.engine
    try:
        opener = Opener(settings, Fetcher(settings), made.eye)
        made.wait(boot.timeline)
    except BaseException:
        made.close()
        raise
    boot.timeline.end("warming up")
    service = Service(engine, opener, settings, timeline=boot.timeline)
    num_bytes, num_tokens = engine.room
    log.info("keys and values: %d MiB for %d tokens", num_bytes // MIB, num_tokens)
    log.info("ready", extra={"seconds": boot.timeline.report})
    service.metrics.gauge("answers_running", "Answers being decoded", lambda: engine.num_live)
    service.metrics.gauge("requests_waiting", "Requests of which nothing is computed yet", lambda: engine.num_waiting)
    service.metrics.gauge("requests_unfinished", "Requests waiting or being answered", lambda: engine.num_unfinished)
    for name in engine.reused:
        _show_reuse(service.metrics, engine, name)
    service.metrics.gauge("device_memory_bytes", "Memory of the device that is held", lambda: engine.device_bytes)
    service.metrics.gauge("kv_cache_bytes", "Keys and values of what is being decoded", lambda: engine.cache_bytes)
    return Serving(made.model, engine, opener, service)


def _show_reuse(metrics: Metrics, engine: Engine, name: str) -> None:
    metrics.gauge(f"cache_hits_{name}", f"How often kept {name} were used again", lambda: engine.reused[name][0])
    metrics.gauge(f"cache_bytes_{name}", f"Memory of kept {name}", lambda: engine.reused[name][1])
