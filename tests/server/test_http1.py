"""Connections of the HTTP server, by raw sockets: bounds, and the standard where clients differ."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server import strangers
from tests.server.servers import listening
from tests.server.strangers import CHUNKED, HEAD, MIB, TAKEN, connected, heard, reply_of, status_of
from worker.core.errors import WorkerError
from worker.core.settings import load
from worker.server.connections import Connections
from worker.server.request_parser import RequestHead, RequestParser
from worker.server.server import Server

pytestmark = pytest.mark.network
BUFFERS = 16 * MIB  # more than the kernel keeps of what nobody reads, on both sides
SLOW = b"GET /slow " + HEAD + b"\r\n"
PING = b"GET /ping " + HEAD + b"\r\n"


class App:
    """Answers like the worker, without one. gone: a request was left by its client; go_on lets `/slow` answer."""

    def __init__(self) -> None:
        self.gone, self.go_on, self.begun = threading.Event(), threading.Event(), threading.Event()
        self.num_bytes: list[int] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for _ in range(2):
                await send({"type": f"{(await receive())['type']}.complete"})
            return
        has_key = any(name == b"x-api-key" for name, _ in scope["headers"])
        status, body = 200, scope["path"].encode()
        if scope["method"] == "POST" and not has_key:
            status = 401
        elif scope["method"] == "POST":
            read = await whole(receive)
            if read is None:
                self.gone.set()
                return
            self.num_bytes.append(len(read))
            body = b"%d bytes" % len(read)
        elif scope["path"] == "/slow":
            status = await self.slowly(receive)
        elif scope["path"] == "/stalls":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"one", "more_body": True})
            await self.slowly(receive)
            await send({"type": "http.response.body", "body": b" two"})
            return
        elif scope["path"] == "/stream":
            await self.stream(send)
            return
        elif scope["path"] == "/flood":
            body = bytes(64 * MIB)
        elif scope["path"] == "/fails":
            raise ValueError("a fault of the application")
        await send(
            {"type": "http.response.start", "status": status, "headers": [(b"content-length", b"%d" % len(body))]}
        )
        await send({"type": "http.response.body", "body": body})
        if scope["path"] == "/flood":
            self.gone.set()

    async def slowly(self, receive: Any) -> int:
        """499 where the client leaves before `go_on`."""
        await whole(receive)
        leaving = asyncio.ensure_future(receive())
        self.begun.set()
        while not (self.go_on.is_set() or leaving.done()):
            await asyncio.sleep(0.005)
        if leaving.done():
            self.gone.set()
            return 499
        leaving.cancel()
        return 200

    async def stream(self, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in (b"one ", b"two ", b"three"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b""})


def until(client: socket.socket, wanted: bytes) -> bytes:
    """What comes up to and with `wanted`."""
    said = b""
    while wanted not in said:
        data = client.recv(65536)
        assert data, said
        said += data
    return said


async def whole(receive: Any) -> bytes | None:
    """The request's body; None where its client leaves before."""
    read, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        read += message["body"]
        more = message["more_body"]
    return read


@contextlib.contextmanager
def running(limit: int = 200, **values: str) -> Iterator[tuple[int, App, list[str]]]:
    """Port, application, and the codes of what connections refused."""
    app, refused = App(), list[str]()
    chosen = load({"DRAIN_S": "1", **values})
    with listening(Server(app, chosen, Connections(limit), refused.append)) as address:
        try:
            yield int(address.rpartition(":")[2]), app, refused
        finally:
            app.go_on.set()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with running() as (at, _, _):
        yield at


@pytest.mark.parametrize("what", strangers.ENDLESS)
def test_what_has_no_end_is_ended(port: int, what: str) -> None:
    beginning, endless = strangers.ENDLESS[what]
    taken, status = strangers.poured(port, beginning, endless, 4 * BUFFERS, 10)
    assert taken < 2 * BUFFERS
    assert status == {"requests, answers unread": 200, "a body, refused": 401, "chunks of a byte, refused": 401}.get(
        what, 400 if "chunk" in what or what in ("a method", "trailers") else 431
    )
    assert strangers.pinged(port) is not None


