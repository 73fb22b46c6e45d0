"""Every value that leaves the handler can be read by every JSON parser, and what comes in is read in bounds."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.core import safe_json
from worker.core.safe_json import MAX_DEPTH, MAX_VALUES, TooManyValuesError, has_more_values, read_json, safe


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("plain 文字 😀", "plain 文字 😀"),
        ("half \ud83d pair", "half \ufffd pair"),
        (float("nan"), None),
        ([1.5, float("inf"), -float("inf")], [1.5, None, None]),
        ({"a\ud800": ("x", True, None, 3)}, {"a\ufffd": ["x", True, None, 3]}),
    ],
)
def test_values_become_safe(value: object, expected: object) -> None:
    assert safe(value) == expected
    json.dumps(safe(value), allow_nan=False).encode("utf-8")


@pytest.mark.parametrize("value", [b"bytes", {1, 2}, object(), {"deep": [b"x"]}])
def test_what_is_not_json_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        safe(value)


def by_the_library(raw: bytes) -> object:
    try:
        return json.loads(raw.decode("utf-8-sig", "surrogatepass"))
    except (ValueError, RecursionError):
        return ValueError


def read(raw: bytes) -> object:
    try:
        return read_json(raw)
    except TooManyValuesError:
        return TooManyValuesError
    except (ValueError, RecursionError):
        return ValueError


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["\ud83d", "a,[{", '"', "\\"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.parametrize("large_bytes", [0, 2**20])
def test_bodies_are_read_as_the_standard_library_reads_them(large_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the parser for large bodies, too."""
    monkeypatch.setattr(safe_json, "LARGE_BYTES", large_bytes)

    @settings(max_examples=300, deadline=None, database=None)
    @given(VALUES, st.booleans(), st.sampled_from([None, 1]), st.binary(max_size=2), st.data())
    def compare(value: Any, ascii_only: bool, indent: int | None, noise: bytes, data: Any) -> None:
        raw = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
        at = data.draw(st.integers(0, len(raw)))
        for text in (raw, raw[:at], raw[:at] + noise + raw[at:]):
            assert repr(read(text)) == repr(by_the_library(text))

    compare()
    for odd in (
        b'{"a":1,"a":2}',
        b"[NaN,-Infinity,1e999,-0.0,0.1e-7]",
        b"\xef\xbb\xbf[1]",
        b'["\\ud83d","\\ud83d\\ude00"]',
    ):
        assert repr(read(odd)) == repr(by_the_library(odd))
    assert read(b"1" + b"0" * 400) == 10**400
    for other in ("utf-16", "utf-16-le", "utf-32-be"):  # in which a value is not where it seems
        assert read(("[1," + "\u2c5b" * MAX_VALUES + "]").encode(other)) in (ValueError, TooManyValuesError)
        assert read("[1]".encode(other)) is ValueError


def test_values_are_counted_before_they_are_made() -> None:
    most = MAX_VALUES - 1
    assert read(b"[" + b"1," * (most - 1) + b"1]") != TooManyValuesError
    for inner in (b"1,", b"[],", b"{},", b'"",'):
        assert read(b"[" + inner * (most + 2) + b"1]") is TooManyValuesError
    assert read(b"{" + b",".join(b'"k%d":1' % number for number in range(most + 2)) + b"}") is TooManyValuesError
    assert (
        read(b'["",' + b'""' * 3 * MAX_VALUES + b",1" * MAX_VALUES) is TooManyValuesError
    )  # at the latest by its words


def test_what_stands_in_words_is_no_value() -> None:
    for word in ("[{," * MAX_VALUES, '\\"[,' * MAX_VALUES, "\\" * 2 * MAX_VALUES + "," * MAX_VALUES):
        assert read(json.dumps({"prompt": word, "x": [1, {}]}).encode()) == {"prompt": word, "x": [1, {}]}
    unended = b'["' + b'\\"[,' * 900_000
    assert read(unended) is ValueError


def test_depth_has_a_bound() -> None:
    def nested(depth: int) -> bytes:
        return b'{"a":[' * (depth // 2) + b"1" + b"]}" * (depth // 2)

    assert read(nested(MAX_DEPTH)) != TooManyValuesError
    assert read(nested(MAX_DEPTH + 2)) is TooManyValuesError
    assert read(b"[" * 10_000) is TooManyValuesError
    assert read(b"[]," * 100) is ValueError


def test_more_values_than() -> None:
    assert not has_more_values({"a": [1, 2], "b": {"c": 3}}, 5)
    assert has_more_values({"a": [1, 2], "b": {"c": 3}}, 4)
    assert not has_more_values("words", 0)
