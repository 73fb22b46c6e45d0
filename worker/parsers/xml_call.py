"""A call of a tool as Qwen3.5 writes it: `<function=name>` with `<parameter=key>` in it, the values as plain text whose
types are those of the tool's schema."""

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from worker.core.json_schema import referred
from worker.parsers.json_call import as_json, loaded

FUNCTION = "<function="
FUNCTION_END = "</function>"
MAX_LITERAL_CHARS = 100_000
OVERLAP = 256  # characters that are looked at again: a tag may have come in two parts
_NAME = r"[^>\n]+"
_HEAD = re.compile(rf"<function=({_NAME})>")
_PARAMETER = re.compile(rf"\s*<parameter=({_NAME})>(?:\r?\n)?")
_CALL_END = r"</function>\s*(?:</tool_call>|<tool_call>|<function=)"
_END = re.compile(r"\s*</function>")
_LAST_END = re.compile(r"\s*(?:</function>|(?=</tool_call>|\Z))")
_BEGINNINGS = ("<parameter=", FUNCTION_END, "</tool_call>")


class BrokenCallError(ValueError):
    """What began like a call is none."""


@dataclass
class XmlCall:
    """The call that a growing text begins with. names: of the parameters that its tool has, empty where any may stand:
    other tags within a value are a part of it."""

    names: Sequence[str] = ()
    values: dict[str, str] = field(default_factory=dict)
    _value_end: re.Pattern[str] = field(init=False)
    _at: int = 0  # behind what is understood
    _searched: int = 0

    def __post_init__(self) -> None:
        self._value_end = _value_end(self.names, is_last=False)

    def find(self, text: str, *, is_last: bool) -> int | None:
        """The place behind the call, its values being known then; None while it is not whole. is_last: no more text
        comes, and what is missing at its end is not waited for. Raises BrokenCallError."""
        if not self._at:
            head = _HEAD.match(text)
            if head is None:
                raise BrokenCallError
            self._at = head.end()
        call_end, value_end = _END, self._value_end
        if is_last:
            call_end, value_end = _LAST_END, _value_end(self.names, is_last=True)
        while (end := call_end.match(text, self._at)) is None:
            parameter = _PARAMETER.match(text, self._at)
            if parameter is None:
                rest = text[self._at : self._at + OVERLAP].lstrip()
                if not is_last and any(word.startswith(rest[: len(word)]) for word in _BEGINNINGS):
                    return None
                raise BrokenCallError
            found = value_end.search(text, parameter.end() if is_last else max(parameter.end(), self._searched))
            if found is None:
                self._searched = max(parameter.end(), len(text) - OVERLAP)
                return None
            self.values[parameter.group(1)] = text[parameter.end() : found.start()]
            self._at, self._searched = found.end(), 0
        return end.end()


def _value_end(names: Sequence[str], *, is_last: bool) -> re.Pattern[str]:
    """The end of a value: its tag before another one of the call's, or one of these without its tag."""
    next_one = rf"<parameter=(?:{'|'.join(map(re.escape, names)) or _NAME})>"
    closed = [next_one, _CALL_END, *((FUNCTION_END, "</tool_call>", r"\Z") if is_last else ())]
    open_ends = [_CALL_END, *([next_one] if names else ()), *([FUNCTION_END] if is_last else ())]
    return re.compile(rf"(?:\r?\n)?</parameter>(?=\s*(?:{'|'.join(closed)}))|(?:\r?\n)(?={'|'.join(open_ends)})")


def head_of(text: str) -> str | None:
    """The name of the function that a text begins with, once it is there."""
    head = _HEAD.match(text)
    return None if head is None else head.group(1)


def typed(values: dict[str, str], parameters: dict[str, Any]) -> dict[str, Any]:
    """The values by the types of the tool's schema. One that does not fit stays a string."""
    properties = parameters.get("properties")
    known = properties if isinstance(properties, dict) else {}
    return {name: _typed(value, known.get(name), parameters) for name, value in values.items()}


def _typed(value: str, schema: Any, root: dict[str, Any]) -> Any:
    """What is not a string is tried first: `null` for a string or null is null."""
    types = set(_types(schema, root, set()))
    for kind in ("null", "boolean", "integer", "number", "array", "object"):
        if kind in types:
            found = _as(kind, value.strip())
            if found is not _NO_VALUE and as_json({"": found}) is not None:
                return found
    return value


def _types(schema: Any, root: dict[str, Any], seen: set[str]) -> Iterator[str]:
    """The types that a schema names, through local references and alternatives; each reference once."""
    if not isinstance(schema, dict):
        return
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference not in seen:
        seen.add(reference)
        yield from _types(referred(root, reference), root, seen)
    named = schema.get("type")
    yield from (kind for kind in (named if isinstance(named, list) else [named]) if isinstance(kind, str))
    for word in ("anyOf", "oneOf", "allOf"):
        for part in _list(schema.get(word)):
            yield from _types(part, root, seen)
    if named is None:
        for constant in [*_list(schema.get("enum")), *([schema["const"]] if "const" in schema else [])]:
            yield _TYPE_OF.get(type(constant), "object")


_TYPE_OF = {type(None): "null", bool: "boolean", int: "integer", float: "number", str: "string", list: "array"}
_NO_VALUE = object()


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _as(kind: str, value: str) -> Any:
    """The value as one type, `_NO_VALUE` where it is none of it. Python's spelling is taken beside JSON's: the template
    shows it to the model."""
    if kind == "null":
        return None if value in ("null", "None") else _NO_VALUE
    if kind == "boolean":
        return {"true": True, "false": False}.get(value.lower(), _NO_VALUE)
    found = _literal(value)
    if kind == "integer" and isinstance(found, float) and found.is_integer():
        return int(found)
    wanted = {"integer": int, "number": (int, float), "array": list, "object": dict}[kind]
    is_fitting = isinstance(found, wanted) and not isinstance(found, bool)  # type: ignore[arg-type]
    return found if is_fitting else _NO_VALUE


def _literal(value: str) -> Any:
    found = loaded(value, is_strict=True)
    if found is not None:
        return found
    if len(value) > MAX_LITERAL_CHARS or value[:1] not in ("{", "["):
        return _NO_VALUE
    try:
        return ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return _NO_VALUE
