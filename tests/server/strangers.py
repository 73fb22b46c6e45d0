"""What strangers send to an HTTP server before any key is checked, by raw sockets.

Every attack is bounded in bytes and seconds, and says what the server did about it.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import psutil

MIB = 2**20
HEAD = b"HTTP/1.1\r\nHost: 127.0.0.1\r\n"
ROUTE = b"/v1/chat/completions"
REFUSED = b"POST " + ROUTE + b" " + HEAD  # without the key
TAKEN = REFUSED + b"X-API-Key: k1\r\nContent-Type: application/json\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


def connected(port: int, timeout_s: float = 5.0) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout_s)


def reply_of(port: int, sent: bytes, *, half_close: bool = False, timeout_s: float = 5.0) -> bytes:
    """All that the server says until it closes, or has been silent for `timeout_s`."""
    with connected(port, timeout_s) as client:
        with contextlib.suppress(OSError):
            client.sendall(sent)
        if half_close:
            client.shutdown(socket.SHUT_WR)
        return heard(client)


def heard(client: socket.socket, at_most_s: float = 20.0) -> bytes:
    """All that comes until the other side closes, resets or is silent for the socket's time."""
    said, end = bytearray(), time.monotonic() + at_most_s
    with contextlib.suppress(OSError):
        while time.monotonic() < end and (data := client.recv(MIB)):
            said += data
    return bytes(said)


def status_of(reply: bytes) -> int | None:
    """The status of the first reply that is not an interim one."""
    for line in reply.split(b"\r\n"):
        if line.startswith(b"HTTP/1.") and line[9:12].isdigit() and not line[9:12].startswith(b"1"):
            return int(line[9:12])
    return None


def poured(port: int, beginning: bytes, endless: bytes, num_bytes: int, timeout_s: float) -> tuple[int, int | None]:
    """Send `beginning`, then `endless` again and again, `timeout_s` at most: the bytes that the server took, and the
    status that it gave. A server that takes no more for a second is left."""
    taken, end = 0, time.monotonic() + timeout_s
    with connected(port, 1.0) as client:
        try:
            client.sendall(beginning)
            while taken < num_bytes and time.monotonic() < end:
                taken += client.send(endless)
        except OSError:
            pass
        client.settimeout(0.5)
        return taken, status_of(heard(client, 0.5))


ENDLESS = {
    "a header's value": (b"GET / " + HEAD + b"X: ", b"x" * 65536),
    "a header's name": (b"GET / " + HEAD, b"x" * 65536),
    "headers": (b"GET / " + HEAD, b"X: y\r\n" * 10_000),
    "a path": (b"GET /", b"x" * 65536),
    "a method": (b"", b"X" * 65536),
    "empty lines": (b"", b"\r\n" * 32768),
    "a chunk's extension": (TAKEN + CHUNKED + b"1;", b"x" * 65536),
    "a chunk's size": (TAKEN + CHUNKED, b"0" * 65536),
    "trailers": (TAKEN + CHUNKED + b"0\r\n", b"X: y\r\n" * 10_000),
    "chunks of a byte": (TAKEN + CHUNKED, b"1\r\nx\r\n" * 10_000),
    "chunks of a byte, refused": (REFUSED + CHUNKED, b"1\r\nx\r\n" * 10_000),
    "a body, refused": (REFUSED + b"Content-Length: 99999999999\r\n\r\n", b"x" * 65536),
    "requests, answers unread": (b"", (b"GET /ping " + HEAD + b"\r\n") * 1_000),
}

