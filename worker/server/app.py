"""The HTTP door: the routes of five services' clients, health, and what is here.

python -m worker.server.app --host 127.0.0.1 --port 8000 --model-path /models/… --device auto

Every request goes the same way as a job of the platform. FastAPI's types stay in this module and in `gate.py`.
"""

import argparse
import asyncio
import contextlib
import ipaddress
import json
import logging
import math
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from worker.core import logs
from worker.core import settings as worker_settings
from worker.core.errors import InputInvalid, InputNotObject, InternalError, RouteUnknown, WorkerError
from worker.core.settings import SettingError, Settings
from worker.dialects import JSON, bot_group, bot_private, chat_vl, openai_chat, openai_models, recognize
from worker.models.loading import facts
from worker.server.middleware import PLAYGROUND, Gate, retry_after
from worker.server.openapi import ROUTES, describe
from worker.service import Service
from worker.startup.boot import leave
from worker.startup.build import Door, Serving, start

log = logging.getLogger(__name__)
MAX_FIELDS = 16
MAX_FIELD_BYTES = 2 * 2**20
FORMATS = ["image", "video"]
_PAGE = Path(__file__).parent / "playground" / "index.html"
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; media-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_PLAIN_TYPE = re.compile(r"[\w.+-]{1,64}/[\w.+-]{1,64}", re.ASCII)
_UPLOADS = {chat_vl.ROUTE: "file", recognize.ROUTE: "image"}
_MEDIA_TYPES = {openai_chat.ROUTE: "text/event-stream", chat_vl.ROUTE: "text/plain; charset=utf-8"}


class Outputs:
    """An answer's outputs, made in a task of their own: it goes on while the client is slow, and ends when it goes."""

    def __init__(self, service: Service, route: str, body: dict[str, Any], request_id: str) -> None:
        self.failure: WorkerError | None = None
        self._queue: asyncio.Queue[JSON | None] = asyncio.Queue()
        self._task = asyncio.create_task(self._make(service, {"route": route, "body": body}, request_id))

    async def _make(self, service: Service, given: dict[str, Any], request_id: str) -> None:
        try:
            async for output in service.answer(given, request_id, fail=self._fail):
                self._queue.put_nowait(output)
        finally:
            self._queue.put_nowait(None)

    def _fail(self, error: WorkerError) -> None:
        self.failure = error

    async def next(self) -> JSON | None:
        return await self._queue.get()

    def stop(self) -> None:
        self._task.cancel()


class Streamed(Response):
    """Outputs as they come; a client that hangs up stops them, and so does one that does not read."""

    def __init__(self, first: str, outputs: Outputs, media_type: str, send_timeout_s: float) -> None:
        self.status_code = 200
        self.media_type = media_type
        self.background = None
        self._first, self._outputs, self._send_timeout_s = first, outputs, send_timeout_s
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self._send(send))
        try:
            await _until_gone(receive, sending)
        except TimeoutError:
            log.info("a client does not read its stream")
        finally:
            sending.cancel()
            self._outputs.stop()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        output: JSON | None = self._first
        while output is not None:
            if isinstance(output, str):
                async with asyncio.timeout(self._send_timeout_s):
                    await send({"type": "http.response.body", "body": output.encode(), "more_body": True})
            output = await self._outputs.next()
        await send({"type": "http.response.body", "body": b""})


async def _until_gone(receive: Receive, working: asyncio.Task[Any]) -> bool:
    """Wait for the work or for the client to hang up, whichever comes first; whether the work was done."""
    gone = asyncio.create_task(_hang_up(receive))
    try:
        done, _ = await asyncio.wait({gone, working}, return_when=asyncio.FIRST_COMPLETED)
        if working in done and not working.cancelled():
            working.result()
        return working in done
    finally:
        gone.cancel()


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def error_body(path: str, error: WorkerError) -> dict[str, Any]:
    """An error in the words of the service that the path belongs to."""
    if path.startswith("/v1/") and path != recognize.ROUTE:
        return {"error": openai_chat.as_openai(error)}
    if path in (bot_group.ROUTE, bot_private.ROUTE):
        return {"status": "error", "detail": error.message, "code": error.code}
    return {"detail": error.message, "code": error.code}


def _refusal(path: str, error: WorkerError) -> JSONResponse:
    status = 400 if path in _UPLOADS and error.status == 415 else error.status
    return JSONResponse(error_body(path, error), status, retry_after(error))


