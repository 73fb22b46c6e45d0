"""A stream of events gathered to a whole answer."""

from collections import defaultdict

from worker.core.contract import Answer, Choice, Done, Meta, Piece, Start, StreamEvent, TokenLogprob
from worker.core.errors import InternalError
from worker.core.tools import ToolCall


class Gathered:
    """The events of one answer so far."""

    def __init__(self) -> None:
        self._texts: dict[int, list[str]] = defaultdict(list)
        self._reasoning: dict[int, list[str]] = defaultdict(list)
        self._calls: dict[int, list[ToolCall]] = defaultdict(list)
        self._logprobs: dict[int, list[TokenLogprob]] = defaultdict(list)
        self._pieces: dict[int, list[Piece]] = defaultdict(list)
        self._done: Done | None = None

    def feed(self, event: StreamEvent) -> None:
        match event:
            case Piece():
                self._texts[event.index].append(event.text)
                self._reasoning[event.index].append(event.reasoning)
                self._calls[event.index] += event.tool_calls
                self._logprobs[event.index] += event.logprobs
                self._pieces[event.index].append(event)
            case Done():
                self._done = event
            case Start():
                pass

    def answer(self, meta: Meta) -> Answer:
        """All of it. Raises InternalError where the events ended without a Done."""
        if self._done is None:
            raise InternalError(detail="the answer has no end")
        choices = tuple(
            Choice(
                text="".join(self._texts[index]),
                reason=reason,
                logprobs=tuple(self._logprobs[index]),
                reasoning="".join(self._reasoning[index]),
                tool_calls=tuple(self._calls[index]),
                stop=dict(enumerate(self._done.stops)).get(index),
                pieces=tuple(self._pieces[index]),
            )
            for index, reason in enumerate(self._done.reasons)
        )
        return Answer(
            meta=meta,
            choices=choices,
            usage=self._done.usage,
            media=self._done.media,
            cold_start=self._done.cold_start,
            timing=self._done.timing,
        )
