"""JSON as types, and values that every JSON reader takes: no lone surrogates, no NaN, nothing but JSON's own types."""

import math
import re
from typing import Any

JsonObject = dict[str, Any]
Json = JsonObject | list[Any] | str | int | float | bool | None

_SURROGATES = re.compile("[\ud800-\udfff]")


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
