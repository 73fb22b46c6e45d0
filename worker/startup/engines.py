"""Which engine serves the model that the settings name, at what size it sees pictures, and its first answer.

To add an engine, write its file beside `worker/engine/` and give it a row in `ENGINES`.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from worker.checkpoint.load_plan import LoadPlan, begin
from worker.checkpoint.tokenizer import Tokenizer
from worker.core.engine_protocol import Engine
from worker.core.errors import ModelError, PromptTooLong, WorkerError
from worker.core.media_protocol import SizePolicy
from worker.core.settings import Settings
from worker.core.timeline import Timeline
from worker.engine.engine import continuous_engine
from worker.engine.warmup import WarmUp
from worker.models.families import FAMILIES
from worker.models.loading import Families, LoadedModel, load, model_type
from worker.prompt.size_policy import SmartResizePolicy


@dataclass(frozen=True)
class LoadedEngine:
    """A started engine, and the sizes at which its model sees pictures. reads_files: whether it wants the bytes of what
    was sent beside the pixels. wait: returns when it has answered its first question and all that is read beside it has
    been; raises ModelError."""

    engine: Engine
    size_policy: SizePolicy
    wait: Callable[[Timeline], None] = lambda _: None
    stop_warming: Callable[[], None] = lambda: None
    reads_files: bool = False

    def close(self) -> None:
        self.stop_warming()
        self.engine.close()


@dataclass(frozen=True)
class LoadContext:
    """What an engine is loaded from. tokenizer: the checkpoint's, where it was read before."""

    settings: Settings
    plan: LoadPlan
    timeline: Timeline
    tokenizer: Tokenizer | None
    families: Families


@dataclass(frozen=True)
class EngineRow:
    """A kind of engine. serves: whether it serves the model; the first row that does is taken. load: raises
    ModelError."""

    name: str
    serves: Callable[[LoadContext], bool]
    load: Callable[[LoadContext], LoadedEngine]


def _is_of_known_family(context: LoadContext) -> bool:
    return model_type(context.plan.found) in context.families or context.settings.model_code == "native"


def _load_continuous(context: LoadContext) -> LoadedEngine:
    settings = context.settings
    loaded = load(settings, context.plan, context.timeline, context.tokenizer, context.families)
    model = replace(loaded, shallow=None)
    engine = continuous_engine(model, settings)
    with _closed_on_failure(engine.close):
        engine.start()
        with _answering():
            if loaded.shallow is not None:
                warm_up = _warm_up_by_first_layers(replace(model, runner=loaded.shallow), settings)
            else:
                warm_up = WarmUp(engine)
        policy = SmartResizePolicy(model.spec.preprocessor, settings, model.spec.max_model_len)
        return _started(engine, policy, warm_up, context.plan)


def _load_generate(context: LoadContext) -> LoadedEngine:
    """For models of other families."""
    # Both bring transformers with them, which takes longer to import than all else of a start.
    from worker.engine.static_batch import static_engine
    from worker.models.hf import hf_generate, hf_prompt

    context.timeline.end("import_transformers")
    model = hf_generate.load(context.settings, context.plan, context.timeline)
    engine = static_engine(model, context.settings)
    with _closed_on_failure(engine.close):
        engine.start()
        with _answering():
            warm_up = WarmUp(engine, with_video=False)
        policy = hf_prompt.HfSizePolicy(context.settings, model.spec.max_model_len)
        return _started(engine, policy, warm_up, context.plan)


ENGINES: tuple[EngineRow, ...] = (
    EngineRow("continuous", _is_of_known_family, _load_continuous),
    EngineRow("generate", lambda _: True, _load_generate),
)


def load_engine(
    settings: Settings,
    plan: LoadPlan | None,
    timeline: Timeline,
    tokenizer: Tokenizer | None = None,
    families: Families = FAMILIES,
) -> LoadedEngine:
    """Whoever takes it waits for its first answer and closes it. Raises ModelError."""
    context = LoadContext(settings, plan or begin(settings), timeline, tokenizer, families)
    return next(row for row in ENGINES if row.serves(context)).load(context)


def _started(engine: Engine, policy: SizePolicy, warm_up: WarmUp, plan: LoadPlan) -> LoadedEngine:
    def wait(timeline: Timeline) -> None:
        with _answering():
            warm_up.wait()
        if plan.reader is not None:
            timeline.ran_beside("read_weights", plan.reader.finish())

    return LoadedEngine(engine, policy, wait, warm_up.close)


@contextlib.contextmanager
def _closed_on_failure(close: Callable[[], None]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        stack.callback(close)
        yield
        stack.pop_all()


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    """A model that does not answer its first question cannot be served. Raises ModelError."""
    try:
        yield
    except PromptTooLong as error:
        raise ModelError(
            f"MAX_MODEL_LEN is too small for a question about an image or video: {error.message}"
        ) from None
    except WorkerError as error:
        reason = f"the model does not answer a question about an image or video: {error.message}"
        raise ModelError(reason) from None


def _warm_up_by_first_layers(model: LoadedModel, settings: Settings) -> WarmUp:
    """By an engine of its own, of the model's first layers: nothing that it leaves can be met later, and it is gone
    with its answer."""
    engine = continuous_engine(model, settings)
    engine.start()
    return WarmUp(engine, ends=True)
