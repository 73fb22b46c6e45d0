"""Bodies of HTTP requests: a JSON object, or a form with at most one file in it."""

import json
from dataclasses import dataclass

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from worker.core.errors import InputInvalid, InputNotObject
from worker.core.safe_json import JsonObject
from worker.core.threads import on_thread
from worker.dialects.base import Dialect

MAX_FIELDS = 16
MAX_FIELD_BYTES = 2 * 2**20


@dataclass(frozen=True)
class HttpBody:
    """A dialect's body. declared_type: what an uploaded file was said to be; None where there is none."""

    fields: JsonObject
    declared_type: str | None = None


async def read_body(request: Request, dialect: Dialect) -> HttpBody:
    """Raises InputError."""
    if dialect.method == "GET":
        return HttpBody({})
    return HttpBody(await _json(request)) if dialect.upload is None else await _form(request)


async def _json(request: Request) -> JsonObject:
    """Raises InputNotObject."""
    raw = await request.body()
    try:
        body = await on_thread(None, json.loads, raw)
    except (ValueError, RecursionError):
        raise InputNotObject(detail="the body is not valid JSON") from None
    if not isinstance(body, dict):
        raise InputNotObject()
    return body


async def _form(request: Request) -> HttpBody:
    """The form's fields, files as bytes. No temporary file is left when this returns. Raises InputInvalid."""
    fields: JsonObject = {}
    declared_type = None
    try:
        async with request.form(max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES) as form:
            for name, value in form.multi_items():
                if name in fields or not name:
                    raise InputInvalid(where=request.url.path, detail="a field without a name, or twice")
                if isinstance(value, UploadFile):
                    fields[name] = await value.read()
                    declared_type = value.content_type or ""
                else:
                    fields[name] = value
    except HTTPException:
        raise InputInvalid(where=request.url.path, detail="not a form that can be read") from None
    return HttpBody(fields, declared_type)
