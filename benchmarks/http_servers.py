"""Servers of ASGI applications among strangers: what each attack costs ours, and those that could stand in its slot.

python -m benchmarks.http_servers [--servers ours,uvicorn-h11,...] [--save]

Each serves the same small application, as a process of 256 descriptors, with the bounds that it has turned on:
uvicorn on httptools and on h11, Hypercorn, Granian, and the worker's (httptools under our own connections, with the
middleware before its routes). Each attack is of at most 64 MiB and some seconds, beside an honest client that asks for
`/ping` again and again.
"""

import argparse
import asyncio
import http.client
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import uvicorn
from granian import Granian
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from hypercorn.asyncio import serve as serve_hypercorn
from hypercorn.config import Config as HypercornConfig

from benchmarks.http import free_port
from benchmarks.report import environment, save
from tests.server import strangers
from tests.server.strangers import HEAD, MIB, Cost, Target
from worker.core.settings import Settings
from worker.dialects.table import DIALECTS
from worker.server.app import admission_of
from worker.server.connections import Connections, room_for_connections
from worker.server.middleware import RequestMiddleware
from worker.server.server import Server

NUM_DESCRIPTORS = 256
MOST_CONNECTIONS = 200  # of those that can bound them
HEAD_BYTES = 64 * 1024
HEAD_TIMEOUT_S = 5
AT_ONCE = 1000
PACKAGES = ("uvicorn", "httptools", "h11", "hypercorn", "granian", "uvloop")


