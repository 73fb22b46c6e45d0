"""Decoding in child processes: what crashes, hangs or eats memory there takes nothing else with it.

A child does one thing at a time and is used again; one that crashed or ran out of time is replaced. Children are forks
of one server (`decode_server.py`), which has imported what they need.
"""

import contextlib
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from worker.core.errors import MediaDecoderCrashed, MediaDecodeTimeout, MediaTooLarge
from worker.core.settings import MIB
from worker.media.handing_over import ARENA_BYTES, FOR_LARGE, FOR_SMALL, Arena, Order

T = TypeVar("T")
log = logging.getLogger(__name__)
ROOT = Path(__file__).parents[2]
TRIES = 2  # of work whose child crashes
START_S = 60.0  # for the server to import what it needs
# A heap that keeps some of its pages halves the time of a picture.
_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 * MIB),
    "MALLOC_TRIM_THRESHOLD_": str(64 * MIB),
    "PATH": "/usr/bin:/bin",
}
_DAMAGED = (pickle.UnpicklingError, AttributeError, ImportError, LookupError, TypeError, ValueError)


class _Gone(Exception):  # noqa: N818
    """The child has ended."""


class Child:
    """One child process. Any thread may kill it."""

    def __init__(self, connection: Connection, arena: Arena, pid: int, handle: int | None) -> None:
        self._connection, self._arena, self.pid, self._handle = connection, arena, pid, handle
        self._lock = threading.Lock()
        self._is_gone = False
        self.is_unwanted = False
        self.is_idle = True  # it waits for work, and for nothing else

    def kill(self) -> None:
        """End it now: nobody wants what it does. Again does nothing."""
        self.is_unwanted = True
        with self._lock:
            if not self._is_gone:
                with contextlib.suppress(ProcessLookupError):
                    if self._handle is None:
                        os.kill(self.pid, signal.SIGKILL)
                    else:
                        signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    def close(self) -> None:
        """`kill`, and let go of all that it had."""
        self.kill()
        with self._lock:
            if not self._is_gone:
                self._is_gone = True
                self._connection.close()
                if self._handle is not None:
                    os.close(self._handle)
                os.close(self._arena.fd)

    def run(self, work: Callable[..., T], arguments: tuple[Any, ...], num_bytes: int, timeout_s: float) -> T:
        """What `work` returns or raises. Raises MediaDecodeTimeout, MediaTooLarge, and _Gone where it crashed."""
        end = time.monotonic() + timeout_s
        order = Order(self._arena)
        self.is_idle = False
        try:
            self._connection.send((num_bytes, order.packed((work, arguments))))
            while True:
                if not self._connection.poll(max(0.0, end - time.monotonic())):
                    raise MediaDecodeTimeout()
                kind, *told = _unpacked(order, self._connection.recv_bytes())
                if kind != "call":
                    break
                self._connection.send(order.run(*told))
            result: Any = _unpacked(order, told[0]) if kind == "done" else None
        except (EOFError, OSError):
            raise _Gone from None
        self._arena.clear(order.end)
        self.is_idle = True
        if kind == "memory":
            raise MediaTooLarge(detail="decoding it needs more memory than a file of its size should")
        if kind == "raised" and isinstance(told[0], Exception):
            raise told[0]
        given: T = result
        return given


class Use:
    """A child while it does one piece of work. To kill it afterwards does nothing: it may be doing another's."""

    def __init__(self, child: Child) -> None:
        self._child, self._lock, self._is_over = child, threading.Lock(), False

    def kill(self) -> None:
        with self._lock:
            if not self._is_over:
                self._child.kill()

    def end(self) -> None:
        with self._lock:
            self._is_over = True


def _unpacked(order: Order, data: bytes) -> Any:
    """What a child sent. Raises _Gone: a child that sends anything else is not used again."""
    try:
        return order.unpacked(data)
    except _DAMAGED:
        log.exception("a child process of the decoders sent what it never should")
        raise _Gone from None


class Children:
    """Child processes, as many as are used at once. Its server starts beside whatever else does. Close it when done."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_closed = False
        self._all: set[Child] = set()
        self._idle: dict[bytes, list[Child]] = {FOR_SMALL: [], FOR_LARGE: []}
        self._server, self._channel = _start()

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            everyone, idle = self._all, [child for children in self._idle.values() for child in children]
            self._all = set()
            self._channel.close()
        for child in everyone.difference(idle):
            child.kill()  # who uses it lets go of it
        for child in idle:
            child.close()
        self._server.kill()
        self._server.wait()

    def run(
        self,
        work: Callable[..., T],
        arguments: tuple[Any, ...],
        num_bytes: int,
        timeout_s: float,
        on_use: Callable[[Use], None] = lambda _: None,
        *,
        is_small: bool = True,
    ) -> T:
        """What `work` returns or raises; `on_use` is given the child that does it, which may be killed. Blocks.
        is_small: large work has a child of lower priority. Raises MediaDecodeTimeout, MediaTooLarge, and
        MediaDecoderCrashed where two children crashed over it.
        """
        kind = FOR_SMALL if is_small else FOR_LARGE
        for _ in range(TRIES):
            child = self._take(kind)
            use = Use(child)
            try:
                on_use(use)
                return child.run(work, arguments, num_bytes, timeout_s)
            except _Gone:
                if child.is_unwanted:
                    break
            finally:
                use.end()
                self._give(child, kind)
        raise MediaDecoderCrashed()

    def _take(self, kind: bytes) -> Child:
        with self._lock:
            return self._idle[kind].pop() if self._idle[kind] else self._made(kind)

    def _give(self, child: Child, kind: bytes) -> None:
        with self._lock:
            if child.is_idle and not child.is_unwanted and not self._is_closed:
                self._idle[kind].append(child)
                return
            self._all.discard(child)
        child.close()

    def _made(self, kind: bytes) -> Child:
        """A new child; of a new server where the old one has ended. Raises MediaDecoderCrashed."""
        for _ in range(TRIES):
            if self._is_closed:
                break
            ours, theirs = socket.socketpair()
            arena = os.memfd_create("decoded", os.MFD_CLOEXEC)
            os.ftruncate(arena, ARENA_BYTES)
            try:
                socket.send_fds(self._channel, [kind], [theirs.fileno(), arena])
                data, handles, _, _ = socket.recv_fds(self._channel, 8, 1)
            except OSError:
                data, handles = b"", []
            theirs.close()
            if data:
                pid, handle = int.from_bytes(data, "big"), handles[0] if handles else None
                child = Child(Connection(ours.detach()), Arena(arena), pid, handle)
                self._all.add(child)
                return child
            ours.close()
            os.close(arena)
            self._channel.close()
            self._server.kill()
            self._server.wait()
            self._server, self._channel = _start()
        raise MediaDecoderCrashed()


def _start() -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair()
    ours.settimeout(START_S)
    server = subprocess.Popen(
        [sys.executable, "-m", "worker.media.decode_server", str(theirs.fileno())],
        cwd=ROOT,
        pass_fds=[theirs.fileno()],
        env=_ENVIRONMENT,
        stdin=subprocess.DEVNULL,
    )
    theirs.close()
    return server, ours
