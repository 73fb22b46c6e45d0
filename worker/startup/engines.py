"""Which engine serves the model that the settings name, how large it sees pictures, and its first answer."""

import contextlib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from worker.checkpoint.family import FAMILIES
from worker.checkpoint.locate import ModelError, read_json
from worker.checkpoint.tokenizer import Tokens
from worker.checkpoint.weights import Begun, Reading, begin
from worker.core.errors import WorkerError
from worker.core.settings import Settings
from worker.core.timeline import Timeline
from worker.engine.engine import Engine
from worker.engine.warmup import WarmUp
from worker.models.loading import LoadedModel, ServedModel, load
from worker.prompt.patches import Eye


@dataclass(frozen=True)
class Made:
    """A model, its engine, started and at its first question, and its eye (see `media.opener.Sees`)."""

    model: ServedModel
    engine: Engine
    eye: Any
    warm_up: WarmUp
    reading: Reading | None

    def wait(self, timeline: Timeline) -> None:
        """Until the first question is answered and all weights are read. Raises ModelError."""
        with _answering():
            self.warm_up.wait()
        if self.reading is not None:
            timeline.ran_beside("reading weights", self.reading.finish())

    def close(self) -> None:
        self.warm_up.close()
        self.engine.close()


def make(
    settings: Settings,
    on_death: Callable[[], None],
    begun: Begun | None,
    timeline: Timeline,
    tokens: Tokens | None = None,
) -> Made:
    """Whoever takes it waits for its `warm_up` and closes its engine. Raises ModelError."""
    begun = begun or begin(settings)
    kind = read_json(begun.found.folder / "config.json").get("model_type")
    if kind in FAMILIES or settings.model_code == "native":
        loaded = load(settings, begun, timeline, tokens)
        shallow, known = loaded.shallow, replace(loaded, shallow=None)
        model: ServedModel = known
        engine, eye = Engine(known, settings, on_death), Eye(known.pixels, settings, known.max_model_len)
    else:
        # Imported when they are needed: they bring the library with them.
        foreign = importlib.import_module("worker.models.hf.hf_generate")
        windows = importlib.import_module("worker.engine.static_batch")
        timeline.end("importing transformers")
        model, shallow = foreign.load(settings, begun, timeline), None
        engine, eye = windows.WindowEngine(model, settings, on_death), foreign.ForeignEye(settings, model.max_model_len)
    engine.start()
    try:
        with _answering():
            if isinstance(model, LoadedModel) and shallow is not None:
                warm_up = _shallow(replace(model, runner=shallow), settings)
            else:
                warm_up = WarmUp(engine, with_video=model.code != "generate")
        return Made(model, engine, eye, warm_up, begun.reading)
    except BaseException:
        engine.close()
        raise


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    """A model that does not answer its first question cannot be served. Raises ModelError."""
    try:
        yield
    except WorkerError as error:
        told = f"the model does not answer a question about a picture or video: {error.message}"
        raise ModelError(told) from None


def _shallow(model: LoadedModel, settings: Settings) -> WarmUp:
    """By an engine of its own, of the model's first layers: nothing that it leaves can be met later, and it is gone
    with its answer."""
    engine = Engine(model, settings)
    engine.start()
    return WarmUp(engine, ends=True)