async def app(scope: Any, receive: Any, send: Any) -> None:
    """`/v1/chat/completions` reads its body where there is a key and else refuses it; `/stream` sends three parts,
    `/slow` answers after half a second, all others at once."""
    if scope["type"] == "lifespan":
        for _ in range(2):
            await send({"type": f"{(await receive())['type']}.complete"})
        return
    status, body = 200, b"ok"
    if scope["path"] == strangers.ROUTE.decode():
        status, body = await _echo(scope, receive)
    elif scope["path"] == "/stream":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        for part in (b"one ", b"two ", b"three"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        return
    elif scope["path"] == "/slow":
        await asyncio.sleep(0.5)
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


async def _echo(scope: Any, receive: Any) -> tuple[int, bytes]:
    if not any(name == b"x-api-key" for name, _ in scope["headers"]):
        return 401, b"no key"
    num_bytes, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        num_bytes += len(message.get("body", b""))
        more = message.get("more_body", False)
    return 200, b"%d bytes" % num_bytes


def _uvicorn(parser: str) -> Callable[[int], None]:
    def serve(port: int) -> None:
        uvicorn.run(
            app,
            port=port,
            http=parser,
            access_log=False,
            log_config=None,
            limit_concurrency=MOST_CONNECTIONS,
            h11_max_incomplete_event_size=HEAD_BYTES,
        )

    return serve


def _hypercorn(port: int) -> None:
    config = HypercornConfig()
    config.bind, config.errorlog = [f"127.0.0.1:{port}"], None
    config.h11_max_incomplete_size, config.read_timeout = HEAD_BYTES, HEAD_TIMEOUT_S
    asyncio.run(serve_hypercorn(app, config))


def _granian(port: int) -> None:
    bounds = HTTP1Settings(header_read_timeout=HEAD_TIMEOUT_S * 1000, max_buffer_size=HEAD_BYTES)
    Granian(
        "benchmarks.http_servers:app",
        port=port,
        interface=Interfaces.ASGI,
        http=HTTPModes.http1,
        backpressure=MOST_CONNECTIONS,
        http1_settings=bounds,
        log_enabled=False,
    ).serve()


def _ours(port: int) -> None:
    """With what stands before the worker's routes, too."""
    settings = Settings(port=port, head_timeout_s=HEAD_TIMEOUT_S, body_timeout_s=HEAD_TIMEOUT_S, api_key="k1")
    num_connections = room_for_connections(settings.max_connections)
    admission = admission_of(settings, num_connections)
    guarded = RequestMiddleware(app, admission, settings, DIALECTS)
    Server(guarded, settings, Connections(num_connections), admission.metrics.refused).run()


SERVERS: dict[str, Callable[[int], None]] = {
    "ours": _ours,
    "uvicorn-httptools": _uvicorn("httptools"),
    "uvicorn-h11": _uvicorn("h11"),
    "hypercorn": _hypercorn,
    "granian": _granian,
}


def shown(cost: Cost) -> str:
    waited = "none" if cost.longest_s is None else f"{cost.longest_s * 1000:.0f} ms"
    return f"{cost.cpu_s:.1f} s, {cost.mib:.0f} MiB, {waited}"


@contextmanager
def running(name: str) -> Iterator[Target]:
    port = free_port()

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (NUM_DESCRIPTORS, NUM_DESCRIPTORS))

    command = [sys.executable, "-m", "benchmarks.http_servers", "--serve", name, "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, preexec_fn=limit) as process:
        try:
            if strangers.seconds_until(lambda: strangers.pinged(port, 1) is not None, 20) is None:
                raise RuntimeError(f"{name} does not start")
            target = Target(f"http://127.0.0.1:{port}", process.pid)
            yield target
            for each in target.processes():
                each.kill()
        finally:
            process.kill()


def endless(name: str) -> dict[str, str]:
    """What each attack that has no end costs: what was taken of 64 MiB, and the rest."""
    told = {}
    for what, (beginning, repeated) in strangers.ENDLESS.items():
        with running(name) as server, server.measured() as cost:
            taken, _ = strangers.poured(server.port, beginning, repeated, 64 * MIB, 10)
        told[f"{what} without an end"] = f"{taken / MIB:.0f} MiB taken, {shown(cost)}"
    return told


def smuggled(name: str) -> str:
    """Requests that two readers might understand differently, and that are answered otherwise than by a refusal."""
    with running(name) as server:
        taken = [
            what
            for what, sent in strangers.SMUGGLED.items()
            if strangers.status_of(strangers.reply_of(server.port, sent, timeout_s=0.5)) == 200
        ]
    return f"{len(taken)} of {len(strangers.SMUGGLED)}" + (f": {', '.join(taken)}" if taken else "")


def crowds(name: str) -> dict[str, str]:
    """A thousand connections that say nothing, or half of something: does an honest client get in, do they go?"""
    told = {}
    half_body = strangers.TAKEN + b"Content-Length: 100\r\n\r\nx"
    for what, sent in {"silent": b"", "with half a head": b"GET / HT", "with half a body": half_body}.items():
        with running(name) as server, server.measured() as cost, strangers.held(server.port, AT_ONCE, sent) as clients:
            time.sleep(2 * HEAD_TIMEOUT_S)
            told[f"1,000 connections {what}"] = (
                f"{strangers.num_open(clients)} open {2 * HEAD_TIMEOUT_S} s later, {shown(cost)}"
            )
    return told


def standard(name: str) -> dict[str, str]:
    """Where clients differ from each other."""
    with running(name) as server:

        def reply(sent: bytes, *, half_close: bool = False) -> bytes:
            return strangers.reply_of(server.port, sent, half_close=half_close, timeout_s=1.0)

        old = reply(b"GET /stream HTTP/1.0\r\nHost: x\r\nX-API-Key: k1\r\n\r\n")
        expects = strangers.REFUSED + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n"
        return {
            "a stream to HTTP/1.0": "as it is" if old.endswith(b"\r\n\r\none two three") else "in chunks",
            "a client that has ended its side": f"{strangers.status_of(reply(SLOW, half_close=True))}",
            "two requests at once": f"{reply(SLOW + PING).count(b'HTTP/1.1 200')} answers",
            "a refused body that was to be asked for": reply(expects)[9:12].decode(),
        }


def speeds(name: str) -> dict[str, str]:
    """One client on one connection: small requests, and bodies of 16 MiB."""
    told = {}
    for what, count, method, body in (
        ("small requests a second", 3000, "GET", None),
        ("bodies of 16 MiB a second", 20, "POST", BODY),
    ):
        with running(name) as server:
            client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            cpu_s, began = server.cpu_s(), time.perf_counter()
            for _ in range(count):
                client.request(method, ROUTE if body else "/ping", body, {"X-API-Key": "k1"})
                client.getresponse().read()
            took = time.perf_counter() - began
            told[what] = f"{count / took:.0f}, {(server.cpu_s() - cpu_s) / count * 1000:.2f} ms of the processor each"
            client.close()
    return told


ROUTE = strangers.ROUTE.decode()
BODY = bytes(16 * MIB)
SLOW = b"GET /slow " + HEAD + b"X-API-Key: k1\r\n\r\n"
PING = b"GET /ping " + HEAD + b"\r\n"


def tried(name: str) -> dict[str, str]:
    return {
        **endless(name),
        "read though two readers might differ": smuggled(name),
        **crowds(name),
        **standard(name),
        **speeds(name),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--servers", default=",".join(SERVERS))
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--serve", choices=SERVERS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        SERVERS[arguments.serve](arguments.port)
        return
    names = arguments.servers.split(",")
    found = {}
    for name in names:
        found[name] = tried(name)
        print(name, *(f"  {what}: {said}" for what, said in found[name].items()), sep="\n", flush=True)
    rows = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    rows += [f"| {what} | {' | '.join(found[name][what] for name in names)} |" for what in found[names[0]]]
    table = "\n".join(rows) + (
        "\n\nOf each attack: what was taken of 64 MiB, seconds of the processor, memory beyond what was held before, "
        "and the longest wait of an honest client's `/ping` meanwhile; `none`: some got no answer.\n"
    )
    print(table)
    if arguments.save:
        facts = environment("python -m benchmarks.http_servers", servers=found)
        facts["packages"] = {package: version(package) for package in PACKAGES}
        save("http-servers", facts, table)


if __name__ == "__main__":
    main()