# Two readers of these would disagree about what is asked, or where it ends: 400, and the connection is closed.
_PING = b"GET /ping " + HEAD
SMUGGLED = {
    "both lengths": TAKEN + b"Content-Length: 4\r\n" + CHUNKED + b"0\r\n\r\nGET /x",
    "two lengths": TAKEN + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "a length with a sign": TAKEN + b"Content-Length: +1\r\n\r\na",
    "a length in a list": TAKEN + b"Content-Length: 1, 2\r\n\r\nab",
    "a length below zero": TAKEN + b"Content-Length: -1\r\n\r\na",
    "chunked twice": TAKEN + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "another coding": TAKEN + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked, then another": TAKEN + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": TAKEN.replace(b"HTTP/1.1", b"HTTP/1.0") + CHUNKED + b"0\r\n\r\n",
    "a space before the colon": TAKEN + b"Content-Length : 1\r\n\r\na",
    "a folded header": TAKEN + b"X: a\r\n Transfer-Encoding: chunked\r\n\r\n",
    "a line that is bare": TAKEN + b"X: a\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a carriage return in a value": _PING + b"X: a\rY: b\r\n\r\n",
    "a zero byte": _PING + b"X: a\0b\r\n\r\n",
    "a chunk size in words": TAKEN + CHUNKED + b"0x1\r\na\r\n0\r\n\r\n",
    "a chunk longer than said": TAKEN + CHUNKED + b"1\r\nabc\r\n0\r\n\r\n",
    "a chunk size beyond 64 bits": TAKEN + CHUNKED + b"fffffffffffffffff1\r\na\r\n0\r\n\r\n",
    "compressed and in chunks": TAKEN + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked in two headers": TAKEN + b"Transfer-Encoding: chunked\r\n" + CHUNKED + b"0\r\n\r\n",
    "another protocol's method": b"DESCRIBE /x HTTP/1.0\r\n\r\n",
    "another protocol's address": b"GET ftp://x/ping " + HEAD + b"\r\n",
    "a host that is half an address": b"GET /ping HTTP/1.1\r\nHost: evil.test[::1]\r\n\r\n",
    "no host": b"GET /ping HTTP/1.1\r\n\r\n",
    "two hosts": _PING + b"Host: another\r\n\r\n",
    "a host with a space": b"GET /ping HTTP/1.1\r\nHost: a b\r\n\r\n",
    "HTTP/3.7": b"GET /ping HTTP/3.7\r\nHost: x\r\n\r\n",
    "no HTTP at all": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n",
}


@contextlib.contextmanager
def held(port: int, num: int, sent: bytes) -> Iterator[list[socket.socket]]:
    """So many connections at once, each with `sent` on it; those that the server does not take are left out."""
    clients: list[socket.socket] = []
    try:
        for _ in range(num):
            with contextlib.suppress(OSError):
                clients.append(connected(port, 1.0))
                clients[-1].sendall(sent)
        yield clients
    finally:
        for client in clients:
            client.close()


def num_open(clients: list[socket.socket]) -> int:
    """Connections that the server has neither closed nor reset."""
    left = 0
    for client in clients:
        client.setblocking(False)
        try:
            while client.recv(65536):
                pass
        except BlockingIOError:
            left += 1
        except OSError:
            pass
    return left


def seconds_until(is_so: Callable[[], bool], at_most_s: float) -> float | None:
    """Seconds until it is so; None where it is not in time."""
    began = time.monotonic()
    while time.monotonic() - began < at_most_s:
        if is_so():
            return time.monotonic() - began
        time.sleep(0.05)
    return None


def pinged(port: int, timeout_s: float = 5.0) -> float | None:
    """Seconds in which a well-behaved client of its own connection gets `/ping`; None where it gets nothing."""
    began = time.monotonic()
    try:
        reply = reply_of(port, b"GET /ping " + HEAD + b"Connection: close\r\n\r\n", timeout_s=timeout_s)
    except OSError:
        return None
    return time.monotonic() - began if status_of(reply) in (200, 204) else None


@dataclass
class Cost:
    """What an attack cost: processor time, memory at its peak, and the seconds of each `/ping`, None for no answer."""

    cpu_s: float = 0.0
    mib: float = 0.0
    pings: list[float | None] = field(default_factory=list)

    @property
    def longest_s(self) -> float | None:
        """Of the pings; None where one got no answer."""
        waits = [wait for wait in self.pings if wait is not None]
        return max(waits) if len(waits) == len(self.pings) else None


class Target:
    """A server that is attacked: a process with its children."""

    def __init__(self, address: str, pid: int) -> None:
        self.address, self.port = address, int(address.rpartition(":")[2])
        self.process = psutil.Process(pid)

    def processes(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def cpu_s(self) -> float:
        return float(sum(sum(each.cpu_times()[:2]) for each in self.processes()))

    def mib(self) -> float:
        return float(sum(each.memory_info().rss for each in self.processes())) / MIB

    @contextlib.contextmanager
    def measured(self) -> Iterator[Cost]:
        """The cost of what is done meanwhile, with an honest client that pings again and again."""
        cost, cpu_s, mib, is_over = Cost(), self.cpu_s(), self.mib(), threading.Event()

        def watch() -> None:
            while not (is_over.is_set() and cost.pings):
                cost.pings.append(pinged(self.port, 10))
                cost.mib = max(cost.mib, self.mib() - mib)
                is_over.wait(0.02)

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            yield cost
        finally:
            is_over.set()
            watching.join()
            cost.cpu_s = self.cpu_s() - cpu_s
