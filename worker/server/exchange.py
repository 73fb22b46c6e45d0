"""One HTTP request and its response on a connection, as an ASGI application sees them."""

import asyncio
import http
import logging
from typing import Any, Protocol

from starlette.types import ASGIApp, Message, Scope

log = logging.getLogger(__name__)
PIECE_BYTES = 256 * 1024  # of a body that is handed to the transport at once
BODILESS = (204, 304)
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_PHRASES = {status.value: status.phrase for status in http.HTTPStatus}


def status_line(status: int) -> bytes:
    return f"HTTP/1.1 {status} {_PHRASES.get(status, '')}\r\n".encode()


class Wire(Protocol):
    """The connection, as its exchanges use it."""

    def write(self, data: bytes) -> None: ...

    async def drained(self, *, has_slot: bool) -> None:
        """Returns when the client has read enough, or is gone. has_slot: the request has a slot among the running ones,
        so its connection is not evicted meanwhile."""
        ...

    def body_taken(self) -> None:
        """The application has taken what was buffered of the request's body."""
        ...

    def answered(self) -> None:
        """The response is written."""
        ...

    def broken(self) -> None:
        """The response cannot be finished: close, so that the client sees that it is cut."""
        ...


class Exchange:
    """A request on its way in and its response on its way out. keeps_alive: whether the connection may go on; is_whole:
    whether the request's body has come whole."""

    def __init__(self, wire: Wire, scope: Scope, default_headers: list[tuple[bytes, bytes]]) -> None:
        self.keeps_alive = False
        self.is_whole = False
        self.has_started = False
        self.is_complete = False
        self.is_gone = False
        self.expects_continue = False
        self._wire, self._scope, self._default_headers = wire, scope, default_headers
        self._is_http_1_0 = scope["http_version"] == "1.0"
        self._is_head = scope["method"] == "HEAD"
        self._body = bytearray()
        self._has_news = asyncio.Event()
        self._length: int | None = None
        self._is_chunked = False

    @property
    def num_buffered(self) -> int:
        return len(self._body)

    def feed(self, data: bytes) -> None:
        """The next part of the request's body."""
        if not self.is_complete:
            self._body += data
            self._has_news.set()

    def end(self) -> None:
        """The request's body is whole."""
        self.is_whole = True
        self._has_news.set()

    def leave(self) -> None:
        """The client is gone."""
        self.is_gone = True
        self._has_news.set()

    def probe(self) -> bool:
        """Send bytes that clients must ignore, where there are such: before the response an interim one, between two
        chunks a zero before the next one's size. False where there are none, and nothing will be sent for long."""
        if not self.has_started:
            if not self._is_http_1_0:
                self._wire.write(CONTINUE)
            return not self._is_http_1_0
        if self._is_chunked and not self.is_complete:
            self._wire.write(b"0")
        return True

    def start(self, app: ASGIApp) -> asyncio.Task[None]:
        async def run() -> None:
            await app(self._scope, self._receive, self._send)

        task = asyncio.get_running_loop().create_task(run())
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Whatever the application did not write is written or cut off here."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the application failed", exc_info=error)
        if self.is_complete or self.is_gone:
            return
        if self.has_started:
            self._wire.broken()
            return
        self.keeps_alive = False
        self._begin(503 if task.cancelled() else 500, [(b"content-length", b"0")])
        self._finish()

    async def _receive(self) -> Message:
        if self.expects_continue and not (self.has_started or self.is_gone):
            self.expects_continue = False
            self._wire.write(CONTINUE)
        if not (self.is_gone or self.is_complete):
            self._wire.body_taken()
            await self._has_news.wait()
            self._has_news.clear()
        if self.is_gone or self.is_complete:
            return {"type": "http.disconnect"}
        body, self._body = bytes(self._body), bytearray()
        self._wire.body_taken()
        return {"type": "http.request", "body": body, "more_body": not self.is_whole}

    async def _send(self, message: Message) -> None:
        if self.is_gone:
            return
        if message["type"] == "http.response.start":
            if await self._drained():  # of what earlier requests got, too
                self._begin(message["status"], message.get("headers", ()))
        elif message["type"] == "http.response.body":
            await self._write_body(message.get("body", b""))
            if not message.get("more_body", False) and not (self.is_gone or self.is_complete):
                self._finish()
        else:
            raise RuntimeError(f"{message['type']} is not answered here")

    def _begin(self, status: int, headers: Any) -> None:
        self.has_started = True
        self.expects_continue = False
        lines, has_close = [status_line(status)], False
        for name, value in (*self._default_headers, *headers):
            name = name.lower()
            if name == b"content-length":
                self._length = int(value)
            elif name == b"connection" and b"close" in value.lower():
                self.keeps_alive, has_close = False, True
            lines.append(b"%b: %b\r\n" % (name, value))
        if any(b"\r" in line[:-2] or b"\n" in line[:-2] for line in lines):
            raise ValueError("a line break in a header of the response")
        if self._length is None and status not in BODILESS and not self._is_head:
            # HTTP/1.0 knows no chunks: its body ends where the connection does.
            self._is_chunked = not self._is_http_1_0
        if self._is_chunked:
            lines.append(b"transfer-encoding: chunked\r\n")
        if not self.is_whole or self._is_http_1_0:
            self.keeps_alive = False
        if not (self.keeps_alive or has_close):
            lines.append(b"connection: close\r\n")
        self._wire.write(b"".join((*lines, b"\r\n")))
        if status in BODILESS:
            self._is_head = True

    async def _write_body(self, body: bytes) -> None:
        if self._is_head or not body:
            return
        if self._length is not None:
            self._length -= len(body)
            if self._length < 0:
                raise ValueError("the response is longer than its Content-Length")
        for start in range(0, len(body), PIECE_BYTES):
            if self.is_gone:
                return
            piece = body[start : start + PIECE_BYTES]
            self._wire.write(b"%x\r\n%b\r\n" % (len(piece), piece) if self._is_chunked else piece)
            await self._drained()

    async def _drained(self) -> bool:
        """Whether the client is still there when it has read enough."""
        await self._wire.drained(has_slot=self._scope["state"].get("slot") is not None)
        return not self.is_gone

    def _finish(self) -> None:
        if not self._is_head and self._length:
            raise ValueError("the response is shorter than its Content-Length")
        if self._is_chunked:
            self._wire.write(b"0\r\n\r\n")
        self.is_complete = True
        self._has_news.set()
        self._wire.answered()
