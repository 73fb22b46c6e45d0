"""What every HTTP request passes on its way in: its id, the key, the size and pace of its body; and one line in the log
on its way out."""

import asyncio
import hashlib
import hmac
import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker.core.errors import BodyTimeout, BodyTooLarge, KeyInvalid, QueueFull, WorkerError
from worker.core.settings import Settings
from worker.dialects.base import HttpError

log = logging.getLogger(__name__)
RETRY_AFTER_S = 5
PLAYGROUND = "/playground"
OPEN_PATHS = frozenset({"/", "/ping", PLAYGROUND})  # answered without a key
UNCOUNTED_PATHS = OPEN_PATHS | {"/health", "/metrics"}
_PLAIN_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


def callers(keys: Sequence[str]) -> dict[bytes, str]:
    """Each key with a name for who has it, which tells nothing of the key; nameless where there is but one."""
    kept = {key.encode() for key in keys}
    return {key: hashlib.blake2b(key, digest_size=16).hexdigest() if len(kept) > 1 else "" for key in kept}


class RequestMiddleware:
    """Middleware around the routes. `shape` gives an error as a path says it."""

    def __init__(self, app: ASGIApp, settings: Settings, shape: Callable[[str, WorkerError], HttpError]) -> None:
        self._app = app
        self._callers = callers(settings.keys)
        self._max_bytes = settings.max_body_bytes
        self._max_running, self._num_running = settings.max_requests, 0
        self._timeout_s, self._whole_s = settings.body_timeout_s, settings.body_whole_s
        self._shape = shape

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = headers.get("x-request-id", "")
        if not _PLAIN_ID.fullmatch(request_id):
            request_id = uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        began, status, is_counted = time.monotonic(), 0, scope["path"] not in UNCOUNTED_PATHS

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        self._num_running += is_counted
        try:
            state["caller"] = self._check(scope["path"], headers)
            if self._num_running > self._max_running and is_counted:
                raise QueueFull(detail=f"{self._max_running} requests are unfinished")
            await self._app(scope, self._counted(receive), sending)
        except WorkerError as error:
            if status:
                raise
            await refuse(error, self._shape(scope["path"], error), sending)
        finally:
            self._num_running -= is_counted
            facts = {"status": status, "seconds": round(time.monotonic() - began, 3)}
            path = scope["path"][:100].encode("unicode_escape").decode("ascii")
            log.info("%s %s", scope["method"], path, extra={"request": request_id, **facts})

    def _check(self, path: str, headers: Headers) -> str:
        """Whose key it is, as `callers` has it. Raises KeyInvalid, BodyTooLarge."""
        caller = ""
        if self._callers and path not in OPEN_PATHS:
            caller = self._caller(headers)
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self._max_bytes:
            raise BodyTooLarge(detail=f"at most {self._max_bytes} bytes")
        return caller

    def _caller(self, headers: Headers) -> str:
        """Whose key is given; it takes as long for a wrong one as for a right one. Raises KeyInvalid."""
        given = headers.get("x-api-key")
        if given is None:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer":
                raise KeyInvalid()
        data = given.encode("utf-8", "surrogateescape")
        found = [caller for key, caller in self._callers.items() if hmac.compare_digest(data, key)]
        if not found:
            raise KeyInvalid()
        return found[0]

    def _counted(self, receive: Receive) -> Receive:
        """`receive` that raises BodyTooLarge and BodyTimeout while the body comes."""
        left, is_whole = self._max_bytes, False
        whole_by = time.monotonic() + self._whole_s

        async def counted() -> Message:
            nonlocal left, is_whole
            if is_whole:
                return await receive()
            try:
                async with asyncio.timeout(min(self._timeout_s, max(0.0, whole_by - time.monotonic()))):
                    message = await receive()
            except TimeoutError:
                raise BodyTimeout() from None
            if message["type"] == "http.request":
                left -= len(message.get("body", b""))
                is_whole = not message.get("more_body", False)
            if left < 0:
                raise BodyTooLarge(detail=f"at most {self._max_bytes} bytes")
            return message

        return counted


def retry_after(error: WorkerError) -> dict[str, str]:
    """The header that says when to come again, where that makes sense."""
    return {"retry-after": str(RETRY_AFTER_S)} if error.is_retryable and error.status in (429, 503) else {}


async def refuse(error: WorkerError, shown: HttpError, send: Send) -> None:
    """A response of its own, before any route was asked."""
    body = json.dumps(shown.body).encode()
    fields = {"content-type": "application/json", "content-length": str(len(body)), **retry_after(error)}
    headers = [(name.encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": shown.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
