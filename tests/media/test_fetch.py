"""The fetcher against a server on the loopback that misbehaves to order; and against addresses it must never reach."""

import asyncio
import gzip
import socket
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import brotli  # type: ignore[import-untyped]
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from backports import zstd
from yarl import URL

from worker.core.errors import (
    MediaError,
    MediaFetchFailed,
    MediaFetchTimeout,
    MediaTooLarge,
    MediaUrlForbidden,
    MediaUrlInvalid,
)
from worker.core.settings import Settings
from worker.media.fetch import Fetcher

pytestmark = pytest.mark.network

Serve = Callable[[str, asyncio.StreamWriter], Awaitable[None]]


def ignore(count: int) -> None:
    """Nobody counts."""


class Names(AbstractResolver):
    """Every name is the address given; counts how often it was asked."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._addresses
        ]

    async def close(self) -> None:
        pass


@asynccontextmanager
async def server(serve: Serve) -> Any:
    """A server that hands the path to `serve`; yields its port and the list of paths asked for."""
    asked: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            path = request.split(b" ")[1].decode()
            asked.append(path)
            await serve(path, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[1], asked
    finally:
        listening.close()
        await listening.wait_closed()


def fetch(
    serve: Serve,
    path: str = "/x",
    max_bytes: int = 1000,
    timeout_s: float = 5.0,
    take: Callable[[int], None] = ignore,
    **settings: Any,
) -> bytes:
    limits = Settings(media_allow_loopback=True, **settings)

    async def run() -> bytes:
        async with server(serve) as (port, _):
            return await Fetcher(limits).fetch(f"http://127.0.0.1:{port}{path}", max_bytes, timeout_s, take)

    return asyncio.run(run())


def says(head: bytes, body: bytes = b"") -> Serve:
    async def serve(path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(head.replace(b"\n", b"\r\n") + b"\r\n\r\n" + body)

    return serve


def test_a_body_is_fetched() -> None:
    assert fetch(says(b"HTTP/1.1 200 OK\nContent-Length: 5", b"hello")) == b"hello"


def test_a_body_of_unknown_length_is_fetched() -> None:
    assert fetch(says(b"HTTP/1.1 200 OK\nConnection: close", b"hello")) == b"hello"


@pytest.mark.parametrize(
    ("head", "body", "error"),
    [
        (b"HTTP/1.1 404 Not Found\nContent-Length: 0", b"", MediaFetchFailed),
        (b"HTTP/1.1 403 Forbidden\nContent-Length: 0", b"", MediaFetchFailed),
        (b"HTTP/1.1 204 No Content", b"", MediaFetchFailed),
        (b"HTTP/1.1 500 Oops\nContent-Length: 0", b"", "retry"),
        (b"HTTP/1.1 429 Slow down\nContent-Length: 0", b"", "retry"),
        (b"HTTP/1.1 200 OK\nContent-Length: 1001", b"x" * 1001, MediaTooLarge),
        (b"HTTP/1.1 200 OK\nConnection: close", b"x" * 1001, MediaTooLarge),
        (b"HTTP/1.1 200 OK\nContent-Length: 500", b"x" * 400, "retry"),
        (b"HTTP/1.1 200 OK\nContent-Length: 5\nContent-Encoding: gzip", b"12345", MediaFetchFailed),
        (b"HTTP/1.1 200 OK\nX: " + b"y" * 9000, b"", "retry"),
        (b"SSH-2.0-OpenSSH", b"", "retry"),
        (b"HTTP/1.1 302 Found\nContent-Length: 0", b"", MediaFetchFailed),
        (b"HTTP/1.1 302 Found\nLocation: file:///etc/passwd\nContent-Length: 0", b"", MediaUrlInvalid),
        (b"HTTP/1.1 302 Found\nLocation: http://10.0.0.1/\nContent-Length: 0", b"", MediaUrlForbidden),
        (b"HTTP/1.1 302 Found\nLocation: http://[::ffff:169.254.169.254]/\nContent-Length: 0", b"", MediaUrlForbidden),
        (b"HTTP/1.1 302 Found\nLocation: http://user:pw@127.0.0.1/\nContent-Length: 0", b"", MediaUrlInvalid),
        (b"HTTP/1.1 302 Found\nLocation: /x\nContent-Length: 0", b"", MediaFetchFailed),
    ],
)
def test_misbehaviour_has_a_code(head: bytes, body: bytes, error: type[MediaError] | str) -> None:
    with pytest.raises(MediaError) as failure:
        fetch(says(head, body))
    assert type(failure.value) is (MediaFetchFailed if error == "retry" else error)
    assert failure.value.is_retryable == (error == "retry")


def test_a_few_redirects_are_followed() -> None:
    async def serve(path: str, writer: asyncio.StreamWriter) -> None:
        step = int(path[1:])
        if step < 3:
            writer.write(b"HTTP/1.1 302 Found\r\nLocation: /%d\r\nContent-Length: 0\r\n\r\n" % (step + 1))
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone")

    assert fetch(serve, "/0") == b"done"
    with pytest.raises(MediaFetchFailed):
        fetch(serve, "/0", max_redirects=2)


def test_an_endless_body_ends_at_the_limit() -> None:
    async def serve(path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        for _ in range(10_000):
            writer.write(b"x" * 65536)
            await writer.drain()

    with pytest.raises(MediaTooLarge):
        fetch(serve, max_bytes=200_000)


def test_every_chunk_is_counted_as_it_comes() -> None:
    limits = Settings(media_allow_loopback=True)

    def take(count: int) -> None:
        raise MediaTooLarge(detail="all together")

    async def run() -> None:
        async with server(says(b"HTTP/1.1 200 OK\nContent-Length: 5", b"hello")) as (port, _):
            await Fetcher(limits).fetch(f"http://127.0.0.1:{port}/", 100, 5.0, take)

    with pytest.raises(MediaTooLarge):
        asyncio.run(run())


@pytest.mark.parametrize("location", ["http://[::1]@", "http://[a]@/", "http://a[::1]@"])
def test_brackets_before_an_at_sign_are_a_bad_redirect(location: str) -> None:
    with pytest.raises(MediaError):
        fetch(says(b"HTTP/1.1 302 Found\nLocation: " + location.encode() + b"\nContent-Length: 0"))


def test_a_silent_server_times_out() -> None:
    async def serve(path: str, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    with pytest.raises(MediaFetchTimeout):
        fetch(serve, timeout_s=0.05)
    with pytest.raises(MediaFetchTimeout):
        fetch(serve, read_timeout_s=0.05)


def test_a_dripping_body_meets_the_total_deadline() -> None:
    async def serve(path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.01)

    with pytest.raises(MediaFetchTimeout):
        fetch(serve, timeout_s=0.1)


def test_a_closed_port_may_be_tried_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    limits = Settings(media_allow_loopback=True)
    with pytest.raises(MediaFetchFailed) as failure:
        asyncio.run(Fetcher(limits).fetch(f"http://127.0.0.1:{port}/", 10, 5.0, ignore))
    assert failure.value.is_retryable


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert fetch(says(b"HTTP/1.1 200 OK\nContent-Length: 2", b"ok")) == b"ok"


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0", "localhost", "localhost.", "[::1]",
     "[::ffff:127.0.0.1]", "127.0.0.1."],
)  # fmt: skip
def test_no_notation_of_the_loopback_is_reached(host: str) -> None:
    async def run() -> list[str]:
        async with server(says(b"HTTP/1.1 200 OK\nContent-Length: 2", b"no")) as (port, asked):
            with pytest.raises(MediaError):
                await _PortBlind(Settings()).fetch(f"http://{host}:{port}/", 100, 2.0, ignore)
            return asked  # type: ignore[no-any-return]

    assert asyncio.run(run()) == []


class _PortBlind(Fetcher):
    """Lets every port through the check of the form, so that only the check of the address is left to hold."""

    def _check(self, address: str) -> Any:
        return URL(address)


@pytest.mark.parametrize("addresses", [("127.0.0.1",), ("10.0.0.1", "127.0.0.1"), ("::1", "169.254.169.254")])
def test_a_name_that_means_an_inside_address_is_forbidden(addresses: tuple[str, ...]) -> None:
    fetcher = Fetcher(Settings(), make_resolver=lambda: Names(*addresses))
    with pytest.raises(MediaUrlForbidden):
        asyncio.run(fetcher.fetch("http://rebound.test/x.png", 100, 2.0, ignore))


def test_names_whose_servers_are_silent_hold_up_nobody_else() -> None:
    """A real resolver and a name server that never answers: sixteen such names once stopped all fetching by name."""

    async def run(silent: socket.socket) -> None:
        port = silent.getsockname()[1]
        names = aiohttp.AsyncResolver(nameservers=["127.0.0.1"], udp_port=port, tcp_port=port)
        fetcher = Fetcher(Settings(connect_timeout_s=0.3, media_allow_loopback=True), lambda: names)
        async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") as at:
            waiting = [
                asyncio.create_task(fetcher.fetch(f"http://n{number}.test/", 10, 10, lambda _: None))
                for number in range(40)
            ]
            assert await fetcher.fetch(f"http://localhost:{at}/", 10, 10, lambda _: None) == b"ok"
            assert not any(task.done() for task in waiting)
            failures = await asyncio.gather(*waiting, return_exceptions=True)
        await names.close()
        assert {type(failure) for failure in failures} == {MediaFetchFailed}
        assert {failure.is_retryable for failure in failures if isinstance(failure, MediaFetchFailed)} == {True}

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        asyncio.run(run(silent))


@asynccontextmanager
async def answering(said: bytes) -> AsyncIterator[int]:
    """The port of a server on the loopback that says the same to everybody."""

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(say, "localhost", 0) as server:
        yield server.sockets[0].getsockname()[1]


def test_the_reason_of_a_failure_names_the_host_and_nothing_that_may_be_a_secret() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    fetcher = Fetcher(Settings(media_allow_loopback=True))
    with pytest.raises(MediaFetchFailed) as failure:
        asyncio.run(fetcher.fetch(f"http://127.0.0.1:{port}/secret?token=secret", 10, 10, lambda _: None))
    assert failure.value.reason == "http://127.0.0.1: ConnectionRefusedError 111"
    assert "127.0.0.1" not in failure.value.message


SENT = bytes(range(256)) * 900
NO_CODINGS = ("aws-chunked", "utf-8", "binary", "none", "", "identity", "null", "us-ascii", "image/png", "utf-8;q=1")
PACKED: dict[str, tuple[str, bytes]] = {
    "gzip": ("gzip", gzip.compress(SENT)),
    "gzip, another name": ("x-gzip", gzip.compress(SENT)),
    "gzip of two parts": ("GZIP", gzip.compress(SENT[:1000]) + gzip.compress(SENT[1000:])),
    "deflate": ("deflate", zlib.compress(SENT)),
    "deflate without its head": ("deflate", zlib.compress(SENT)[2:-4]),
    "brotli": ("br", brotli.compress(SENT)),
    "zstd": ("zstd", zstd.compress(SENT)),
    "zstd of two parts": ("zstd", zstd.compress(SENT[:1000]) + zstd.compress(SENT[1000:])),
    "gzip with something behind it": ("gzip", gzip.compress(SENT) + b"trailer"),
    "zstd with something behind it": ("zstd", zstd.compress(SENT) + b"trailer"),
    "one that is none beside it": ("aws-chunked,gzip", gzip.compress(SENT)),
    **{f"as it is, called {name!r}": (name, SENT) for name in NO_CODINGS},
}


@pytest.mark.parametrize("name", PACKED)
def test_what_a_store_packs_is_unpacked(name: str) -> None:
    coding, body = PACKED[name]
    head = f"HTTP/1.1 200 OK\nContent-Length: {len(body)}\nContent-Encoding: {coding}".encode()
    taken: list[int] = []
    assert fetch(says(head, body), max_bytes=len(SENT), take=taken.append) == SENT
    assert sum(taken) == len(SENT)


@pytest.mark.parametrize("name", ["gzip", "deflate", "brotli", "zstd"])
def test_what_is_packed_and_damaged_is_refused(name: str) -> None:
    coding, body = PACKED[name]
    for damaged in (body[:-6], b"\x7f" * 50, body[: len(body) // 2] + bytes(40)):
        head = f"HTTP/1.1 200 OK\nContent-Length: {len(damaged)}\nContent-Encoding: {coding}".encode()
        with pytest.raises(MediaFetchFailed, match="Content-Encoding"):
            fetch(says(head, damaged), max_bytes=len(SENT))


@pytest.mark.parametrize("pack", [gzip.compress, brotli.compress, zstd.compress, zlib.compress])
def test_a_bomb_is_unpacked_no_further_than_the_limit(pack: Callable[[bytes], bytes]) -> None:
    coding = {gzip.compress: "gzip", brotli.compress: "br", zstd.compress: "zstd", zlib.compress: "deflate"}[pack]
    body, taken = pack(bytes(50_000_000)), list[int]()
    head = f"HTTP/1.1 200 OK\nContent-Length: {len(body)}\nContent-Encoding: {coding}".encode()
    with pytest.raises(MediaTooLarge):
        fetch(says(head, body), max_bytes=300_000, take=taken.append)
    assert sum(taken) < 600_000


def test_parts_of_gzip_that_hold_nothing_do_not_hold_up_others() -> None:
    """Four megabytes of empty members: the loop goes on in between, and they end somewhere."""
    body = gzip.compress(b"") * 200_000
    head = f"HTTP/1.1 200 OK\nContent-Length: {len(body)}\nContent-Encoding: gzip".encode()
    assert fetch(says(head, body), max_bytes=len(body)) == b""


@pytest.mark.parametrize("coding", ["compress", "gzip, gzip", "br, gzip", "exi"])
def test_other_codings_are_refused(coding: str) -> None:
    head = f"HTTP/1.1 200 OK\nContent-Length: 5\nContent-Encoding: {coding}".encode()
    with pytest.raises(MediaFetchFailed, match="not decoded"):
        fetch(says(head, b"hello"))


@pytest.mark.parametrize("target", ["/a%2Fb/%7Ex/it%27s?sig=a%2Fb%3D%3D&x=%27%7e", "/a/../b//c?", "/{a}|b?c=[d]"])
def test_the_server_is_asked_for_what_the_address_says_byte_for_byte(target: str) -> None:
    async def run() -> list[str]:
        async with server(says(b"HTTP/1.1 200 OK\nContent-Length: 2", b"ok")) as (port, asked):
            fetcher = Fetcher(Settings(media_allow_loopback=True))
            await fetcher.fetch(f"http://127.0.0.1:{port}{target}", 100, 5, ignore)
            return list(asked)

    assert asyncio.run(run()) == [target]


@pytest.mark.parametrize(
    ("location", "then"),
    [
        ("/b%2Fc/%7E?sig=%27%2F", "/b%2Fc/%7E?sig=%27%2F"),
        ("http://127.0.0.1:{port}/x%2Fy?s=%2F%27", "/x%2Fy?s=%2F%27"),
        ("next%2Fone?s=%7E", "/from/next%2Fone?s=%7E"),
        ("/x?", "/x?"),
        ("/a/../b%2F", "/a/../b%2F"),
        ("?x=%2F%7E", "/from/here?x=%2F%7E"),
        ("../up%2F", "/up%2F"),
        ("//127.0.0.1:{port}/z%27", "/z%27"),
    ],
)
def test_a_redirect_is_followed_byte_for_byte(location: str, then: str) -> None:
    async def run() -> list[str]:
        ports: list[int] = []

        async def serve(path: str, writer: asyncio.StreamWriter) -> None:
            if path == "/from/here":
                where = location.format(port=ports[0]).encode()
                writer.write(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + where + b"\r\n\r\n")
            else:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

        async with server(serve) as (port, asked):
            ports.append(port)
            await Fetcher(Settings(media_allow_loopback=True)).fetch(
                f"http://127.0.0.1:{port}/from/here", 100, 5, ignore
            )
            return list(asked)

    assert asyncio.run(run()) == ["/from/here", then]
