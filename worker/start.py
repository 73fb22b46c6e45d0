"""Everything that serves, made from the settings: model, engine, opener, service. Both doors start here."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from worker.boot import Boot
from worker.engine.checkpoint import ModelError
from worker.engine.engine import Engine
from worker.engine.loading import ServedModel
from worker.engine.making import make
from worker.errors import WorkerError
from worker.media.fetch import Fetcher
from worker.media.opener import Opener
from worker.metrics import Metrics
from worker.serve import Service
from worker.settings import MIB, Settings
from worker.timeline import Timeline

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


def start(settings: Settings, on_death: Callable[[], None] = lambda: None, boot: Boot | None = None) -> Serving:
    """A model with its engine, warm. `on_death`: called when the engine ended by itself. `boot`: what was begun before.
    Raises ModelError."""
    if boot is None:
        boot = Boot(Timeline())
        boot.timeline.end("before loading")
    boot.on_death = on_death
    try:
        made = boot.made or make(settings, boot.died, None, boot.timeline)
    except WorkerError as error:
        raise _mute(error) from None
    engine = made.engine
    try:
        opener = Opener(settings, Fetcher(settings), made.eye)
        made.wait(boot.timeline)
    except WorkerError as error:
        made.close()
        raise _mute(error) from None
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


def _mute(error: WorkerError) -> ModelError:
    return ModelError(f"the model does not answer a question about a picture or video: {error.message}")


def _show_reuse(metrics: Metrics, engine: Engine, name: str) -> None:
    metrics.gauge(f"cache_hits_{name}", f"How often kept {name} were used again", lambda: engine.reused[name][0])
    metrics.gauge(f"cache_bytes_{name}", f"Memory of kept {name}", lambda: engine.reused[name][1])
