"""Text as it streams: whole characters, stop strings held back, nothing lost."""

import itertools
from collections.abc import Sequence

import pytest

from worker.checkpoint.tokenizer import Tokenizer, read_tokenizer
from worker.core.settings import EMBEDDED_MODEL
from worker.engine.detokenizer import TextStream


@pytest.fixture(scope="module")
def tokens() -> Tokenizer:
    return read_tokenizer(EMBEDDED_MODEL)


def stream(tokens: Tokenizer, text: str, stops: Sequence[str] = ()) -> tuple[list[str], bool]:
    """The pieces sent for this text, fed byte by byte so that characters are split among tokens."""
    byte_ids = [tokens.id_of(_BYTES[byte]) for byte in text.encode()]
    streaming = TextStream(tokens, stops)
    pieces = []
    for token in byte_ids:
        pieces.append(streaming.push(token))
        if streaming.stopped_by is not None:
            return pieces, True
    pieces.append(streaming.finish())
    return pieces, streaming.stopped_by is not None


def _byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins for bytes, as byte-level BPE vocabularies have them."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = itertools.count(256)
    return [chr(byte) if byte in plain else chr(next(spare)) for byte in range(256)]


_BYTES = _byte_alphabet()


@pytest.mark.parametrize("text", ["plain", "左上有一个红色圆形。", "smile 😀😀 👩‍👩‍👧", "mixed é文a\n\t😀"])
def test_pieces_are_whole_characters_and_join_to_the_text(tokens: Tokenizer, text: str) -> None:
    pieces, is_stopped = stream(tokens, text)
    assert "".join(pieces) == text
    assert not is_stopped
    assert all("\ufffd" not in piece for piece in pieces)


def test_bytes_that_never_become_a_character_come_at_the_end(tokens: Tokenizer) -> None:
    streaming = TextStream(tokens, ())
    assert streaming.push(tokens.id_of(_BYTES[0xE5])) == ""
    assert streaming.finish() == "\ufffd"


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one STOP two", ["STOP"], "one "),
        ("one STO two", ["STOP"], "one STO two"),
        ("aaab", ["aab"], "a"),
        ("first second", ["second", "first"], ""),
        ("一二三", ["二"], "一"),
        ("ends with ST", ["STOP"], "ends with ST"),
        ("abcd", ["cde", "bcd"], "a"),
    ],
)
def test_a_stop_string_is_cut_off_and_never_sent_in_part(
    tokens: Tokenizer, text: str, stops: list[str], expected: str
) -> None:
    pieces, is_stopped = stream(tokens, text, stops)
    assert "".join(pieces) == expected
    assert is_stopped == (expected != text)


def test_text_flows_while_a_stop_is_possible(tokens: Tokenizer) -> None:
    pieces, _ = stream(tokens, "hello", ["xyz"])
    assert pieces[:5] == list("hello")
