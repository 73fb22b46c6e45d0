"""One answer on its way through the engine: the only mutable thing of a request."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from worker.checkpoint.tokenizer import Tokenizer
from worker.core.contract import Cached, Done, Event, FinishReason, MediaInfo, Piece, Stop, TokenLogprob, Usage, Work
from worker.core.deadline import Deadline
from worker.core.errors import DeadlineExceeded, InternalError, WorkerError
from worker.engine.detokenizer import TextStream, alternative
from worker.engine.loop_guard import LoopGuard
from worker.engine.sampling import Row, Sampler, likeliest
from worker.prompt.types import Prompt

Emit = Callable[[Event | WorkerError], None]


@dataclass(eq=False)
class Request:
    """What the answers to one prompt share: the prompt, where events go, what it took, and who has ended how. The times
    are seconds, see `core.contract.Work`. began_at: when the first of it was computed; cached_media: what was known of
    its pictures and videos, by number."""

    prompt: Prompt
    max_tokens: int
    emit: Emit
    num_answers: int = 1
    deadline: Deadline = field(default_factory=Deadline)
    reasons: dict[int, FinishReason] = field(default_factory=dict)
    stops: dict[int, Stop] = field(default_factory=dict)
    num_generated: int = 0
    preprocess_s: float = 0.0
    max_gpu_seconds: float = math.inf
    gpu_seconds: float = 0.0
    vision_s: float = 0.0
    began_at: float | None = None
    cached_media: dict[int, Cached] = field(default_factory=dict)
    num_cached: int = 0
    num_reasoning: int = 0
    is_cancelled: bool = False
    came_at: float = field(default_factory=time.monotonic)
    first_token_at: float | None = None
    has_begun: bool = False  # something was computed for it

    @property
    def usage(self) -> Usage:
        """Tokens of the prompt and of all answers so far."""
        return Usage(
            prompt_tokens=len(self.prompt.ids),
            completion_tokens=self.num_generated,
            image_tokens=self.prompt.image_tokens,
            video_tokens=self.prompt.video_tokens,
            cached_tokens=self.num_cached,
            reasoning_tokens=self.num_reasoning,
        )

    @property
    def work(self) -> Work:
        """Where its seconds went, up to now."""
        now = time.monotonic()
        began_at = now if self.began_at is None else self.began_at
        first_token_at = now if self.first_token_at is None else self.first_token_at
        return Work(
            preprocess_s=self.preprocess_s,
            queue_s=began_at - self.came_at,
            vision_s=self.vision_s,
            prefill_s=max(0.0, first_token_at - began_at - self.vision_s),
            decode_s=now - first_token_at,
            gpu_seconds=self.gpu_seconds,
        )

    @property
    def is_overdue(self) -> bool:
        """Whether its time is over, or its share of the device's."""
        return self.deadline.has_passed or self.gpu_seconds >= self.max_gpu_seconds

    @property
    def is_over(self) -> bool:
        return self.is_cancelled or len(self.reasons) == self.num_answers

    @property
    def num_positions(self) -> int:
        """Tokens of the prompt and of one answer as long as it may become."""
        return len(self.prompt.ids) + self.max_tokens

    def ended(self, index: int, reason: FinishReason, stop: Stop | None = None) -> None:
        """One answer is complete; the last one closes the request."""
        self.reasons[index] = reason
        if stop is not None:
            self.stops[index] = stop
        if len(self.reasons) < self.num_answers:
            return
        self.emit(
            Done(
                reasons=tuple(self.reasons[index] for index in range(self.num_answers)),
                stops=tuple(self.stops.get(index) for index in range(self.num_answers)),
                usage=self.usage,
                media=tuple(self._seen(index, info) for index, info in enumerate(self.prompt.media)),
                work=self.work,
                first_token_s=None if self.first_token_at is None else self.first_token_at - self.came_at,
                first_token_at=self.first_token_at,
            )
        )

    def _seen(self, index: int, info: MediaInfo) -> MediaInfo:
        seconds = self.prompt.preprocess_s[index : index + 1]
        update = {"cached": self.cached_media.get(index), "preprocess_s": round(sum(seconds), 3)}
        return info.model_copy(update=update)

    def fail(self, error: WorkerError) -> None:
        """End all answers with an error; once."""
        if not self.is_over:
            self.is_cancelled = True
            self.emit(error)


