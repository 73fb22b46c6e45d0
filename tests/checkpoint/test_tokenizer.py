"""A vocabulary that is read at once reads and writes every text as the library's tokenizer does."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as HfTokenizer
from tokenizers.decoders import DecodeStream

from benchmarks.models import real_tokenizer
from builder.vocabulary import difference, lay_out, why_not, written
from worker.checkpoint.tokenizer import VOCABULARY, Tokenizer, VocabularyTokenizer, read_tokenizer
from worker.core.errors import ModelError
from worker.core.settings import EMBEDDED_MODEL

TINY = EMBEDDED_MODEL / "tokenizer.json"
TEXTS = [
    "", " ", "  \n\n\t ", "What is in the picture?", "I'm sure they'll say: 'we've 1234567 of 3,5'.",
    "a" * 20_000, "ab" * 9_999 + "!",
    "左上有一个红色圆形。", "Où est l'élève ? Ça va, naïveté", "e\u0301 vs é", "\u212b \ufb01 ﷺ",
    "👩‍👩‍👧 😀😀", "\u200b\u200d\ufeff",
    "<|im_start|>user\nhi<|im_end|>", "<|im_end|><|im_end|>", "<|im_end", "<think>no</think>", "<think>\u0338",
    "<<|im_end|>>",
    "<|im_start|><tool_call>{}</tool_call>", "def f(x):\r\n\treturn x**2  # ok\r\n",
    "สวัสดี नमस्ते مرحبا", "\x00\x01\x7f", "​ ‌ \u3000",
    "Ġ is a letter, and Ċ", "ÃĥÂ©", "\U0010ffff \ue000 \ufffd",
]  # fmt: skip


@pytest.fixture(scope="module", params=["the tiny model's", "151,643 byte pairs"])
def body(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = TINY
    if request.param != "the tiny model's":
        file = tmp_path_factory.mktemp("real") / "tokenizer.json"
        real_tokenizer(file)
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def library(body: dict[str, Any]) -> HfTokenizer:
    """It reads control tokens as letters, as we do: they are the prompt builder's to write."""
    library = HfTokenizer.from_str(json.dumps(body))
    library.encode_special_tokens = True
    return library


@pytest.fixture(scope="module")
def ours(body: dict[str, Any]) -> VocabularyTokenizer:
    return VocabularyTokenizer(written(body))


def wild(seed: int) -> str:
    """Letters of all scripts, spaces, digits, control tokens and pieces of them."""
    draw = random.Random(seed)
    ranges = [(32, 127), (160, 0xD7FF), (0x10000, 0x1F700)]
    pieces = [
        lambda: chr(draw.randrange(*draw.choice(ranges))),
        lambda: draw.choice(["<|im_end|>", "<|image_pad|>", "<think>", "</think>", "<|", "|>", "<tool_call>"]),
        lambda: draw.choice([" ", "  ", "\n", "\r\n", "\t", "\u0301", "'s", "'LL", "12", "ing", "tion", " the"]),
        lambda: "".join(draw.choices("aeinrst ", k=draw.randrange(1, 30))),
    ]
    return "".join(draw.choice(pieces)() for _ in range(draw.randrange(1, 60)))


@pytest.mark.parametrize("text", [*TEXTS, *map(wild, range(150))], ids=range(len(TEXTS) + 150))
def test_a_text_is_read_and_written_as_the_library_does(
    ours: VocabularyTokenizer, library: HfTokenizer, text: str
) -> None:
    expected = library.encode(text, add_special_tokens=False).ids
    assert ours.encode(text) == expected
    assert ours.decode(expected) == library.decode(expected)
    assert ours.decode(expected, with_special=True) == library.decode(expected, skip_special_tokens=False)


