"""JSON as models write it, and a call of a tool in it, `{"name": …, "arguments": {…}}`: where it ends, and what it
says."""

import json
import math
import re
from typing import Any, NoReturn

_NO_OBJECT = re.compile(r'\{\s*[^\s"}]')
_MARKS = re.compile(r'\\.|["{}\[\]]', re.DOTALL)
MAX_DEPTH = 64  # lists and objects within each other, as in a request
# What a JSON text may raise that is none, or none of ours.
_REFUSED = (ValueError, TypeError, RecursionError)


class JsonEnd:
    """Finds the end of the JSON object that a growing text begins with, looking at each character once."""

    def __init__(self) -> None:
        self._at = 0
        self._depth = 0
        self._is_in_string = False

    def find(self, text: str) -> int | None:
        """The place behind the object, None while it goes on. `text`: what it was before, and more. Raises ValueError
        where no object begins so."""
        if _NO_OBJECT.match(text):
            raise ValueError
        end = len(text) - text.endswith("\\")  # what is escaped comes with the next part
        for mark in _MARKS.finditer(text, self._at, end):
            self._at = mark.end()
            sign = mark.group()
            if sign == '"':
                self._is_in_string = not self._is_in_string
            elif self._is_in_string or sign[0] == "\\":
                continue
            elif sign in "{[":
                self._depth += 1
            else:
                self._depth -= 1
                if self._depth <= 0:
                    return mark.end()
        if end > self._at:
            self._at = end - (text[end - 1] == "\\")  # one that nothing follows yet
        return None


def json_call(text: str) -> tuple[str, dict[str, Any]] | None:
    """The name and the arguments of a call, None where the text is none. Newlines within strings are taken, since
    models write them; arguments may be missing, be an object in a string, or be named `parameters`."""
    value = loaded(text, is_strict=False)
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = given = value.get("arguments", value.get("parameters"))
    if isinstance(given, str):
        arguments = loaded(given, is_strict=False) if given.strip() else {}
    if given is None:
        arguments = {}
    return (value["name"], arguments) if isinstance(arguments, dict) else None


def as_json(arguments: dict[str, Any]) -> str | None:
    """Arguments as strict JSON, None where a number is beyond it."""
    try:
        return json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    except _REFUSED:
        return None


def loaded(text: str, *, is_strict: bool) -> Any:
    """What JSON says, None where it is none, is deeper than MAX_DEPTH, or has a number that JSON cannot give back.
    is_strict: no line breaks within strings."""
    try:
        value = json.loads(text, strict=is_strict, parse_constant=_refuse, parse_float=_finite)
    except _REFUSED:
        return None
    is_deep = text.count("[") + text.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH
    return None if is_deep else value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _finite(number: str) -> float:
    """Raises ValueError for `1e999`."""
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(number)
    return value


def _depth(value: Any) -> int:
    """Of lists and objects within each other; it goes down no further than MAX_DEPTH + 1."""
    layer, depth = [value], 0
    while depth <= MAX_DEPTH:
        layer = [each for each in layer if isinstance(each, list | dict)]
        if not layer:
            break
        depth += 1
        layer = [inner for each in layer for inner in (each.values() if isinstance(each, dict) else each)]
    return depth
