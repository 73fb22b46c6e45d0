"""Servers for tests: one in this process with any engine behind it, and one as a process with the tiny model."""

import asyncio
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import requests
from PIL import Image, ImageDraw

from tests.fakes import FakeOpener, encoded
from worker.core.engine_protocol import Engine
from worker.core.media_protocol import MediaOpener
from worker.core.settings import load
from worker.dialects.table import DIALECTS, DialectTable
from worker.server.server import Server, server_of
from worker.service import Service
from worker.startup.build import Serving


@contextmanager
def served(
    engine: Engine,
    opener: MediaOpener | None = None,
    begin: Callable[[], None] = lambda: None,
    dialects: DialectTable = DIALECTS,
    **settings: str,
) -> Iterator[str]:
    """The address of a server with this engine behind it."""
    chosen = load({"STREAM_INTERVAL_MS": "0", "DRAIN_S": "1", **settings})
    closed: list[bool] = []

    def start() -> Serving:
        begin()
        media = opener or FakeOpener()
        service = Service(engine, media, chosen, dialects=dialects)
        return Serving(engine, media, service, close_opener=lambda: closed.append(True))

    with listening(server_of(chosen, start, dialects)) as address:
        yield address
    assert len(closed) <= 1


@contextmanager
def listening(server: Server) -> Iterator[str]:
    """The address of a server in this process. It hears at once that it is to stop, not at its next tick."""

    async def until_stopped() -> None:
        await server.on_tick(0)
        while not server.should_exit:
            await asyncio.sleep(0.005)

    with socket.create_server(("127.0.0.1", 0)) as at, mock.patch.object(server, "main_loop", until_stopped):
        thread = threading.Thread(target=server.run, kwargs={"sockets": [at]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{at.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)
    assert not thread.is_alive()


@contextmanager
def process(**settings: str) -> Iterator[str]:
    """The address of a server that is a process, with the tiny model behind it."""
    with server_process(settings) as (address, _):
        yield address


@contextmanager
def server_process(
    settings: Mapping[str, str], log: int = subprocess.DEVNULL, num_descriptors: int | None = None
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The same with its process; it may have so many descriptors, and writes its log to a file's descriptor."""

    def limit() -> None:
        if num_descriptors is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (num_descriptors, num_descriptors))

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    running = subprocess.Popen(
        [sys.executable, "-m", "worker.server", "--port", str(port), "--device", "cpu"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", **settings},
        stderr=log,
        preexec_fn=limit,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 60
        while not is_ready(address, "LAZY_LOAD" in settings):
            assert running.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        yield address, running
    finally:
        running.terminate()
        assert running.wait(30) in (0, -signal.SIGTERM)


def is_ready(address: str, is_lazy: bool) -> bool:
    try:
        return requests.get(f"{address}/ping", timeout=5).status_code == (204 if is_lazy else 200)
    except requests.ConnectionError:
        return False


def circle(size: tuple[int, int] = (160, 120)) -> bytes:
    picture = Image.new("RGB", size, "white")
    width, height = size
    ImageDraw.Draw(picture).ellipse((width * 0.1, height * 0.1, width * 0.35, height * 0.42), fill=(220, 30, 30))
    return encoded(picture, "JPEG")
