"""What a value must be, in plain words, by the kind of fault that pydantic finds."""

from collections.abc import Mapping
from typing import Any

from worker.core.units import plain

_MUST_BE = {
    "string_type": "a string",
    "string_unicode": "a string of valid Unicode",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
}


def expected(kind: str, context: Mapping[str, Any]) -> str | None:
    """What goes after "must be"; None where this kind of fault says nothing of the value. context: the fault's own."""
    if kind == "literal_error":
        choices = str(context["expected"])
        return f"one of {choices}" if " or " in choices else choices
    text = _MUST_BE.get(kind)
    return None if text is None else text.format(**{name: plain(value) for name, value in context.items()})
