"""One request on its way through the engine: the only mutable thing of a request."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from worker.contract import Done, Event, FinishReason, Piece, Usage
from worker.engine.prompt import Prompt
from worker.engine.sampling import Choice, generator
from worker.engine.streaming import TextStream
from worker.errors import WorkerError

Emit = Callable[[Event | WorkerError], None]


@dataclass(eq=False)
class Sequence:
    """A prompt, the tokens that followed it, and where its events go. Only the engine's thread changes it,
    but for `is_cancelled`, which anyone may set."""

    prompt: Prompt
    max_tokens: int
    choice: Choice
    stream: TextStream
    eos_ids: frozenset[int]
    emit: Emit
    tokens: list[int] = field(default_factory=list)
    reason: FinishReason | None = None
    is_cancelled: bool = False
    source: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.source = generator(self.choice)

    @property
    def is_over(self) -> bool:
        return self.reason is not None or self.is_cancelled

    @property
    def next_position(self) -> int:
        """M-RoPE position of the newest token, the same on all three axes."""
        return len(self.prompt.ids) + len(self.tokens) - 1 + self.prompt.delta

    def take(self, token: int) -> None:
        """Add a token; emit its text, and the end where this was the last."""
        self.tokens.append(token)
        if token in self.eos_ids:
            self._end("stop")
            return
        self._emit_text(self.stream.push(token))
        if self.stream.is_stopped:
            self._end("stop")
        elif len(self.tokens) >= self.max_tokens:
            self._end("length")

    def fail(self, error: WorkerError) -> None:
        self.is_cancelled = True
        self.emit(error)

    def _end(self, reason: FinishReason) -> None:
        self._emit_text(self.stream.finish())
        self.reason = "stop" if self.stream.is_stopped else reason
        usage = Usage(
            prompt_tokens=len(self.prompt.ids),
            completion_tokens=len(self.tokens),
            image_tokens=self.prompt.image_tokens,
            video_tokens=self.prompt.video_tokens,
        )
        self.emit(Done(reason=self.reason, usage=usage))

    def _emit_text(self, text: str) -> None:
        if text:
            self.emit(Piece(text=text))
