"""What strangers send, each in a process of its own: the code, the seconds, the memory, and who was reached.

`python -m tests.media.attacks` prints the table as Markdown (as JSON with `--json`). 127.0.0.99 plays the public
internet, any other address of this machine plays what lies inside: a server there counts who connects.
"""

import argparse
import asyncio
import base64
import gc
import json
import math
import multiprocessing as mp
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import torch
from aiohttp import ThreadedResolver
from aiohttp.abc import AbstractResolver, ResolveResult

from tests.media.attack_files import FILMS, PICTURES, PNG, Sent, growing, sound
from worker.checkpoint.family_rules import QWEN3_VL_PIXELS as QWEN3_VL
from worker.core.contract import NO_CONTROLS, Controls, Inline, Media, Upload, Url
from worker.core.errors import WorkerError
from worker.core.opened import Clip, Opened
from worker.core.settings import Settings
from worker.dialects import native
from worker.media import fetch, guard
from worker.media.fetch import Fetcher
from worker.media.opener import Opener
from worker.prompt.size_policy import SmartResizePolicy

INTERNET = "127.0.0.99"
INSIDE = "127.0.0.1"
SETTINGS = Settings(image_timeout_s=1.0, video_timeout_s=1.0, max_image_bytes=4 * 2**20, prepare_threads=2)
NUM_FAILURES = 1000
MIB = 2**20


@dataclass(frozen=True)
class Attack:
    """One input. code: of the refusal, or "seen". cpu_s, mib: caps, memory beyond what the process held before.

    make: the media, or the body of a request. Addresses in it may hold {internet} and {inside}, both servers' ports.
    """

    group: str
    name: str
    make: Callable[[], Media | dict[str, Any]]
    code: str = "seen"
    cpu_s: float = 3.0
    mib: int = 48
    environment: tuple[tuple[str, str], ...] = ()


def _address(group: str, name: str, url: str, code: str = "MEDIA_URL_FORBIDDEN", **more: Any) -> Attack:
    return Attack(group, name, lambda: Media(kind="image", source=Url(url=url), where="image"), code, **more)


def _addresses() -> Iterator[Attack]:
    group = "address"
    invalid, forbidden = "MEDIA_URL_INVALID", "MEDIA_URL_FORBIDDEN"
    asked = f"{forbidden} | MEDIA_FETCH_FAILED"  # what the system's resolver makes of it
    for name, host, code in (
        ("plain", "127.0.0.1", forbidden), ("decimal", "2130706433", invalid), ("hexadecimal", "0x7f000001", asked),
        ("octal", "0177.0.0.1", invalid), ("short", "127.1", invalid), ("trailing dot", "127.0.0.1.", invalid),
        ("zero", "0.0.0.0", forbidden), ("only a zero", "0", invalid), ("::1", "[::1]", forbidden),
        ("mapped", "[::ffff:127.0.0.1]", forbidden), ("mapped, in hexadecimal", "[::ffff:7f00:1]", forbidden),
        ("zone", "[fe80::1%25lo]", forbidden), ("NAT64", "[64:ff9b::7f00:1]", forbidden),
        ("6to4", "[2002:7f00:1::]", forbidden), ("Teredo", "[2001:0:7f00:1::]", forbidden),
        ("compatible", "[::7f00:1]", forbidden), ("carrier's NAT", "100.64.0.1", forbidden),
        ("metadata", "169.254.169.254", forbidden), ("Azure's metadata", "168.63.129.16", forbidden),
        ("Alibaba's metadata", "100.100.100.200", forbidden), ("AWS's IPv6 metadata", "[fd00:ec2::254]", forbidden),
        ("localhost", "localhost", forbidden), ("localhost, trailing dot", "localhost.", asked),
        ("rounded letters", "ⓛⓞⓒⓐⓛⓗⓞⓢⓣ", forbidden), ("wide digits", "１２７.0.0.1", forbidden),
        ("a name that means it", "inside.test", forbidden), ("a name of two addresses", "both.test", "seen"),
    ):  # fmt: skip
        yield _address(group, name, f"http://{host}:{{inside}}/", code)
    yield _address(group, "user and host", "http://net.test@127.0.0.1:{inside}/", "MEDIA_URL_INVALID")
    yield _address(group, "backslash and @", "http://net.test\\@127.0.0.1:{inside}/", "MEDIA_URL_INVALID")
    yield _address(group, "# and @", "http://net.test:{internet}/ok#@127.0.0.1:{inside}/", "seen")
    yield _address(group, "# and @, the other way", "http://127.0.0.1:{inside}/#@net.test:{internet}/ok")
    yield _address(group, "line break", "http://net.test:{internet}/\r\nHost: inside", "MEDIA_URL_INVALID")
    yield _address(group, "letters alike", "http://nеt.test:{internet}/ok", "MEDIA_FETCH_FAILED")  # a Cyrillic е
    for scheme in ("file:///etc/passwd", "ftp://net.test/x", "gopher://net.test/x", "//127.0.0.1:{inside}/", "a.png"):
        yield _address(group, scheme.replace(":{inside}", ""), scheme, "MEDIA_URL_INVALID")
    yield _address(group, "another port", "http://net.test:22/")
    proxies = tuple((name, "http://127.0.0.1:{inside}") for name in ("http_proxy", "HTTP_PROXY", "all_proxy"))
    yield _address(group, "proxy variables", "http://net.test:{internet}/ok", "seen", environment=proxies)
    for path, code in {
        "to-inside": "MEDIA_URL_FORBIDDEN", "to-name": "MEDIA_URL_FORBIDDEN", "to-mapped": "MEDIA_URL_FORBIDDEN",
        "to-file": "MEDIA_URL_INVALID", "in-a-loop": "MEDIA_FETCH_FAILED", "to-nowhere": "MEDIA_FETCH_FAILED",
    }.items():  # fmt: skip
        yield _address("redirect", path.replace("-", " "), f"http://net.test:{{internet}}/{path}", code)
    yield _address("redirect", "a name that changes its mind", "http://rebound.test:{internet}/to-rebound")


