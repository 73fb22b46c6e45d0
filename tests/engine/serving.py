"""Engines of a test's own making."""

from collections.abc import Callable
from dataclasses import replace

from worker.core.settings import Settings
from worker.engine.engine import Builder, Engine, continuous_parts
from worker.models.loading import LoadedModel
from worker.models.runner import Runner
from worker.prompt.builder import PromptBuilder

CPU = Settings(device="cpu")


class Serve:
    """Makes engines for one model, and remembers them to close them."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self._engines: list[Engine] = []

    def __call__(
        self,
        settings: Settings = CPU,
        runner: Callable[[Runner], Runner] = lambda inner: inner,
        builder: Builder | None = None,
    ) -> Engine:
        """An engine whose runner is what `runner` makes of the model's."""
        model = replace(self.model, runner=runner(self.model.runner))
        parts = continuous_parts(model, settings)
        engine = Engine(model, builder or PromptBuilder(model.spec, settings), settings, parts)
        self._engines.append(engine)
        engine.start()
        return engine

    def close(self) -> None:
        for engine in self._engines:
            engine.close()