@pytest.mark.parametrize("seed", range(40))
def test_any_tokens_stream_as_the_library_streams_them(
    ours: VocabularyTokenizer, library: HfTokenizer, seed: int
) -> None:
    draw = random.Random(seed)
    highest = library.get_vocab_size() + 300  # a model has room for more than there are
    ids = [draw.randrange(256) if draw.random() < 0.5 else draw.randrange(highest) for _ in range(60)]
    pieces, stream = [], ours.stream()
    decoder, theirs = DecodeStream(skip_special_tokens=True), []
    for token in ids:
        pieces.append(stream.push(token))
        theirs.append(decoder.step(library, token) or "")
    text = library.decode(ids, skip_special_tokens=True)
    assert "".join(pieces) + stream.finish() == text
    assert text.startswith("".join(theirs))
    assert ours.decode(ids) == text


def test_single_tokens_are_those_of_the_library(ours: VocabularyTokenizer, library: HfTokenizer) -> None:
    theirs = Tokenizer(library)
    assert ours.added == theirs.added
    for token in [*range(0, library.get_vocab_size(), 97), *ours.added, library.get_vocab_size() + 5]:
        assert ours.letters_of(token) == theirs.letters_of(token)
        assert ours.bytes_of(token) == theirs.bytes_of(token)
        if letters := theirs.letters_of(token):
            assert ours.id_of(letters) == theirs.id_of(letters)
    assert ours.id_of("no such token") is None


def _other(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(TINY.read_text(encoding="utf-8"))
    change(body)
    return body


OTHER_KINDS: dict[str, Callable[[dict[str, Any]], object]] = {
    "is not BPE": lambda body: body["model"].update(type="WordPiece"),
    "merges have options": lambda body: body["model"].update(byte_fallback=True),
    "words are not byte-level": lambda body: body.update(pre_tokenizer={"type": "Metaspace"}),
    "decoder is not byte-level": lambda body: body.update(decoder={"type": "Fuse"}),
    "added tokens have conditions": lambda body: body["added_tokens"][0].update(lstrip=True),
    "truncates": lambda body: body.update(truncation={"max_length": 5}),
    "ids have gaps": lambda body: body["model"]["vocab"].update({"zzzz": 90_000}),
    "order of its merges": lambda body: body["model"]["merges"].reverse(),
}


@pytest.mark.parametrize("why", OTHER_KINDS)
def test_a_tokenizer_of_another_kind_stays_as_it_is(why: str, tmp_path: Path) -> None:
    body = _other(OTHER_KINDS[why])
    assert why in str(why_not(body))
    (tmp_path / "tokenizer.json").write_text(json.dumps(body), encoding="utf-8")
    assert why in str(lay_out(tmp_path))
    assert not (tmp_path / VOCABULARY).exists()


def test_a_vocabulary_that_reads_otherwise_is_found() -> None:
    body = _other(lambda _: None)
    library = HfTokenizer.from_str(json.dumps(body))
    library.encode_special_tokens = True
    assert difference(VocabularyTokenizer(written(body)), library) is None
    data = bytearray(written(body))
    data[-40:] = bytes(40)  # the last tokens come of no merge
    assert "the library reads" in str(difference(VocabularyTokenizer(bytes(data)), library))


def test_a_token_that_no_merge_makes_is_no_word() -> None:
    """Qwen3.5 has some."""
    body: dict[str, Any] = json.loads(TINY.read_text(encoding="utf-8"))
    merge = body["model"]["merges"].pop()
    word = merge.replace(" ", "") if isinstance(merge, str) else "".join(merge)
    assert why_not(body) is None
    library = HfTokenizer.from_str(json.dumps(body))
    library.encode_special_tokens = True
    ours = VocabularyTokenizer(written(body))
    text = ours.decode([body["model"]["vocab"][word]])
    assert len(library.encode(text, add_special_tokens=False).ids) > 1
    assert difference(ours, library) is None


def test_a_checkpoint_with_its_vocabulary_laid_out_is_read_from_it(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(TINY.read_bytes())
    assert type(read_tokenizer(tmp_path)) is Tokenizer
    assert lay_out(tmp_path) is None
    assert type(read_tokenizer(tmp_path)) is VocabularyTokenizer
    (tmp_path / VOCABULARY).write_bytes(b"{}\n")
    with pytest.raises(ModelError, match=r"baked\.vocabulary cannot be read"):
        read_tokenizer(tmp_path)
    (tmp_path / VOCABULARY).unlink()
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        read_tokenizer(tmp_path)
