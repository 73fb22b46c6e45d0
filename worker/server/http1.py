"""A connection of the HTTP server: requests in, responses out, every second of it bounded."""

import asyncio
import contextlib
import json
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import unquote_to_bytes

from starlette.types import ASGIApp, Scope
from uvicorn.server import ServerState

from worker.core.errors import WorkerError
from worker.core.http_errors import HeadTimeout, ServerStopping, TooManyConnections
from worker.dialects.base import plain_error
from worker.server.connections import Connections, Limits
from worker.server.disconnects import DisconnectDetector
from worker.server.exchange import Exchange, status_line
from worker.server.request_parser import RequestHead, RequestParser

log = logging.getLogger(__name__)


class HttpConnection(asyncio.Protocol):
    """One connection. `state` is uvicorn's: who is connected, what runs, the headers of every response. `on_refusal`
    hears the code of what is refused here."""

    def __init__(
        self,
        app: ASGIApp,
        table: Connections,
        limits: Limits,
        state: ServerState,
        on_refusal: Callable[[str], None],
    ) -> None:
        self._app, self._table, self._limits = app, table, limits
        self._state, self._on_refusal, self._loop = state, on_refusal, asyncio.get_running_loop()
        self._transport: asyncio.Transport = None  # type: ignore[assignment]
        self.address = ""
        self._parser = RequestParser(self)
        self._exchanges: deque[Exchange] = deque()  # the first is being answered, the last may still be read
        self._refusal: WorkerError | None = None  # of what comes next, told when all before it is answered
        self._unread = b""  # what came and waits for the requests before it to be answered
        self._timer: asyncio.TimerHandle | None = None
        self._num_lingered = 0
        self._is_reading_over = self._is_paused = self._is_stopping = self._is_refused = False
        self._is_head_timed, self._has_ended = True, False
        self._detector = DisconnectDetector(
            lambda: bool(self._exchanges) and (self._is_paused or self._has_ended),
            lambda: self._exchanges[0].probe(),
            self.broken,
        )
        self._can_write = asyncio.Event()
        self._can_write.set()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self.address = (_address(transport.get_extra_info("peername")) or ("", 0))[0]
        self._state.connections.add(self)  # type: ignore[arg-type]  # all that uvicorn asks of it is `shutdown`
        if self._table.add(self):
            self._wait(self._limits.head_timeout_s)
        else:
            self._refuse(TooManyConnections())

    def data_received(self, data: bytes) -> None:
        if self._is_reading_over:
            self._num_lingered += len(data)
            if self._num_lingered > self._limits.linger_bytes and not self._exchanges:
                self._transport.abort()
            return
        if not (self._exchanges or self._is_head_timed):
            self._is_head_timed = True
            self._wait(self._limits.head_timeout_s)
        self._unread += data
        self._read_on()

    def eof_received(self) -> bool:
        """Whether the connection stays open for writing: a client may end its side after its request."""
        self._has_ended = True
        if self._unread or (self._exchanges and self._exchanges[-1].is_whole):
            self._detector.watch(self._transport)
        else:
            self._leave_all()
            self._is_reading_over = True
            self._table.mark_idle(self)
            self._close()  # what was answered may still be on its way
        return True

    def connection_lost(self, _: Exception | None) -> None:
        self._cancel_timer()
        self._table.remove(self)
        self._state.connections.discard(self)
        self._can_write.set()
        self._leave_all()

    def pause_writing(self) -> None:
        self._can_write.clear()

    def resume_writing(self) -> None:
        self._can_write.set()

    # What the parser calls.

    def head_came(self, head: RequestHead) -> None:
        exchange = Exchange(self, _scope(head, self._transport), self._state.default_headers)
        exchange.expects_continue = head.expects_continue
        exchange.keeps_alive = head.keeps_alive and not self._is_stopping
        self._exchanges.append(exchange)
        if len(self._exchanges) == 1:
            self._begin()

    def body_came(self, data: bytes) -> None:
        self._exchanges[-1].feed(data)

    def body_ended(self) -> None:
        self._exchanges[-1].end()

    def _begin(self) -> None:
        """Answer the first request."""
        self._cancel_timer()
        self._is_head_timed = False
        self._table.mark_active(self)
        task = self._exchanges[0].start(self._app)
        self._state.tasks.add(task)
        task.add_done_callback(self._state.tasks.discard)

    def _read_on(self) -> None:
        """Read what has come, as far as there are not too many requests. Where it may be hundreds, little at a time."""
        data, start = memoryview(self._unread), 0
        while start < len(data) and not self._is_reading_over and len(self._exchanges) < self._limits.pipelined:
            part = data[start : start + max(self._limits.part_bytes, self._parser.num_body_left)]
            start += len(part)
            try:
                self._parser.feed(part)
            except WorkerError as error:
                self._refuse(error)
        self._unread = b"" if self._is_reading_over else bytes(data[start:])
        if self._has_ended and not self._unread and self._exchanges and not self._exchanges[-1].is_whole:
            self._exchanges.pop().leave()  # the rest of it will never come
        self._pace_reading()

    def _pace_reading(self) -> None:
        """Read on or not: a body that nobody takes waits at its sender, and so do requests behind the first."""
        has_too_much = sum(each.num_buffered for each in self._exchanges) > self._limits.buffered_bytes
        must_wait = bool(self._exchanges) if self._is_reading_over else has_too_much or len(self._exchanges) > 1
        if must_wait != self._is_paused and not (self._has_ended or self._transport.is_closing()):
            self._is_paused = must_wait
            (self._transport.pause_reading if must_wait else self._transport.resume_reading)()
        if self._is_paused:
            self._detector.watch(self._transport)

    # What an exchange calls.

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    async def drained(self, *, has_slot: bool) -> None:
        if self._can_write.is_set():
            return
        if not has_slot:
            self._table.mark_idle(self)
        try:
            async with asyncio.timeout(self._limits.send_timeout_s):
                await self._can_write.wait()
        except TimeoutError:
            log.info("a client does not read its answer")
            self.broken()
        if self._exchanges and not (has_slot or self._transport.is_closing()):
            self._table.mark_active(self)

    def body_taken(self) -> None:
        self._pace_reading()

    def answered(self) -> None:
        exchange = self._exchanges.popleft()
        if not exchange.keeps_alive:
            self._leave_all()
            self._linger()
        if self._transport.is_closing() or not exchange.keeps_alive:
            return
        if self._exchanges:
            self._begin()
        self._read_on()
        if self._exchanges or self._is_refused:
            return
        if self._refusal is not None:
            self._refuse(self._refusal)
        elif self._is_reading_over or self._is_stopping or self._has_ended:
            self._linger()
        else:
            self._table.mark_idle(self)
            self._is_head_timed = self._parser.is_head_begun
            self._wait(self._limits.head_timeout_s if self._is_head_timed else self._limits.idle_timeout_s)

    def broken(self) -> None:
        self._leave_all()
        self._transport.abort()

    # The end of a connection.

    def shutdown(self) -> None:
        """The server is shutting down: what is being answered is, and nothing after it."""
        self._is_stopping, self._unread = True, b""
        for exchange in self._exchanges:
            exchange.keeps_alive = exchange.keeps_alive and exchange.has_started
        if not self._exchanges:
            self._close()
        elif not (self._exchanges[-1].is_whole or self._exchanges[-1].has_started):
            self._refuse(ServerStopping())

    def evict(self) -> None:
        self._transport.abort()

    def _refuse(self, error: WorkerError) -> None:
        """Say why when all before it is answered, and close."""
        self._is_reading_over, self._refusal = True, error
        if self._exchanges and not self._exchanges[-1].is_whole:
            if len(self._exchanges) == 1 and self._exchanges[0].has_started:
                self.broken()
                return
            self._exchanges.pop().leave()
        if self._exchanges:
            return
        self._is_refused = True
        self._on_refusal(error.code)
        log.debug("refused a connection: %s", error.message, extra={"code": error.code})
        self.write(_response(error))
        self._linger()

    def _linger(self) -> None:
        """End our side, and read on for a while: a client that is still sending would not hear the answer else."""
        self._is_reading_over = True
        if self._transport.is_closing():
            return
        self._table.mark_idle(self)
        if self._has_ended:
            self._close()
            return
        self._pace_reading()
        if self._transport.can_write_eof():
            with contextlib.suppress(OSError):
                self._transport.write_eof()
        self._cancel_timer()
        self._timer = self._loop.call_later(self._limits.linger_s, self._close)

    def _close(self) -> None:
        """Close; what the client does not read is given up after a while."""
        self._cancel_timer()
        self._transport.close()
        self._timer = self._loop.call_later(self._limits.close_s, self._transport.abort)

    def _leave_all(self) -> None:
        for exchange in self._exchanges:
            exchange.leave()
        self._exchanges.clear()

    def _wait(self, seconds: float) -> None:
        self._cancel_timer()
        self._timer = self._loop.call_later(seconds, self._waited)

    def _waited(self) -> None:
        if self._parser.is_head_begun:
            self._refuse(HeadTimeout())
        else:
            self._close()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _scope(head: RequestHead, transport: asyncio.Transport) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": head.version,
        "method": head.method,
        "scheme": "http",
        "path": unquote_to_bytes(head.path).decode("utf-8", "replace"),
        "raw_path": head.path,
        "query_string": head.query,
        "root_path": "",
        "headers": head.headers,
        "client": _address(transport.get_extra_info("peername")),
        "server": _address(transport.get_extra_info("sockname")),
        "state": {},
    }


def _response(error: WorkerError) -> bytes:
    body = json.dumps(plain_error(error).body).encode()
    head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    return status_line(error.status) + head.encode() + body


def _address(name: Any) -> tuple[str, int] | None:
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) and len(name) >= 2 else None
