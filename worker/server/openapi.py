"""What the HTTP server's routes take and give, in the words of OpenAPI: derived from the dialects."""

from typing import Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from worker.core.error_table import request_errors, statuses_of
from worker.core.safe_json import JsonObject
from worker.dialects.base import JSON_TYPE, Dialect, Fault
from worker.dialects.table import DialectTable

KEYS: JsonObject = {
    "X-API-Key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "Bearer": {"type": "http", "scheme": "bearer"},
}
_STATUSES = sorted({status for error in request_errors() for status in statuses_of(error)})
# By path: what comes back by status, with its media type.
_PLAIN: dict[str, dict[int, tuple[str, JsonObject] | None]] = {
    "/": {200: (JSON_TYPE, {"type": "object"})},
    "/ping": {200: None, 204: None, 503: None},
    "/metrics": {200: ("text/plain", {"type": "string"})},
}


class Health(BaseModel):
    """How the worker is; what it serves is there when it serves."""

    status: Literal["healthy", "loading", "dead"]
    supported_formats: list[str]
    model_loaded: bool
    processor_loaded: bool
    model: str | None = None
    device: str | None = None
    torch_version: str | None = None
    cuda_available: bool | None = None
    gpu_memory: str | None = None


def describe(schema: JsonObject, dialects: DialectTable, *, has_keys: bool) -> JsonObject:
    """FastAPI's own schema, with what FastAPI cannot know of these routes. Changes and returns it."""
    routed = [dialect for dialect in dialects if dialect.route is not None]
    parts = schema.setdefault("components", {})
    parts.setdefault("schemas", {}).update(_schemas(routed))
    paths = schema["paths"]
    for dialect in routed:
        _describe_dialect(paths, dialect)
    _set_responses(paths["/health"]["get"], Health, Health, [503])
    for path, replies in _PLAIN.items():
        paths[path]["get"]["responses"] = {
            str(status): {"description": _text(status), **({"content": {kind[0]: {"schema": kind[1]}}} if kind else {})}
            for status, kind in replies.items()
        }
    if has_keys:
        parts["securitySchemes"] = KEYS
        schema["security"] = [{name: []} for name in KEYS]
        for path in ("/", "/ping"):
            paths[path]["get"]["security"] = []
        for path in ("/metrics", "/health"):
            paths[path]["get"]["responses"]["401"] = _response(Fault, 401)
    return schema


def _schemas(dialects: list[Dialect]) -> JsonObject:
    """All models that the routes name, and those inside them."""
    models: list[type[BaseModel]] = [Health, Fault]
    for dialect in dialects:
        named = (dialect.body, dialect.reply_model, dialect.tail_reply_model, dialect.fault)
        models += [model for model in named if model is not None]
    _, found = models_json_schema(
        [(model, "validation") for model in dict.fromkeys(models)], ref_template="#/components/schemas/{model}"
    )
    schemas: JsonObject = found["$defs"]
    return schemas


def _describe_dialect(paths: JsonObject, dialect: Dialect) -> None:
    assert dialect.route is not None
    assert dialect.reply_model is not None, f"{dialect.name} has a route and no reply model"
    method = dialect.method.lower()
    if dialect.body is not None:
        paths[dialect.route][method] = _operation(dialect, dialect.body)
    _set_responses(paths[dialect.route][method], dialect.reply_model, dialect.fault, _STATUSES)
    if dialect.stream_type is not None:
        stream = dialect.stream_type.partition(";")[0]
        paths[dialect.route][method]["responses"]["200"]["content"][stream] = {"schema": {"type": "string"}}
    if dialect.tail_reply_model is not None:
        operation = paths[f"{dialect.route}/{{name}}"][method]
        _set_responses(operation, dialect.tail_reply_model, dialect.fault, _STATUSES)


def _operation(dialect: Dialect, body: type[BaseModel]) -> JsonObject:
    content: JsonObject = {"schema": _ref(body)}
    if dialect.example is not None:
        content["example"] = dialect.example
    return {
        "summary": dialect.about,
        "requestBody": {"required": True, "content": {dialect.content_type: content}},
    }


def _set_responses(operation: JsonObject, reply: type[BaseModel], fault: type[BaseModel], statuses: list[int]) -> None:
    operation["responses"] = {"200": _response(reply, 200)} | {
        str(status): _response(fault, status) for status in statuses
    }


def _response(model: type[BaseModel], status: int) -> JsonObject:
    return {"description": _text(status), "content": {JSON_TYPE: {"schema": _ref(model)}}}


def _text(status: int) -> str:
    texts = sorted(error.text for error in request_errors() if status in statuses_of(error))
    return "An answer" if status < 300 else ", ".join(texts)


def _ref(model: type[BaseModel]) -> JsonObject:
    return {"$ref": f"#/components/schemas/{model.__name__}"}