def create(settings: Settings, load: Callable[[], Serving]) -> FastAPI:
    """The application. `load` gives what serves; it is called on a thread of its own."""
    door = Door(load)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if not settings.lazy_load:
            door.open()
        yield
        await door.close()

    app = FastAPI(title="worker-qwen-vl", lifespan=lifespan)
    app.add_middleware(Gate, settings=settings, shape=error_body)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=[origin.strip() for origin in settings.cors_origins.split(",")],
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["x-request-id"],
    )
    app.add_exception_handler(WorkerError, _show_error)
    app.add_exception_handler(HTTPException, _show_http_error)
    app.add_exception_handler(Exception, _show_fault)

    async def answer(request: Request) -> Response:
        """Any dialect's request: the body, through the service, in the shape that this client knows."""
        route = request.url.path
        body = await (_form(request) if route in _UPLOADS else _json(request))
        content_type = body.pop("", None) if route in _UPLOADS else None
        serving = await door.serving()
        outputs = Outputs(serving.service, route, body, request.state.request_id)
        first = asyncio.create_task(outputs.next())
        if not await _until_gone(request.receive, first):
            first.cancel()
            outputs.stop()
            return Response(status_code=499)
        output = first.result()
        if outputs.failure is not None:
            outputs.stop()
            return _refusal(route, _expected(route, outputs.failure, content_type))
        if isinstance(output, str):
            return Streamed(output, outputs, _MEDIA_TYPES[route], settings.send_timeout_s)
        return JSONResponse({} if output is None else output)

    for route in ROUTES:
        app.add_api_route(route, answer, methods=["POST"], name=route)

    @app.get(openai_models.ROUTE)
    @app.get(openai_models.ROUTE + "/{name:path}")
    async def models(request: Request) -> Response:
        serving = await door.serving()
        given = {"openai_route": request.url.path}
        failures: list[WorkerError] = []
        [shown] = [one async for one in serving.service.answer(given, request.state.request_id, fail=failures.append)]
        return _refusal(request.url.path, failures[0]) if failures else JSONResponse(shown)

    @app.get("/health")
    async def health() -> Response:
        state = door.state
        shown: dict[str, Any] = {"status": "healthy" if state == "ready" else state, "supported_formats": FORMATS}
        shown |= {"model_loaded": state == "ready", "processor_loaded": state == "ready"}
        if state == "ready":
            shown |= facts((await door.serving()).model)
        return JSONResponse(shown, 503 if state == "dead" else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        text = (await door.serving()).service.metrics.text() if door.state == "ready" else b""
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/ping")
    async def ping() -> Response:
        return Response(status_code={"loading": 204, "ready": 200, "dead": 503}[door.state])

    if settings.playground:

        @app.get(PLAYGROUND, include_in_schema=False)
        async def playground() -> Response:
            return FileResponse(_PAGE, media_type="text/html; charset=utf-8", headers=_PAGE_HEADERS)

    @app.get("/")
    async def about() -> dict[str, Any]:
        routes = {path: f"POST {route.content}" for path, route in ROUTES.items()}
        return {"message": "worker-qwen-vl answers questions about pictures and videos", "routes": routes}

    app.openapi = lambda: _openapi(app, has_keys=bool(settings.keys))  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI, *, has_keys: bool) -> dict[str, Any]:
    if app.openapi_schema is None:
        app.openapi_schema = describe(FastAPI.openapi(app), has_keys=has_keys)
    return app.openapi_schema


async def _json(request: Request) -> dict[str, Any]:
    """Raises InputNotObject."""
    raw = await request.body()
    try:
        body = await asyncio.to_thread(json.loads, raw)
    except (ValueError, RecursionError):
        raise InputNotObject(detail="the body is not valid JSON") from None
    if not isinstance(body, dict):
        raise InputNotObject()
    return body


async def _form(request: Request) -> dict[str, Any]:
    """The form's fields, files as bytes; under the empty name what the file said to be. No temporary file is left when
    this returns. Raises InputInvalid."""
    fields: dict[str, Any] = {}
    try:
        async with request.form(max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES) as form:
            for name, value in form.multi_items():
                if name in fields or not name:
                    raise InputInvalid(where=request.url.path, detail="a field without a name, or twice")
                if isinstance(value, UploadFile):
                    fields[name] = await value.read()
                    fields[""] = value.content_type or ""
                else:
                    fields[name] = value
    except HTTPException:
        raise InputInvalid(where=request.url.path, detail="not a form that can be read") from None
    return fields


def _expected(route: str, error: WorkerError, content_type: str | None) -> WorkerError:
    """For a picture's question: what was expected, and what the client said that it sent."""
    if route != recognize.ROUTE or error.code != "MEDIA_UNSUPPORTED_TYPE" or content_type is None:
        return error
    said = content_type if _PLAIN_TYPE.fullmatch(content_type) else "something else"
    return type(error)(where=error.where, detail=f"an image was expected, {said} was received")


async def _show_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, WorkerError)
    return _refusal(request.url.path, error)


async def _show_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return _refusal(request.url.path, RouteUnknown())
    return JSONResponse({"detail": str(error.detail)}, error.status_code, error.headers)


async def _show_fault(request: Request, _: Exception) -> Response:
    return _refusal(request.url.path, InternalError())


def refuse_open_door(settings: Settings) -> None:
    """Without a key the door opens on this machine alone, unless AUTH=off says otherwise. Raises SettingError."""
    if settings.keys or settings.auth == "off":
        return
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(settings.host).is_loopback:
            return
    if settings.host != "localhost":
        raise SettingError(f"HOST is {settings.host}, and there is no API_KEY: set one, or AUTH=off to serve anybody")


def main() -> None:
    """Serve until told to stop. Ends with status 1 and one line when it cannot start."""
    parser = argparse.ArgumentParser(prog="python -m worker.server.app", description="The HTTP door.")
    for name in ("host", "port", "model-path", "device"):
        parser.add_argument(f"--{name}", help=f"goes before the environment's {name.upper().replace('-', '_')}")
    given = {name.upper(): value for name, value in vars(parser.parse_args()).items() if value is not None}
    try:
        settings = worker_settings.load_with_file(given)
        refuse_open_door(settings)
    except SettingError as error:
        sys.exit(f"worker-qwen-vl cannot start: {error}")
    logs.set_up(settings.log_level, as_json=False)
    worker_settings.stay_offline(settings)
    served: list[Serving] = []

    def load() -> Serving:
        served.append(start(settings))
        return served[-1]

    app = create(settings, load)
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=math.ceil(settings.drain_s),
    )
    if any(one.engine.is_dead for one in served):
        leave(1, at_once=any(one.engine.is_stuck for one in served))


if __name__ == "__main__":
    main()
