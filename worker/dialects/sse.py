"""Server-sent events; the platform and the HTTP server write strings through as they are."""

import json

from worker.core.safe_json import JsonObject


def data_event(value: JsonObject) -> str:
    """An event without a name."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def named_event(kind: str, value: JsonObject) -> str:
    """An event with its name."""
    return f"event: {kind}\n{data_event(value)}"
