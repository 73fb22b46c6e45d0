"""Which engine serves the model that the settings name, and how large it sees pictures."""

import importlib
from collections.abc import Callable
from typing import Any

from worker.engine.engine import Engine
from worker.engine.families import FAMILIES
from worker.engine.loading import ServedModel, load
from worker.engine.pixels import Eye
from worker.engine.rules import read_json
from worker.engine.weights import Begun, begin
from worker.settings import Settings
from worker.timeline import Timeline


def make(
    settings: Settings, on_death: Callable[[], None], begun: Begun | None, timeline: Timeline
) -> tuple[ServedModel, Engine, Any]:
    """The model, its engine, not started, and its eye (see `media.opener.Sees`). Raises ModelError."""
    begun = begun or begin(settings)
    kind = read_json(begun.found.folder / "config.json").get("model_type")
    if kind in FAMILIES or settings.model_code == "native":
        model = load(settings, begun, timeline)
        return model, Engine(model, settings, on_death), Eye(model.pixels, settings, model.max_model_len)
    # Imported when they are needed: they bring the library with them.
    foreign = importlib.import_module("worker.engine.library.foreign")
    windows = importlib.import_module("worker.engine.library.windows")
    timeline.end("importing transformers")
    other = foreign.load(settings, begun, timeline)
    return other, windows.WindowEngine(other, settings, on_death), foreign.ForeignEye(settings, other.max_model_len)
