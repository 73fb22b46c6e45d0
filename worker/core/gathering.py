"""A stream of events gathered to a whole answer."""

from collections import defaultdict

from worker.core.contract import Answer, Choice, Done, FinishReason, Meta, Piece, Start, Stop, StreamEvent
from worker.core.errors import InternalError
from worker.core.outcome import Outcome


class Gathered:
    """The events of one answer so far."""

    def __init__(self) -> None:
        self._pieces: dict[int, list[Piece]] = defaultdict(list)
        self._done: Done | None = None

    def feed(self, event: StreamEvent) -> None:
        match event:
            case Piece():
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
            _choice(self._pieces[index], reason, self._done.stop_of(index), self._done.outcome_of(index))
            for index, reason in enumerate(self._done.reasons)
        )
        return Answer(
            meta=meta,
            choices=choices,
            usage=self._done.usage,
            media=self._done.media,
            cold_start=self._done.cold_start,
            timing=self._done.timing,
            cost=self._done.cost,
        )


def _choice(pieces: list[Piece], reason: FinishReason, stop: Stop | None, outcome: Outcome | None) -> Choice:
    return Choice(
        text="".join(piece.text for piece in pieces),
        reason=reason,
        logprobs=tuple(token for piece in pieces for token in piece.logprobs),
        reasoning="".join(piece.reasoning for piece in pieces),
        tool_calls=tuple(call for piece in pieces for call in piece.tool_calls),
        stop=stop,
        pieces=tuple(pieces),
        outcome=outcome,
    )
