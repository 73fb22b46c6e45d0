"""The HTTP server's application: a route for each dialect that has one, health, metrics, the playground.

Every request goes the same way as a job of the platform. FastAPI's and Starlette's types stay in this package.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from worker.core.errors import InternalError, WorkerError
from worker.core.http_errors import HttpMalformed, MethodNotAllowed
from worker.core.safe_json import JsonObject
from worker.core.settings import Settings
from worker.dialects.base import Dialect
from worker.dialects.table import DIALECTS, DialectTable, envelope_at
from worker.metrics import ServerMetrics
from worker.server.bodies import read_body
from worker.server.browsers import FORM_TYPES, JSON_TYPES, BrowserRules, cors_origins
from worker.server.keys import Keys
from worker.server.middleware import PING, PLAYGROUND, Admission, RequestMiddleware, headers_of
from worker.server.openapi import describe
from worker.server.slots import Slots
from worker.server.streaming import Outputs, Streamed, until_gone
from worker.startup.build import ModelHandle, OnFailure, Serving

Endpoint = Callable[[Request], Awaitable[Response]]
FORMATS = ["image", "video"]
CLIENT_LEFT = 499
_PAGE = Path(__file__).parent / "playground" / "index.html"
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; media-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def admission_of(settings: Settings, num_connections: int) -> Admission:
    """Which requests come in, by the settings. Raises SettingError."""
    keys = Keys(settings)
    rules = BrowserRules(settings, has_keys=keys.are_required)
    return Admission(
        keys, rules, Slots(settings, num_connections, num_callers=lambda: keys.num_callers), ServerMetrics()
    )


def create(
    settings: Settings,
    load: Callable[[], Serving],
    admission: Admission,
    dialects: DialectTable = DIALECTS,
    on_failure: OnFailure = lambda _: None,
) -> FastAPI:
    """The application. `load` gives what serves; it is called on a thread of its own. `on_failure`: hears why it
    could not."""
    handle = ModelHandle(load, on_failure)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if not settings.lazy_load:
            handle.open()
        yield
        await handle.close()

    app = FastAPI(title="worker-qwen-vl", lifespan=lifespan)
    _add_middleware(app, settings, admission, dialects)
    _add_errors(app, dialects, admission.metrics)
    for dialect in dialects:
        if dialect.route is not None:
            endpoint = _endpoint(dialect, handle, admission.rules)
            for path in (dialect.route, *([f"{dialect.route}/{{name:path}}"] if dialect.has_tail else [])):
                app.add_api_route(path, endpoint, methods=[dialect.method], name=path)
    _add_health(app, handle, admission.metrics)
    _add_pages(app, settings, dialects)
    app.openapi = lambda: _openapi(app, dialects, has_keys=admission.keys.are_required)  # type: ignore[method-assign]
    return app


def _add_middleware(app: FastAPI, settings: Settings, admission: Admission, dialects: DialectTable) -> None:
    app.add_middleware(RequestMiddleware, admission=admission, settings=settings, dialects=dialects)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=cors_origins(settings, has_keys=admission.keys.are_required),
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "retry-after", "x-should-retry"],
    )


def _endpoint(dialect: Dialect, handle: ModelHandle, rules: BrowserRules) -> Endpoint:
    async def answer(request: Request) -> Response:
        """A dialect's request: the body, through the service, in the shape that this client knows."""
        if dialect.method == "POST":
            rules.check_type(request.headers, JSON_TYPES if dialect.upload is None else FORM_TYPES)
        try:
            body = await read_body(request, dialect)
        except ClientDisconnect:
            return Response(status_code=CLIENT_LEFT)
        serving = await handle.serving()
        job_input = envelope_at(dialect, request.url.path, body.fields)
        state = request.state
        outputs = Outputs(serving.service, job_input, state.request_id, state.caller, state.slot.spend)
        first = asyncio.create_task(outputs.next())
        if not await until_gone(request.receive, first):
            first.cancel()
            outputs.stop()
            return Response(status_code=CLIENT_LEFT)
        output = first.result()
        if outputs.failure is not None:
            outputs.stop()
            state.code = outputs.failure.code
            return _refusal(dialect, outputs.failure, body.declared_type)
        if isinstance(output, str) and dialect.stream_type is not None:
            return Streamed(output, outputs, dialect.stream_type)
        return JSONResponse({} if output is None else output)

    return answer


def _refusal(dialect: Dialect, error: WorkerError, declared_type: str | None) -> JSONResponse:
    shown = dialect.http_error(error, declared_type)
    return JSONResponse(shown.body, shown.status, headers_of(error))


def _add_errors(app: FastAPI, dialects: DialectTable, server_metrics: ServerMetrics) -> None:
    def refusal(request: Request, error: WorkerError) -> Response:
        server_metrics.refused(error.code)
        request.state.code = error.code
        shown = dialects.error_at(request.url.path, error)
        return JSONResponse(shown.body, shown.status, headers_of(error))

    async def show_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, WorkerError)
        return refusal(request, error)

    async def show_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 404:
            return refusal(request, dialects.no_route(request.url.path))
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "")
            response = refusal(request, MethodNotAllowed(detail=f"it accepts {allowed}"))
            response.headers["allow"] = allowed
            return response
        return refusal(request, HttpMalformed() if error.status_code < 500 else InternalError())

    async def show_fault(request: Request, _: Exception) -> Response:
        return refusal(request, InternalError())

    app.add_exception_handler(WorkerError, show_error)
    app.add_exception_handler(HTTPException, show_http_error)
    app.add_exception_handler(Exception, show_fault)


def _add_health(app: FastAPI, handle: ModelHandle, server_metrics: ServerMetrics) -> None:
    @app.get("/health")
    async def health() -> Response:
        state = handle.state
        shown: JsonObject = {"status": "healthy" if state == "ready" else state, "supported_formats": FORMATS}
        shown |= {"model_loaded": state == "ready", "processor_loaded": state == "ready"}
        if state == "ready":
            info = asdict((await handle.serving()).engine.info)
            shown |= {name: info[name] for name in ("model", "device", "torch_version", "cuda_available", "gpu_memory")}
        return JSONResponse(shown, 503 if state == "dead" else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        text = (await handle.serving()).service.metrics.text() if handle.state == "ready" else b""
        return Response(server_metrics.text() + text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get(PING)
    async def ping() -> Response:
        return Response(status_code={"loading": 204, "ready": 200, "dead": 503}[handle.state])


def _add_pages(app: FastAPI, settings: Settings, dialects: DialectTable) -> None:
    if settings.playground:
        page = _PAGE.read_bytes()

        @app.get(PLAYGROUND, include_in_schema=False)
        async def playground() -> Response:
            return Response(page, media_type="text/html; charset=utf-8", headers=_PAGE_HEADERS)

    @app.get("/")
    async def about() -> JsonObject:
        routes = {
            dialect.route: f"POST {dialect.content_type}" if dialect.method == "POST" else dialect.method
            for dialect in dialects
            if dialect.route is not None
        }
        others = ["/health", PING, "/metrics", "/docs", "/openapi.json", *([PLAYGROUND] if settings.playground else [])]
        routes |= dict.fromkeys(others, "GET")
        return {"message": "worker-qwen-vl answers questions about images and videos", "routes": routes}


def _openapi(app: FastAPI, dialects: DialectTable, *, has_keys: bool) -> JsonObject:
    if app.openapi_schema is None:
        app.openapi_schema = describe(FastAPI.openapi(app), dialects, has_keys=has_keys)
    return app.openapi_schema