@dataclass(eq=False)
class Sequence:
    """The tokens of one answer. Only the engine's thread changes it, but for `request.is_cancelled`.

    stop_ids: the request's own of the `ending` tokens. num_alternatives: how many likeliest tokens to name with each,
    None for no log-probabilities. skips_certain: tokens that the constraint leaves no choice about are taken without
    asking the model, and have the log-probability 0. guard: ends it where it repeats itself, once it has `min_tokens`.
    num_fresh: how many of its tokens the model has not seen. is_retried: whether it was taken back once.
    """

    request: Request
    index: int
    sampler: Sampler
    stream: TextStream
    ending: frozenset[int]
    tokenizer: Tokenizer
    stop_ids: frozenset[int] = frozenset()
    num_alternatives: int | None = None
    skips_certain: bool = False
    guard: LoopGuard | None = None
    min_tokens: int = 0
    tokens: list[int] = field(default_factory=list)
    num_fresh: int = 0
    is_finished: bool = False
    is_retried: bool = False
    _is_behind_thought: bool = False
    _withheld: str = ""  # of what may be the tail of a loop
    _logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        return self.is_finished or self.request.is_cancelled

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt.ids)

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and of the answer so far."""
        return self.num_prompt_tokens + len(self.tokens)

    @property
    def num_positions(self) -> int:
        """Tokens of the prompt and of the answer as long as it may become."""
        return self.request.num_positions

    @property
    def next_position(self) -> int:
        """M-RoPE position of the newest token, the same on all three axes."""
        return len(self.request.prompt.ids) + len(self.tokens) - 1 + self.request.prompt.delta

    def take(self, row: Row, at_most: int = 1) -> None:
        """Choose a token, and take those that follow from it whatever the model says, up to so many in all; emit their
        text, and the end where the last was among them. Log-probabilities are the model's: with them it is asked for
        each. Raises InternalError for NaN, GrammarTooComplex."""
        if not row.is_finite:
            raise InternalError(detail="the model gave no numbers")
        token = self.sampler.choose(row)
        if self.request.first_token_at is None:
            self.request.first_token_at = time.monotonic()
        if self.num_alternatives is not None:
            self._logprobs.append(self._logprob(row, token, self.num_alternatives))
            at_most = at_most if self.skips_certain else 1
        self.num_fresh = 0
        self._take(token)
        while not self.is_over and self.num_fresh < at_most:
            following = self.sampler.guide.following()
            if not following:
                break
            for token in following[: at_most - self.num_fresh]:
                if not self.is_over:
                    if self.num_alternatives is not None:
                        self._logprobs.append(TokenLogprob(alternative(self.tokenizer, token, 0.0), ()))
                    self._take(token, is_certain=True)

    def _take(self, token: int, *, is_certain: bool = False) -> None:
        """is_certain: the constraint has chosen it, so that no loop of the model's ends here."""
        guide = self.sampler.guide
        num_reasoning, was_thinking = guide.num_reasoning, guide.is_thinking
        self.sampler.accept(token)
        self.request.num_reasoning += guide.num_reasoning - num_reasoning
        self.tokens.append(token)
        self.num_fresh += 1
        self.request.num_generated += 1
        if token in self.ending:
            self._end("stop", token if token in self.stop_ids else None)
            return
        self.stream.finds_stops = self._is_answering(token, was_thinking=was_thinking)
        text = self.stream.push(token)
        guard = self.guard
        is_loop = guard is not None and guard.push(token, is_certain=is_certain)
        if guard is not None and is_loop and len(self.tokens) >= self.min_tokens:
            if not guide.end_thought():
                self._end_loop()
                return
            self._withheld = text = ""
            self._logprobs.clear()
            guard.clear()
        if guard is not None and guard.is_repeating:
            self._withheld += text
        else:
            self._emit(text)
        if self.stream.stopped_by is not None or guide.is_complete:
            self._end("stop")
        elif len(self.tokens) >= self.request.max_tokens:
            self._end("length")

    def _is_answering(self, token: int, *, was_thinking: bool) -> bool:
        """Whether stop strings count: not within a thought, nor in the blanks behind it."""
        if was_thinking or self.sampler.guide.is_thinking:
            self._is_behind_thought = True
        elif self._is_behind_thought and self.tokenizer.bytes_of(token).strip():
            self._is_behind_thought = False
        return not self._is_behind_thought

    def run_out_of_time(self) -> None:
        """End here: with what has been said, or with DeadlineExceeded where nothing has."""
        if self.tokens:
            self._end("time")
        else:
            is_late = self.request.deadline.has_passed
            self.request.fail(DeadlineExceeded(detail=None if is_late else "raise max_gpu_seconds or max_cost_usd"))

    def _logprob(self, row: Row, token: int, count: int) -> TokenLogprob:
        logprob, top = likeliest(row, token, count)
        tokenizer = self.tokenizer
        alternatives = tuple(alternative(tokenizer, other, value) for other, value in top)
        return TokenLogprob(alternative(tokenizer, token, logprob), alternatives)

    def _end(self, reason: FinishReason, stop: Stop | None = None) -> None:
        self._emit(self.stream.finish(), is_last=True)
        self.is_finished = True
        self.request.ended(self.index, reason, self.stream.stopped_by if stop is None else stop)

    def _end_loop(self) -> None:
        """Without the tail that is withheld."""
        self._withheld = ""
        self._logprobs.clear()
        self.is_finished = True
        self.request.ended(self.index, "repetition")

    def _emit(self, text: str, *, is_last: bool = False) -> None:
        """Log-probabilities of text that is held back wait for it."""
        text, self._withheld = self._withheld + text, ""
        if text or (is_last and self._logprobs):
            piece = Piece(
                text=text,
                index=self.index,
                logprobs=tuple(self._logprobs),
                opens_thought=self.request.prompt.opens_thought,
                media=self.request.prompt.media,
                usage=self.request.usage,
            )
            self.request.emit(piece)
            self._logprobs.clear()
