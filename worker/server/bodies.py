"""Bodies of HTTP requests: a JSON object, or a form with at most one file in it. All in memory: no file is written."""

import re
from collections.abc import AsyncGenerator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from worker.core.errors import InputInvalid, InputNotObject
from worker.core.http_errors import BodyTooLarge
from worker.core.safe_json import JsonObject, TooManyValuesError, read_json
from worker.core.threads import on_thread
from worker.dialects.base import Dialect

MAX_FIELDS = 16
MAX_FIELD_BYTES = 2 * 2**20
MAX_ENCODED_BYTES = 4 * MAX_FIELD_BYTES  # of a form without files, whose bytes may be three each
SMALL_BYTES = 64 * 1024  # read where it comes; larger ones on a thread, a few at a time: they take memory meanwhile
NUM_THREADS = 2
MULTIPART = b"multipart/form-data"
_BOUNDARY = re.compile(rb"[A-Za-z0-9'()+_,./:=? -]{1,200}")
_pool = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="bodies")


@dataclass(frozen=True)
class HttpBody:
    """A dialect's body. declared_type: what an uploaded file was said to be; None where there is none."""

    fields: JsonObject
    declared_type: str | None = None


async def read_body(request: Request, dialect: Dialect) -> HttpBody:
    """Raises InputError, and Starlette's ClientDisconnect where the client leaves before the body is whole."""
    if dialect.method == "GET":
        return HttpBody({})
    parts = [part async for part in request.stream()]
    num_bytes = sum(map(len, parts))
    read = _json if dialect.upload is None else _form
    arguments = (parts, request.headers, request.url.path)
    return read(*arguments) if num_bytes <= SMALL_BYTES else await on_thread(_pool, read, *arguments)


def _json(parts: list[bytes], *_: object) -> HttpBody:
    """Raises InputNotObject, BodyTooLarge."""
    raw = b"".join(parts)
    parts.clear()
    try:
        body = read_json(raw)
    except TooManyValuesError as error:
        raise BodyTooLarge(detail=str(error)) from None
    except (ValueError, RecursionError):
        raise InputNotObject(where="body", detail="it is not valid JSON") from None
    if not isinstance(body, dict):
        raise InputNotObject(where="body")
    return HttpBody(body)


class _InMemory(MultiPartParser):
    spool_max_size = 0  # never to a file


def _form(parts: list[bytes], headers: Headers, where: str) -> HttpBody:
    """The form's fields, files as bytes. Raises InputInvalid."""
    kind, options = parse_options_header(headers.get("content-type"))
    try:
        items = _uploaded(parts, options.get(b"boundary", b"")) if kind == MULTIPART else _encoded(b"".join(parts))
    except (MultiPartException, ValueError):
        raise InputInvalid(where=where, detail="is not a valid multipart form") from None
    fields: JsonObject = {}
    declared_type = None
    for name, value in items:
        if name in fields or not name:
            raise InputInvalid(where=where, detail="has a field without a name, or the same field twice")
        if isinstance(value, UploadFile):
            fields[name] = value.file.read()
            value.file.close()
            declared_type = value.content_type or ""
        else:
            fields[name] = value
    return HttpBody(fields, declared_type)


def _encoded(raw: bytes) -> list[tuple[str, str]]:
    """Raises ValueError."""
    if len(raw) > MAX_ENCODED_BYTES:
        raise ValueError("too long")
    return parse_qsl(raw.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_FIELDS)


def _uploaded(parts: list[bytes], boundary: bytes) -> list[tuple[str, UploadFile | str]]:
    """Text is UTF-8, whatever else the form says of itself. Raises MultiPartException, ValueError."""
    if not _BOUNDARY.fullmatch(boundary):
        raise ValueError("no boundary")
    headers = Headers({"content-type": f'multipart/form-data; boundary="{boundary.decode()}"'})
    parser = _InMemory(headers, _stream(parts), max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES)
    return _result(parser.parse()).multi_items()


async def _stream(parts: list[bytes]) -> AsyncGenerator[bytes, None]:
    """The parts, each given up as soon as it is read."""
    for index, part in enumerate(parts):
        parts[index] = b""
        yield part
    yield b""  # the end


def _result(parsing: Coroutine[Any, Any, FormData]) -> FormData:
    """What a coroutine that waits for nothing returns."""
    try:
        parsing.send(None)
    except StopIteration as done:
        form: FormData = done.value
        return form
    raise RuntimeError("a form in memory was waited for")