def _bodies() -> Iterator[Attack]:
    for path, code in {
        "endless": "MEDIA_TOO_LARGE", "endless-head": "MEDIA_FETCH_FAILED", "dripping": "MEDIA_FETCH_TIMEOUT",
        "dripping-head": "MEDIA_FETCH_TIMEOUT", "silent": "MEDIA_FETCH_TIMEOUT",
        "longer-than-it-is": "MEDIA_FETCH_FAILED",
        "shorter-than-it-is": "MEDIA_FETCH_FAILED", "a-terabyte": "MEDIA_TOO_LARGE", "gzip-bomb": "MEDIA_FETCH_FAILED",
        "text-as-png": "MEDIA_UNSUPPORTED_TYPE", "png-as-text": "seen", "error-500": "MEDIA_FETCH_FAILED",
        "no-http": "MEDIA_FETCH_FAILED", "nothing": "MEDIA_UNSUPPORTED_TYPE",
    }.items():  # fmt: skip
        yield _address("body", path.replace("-", " "), f"http://net.test:{{internet}}/{path}", code)


def _inline(name: str, make: Callable[[], str], code: str = "seen", **more: Any) -> Attack:
    return Attack("base64", name, lambda: Media(kind="image", source=Inline(data=make()), where="image"), code, **more)


