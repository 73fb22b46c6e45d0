"""A stream of events gathered to a whole answer."""

from collections import defaultdict

from worker.core.contract import Answer, Choice, Done, Meta, Piece, Start, StreamEvent, TokenLogprob
from worker.core.errors import InternalError


class Gathered:
    """The events of one answer so far."""

    def __init__(self) -> None:
        self._texts: dict[int, list[str]] = defaultdict(list)
        self._logprobs: dict[int, list[TokenLogprob]] = defaultdict(list)
        self._done: Done | None = None

    def feed(self, event: StreamEvent) -> None:
        match event:
            case Piece():
                self._texts[event.index].append(event.text)
                self._logprobs[event.index] += event.logprobs
            case Done():
                self._done = event
            case Start():
                pass

    def answer(self, meta: Meta) -> Answer:
        """All of it. Raises InternalError where the events ended without a Done."""
        if self._done is None:
            raise InternalError(detail="the answer has no end")
        choices = tuple(
            Choice(text="".join(self._texts[index]), reason=reason, logprobs=tuple(self._logprobs[index]))
            for index, reason in enumerate(self._done.reasons)
        )
        return Answer(
            meta=meta,
            choices=choices,
            usage=self._done.usage,
            media=self._done.media,
            cold_start=self._done.cold_start,
        )
