"""Token ids to text that can be sent: never half a character, never a part of a stop string."""

from collections.abc import Sequence

from worker.checkpoint.tokenizer import Tokenizer
from worker.core.contract import TokenAlternative
from worker.core.undecided import num_undecided


def alternative(tokenizer: Tokenizer, token: int, logprob: float) -> TokenAlternative:
    """A token in the contract's terms."""
    raw = tokenizer.bytes_of(token)
    return TokenAlternative(text=raw.decode(errors="replace"), bytes=raw, logprob=logprob)


class TextStream:
    """The text of one answer as its tokens come.

    `push` gives what is safe to send; text that may be the beginning of a stop string is held back until
    that is decided. After a stop string was found, `stopped_by` is that string and no more text comes. Where
    `finds_stops` is false, as within a thought, all text is sent. keeps_stop: the stop string itself is sent.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], *, keeps_stop: bool = False) -> None:
        self.stopped_by: str | None = None
        self.finds_stops = True
        self._stops = stops
        self._keeps_stop = keeps_stop
        self._stream = tokenizer.stream()
        self._held = ""

    def push(self, token: int) -> str:
        """Text that this token makes safe to send, often none."""
        text = self._stream.push(token)
        return self._release(text) if self.finds_stops else text

    def finish(self) -> str:
        """What is left at the end: bytes that never became a character turn into U+FFFD."""
        if self.stopped_by is not None:
            return ""
        text = self._release(self._stream.finish())
        held, self._held = self._held, ""
        return text + held

    def _release(self, fresh: str) -> str:
        text = self._held + fresh
        found = {stop: at for stop in self._stops if (at := text.find(stop)) >= 0}
        if found:
            self.stopped_by, self._held = min(found, key=lambda stop: found[stop]), ""
            end = found[self.stopped_by]
            return text[: end + len(self.stopped_by)] if self._keeps_stop else text[:end]
        kept = num_undecided(text, self._stops)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]