@pytest.mark.parametrize("what", strangers.SMUGGLED)
def test_what_readers_might_understand_differently_is_refused(port: int, what: str) -> None:
    reply = reply_of(port, strangers.SMUGGLED[what])
    assert status_of(reply) == 400
    assert b'"code": "HTTP_MALFORMED"' in reply
    assert reply.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in reply


def test_heads_and_silence_have_their_seconds() -> None:
    with running(HEAD_TIMEOUT_S="0.4", IDLE_TIMEOUT_S="0.4") as (port, _, refused):
        begun = reply_of(port, b"GET / HTTP/1.1\r\nHost: ", timeout_s=10)
        with connected(port, 0.02) as dripping, contextlib.suppress(ConnectionError):
            dripping.sendall(b"GET / " + HEAD + b"X: ")
            while not (said := heard(dripping)):
                dripping.sendall(b"x")
        silent, idle = reply_of(port, b"", timeout_s=10), reply_of(port, PING, timeout_s=10)
        in_body = connected(port)
        in_body.sendall(TAKEN + b"Content-Length: 9\r\n\r\n123")
        time.sleep(0.5)
        in_body.sendall(b"456789")  # a body is not a head: how long it takes is another setting
        assert status_of(in_body.recv(4096)) == 200
        in_body.close()
    assert status_of(begun) == status_of(said) == 408
    assert b"HEAD_TIMEOUT" in begun
    assert refused == ["HEAD_TIMEOUT", "HEAD_TIMEOUT"]
    assert silent == b""
    assert status_of(idle) == 200


def test_a_newcomer_takes_the_place_of_who_waits_longest_and_of_nobody_at_work() -> None:
    with running(limit=4) as (port, app, refused):
        working = connected(port)
        working.sendall(SLOW)
        app.begun.wait(10)
        with strangers.held(port, 20, b"") as silent, strangers.held(port, 20, b"GET / HT") as begun:
            assert status_of(reply_of(port, PING.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))) == 200
            assert strangers.seconds_until(lambda: strangers.num_open(silent) + strangers.num_open(begun) <= 3, 10)
        assert refused == []
        app.go_on.set()
        assert status_of(working.recv(4096)) == 200
        working.close()


def test_where_all_are_at_work_a_newcomer_is_told() -> None:
    with running(limit=2) as (port, app, refused):
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(connected(port)) for _ in range(2)]
            for client in clients:
                app.begun.clear()
                client.sendall(SLOW)
                assert app.begun.wait(10)
            replies = [reply_of(port, PING) for _ in range(5)]
            assert {status_of(reply) for reply in replies} == {503}
            app.go_on.set()
            assert [status_of(client.recv(4096)) for client in clients] == [200, 200]
        assert refused == ["TOO_MANY_CONNECTIONS"] * 5
        assert strangers.seconds_until(lambda: strangers.pinged(port) is not None, 10) is not None


def test_a_client_that_has_ended_its_side_gets_its_answer() -> None:
    with running() as (port, app, _):
        assert reply_of(port, b"GET /stream " + HEAD + b"\r\n", half_close=True).endswith(b"three\r\n0\r\n\r\n")
        assert status_of(reply_of(port, TAKEN + b"Content-Length: 2\r\n\r\nab", half_close=True)) == 200
        with connected(port) as waiting:
            waiting.sendall(SLOW)
            waiting.shutdown(socket.SHUT_WR)
            assert waiting.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"  # how a client that is gone would be told
            assert not app.gone.is_set()
            app.go_on.set()
            assert status_of(heard(waiting)) == 200


@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
def test_a_client_that_is_gone_is_noticed(version: bytes) -> None:
    with running() as (port, app, _):
        with connected(port) as leaving:
            leaving.sendall(SLOW.replace(b"HTTP/1.1", version))
            assert app.begun.wait(10)
        assert app.gone.wait(10)


