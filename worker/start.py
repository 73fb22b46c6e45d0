"""Everything that serves, made from the settings: model, engine, opener, service. Both doors start here."""

from collections.abc import Callable
from dataclasses import dataclass

from worker.engine.engine import Engine
from worker.engine.loading import LoadedModel, load
from worker.engine.pixels import Eye
from worker.media.fetch import Fetcher
from worker.media.opener import Opener
from worker.serve import Service
from worker.settings import Settings


@dataclass(frozen=True)
class Serving:
    """A started engine and what stands before it. Close it when done."""

    model: LoadedModel
    engine: Engine
    opener: Opener
    service: Service

    def close(self) -> None:
        """End what runs, and return when all threads have."""
        self.engine.close()
        self.opener.close()


def start(settings: Settings, on_death: Callable[[], None] = lambda: None) -> Serving:
    """Load the model and start its engine. `on_death`: called when the engine ended by itself. Raises ModelError."""
    model = load(settings)
    engine = Engine(model, settings, on_death=on_death)
    opener = Opener(settings, Fetcher(settings), Eye(model.pixels, settings))
    engine.start()
    service = Service(engine, opener, settings)
    service.metrics.gauge("answers_running", "Answers being decoded", lambda: engine.num_live)
    service.metrics.gauge("requests_unfinished", "Requests waiting or being answered", lambda: engine.num_unfinished)
    service.metrics.gauge("kv_cache_bytes", "Keys and values of what is being decoded", lambda: engine.cache_bytes)
    return Serving(model, engine, opener, service)
