"""JSON as types, in bounds on its way in, and on its way out as every JSON reader takes it: no lone surrogates, no NaN,
nothing but JSON's own types."""

import json
import math
import re
from typing import Any

from pydantic_core import from_json

JsonObject = dict[str, Any]
Json = JsonObject | list[Any] | str | int | float | bool | None

MAX_VALUES = 20_000  # numbers, strings, arrays and objects of a body; large requests have a few thousand
MAX_DEPTH = 64
MAX_ESCAPES = 4_000_000  # backslashes: a picture that PHP wrote has one for every 64 bytes
LARGE_BYTES = 1024 * 1024
FEW_VALUES = 1000

_TOKENS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[\[\]{},]', re.DOTALL)
_SURROGATES = re.compile("[\ud800-\udfff]")


class TooManyValuesError(ValueError):
    """Number or depth of a body's values is out of bounds. Its text has our own numbers alone."""


def read_json(raw: bytes) -> Json:
    """What the text says, as `json.loads` reads UTF-8. Raises TooManyValuesError, before anything is read, for more
    than MAX_VALUES values and for more than MAX_DEPTH levels; ValueError for what is no JSON in UTF-8.

    Reading makes an object for each value and lets no other thread run meanwhile: five million empty arrays in 15 MB
    take a second. So values are counted first.
    """
    if b"\\" in raw and raw.count(b"\\") > MAX_ESCAPES:
        raise TooManyValuesError(f"at most {MAX_ESCAPES} escaped characters")
    num_inner = _num_of(b"[", raw) + _num_of(b"{", raw)
    num_values = num_inner + _num_of(b",", raw)  # at least those that begin inside of another or behind a comma
    if num_values > MAX_VALUES or num_inner > MAX_DEPTH:
        _check(raw)
    return _parsed(raw, has_few=num_values < FEW_VALUES)


def is_unicode(text: str) -> bool:
    """Whether the text has no half of a character."""
    return _SURROGATES.search(text) is None


def _num_of(sought: bytes, raw: bytes) -> int:
    """How often it is there, or more than MAX_VALUES. Where it is rare, `find` is several times as fast as `count`."""
    number, at = 0, raw.find(sought)
    while at >= 0 and number <= MAX_VALUES:
        number, at = number + 1, raw.find(sought, at + 1)
    return number


def _check(raw: bytes) -> None:
    """The same count without what stands in strings, and the depth. Raises TooManyValuesError."""
    num_values = num_strings = depth = 0
    for token in _TOKENS.finditer(raw):
        match raw[token.start()]:
            case 0x22:  # a quotation mark
                num_strings += 1
            case 0x5B | 0x7B:  # [ {
                num_values, depth = num_values + 1, depth + 1
            case 0x5D | 0x7D:  # ] }
                depth -= 1
            case _:
                num_values += 1
        if depth > MAX_DEPTH:
            raise TooManyValuesError(f"at most {MAX_DEPTH} levels")
        if num_values > MAX_VALUES or num_strings > 2 * MAX_VALUES:  # there are two to a comma: a name and a value
            raise TooManyValuesError(f"at most {MAX_VALUES} values")


def _parsed(raw: bytes, *, has_few: bool) -> Json:
    """A large body is most of all a few long strings, which pydantic's parser reads ten times as fast as the standard
    library's. Long numbers take it longer, and what it does not take, as half of a surrogate pair, the other may."""
    if len(raw) > LARGE_BYTES and has_few:
        try:
            value: Json = from_json(raw, allow_inf_nan=True)
            return value
        except ValueError:
            pass
    return json.loads(raw.decode("utf-8-sig", "surrogatepass"))  # type: ignore[no-any-return]


def has_more_values(value: object, number: int) -> bool:
    """Whether lists and objects in it hold more values than that, all in all; it looks at no more than that."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict | list):
            number -= len(each)
            if number < 0:
                return True
            waiting.extend(each.values() if isinstance(each, dict) else each)
    return False


def safe(value: object) -> Json:
    """The value with surrogates as U+FFFD and non-finite numbers as null. Raises TypeError for what is not JSON."""
    match value:
        case None | bool() | int():
            return value
        case str():
            return _SURROGATES.sub("\ufffd", value)
        case float():
            return value if math.isfinite(value) else None
        case list() | tuple():
            return [safe(item) for item in value]
        case dict():
            return {_SURROGATES.sub("\ufffd", str(key)): safe(item) for key, item in value.items()}
        case _:
            raise TypeError(f"{type(value).__name__} is not JSON")