def test_a_client_that_is_gone_is_noticed_in_a_stream_that_stalls() -> None:
    with running() as (port, app, _):
        stalls = b"GET /stalls " + HEAD + b"\r\n"
        with connected(port) as leaving:
            leaving.sendall(stalls)
            assert app.begun.wait(10)
        assert app.gone.wait(10)
        app.gone.clear()
        with connected(port) as waiting:
            waiting.sendall(stalls)
            waiting.shutdown(socket.SHUT_WR)
            assert strangers.seconds_until(lambda: waiting.recv(4096, socket.MSG_PEEK).endswith(b"one\r\n0"), 10)
            app.go_on.set()
            assert heard(waiting).endswith(b"3\r\none\r\n04\r\n two\r\n0\r\n\r\n")
        assert not app.gone.is_set()


def test_half_a_body_and_gone() -> None:
    with running() as (port, app, _):
        with connected(port) as leaving:
            leaving.sendall(TAKEN + b"Content-Length: 100\r\n\r\nabc")
        assert app.gone.wait(10)
        assert app.num_bytes == []


def test_a_stream_to_http_1_0_has_no_chunks(port: int) -> None:
    head = b"GET /stream HTTP/1.0\r\n\r\n"
    reply = reply_of(port, head)
    assert reply.split(b"\r\n\r\n", 1)[1] == b"one two three"
    assert b"chunked" not in reply
    assert b"connection: close" in reply
    newer = reply_of(port, b"GET /stream " + HEAD + b"Connection: close\r\n\r\n")
    assert newer.endswith(b"4\r\none \r\n4\r\ntwo \r\n5\r\nthree\r\n0\r\n\r\n")


def test_head_has_the_headers_of_get_and_no_body(port: int) -> None:
    reply = reply_of(port, b"HEAD /ping " + HEAD + b"Connection: close\r\n\r\n")
    assert reply.endswith(b"\r\n\r\n")
    assert b"content-length: 5\r\n" in reply
    assert b"transfer-encoding" not in reply_of(port, b"HEAD /stream " + HEAD + b"Connection: close\r\n\r\n")


def test_requests_behind_each_other_are_answered_in_their_order() -> None:
    with running() as (port, app, _), connected(port) as client:
        post = TAKEN + b"Content-Length: 3\r\n\r\nabc"
        client.sendall(SLOW + post + TAKEN + CHUNKED + b"2\r\nab\r\n0\r\n\r\n" + PING + b"GET /a b\r\n\r\n")
        app.begun.wait(10)
        app.go_on.set()
        reply = heard(client)
    places = [reply.index(word) for word in (b"/slow", b"3 bytes", b"2 bytes", b"/ping", b"HTTP_MALFORMED")]
    assert places == sorted(places)
    assert app.num_bytes == [3, 2]


def test_more_requests_at_once_than_are_answered_at_once_wait() -> None:
    with running() as (port, app, _), connected(port) as client:
        post = TAKEN + b"Content-Length: 100000\r\n\r\n" + bytes(100_000)
        sender = threading.Thread(
            target=client.sendall, args=(SLOW + PING * 300 + post * 3 + b"GET /a b\r\n\r\n" + PING,)
        )
        sender.start()
        assert app.begun.wait(10)
        app.go_on.set()
        reply = heard(client)
        sender.join()
    assert reply.count(b"/ping") == 300
    assert reply.count(b"100000 bytes") == 3
    assert reply.count(b"HTTP/1.1 400 ") == reply.count(b"HTTP_MALFORMED") == 1
    assert app.num_bytes == [100_000] * 3


def test_requests_before_half_of_one_and_the_end() -> None:
    with running() as (port, app, _):
        half = TAKEN + b"Content-Length: 9\r\n\r\n1"
        reply = reply_of(port, PING * 20 + half, half_close=True)
        assert reply.count(b"/ping") == 20
        assert b" bytes" not in reply
        assert app.gone.wait(10) or not app.num_bytes


