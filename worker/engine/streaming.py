"""Token ids to text that can be sent: never half a character, never a part of a stop string."""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from worker.contract import Likely


def _byte_of_letter() -> dict[str, int]:
    """The letters that stand for bytes in a byte-level vocabulary, as GPT-2 laid them out."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + index): byte for index, byte in enumerate(others)}


class Vocabulary:
    """Single tokens as text and bytes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._added = {token: one.content for token, one in tokenizer.get_added_tokens_decoder().items()}
        self._bytes = _byte_of_letter()

    def likely(self, token: int, logprob: float) -> Likely:
        """The token in the contract's terms."""
        letters = self._added.get(token) or self._tokenizer.id_to_token(token) or ""
        if token in self._added:
            raw = letters.encode()
        else:
            raw = bytes(self._bytes[letter] for letter in letters if letter in self._bytes)
        return Likely(text=raw.decode(errors="replace"), bytes=raw, logprob=logprob)


class TextStream:
    """The text of one answer as its tokens come.

    `push` gives what is safe to send; text that may be the beginning of a stop string is held back until
    that is decided. After a stop string was found, `is_stopped` is true and no more text comes.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self.is_stopped = False
        self._tokenizer = tokenizer
        self._stops = stops
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._num_decoded_chars = 0
        self._held = ""

    def push(self, token: int) -> str:
        """Text that this token makes safe to send, often none."""
        self._ids.append(token)
        fresh = self._decoder.step(self._tokenizer, token) or ""
        self._num_decoded_chars += len(fresh)
        return self._release(fresh)

    def finish(self) -> str:
        """What is left at the end: bytes that never became a character turn into U+FFFD."""
        if self.is_stopped:
            return ""
        rest = self._tokenizer.decode(self._ids, skip_special_tokens=True)[self._num_decoded_chars :]
        text = self._release(rest)
        held, self._held = self._held, ""
        return text + held

    def _release(self, fresh: str) -> str:
        text = self._held + fresh
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.is_stopped, self._held = True, ""
            return text[: min(found)]
        kept = self._num_undecided(text)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def _num_undecided(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = min(len(text), max((len(stop) for stop in self._stops), default=1) - 1)
        for length in range(longest, 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
