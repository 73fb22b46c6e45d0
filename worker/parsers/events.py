"""An engine's events with what the model wrote told apart: the same for every engine and every dialect."""

from collections.abc import Iterator

from worker.core.contract import ChatRequest, Done, Event, FinishReason, Piece, TokenLogprob, Usage
from worker.parsers.answer import AnswerParser, Told


class EventParser:
    """The events of one request. Text that is held back takes its log-probabilities along."""

    def __init__(self, request: ChatRequest) -> None:
        self._tools = request.tools
        self._is_raw = request.is_raw
        self._parsers: dict[int, AnswerParser] = {}
        self._logprobs: dict[int, tuple[TokenLogprob, ...]] = {}

    def feed(self, event: Event) -> Iterator[Event]:
        """What of it can be sent, in order."""
        if self._is_raw:
            yield event  # no chat template, so no thinking and no calls
            return
        if isinstance(event, Done):
            yield from self._ended(event)
            return
        parser = self._parsers.get(event.index)
        if parser is None:
            parser = self._parsers[event.index] = AnswerParser(
                self._tools.usable, is_parallel=self._tools.is_parallel, opens_thought=event.opens_thought
            )
        told = parser.push(event.text)
        if event.text and event.index not in self._logprobs and told == Told(text=event.text):
            yield event  # words alone, as most are
        else:
            yield from self._pieces(event.index, told, event.logprobs, event.usage)

    def _ended(self, done: Done) -> Iterator[Event]:
        reasons: list[FinishReason] = []
        for index, reason in enumerate(done.reasons):
            parser = self._parsers.get(index)
            if parser is not None:
                yield from self._pieces(index, parser.finish(is_cut=reason != "stop"), (), is_last=True)
            has_called = parser is not None and parser.has_calls
            reasons.append("tool_calls" if has_called and reason in ("stop", "repetition") else reason)
        yield done.model_copy(update={"reasons": tuple(reasons)})

    def _pieces(
        self,
        index: int,
        told: Told,
        logprobs: tuple[TokenLogprob, ...],
        usage: Usage | None = None,
        *,
        is_last: bool = False,
    ) -> Iterator[Event]:
        waiting = self._logprobs.pop(index, ()) + logprobs
        if told.text or told.reasoning or told.calls or (is_last and waiting):
            yield Piece(
                text=told.text,
                index=index,
                logprobs=waiting,
                reasoning=told.reasoning,
                tool_calls=tuple(told.calls),
                usage=usage,
            )
        elif waiting:
            self._logprobs[index] = waiting