def _base64() -> Iterator[Attack]:
    plain = base64.b64encode(PNG).decode()
    yield _inline("with white space", lambda: "\n".join(plain[at : at + 60] for at in range(0, len(plain), 60)))
    yield _inline("URL-safe", lambda: base64.urlsafe_b64encode(PNG).decode())
    yield _inline("without padding", lambda: plain.rstrip("="))
    yield _inline("wrong type", lambda: "data:video/mp4;base64," + plain)
    yield _inline("not base64", lambda: "data:image/png," + plain, "MEDIA_BASE64_INVALID")
    yield _inline("nothing", lambda: "data:image/png;base64,", "MEDIA_BASE64_INVALID")
    yield _inline("a path", lambda: "/etc/passwd", "MEDIA_UNSUPPORTED_TYPE")
    yield _inline("200 MB", lambda: "A" * (200_000_000 * 4 // 3), "MEDIA_TOO_LARGE", mib=4)
    yield _inline("just over the limit", lambda: "AAAA" * (SETTINGS.max_image_bytes // 3 + 2), "MEDIA_TOO_LARGE")


def _file(group: str, kind: Any, name: str, sent: Sent) -> Attack:
    def make() -> Media:
        controls = Controls(**sent.controls) if sent.controls else NO_CONTROLS
        return Media(kind=kind, source=Upload(data=sent.make()), where=kind, controls=controls)

    return Attack(group, name, make, sent.code, sent.cpu_s, sent.mib)


def _files() -> Iterator[Attack]:
    for name, sent in PICTURES.items():
        yield _file("picture", "image", name, sent)
    for name, sent in FILMS.items():
        yield _file("video", "video", name, sent)
    yield _file("picture", "image", "a video", Sent(FILMS["plain"].make, "MEDIA_UNSUPPORTED_TYPE"))
    yield _file("video", "video", "a picture", Sent(lambda: PNG, "MEDIA_UNSUPPORTED_TYPE"))
    yield _file("video", "video", "a GIF that grows", Sent(growing, "MEDIA_DIMENSIONS"))
    yield _file("video", "video", "only sound", Sent(sound, "MEDIA_VIDEO_NO_FRAMES"))
    for name, fps in (("not a number", math.nan), ("1e9", 1e9)):
        body = {"prompt": "x", "videos": [{"video": "http://net.test/x", "fps": fps}]}
        yield Attack("video", f"fps {name}", lambda body=body: body, "INPUT_INVALID")  # type: ignore[misc]


ATTACKS = (*_addresses(), *_bodies(), *_base64(), *_files())


class Names(ThreadedResolver):
    """Names under .test mean what is written here; a list of answers is given one after the other."""

    answers: dict[str, list[tuple[str, ...]]]

    def __init__(self) -> None:
        super().__init__()
        self.answers = {
            "net.test": [(INTERNET,)], "inside.test": [(INSIDE,)], "both.test": [(INSIDE, INTERNET)],
            "rebound.test": _REBOUND,
        }  # fmt: skip

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        if not host.rstrip(".").endswith(".test"):
            return await super().resolve(host, port, family)
        answers = self.answers.get(host)
        if answers is None:
            raise OSError("no such name")
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        return [ResolveResult(hostname=host, host=one, port=port, family=2, proto=0, flags=0) for one in addresses]


_REBOUND: list[tuple[str, ...]] = [(INTERNET,), (INSIDE,)]  # over all resolvers: each fetch has its own
_OK = b"HTTP/1.1 200 OK\r\n"
_LENGTH = b"Content-Length: %d\r\n"


async def _drip(writer: asyncio.StreamWriter, first: bytes, piece: bytes, pause_s: float) -> None:
    writer.write(first)
    while not writer.is_closing():
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(pause_s)


def _redirect(target: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode()


def _whole(body: bytes, *headers: bytes) -> bytes:
    return _OK + b"".join(header + b"\r\n" for header in headers) + _LENGTH % len(body) + b"\r\n" + body


def _answers(internet: int, inside: int) -> dict[str, bytes | tuple[bytes, bytes, float]]:
    """Path to what is said there: bytes, or a beginning, a piece that goes on for ever, and the pause between."""
    return {
        "/ok": _whole(PNG),
        "/to-inside": _redirect(f"http://127.0.0.1:{inside}/"),
        "/to-name": _redirect(f"http://localhost:{inside}/"),
        "/to-mapped": _redirect(f"http://[::ffff:127.0.0.1]:{inside}/"),
        "/to-file": _redirect("file:///etc/passwd"),
        "/to-nowhere": b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n",
        "/in-a-loop": _redirect(f"http://net.test:{internet}/in-a-loop"),
        "/to-rebound": _redirect(f"http://rebound.test:{inside}/"),
        "/endless": (_OK + b"\r\n", bytes(2**16), 0.0),
        "/endless-head": (_OK, b"X-More: " + b"y" * 4000 + b"\r\n", 0.0),
        "/dripping": (_OK + _LENGTH % 10**6 + b"\r\n", b"\x89", 0.1),
        "/dripping-head": (_OK, b"X", 0.1),
        "/silent": (b"", b"", 0.1),
        "/longer-than-it-is": _OK + _LENGTH % (len(PNG) + 9) + b"\r\n" + PNG,
        "/shorter-than-it-is": _OK + _LENGTH % (len(PNG) - 9) + b"\r\n" + PNG,
        "/a-terabyte": _OK + _LENGTH % 10**12 + b"\r\n" + PNG,
        "/gzip-bomb": _whole(b"\x1f\x8b\x08" + bytes(1000), b"Content-Encoding: gzip"),
        "/text-as-png": _whole(b"<html>hello</html>", b"Content-Type: image/png"),
        "/png-as-text": _whole(PNG, b"Content-Type: text/html"),
        "/error-500": b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n",
        "/no-http": b"SSH-2.0-OpenSSH_9.6\r\n" + bytes(100),
        "/nothing": _whole(b""),
    }


class Stage:
    """The two servers. `reached` counts connections to the inside, whatever became of them; the second one listens at
    every address, and at the internet's it is part of the internet."""

    reached = 0

    async def __aenter__(self) -> "Stage":
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        everywhere = socket.create_server(("", 0), family=family, dualstack_ipv6=both)
        self._servers = [
            await asyncio.start_server(self._say, INTERNET, 0),
            await asyncio.start_server(self._count, sock=everywhere),
        ]
        self.internet, self.inside = (server.sockets[0].getsockname()[1] for server in self._servers)
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self._servers:
            server.close()

    def filled(self, text: str) -> str:
        return text.replace("{internet}", str(self.internet)).replace("{inside}", str(self.inside))

    async def _say(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            path = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode()
            said = _answers(self.internet, self.inside).get(path, b"HTTP/1.1 404 No\r\n\r\n")
            if isinstance(said, tuple):
                await _drip(writer, *said)
            else:
                writer.write(said)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):  # the caller has gone, or the loop
            pass
        finally:
            writer.close()

    async def _count(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reached += not writer.get_extra_info("sockname")[0].endswith(INTERNET)
        writer.write(_whole(PNG))
        writer.close()


@contextmanager
def _playing(stage: Stage) -> Iterator[None]:
    """Both servers count as the web's ports and one address as public: only the rule for addresses stands between."""
    allowed = guard.is_allowed_address

    def plays(address: str, *, allow_loopback: bool = False) -> bool:
        return address == INTERNET or allowed(address, allow_loopback=allow_loopback)

    ports = (80, 443, stage.internet, stage.inside)
    with mock.patch.object(guard, "_PORTS", ports), mock.patch.object(fetch, "is_allowed_address", plays):
        yield


def _is_whole(opened: Opened) -> bool:
    arrays = opened.frames if isinstance(opened, Clip) else (opened.rgb,)
    return bool(arrays) and all(array.ndim == 3 and array.shape[2] == 3 for array in arrays)


def _opener(settings: Settings = SETTINGS) -> Opener:
    resolver: Callable[[], AbstractResolver] = Names
    return Opener(settings, Fetcher(settings, resolver), SmartResizePolicy(QWEN3_VL, settings))


async def _code_of(made: Media | dict[str, Any], stage: Stage, opener: Opener) -> str:
    try:
        if isinstance(made, dict):
            native.DIALECT.parse(made)
            return "seen"
        if isinstance(made.source, Url):
            made = made.model_copy(update={"source": Url(url=stage.filled(made.source.url))})
        [[opened]] = await opener.open([made])
    except WorkerError as error:
        tells_too_much = any(hint in error.message for hint in ("/etc", "/proc", " at 0x", "127.0.0.1", "PIL", "av."))
        return f"{error.code}, and too much" if tells_too_much else error.code
    return "seen" if _is_whole(opened) else "not whole"


def _memory(name: str) -> int:
    """`VmRSS` or `VmHWM` of this process, in bytes; a fork's own peak begins at its own size."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _measure(attack: Attack, made: Media | dict[str, Any], out: Any) -> None:
    torch.set_num_threads(1)
    before = _memory("VmRSS")

    async def run() -> dict[str, Any]:
        async with Stage() as stage:
            os.environ.update({name: stage.filled(value) for name, value in attack.environment})
            with _playing(stage):
                opener = _opener()
                wall_s, cpu_s = time.monotonic(), time.process_time()
                code = await _code_of(made, stage, opener)
                wall_s, cpu_s = time.monotonic() - wall_s, time.process_time() - cpu_s
                return {"code": code, "reached": stage.reached, "wall_s": wall_s, "cpu_s": cpu_s}

    out.send(asyncio.run(run()) | {"mib": (_memory("VmHWM") - before) / MIB})
    os._exit(0)  # a thread that still decodes is not waited for, as in the worker


def attacked(attack: Attack) -> dict[str, Any]:
    """One attack's row: code, seconds, memory; "killed" after a minute, "crashed" without an answer."""
    made = attack.make()
    context = mp.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=_measure, args=(attack, made, theirs))
    child.start()
    theirs.close()
    row = {"group": attack.group, "name": attack.name, "wanted": attack.code, "reached": 0, "wall_s": 0.0, "mib": 0.0}
    row |= {"cpu_s": 0.0, "cpu_cap_s": attack.cpu_s, "mib_cap": attack.mib}
    try:
        row |= ours.recv() if ours.poll(60) else {"code": "killed"}
    except EOFError:
        row["code"] = "crashed"
    child.kill()
    child.join()
    return row


def _state() -> dict[str, int]:
    gc.collect()
    process = psutil.Process()
    return {
        "files and sockets": process.num_fds(),
        "threads": threading.active_count(),
        "tasks": len(asyncio.all_tasks()),
        "MiB": process.memory_info().rss // MIB,
    }


def a_thousand_failures() -> dict[str, dict[str, int]]:
    """What the process holds before and after, the first hundred taken for warming up."""
    quick = [each for each in ATTACKS if each.code.startswith("MEDIA") and "TIMEOUT" not in each.code and each.mib < 64]
    skipped = {"200 MB", "just over the limit", "endless", "a name of two addresses"}
    made = [each.make() for each in quick if each.name not in skipped and each.group != "video"]

    async def run() -> dict[str, dict[str, int]]:
        # Pools of one thread: a larger one grows to its size whenever two jobs happen to overlap, at any time.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        async with Stage() as stage:
            with _playing(stage):
                opener = _opener(SETTINGS.model_copy(update={"prepare_threads": 1}))
                before: dict[str, int] = {}
                for number in range(100 + NUM_FAILURES):
                    if number == 100:
                        before = _state()
                    assert await _code_of(made[number % len(made)], stage, opener) != "seen"
                await asyncio.sleep(0.3)  # the servers' ends of the last connections
                after = _state()
                assert stage.reached == 0
                opener.close()
                return {"before": before, "after": after}

    return asyncio.run(run())


def control() -> int:
    """Connections that the server inside counts when nothing stands between: it can count."""

    async def run() -> int:
        async with Stage() as stage:
            open_to_all = SETTINGS.model_copy(update={"media_allow_loopback": True})
            address = f"http://127.0.0.1:{stage.inside}/"
            await Fetcher(open_to_all).fetch(address, 10**6, 2.0, lambda _: None)
            return stage.reached

    return asyncio.run(run())


def _report(found: dict[str, Any]) -> str:
    held = found["failures"]
    lines = ["| what | sent | answer | seconds | MiB |", "|---|---|---|---|---|"]
    for row in found["rows"]:
        name = row["name"].replace("|", "\\|")
        lines.append(
            f"| {row['group']} | {name} | `{row['code']}` | {row['wall_s']:.2f} | {max(0.0, row['mib']):.0f} |"
        )
    lines += ["", f"| held | before | after {NUM_FAILURES} failures |", "|---|---|---|"]
    lines += [f"| {name} | {count} | {held['after'][name]} |" for name, count in held["before"].items()]
    reached = sum(row["reached"] for row in found["rows"])
    return "\n".join([*lines, "", f"Connections to the inside: {reached}; without the rule: {found['control']}.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    rows = [attacked(attack) for attack in ATTACKS]
    found = {"rows": rows, "failures": a_thousand_failures(), "control": control()}
    sys.stdout.write(json.dumps(found) if as_json else _report(found))


if __name__ == "__main__":
    main()
