"""What an answer carries beside its text, read from the text as it comes: objects, the result of a task, confidence."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from worker.core.contract import ChatRequest, Done, Event, MediaInfo, Piece, TokenLogprob
from worker.core.outcome import Outcome
from worker.parsers.confidence import confidence_of
from worker.parsers.objects import ObjectParser
from worker.parsers.results import NotInFormError, result_of

NOT_IN_FORM = "RESULT_NOT_IN_FORM"


class OutcomeParser:
    """Of one request. Its pieces say objects as soon as they are whole, its `Done` the outcomes of all answers."""

    def __init__(self, request: ChatRequest) -> None:
        outputs = request.outputs
        self._task = outputs.task
        self._reads_objects = outputs.reads_objects
        self._wants_confidence = request.sampling.wants_confidence
        self._keeps_logprobs = request.sampling.logprobs is not None
        self._is_idle = not (self._reads_objects or self._task or self._wants_confidence)
        self._objects: dict[int, ObjectParser] = {}
        self._texts: dict[int, list[str]] = defaultdict(list)
        self._tokens: dict[int, list[TokenLogprob]] = defaultdict(list)

    def feed(self, event: Event, media: Sequence[MediaInfo]) -> Iterator[Event]:
        """The event, and what it makes certain. media: as the model saw it."""
        if self._is_idle:
            yield event
        elif isinstance(event, Piece):
            yield from self._piece(event, media)
        else:
            yield from self._ended(event)

    def _piece(self, piece: Piece, media: Sequence[MediaInfo]) -> Iterator[Event]:
        self._texts[piece.index].append(piece.text)
        if self._wants_confidence:
            self._tokens[piece.index] += piece.logprobs
            if not self._keeps_logprobs:
                piece = piece.model_copy(update={"logprobs": ()})
        if piece.text or piece.reasoning or piece.tool_calls or piece.logprobs:
            yield piece
        if self._reads_objects and piece.text:
            if piece.index not in self._objects:
                self._objects[piece.index] = ObjectParser(media)
            if found := self._objects[piece.index].push(piece.text):
                yield Piece(text="", index=piece.index, objects=tuple(found), usage=piece.usage)

    def _ended(self, done: Done) -> Iterator[Event]:
        outcomes = []
        for index in range(len(done.reasons)):
            parser = self._objects.setdefault(index, ObjectParser(done.media))
            if self._reads_objects and (found := parser.finish()):
                yield Piece(text="", index=index, objects=tuple(found), usage=done.usage)
            outcomes.append(self._outcome(index, parser, done))
        yield done.model_copy(update={"outcomes": tuple(outcomes)})

    def _outcome(self, index: int, parser: ObjectParser, done: Done) -> Outcome:
        text = "".join(self._texts[index])
        result, problem = None, None
        if self._task is not None:
            try:
                result = result_of(self._task.name, text, parser.objects, done.media)
            except NotInFormError:
                problem = NOT_IN_FORM
        return Outcome(
            objects=tuple(parser.objects) if self._reads_objects else None,
            num_broken=parser.num_broken,
            is_whole=parser.is_whole and done.reasons[index] in ("stop", "tool_calls"),
            result=result,
            result_problem=problem,
            confidence=confidence_of(text, self._tokens[index]) if self._wants_confidence else None,
        )
