"""What the service, the metrics and the servers know of an engine. An engine is a class with these members."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from worker.core.contract import ChatRequest, Event, MediaInfo, Usage
from worker.core.deadline import Deadline
from worker.core.opened import Opened

# ready: takes work. closed: it was told to end. dead: it ended by itself. stuck: dead, and its thread cannot be joined.
EngineState = Literal["ready", "closed", "dead", "stuck"]

OnUsage = Callable[[Usage], None]


@dataclass(frozen=True)
class EngineInfo:
    """What never changes while an engine runs. model: the name that answers carry. code: whose model code runs it.
    max_model_len: the context length, of a prompt and its answer. gpu_memory: as `24.0GB`. fingerprint: of
    the worker's version, the model's name, its code and dtype, torch and the processor. concurrency: requests that it
    is best given at once, where no setting says otherwise."""

    model: str
    code: str
    max_model_len: int
    device: str = "cpu"
    torch_version: str | None = None
    cuda_available: bool = False
    gpu_memory: str = "N/A"
    fingerprint: str = ""
    concurrency: int = 48


@dataclass(frozen=True)
class CacheStats:
    """A cache: how often something in it was used again, and its memory."""

    num_hits: int = 0
    num_bytes: int = 0


@dataclass(frozen=True)
class EngineStats:
    """One snapshot of an engine. num_running: answers being decoded; num_waiting: requests of which nothing is computed
    yet; num_unfinished: requests waiting or being answered; kv_cache_bytes: keys and values of what is being decoded;
    device_bytes: of the device's memory that is held; busy_s: seconds in which the device worked for requests; caches:
    by name."""

    num_running: int = 0
    num_waiting: int = 0
    num_unfinished: int = 0
    kv_cache_bytes: int = 0
    device_bytes: int = 0
    busy_s: float = 0.0
    caches: Mapping[str, CacheStats] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenCounts:
    """Tokens of a prompt, and its pictures and videos as the model would see them. ids: the tokens'."""

    prompt_tokens: int
    media: tuple[MediaInfo, ...] = ()
    ids: tuple[int, ...] = ()


class Engine(Protocol):
    """Answers requests with one model, any number of them at once."""

    @property
    def info(self) -> EngineInfo: ...

    @property
    def state(self) -> EngineState: ...

    def stats(self) -> EngineStats: ...

    async def count_tokens(self, request: ChatRequest, media: Sequence[Opened]) -> TokenCounts:
        """Build the request's prompt and count it; the model is not run. Raises PromptTooLong."""
        ...

    def generate(
        self, request: ChatRequest, media: Sequence[Opened], deadline: Deadline, on_usage: OnUsage
    ) -> AsyncGenerator[Event, None]:
        """Pieces of text as they come, then exactly one Done. `media` are the request's, opened, in order. At the
        deadline the answer ends as it is, with the reason `time`. Closing the generator frees all that the request
        holds. `on_usage` is called once with what was computed, however the request ends, if anything was. Raises
        WorkerError."""
        ...

    def on_death(self, callback: Callable[[], None]) -> None:
        """Have it called when the engine ends by itself, or is stuck, after everybody was told."""
        ...

    def close(self) -> None:
        """End now: whatever is unfinished fails with EngineStopped. Returns when all threads have ended."""
        ...
