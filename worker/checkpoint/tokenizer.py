"""Text to token ids and back: by the library, or from a vocabulary that `builder.vocabulary` has laid out to be read at
once.

The library makes its tables anew at every start, a quarter of a second for 150,000 tokens. What it is asked for here is
little: its rules split text into words, and a word is looked up, or merged where it is none of the vocabulary.
"""

import codecs
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer as HfTokenizer
from tokenizers.decoders import DecodeStream

from worker.checkpoint.tokenizer_files import library_tokenizer
from worker.core.errors import ModelError

VOCABULARY = "baked.vocabulary"  # what `builder.vocabulary` writes
KEPT_WORDS = 65_536
LONGEST_KEPT = 64  # letters


def byte_of_letter() -> dict[str, int]:
    """The letters that stand for bytes in a byte-level vocabulary, as GPT-2 laid them out."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTE_OF_LETTER = byte_of_letter()


@dataclass(frozen=True)
class AddedToken:
    """A token that is found in text before any other, as `<|im_end|>`."""

    content: str
    is_special: bool


class Stream(Protocol):
    """The text of tokens as they come."""

    def push(self, token: int) -> str:
        """Whole characters that this token completes, often none."""
        ...

    def finish(self) -> str:
        """What is left: bytes that never became a character are U+FFFD."""
        ...


class Tokenizer:
    """A checkpoint's tokenizer, by the library. added: by id. Safe to use from many threads.

    library: `encode` needs one with `encode_special_tokens`, which `read_tokenizer` makes.
    """

    def __init__(self, library: HfTokenizer) -> None:
        self._library = library
        found = library.get_added_tokens_decoder()
        self.added = {
            token: AddedToken(added_token.content, added_token.special) for token, added_token in found.items()
        }

    @property
    def specials(self) -> tuple[str, ...]:
        """The control tokens, which `encode` never gives: it reads them as their letters."""
        return tuple(token.content for token in self.added.values() if token.is_special)

    def encode(self, text: str) -> list[int]:
        """Added tokens that are not special are found in the text; special ones are read as their letters."""
        # As a batch it lets go of the interpreter's lock: a long text would hold up everybody for a third of a second.
        [encoding] = self._library.encode_batch_fast([text], add_special_tokens=False)
        ids: list[int] = encoding.ids
        return ids

    def decode(self, ids: Sequence[int], *, with_special: bool = False) -> str:
        text: str = self._library.decode(list(ids), skip_special_tokens=not with_special)
        return text

    def stream(self) -> Stream:
        """Without special tokens."""
        return _LibraryStream(self._library)

    def id_of(self, token: str) -> int | None:
        identity: int | None = self._library.token_to_id(token)
        return identity

    def letters_of(self, token: int) -> str:
        """As the vocabulary writes it; empty for a number that is none of its tokens."""
        return self._library.id_to_token(token) or ""

    def bytes_of(self, token: int) -> bytes:
        """What it stands for in a text."""
        if token in self.added:
            return self.added[token].content.encode()
        return bytes(_BYTE_OF_LETTER[letter] for letter in self.letters_of(token) if letter in _BYTE_OF_LETTER)


class _LibraryStream:
    def __init__(self, library: HfTokenizer) -> None:
        self._library = library
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._num_chars = 0

    def push(self, token: int) -> str:
        self._ids.append(token)
        fresh = self._decoder.step(self._library, token) or ""
        self._num_chars += len(fresh)
        return fresh

    def finish(self) -> str:
        text: str = self._library.decode(self._ids, skip_special_tokens=True)
        return text[self._num_chars :]


class VocabularyTokenizer(Tokenizer):
    """The same from a byte-level vocabulary whose ids are in the order of its merges.

    data: a line of JSON, `{"rules": …, "added": [[id, content, is_special, is_normalised], …], "count": n}`; n lines,
    each a token's letters, in the order of their ids; n bytes, how many of its letters were one token before the merge
    that made it.
    """

    def __init__(self, data: bytes) -> None:
        head, _, rest = data.partition(b"\n")
        header = json.loads(head)
        count = header["count"]
        self._letters = rest[: -count - 1].decode().split("\n")
        self._cuts = rest[-count:]
        self._ids = dict(zip(self._letters, range(count), strict=True))
        rules = HfTokenizer.from_str(json.dumps(header["rules"]))
        self._normalizer, self._pre_tokenizer = rules.normalizer, rules.pre_tokenizer
        self.added = {token: AddedToken(content, special) for token, content, special, _ in header["added"]}
        self._added_ids = {added_token.content: token for token, added_token in self.added.items()}
        found = [(content, is_normalised) for _, content, special, is_normalised in header["added"] if not special]
        self._in_text = _finder([content for content, is_normalised in found if not is_normalised])
        self._in_normalised = _finder([content for content, is_normalised in found if is_normalised])
        self._merged_again = lru_cache(KEPT_WORDS)(self._merged)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for index, piece in enumerate(self._in_text.split(text)):
            if index % 2:
                ids.append(self._added_ids[piece])
                continue
            for place, part in enumerate(self._in_normalised.split(self._normalised(piece))):
                ids += [self._added_ids[part]] if place % 2 else self._words(part)
        return ids

    def _normalised(self, text: str) -> str:
        normalised: str = self._normalizer.normalize_str(text) if self._normalizer is not None and text else text
        return normalised

    def _words(self, text: str) -> list[int]:
        ids: list[int] = []
        known = self._ids.get
        for word, _ in self._pre_tokenizer.pre_tokenize_str(text):
            token = known(word)
            if token is not None and (len(word) == 1 or self._cuts[token]):  # a merge makes it
                ids.append(token)
            else:
                ids += self._merged_again(word) if len(word) <= LONGEST_KEPT else self._merged(word)
        return ids

    def _merged(self, word: str) -> list[int]:
        """The pair with the lowest id is joined, the leftmost of equal ones, until no pair is a token."""
        parts: list[str] = list(word)
        before = list(range(-1, len(parts) - 1))
        after = [*range(1, len(parts)), -1]
        waiting = [(token, at) for at in range(len(parts) - 1) if (token := self._pair(parts[at], parts[at + 1])) >= 0]
        heapify(waiting)
        while waiting:
            token, at = heappop(waiting)
            right = after[at]
            if right < 0 or not parts[at] or self._pair(parts[at], parts[right]) != token:
                continue  # one of the two is part of something else by now
            parts[at] += parts[right]
            parts[right] = ""
            after[at] = follower = after[right]
            if follower >= 0:
                before[follower] = at
            for first, second in ((before[at], at), (at, follower)):
                if first >= 0 and second >= 0 and (joined := self._pair(parts[first], parts[second])) >= 0:
                    heappush(waiting, (joined, first))
        return [self._ids[part] for part in parts if part]

    def _pair(self, left: str, right: str) -> int:
        """The token that these two are merged to, -1 for none."""
        token = self._ids.get(left + right, -1)
        return token if token >= 0 and self._cuts[token] == len(left) else -1

    def decode(self, ids: Sequence[int], *, with_special: bool = False) -> str:
        return b"".join(self.shown(token, with_special=with_special) for token in ids).decode(errors="replace")

    def shown(self, token: int, *, with_special: bool = False) -> bytes:
        """What it adds to a text, as the library's decoder has it."""
        added = self.added.get(token)
        if added is not None and added.is_special and not with_special:
            return b""
        letters = self.letters_of(token)
        try:
            return bytes(_BYTE_OF_LETTER[letter] for letter in letters)
        except KeyError:  # only added tokens have others
            return letters.encode()

    def stream(self) -> Stream:
        return _VocabularyStream(self)

    def id_of(self, token: str) -> int | None:
        added = self._added_ids.get(token)
        return self._ids.get(token) if added is None else added

    def letters_of(self, token: int) -> str:
        added = self.added.get(token)
        if added is not None:
            return added.content
        return self._letters[token] if 0 <= token < len(self._letters) else ""


def _finder(contents: Sequence[str]) -> re.Pattern[str]:
    """Splits a text at the longest of these; every other part is one of them."""
    longest_first = sorted(contents, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")


class _VocabularyStream:
    def __init__(self, tokens: VocabularyTokenizer) -> None:
        self._tokens = tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(self._tokens.shown(token))

    def finish(self) -> str:
        return self._decoder.decode(b"", True)


def read_tokenizer(folder: Path) -> Tokenizer:
    """A checkpoint's tokens, the quickest way. Raises ModelError."""
    laid_out = folder / VOCABULARY
    try:
        if laid_out.is_file():
            return VocabularyTokenizer(laid_out.read_bytes())
        library = library_tokenizer(folder)
        library.encode_special_tokens = True
        return Tokenizer(library)
    except ModelError:
        raise
    except Exception as error:  # the library has no class of its own for what is wrong
        file = laid_out if laid_out.is_file() else folder / "tokenizer.json"
        raise ModelError(f"{file} cannot be read: {error}") from None
