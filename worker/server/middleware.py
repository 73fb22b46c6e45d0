"""What every HTTP request passes on its way in: its id, the browser's rules, the key, a slot, the size and pace of its
body; and one line in the log on its way out."""

import asyncio
import json
import logging
import re
import time
import uuid
from dataclasses import dataclass
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker.core.errors import QueueFull, WorkerError
from worker.core.http_errors import BodyTimeout, BodyTooLarge, HttpRefusal, KeyInvalid
from worker.core.settings import Settings
from worker.core.units import of_bytes
from worker.dialects.base import HttpError
from worker.dialects.table import DialectTable, plain_path
from worker.metrics import ServerMetrics
from worker.server.browsers import BrowserRules
from worker.server.keys import Keys
from worker.server.slots import Slot, Slots

log = logging.getLogger(__name__)
RETRY_AFTER_S = 5
ID_HEADERS = ("x-request-id", "request-id")  # OpenAI's name and Anthropic's
PASSING = (429, 502, 503, 504)
PING, PLAYGROUND = "/ping", "/playground"
OPEN_PATHS = frozenset({"/", PING, PLAYGROUND})  # answered without a key
UNCOUNTED_PATHS = OPEN_PATHS | {"/health", "/metrics"}
BODY_RATE = 16 * 1024  # bytes a second that any client can send: time beyond them is the settings'
_PLAIN_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


@dataclass(frozen=True)
class Admission:
    """What decides which requests come in; all requests of a server share it."""

    keys: Keys
    rules: BrowserRules
    slots: Slots
    metrics: ServerMetrics


class RequestMiddleware:
    """Middleware around the routes."""

    def __init__(self, app: ASGIApp, admission: Admission, settings: Settings, dialects: DialectTable) -> None:
        self._app, self._admission, self._dialects = app, admission, dialects
        self._max_form_bytes = settings.max_body_bytes
        self._max_json_bytes = min(settings.max_json_bytes, settings.max_body_bytes)
        self._timeout_s, self._whole_s = settings.body_timeout_s, settings.body_whole_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["path"] = path = plain_path(scope["path"])
        passing = _Passing(scope, send)
        method = scope["method"]
        if method == "HEAD":  # the answer of GET; the connection leaves its body out
            scope["method"] = "GET"
        try:
            self._enter(passing)
            await self._app(scope, self._counted(receive, passing), passing.send)
        except WorkerError as error:
            if passing.status:
                raise
            self._admission.metrics.refused(error.code)
            passing.scope["state"]["code"] = error.code
            await refuse(error, self._dialects.error_at(path, error), passing.send)
        finally:
            if passing.slot is not None:
                passing.slot.leave()
            passing.tell(method)

    def _enter(self, passing: "_Passing") -> None:
        """Raises HttpRefusal, QueueFull."""
        headers, path, state = passing.headers, passing.path, passing.scope["state"]
        if path != PING:
            self._admission.rules.check(headers, is_open=path in OPEN_PATHS)
        state["caller"] = ""
        if self._admission.keys.are_required and path not in OPEN_PATHS:
            state["caller"] = self._admission.keys.caller(headers, (passing.scope.get("client") or ("",))[0])
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self._max_bytes(path):
            raise BodyTooLarge(detail=f"limit {of_bytes(self._max_bytes(path))}")
        if path not in UNCOUNTED_PATHS:
            is_post = passing.scope["method"] == "POST"
            state["slot"] = passing.slot = self._admission.slots.enter(state["caller"], uses_tokens=is_post)

    def _max_bytes(self, path: str) -> int:
        """Most bytes of a body at a path."""
        dialect = self._dialects.at(path)
        return self._max_json_bytes if dialect is None or dialect.upload is None else self._max_form_bytes

    def _counted(self, receive: Receive, passing: "_Passing") -> Receive:
        """`receive` that raises BodyTooLarge, BodyTimeout and QueueFull while the body comes, and makes a running
        request of it when it is whole."""
        limit, num_bytes = self._max_bytes(passing.path), 0
        began = time.monotonic()

        async def counted() -> Message:
            nonlocal num_bytes
            if passing.is_whole:
                return await receive()
            until = began + min(self._whole_s, self._timeout_s + num_bytes / BODY_RATE)
            try:
                async with asyncio.timeout(max(0.0, until - time.monotonic())) as timer:
                    if passing.slot is not None:
                        passing.slot.on_evict = lambda: timer.reschedule(0)
                    message = await receive()
            except TimeoutError:
                if passing.slot is not None and passing.slot.is_evicted:
                    raise QueueFull(detail="this was the slowest of too many uploads") from None
                raise BodyTimeout() from None
            if message["type"] != "http.request":
                passing.has_left = True
                return message
            size = len(message.get("body", b""))
            num_bytes += size
            if num_bytes > limit:
                raise BodyTooLarge(detail=f"limit {of_bytes(limit)}")
            passing.is_whole = not message.get("more_body", False)
            if passing.slot is not None:
                passing.slot.hold(size)
                if passing.is_whole and passing.scope["method"] == "POST":
                    passing.slot.run()
            return message

        return counted


class _Passing:
    """One request on its way through. is_whole: its body has come; has_left: its client went before."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.scope, self.path, self.headers = scope, scope["path"], Headers(scope=scope)
        self.slot: Slot | None = None
        self.status, self.is_whole, self.has_left = 0, False, False
        self._send, self._began = send, time.monotonic()
        self._id = self.headers.get("x-request-id", "")
        if not _PLAIN_ID.fullmatch(self._id):
            self._id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = self._id

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            for name in ID_HEADERS:
                MutableHeaders(scope=message)[name] = self._id
        await self._send(message)

    def tell(self, method: str) -> None:
        """One line of the log."""
        facts = {"status": self.status, "seconds": round(time.monotonic() - self._began, 3)}
        if "code" in self.scope["state"]:
            facts["code"] = self.scope["state"]["code"]
        path = quote(self.path[:100])
        log.log(
            logging.DEBUG if self.has_left else logging.INFO,
            "%s %s",
            method,
            path,
            extra={"request": self._id, **facts},
        )


def headers_of(error: WorkerError) -> dict[str, str]:
    """The headers that an error has: whether and when to come again, how to say who one is. OpenAI's and Anthropic's
    clients follow `x-should-retry` whatever the status."""
    headers = {"x-should-retry": "true" if error.is_retryable else "false"}
    if isinstance(error, KeyInvalid):
        return {**headers, "www-authenticate": "Bearer"}
    wait_s = error.wait_s if isinstance(error, HttpRefusal) else None
    if wait_s is None and error.is_retryable and error.status in PASSING:
        wait_s = RETRY_AFTER_S
    return headers if wait_s is None else {**headers, "retry-after": str(wait_s)}


async def refuse(error: WorkerError, shown: HttpError, send: Send) -> None:
    """A response of its own, before any route was asked."""
    body = json.dumps(shown.body).encode()
    fields = {"content-type": "application/json", "content-length": str(len(body)), **headers_of(error)}
    headers = [(name.encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": shown.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