@pytest.mark.parametrize(("size", "count"), [(10, 100_000), (100, 30_000), (1000, 20_000), (65_536, 300)])
def test_chunks_of_any_usual_size(port: int, size: int, count: int) -> None:
    chunk = b"%x\r\n%b\r\n" % (size, bytes(size))
    with connected(port, 20) as client:
        client.sendall(TAKEN + CHUNKED)
        for _ in range(10):
            client.sendall(chunk * (count // 10))
        client.sendall(b"0\r\nX: y\r\n\r\n" + PING)
        reply = until(client, b"/ping")
    assert b"%d bytes" % (size * count) in reply


@pytest.mark.parametrize("ends", ["close", "reset"])
def test_a_client_that_asks_twice_and_is_gone_is_noticed(ends: str) -> None:
    """Also where nothing more is read of it, because a second request waits."""
    with running() as (port, app, _):
        with connected(port) as leaving:
            leaving.sendall(SLOW + PING)
            assert app.begun.wait(10)
            if ends == "reset":
                leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        assert app.gone.wait(10)


def test_a_head_behind_a_request_has_its_seconds_too() -> None:
    with running(HEAD_TIMEOUT_S="0.4", IDLE_TIMEOUT_S="30") as (port, _, refused):
        reply = reply_of(port, PING + b"GET /ping HT", timeout_s=10)
    assert status_of(reply) == 200
    assert b"HTTP/1.1 408 " in reply
    assert refused == ["HEAD_TIMEOUT"]


def deaf(port: int) -> socket.socket:
    """A client with little room for what it does not read."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.settimeout(0.5)
    client.connect(("127.0.0.1", port))
    return client


@pytest.mark.parametrize("last", [b"", TAKEN + b"Content-Length: 9\r\n\r\n1", b"GET /pi"])
def test_clients_that_ask_and_do_not_read_are_gone_in_time(last: bytes) -> None:
    """Whatever they ended with, and whether or not an answer has a body."""
    with running(limit=4, SEND_TIMEOUT_S="0.2", HEAD_TIMEOUT_S="0.2", IDLE_TIMEOUT_S="0.2") as (port, _, _):
        clients = [deaf(port) for _ in range(4)]
        for client in clients:
            with contextlib.suppress(OSError):
                while True:
                    client.sendall((PING + PING.replace(b"GET", b"HEAD")) * 200)
            with contextlib.suppress(OSError):
                client.sendall(last)
                client.shutdown(socket.SHUT_WR)
        assert strangers.seconds_until(lambda: strangers.pinged(port) is not None, 10) is not None
        for client in clients:
            client.close()


def test_who_does_not_read_an_answer_without_a_place_gives_way() -> None:
    with running(limit=4) as (port, _, _), contextlib.ExitStack() as stack:
        for client in [stack.enter_context(deaf(port)) for _ in range(4)]:
            client.sendall(b"GET /flood " + HEAD + b"\r\n")
        assert strangers.seconds_until(lambda: strangers.pinged(port) is not None, 10) is not None


def test_a_stop_answers_what_runs_and_refuses_what_has_not_come() -> None:
    app, refused = App(), list[str]()
    with contextlib.ExitStack() as stack:
        server = Server(app, load({"DRAIN_S": "30"}), Connections(9), refused.append)
        port = int(stack.enter_context(listening(server)).rpartition(":")[2])
        running_one, half, idle = (stack.enter_context(connected(port, 20)) for _ in range(3))
        idle.sendall(PING)
        assert until(idle, b"/ping")
        half.sendall(TAKEN + b"Content-Length: 9\r\n\r\n1")
        running_one.sendall(SLOW)
        assert app.begun.wait(10)
        server.should_exit = True
        assert b"SERVER_STOPPING" in heard(half)
        assert heard(idle) == b""
        app.go_on.set()
        assert b"connection: close" in heard(running_one)
    assert refused == ["SERVER_STOPPING"]


def test_a_connection_asks_thousands_of_times(port: int) -> None:
    with connected(port) as client:
        for _ in range(2000):
            client.sendall(PING)
            assert until(client, b"/ping").endswith(b"/ping")


def test_expect(port: int) -> None:
    asks = b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    with connected(port) as client:
        client.sendall(TAKEN + asks)
        assert client.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"ab")
        assert until(client, b"2 bytes")
    assert reply_of(port, strangers.REFUSED + asks).startswith(b"HTTP/1.1 401 ")
    assert status_of(reply_of(port, TAKEN + asks.replace(b"100-continue", b"magic"))) == 417


def test_what_asks_for_another_protocol_is_answered_in_this_one(port: int) -> None:
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    with connected(port) as client:
        for _ in range(3):
            client.sendall(TAKEN + upgrade + b"Content-Length: 4\r\n\r\nabcd" + PING)
            assert b"4 bytes" in until(client, b"/ping")


def test_a_target_may_name_its_host(port: int) -> None:
    for host in (b"127.0.0.1:80", b"[::1]:80", b"localhost"):
        sent = b"GET http://" + host + b"/a%20b?c=d " + HEAD + b"Connection: close\r\n\r\n"
        assert reply_of(port, sent).endswith(b"/a b")
        told, code = parsed([sent])
        assert (code, told[0].headers[0], told[0].query) == (None, (b"host", host), b"c=d")


def test_a_client_that_is_still_sending_hears_that_it_is_refused(port: int) -> None:
    body = bytes(4 * MIB)
    head = strangers.REFUSED + b"Content-Length: %d\r\n\r\n" % len(body)
    with connected(port) as client:
        client.sendall(head + body)  # all of it, before anything is read
        assert status_of(heard(client)) == 401


def test_a_client_that_reads_nothing_is_left() -> None:
    with running(SEND_TIMEOUT_S="0.1") as (port, app, _), connected(port) as deaf:
        deaf.sendall(b"GET /flood " + HEAD + b"\r\n")
        assert app.gone.wait(10)


def test_a_fault_of_the_application_is_an_answer(port: int, caplog: pytest.LogCaptureFixture) -> None:
    reply = reply_of(port, b"GET /fails " + HEAD + b"\r\n")
    assert status_of(reply) == 500
    assert [record.levelname for record in caplog.records if record.name == "worker.server.exchange"] == ["ERROR"]


class Heard:
    """What a parser tells, in one text."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def head_came(self, head: RequestHead) -> None:
        self.told.append(head)

    def body_came(self, data: bytes) -> None:
        if self.told and isinstance(self.told[-1], bytes):
            self.told[-1] += data
        else:
            self.told.append(data)

    def body_ended(self) -> None:
        self.told.append("end")


def parsed(parts: list[bytes]) -> tuple[list[Any], str | None]:
    reader = Heard()
    parser = RequestParser(reader)
    try:
        for part in parts:
            parser.feed(memoryview(part))
    except WorkerError as error:
        return reader.told, error.code
    return reader.told, None


PIECES = st.sampled_from(
    [
        *(sent for sent in strangers.SMUGGLED.values()),
        *(PING, SLOW, TAKEN, CHUNKED, HEAD, b"\r\n", b"\r\n\r\n", b"0\r\n\r\n", b"5\r\nhello\r\n", b"hello"),
        *(b"Content-Length: 5\r\n\r\n", b"Connection: close\r\n", b"Upgrade: h2c\r\nConnection: Upgrade\r\n", b"GET "),
    ]
)


@settings(max_examples=300, deadline=None, database=None)
@given(st.lists(PIECES | st.binary(max_size=40), max_size=8), st.data())
def test_any_bytes_are_requests_or_a_refusal_and_the_same_in_any_parts(pieces: list[bytes], data: Any) -> None:
    sent = b"".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=6)))
    parts = [sent[start:end] for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
    at_once, code = parsed([sent])
    in_parts, code_in_parts = parsed(parts)
    assert (in_parts, code_in_parts) == (at_once, code)
    assert code in (None, "HTTP_MALFORMED", "HEAD_TOO_LARGE", "EXPECTATION_FAILED")
