"""The process that child processes of the decoders come from, and what such a child does.

It has imported the decoders and nothing else: no torch, no keys, an environment of its own. A child is a fork of it, a
few milliseconds old. Started by `isolate.py` alone.
"""

import os
import pickle
import resource
import signal
import socket
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from worker.core.errors import WorkerError
from worker.media import animation, picture, video  # noqa: F401  # what children are asked to run
from worker.media.handing_over import FOR_LARGE, NICE, Arena, ChildSide

SLACK_BYTES = 96 * 2**20  # beside what the work was counted for: the interpreter's own, and libraries'


def serve(channel: socket.socket) -> None:
    """Make a child for each pair of descriptors that comes, and answer with the child's."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children that have ended leave nothing
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a person's Ctrl-C is the parent's
    while True:
        data, fds, _, _ = socket.recv_fds(channel, 1, 2)
        if not data:
            return
        pid = os.fork()
        if not pid:
            channel.close()
            if data == FOR_LARGE:
                os.nice(NICE)
            _work(Connection(fds[0]), Arena(fds[1]))
            os._exit(0)
        handles = _handles(pid)
        socket.send_fds(channel, [pid.to_bytes(8, "big")], handles)
        for fd in (*fds, *handles):
            os.close(fd)


def _handles(pid: int) -> list[int]:
    """A descriptor of the process, where the system allows it: a number may be another process's one day."""
    try:
        return [os.pidfd_open(pid)]
    except OSError:
        return []


def _work(connection: Connection, arena: Arena) -> None:
    """Do one thing after the other until the parent is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    base = pages * resource.getpagesize()
    side = ChildSide(connection, arena)
    while True:
        try:
            num_bytes, order = connection.recv()
        except (EOFError, OSError):
            return
        arena.used = 0
        resource.setrlimit(resource.RLIMIT_AS, (base + num_bytes + SLACK_BYTES, resource.RLIM_INFINITY))
        connection.send_bytes(pickle.dumps(_result(side, order)))


def _result(side: ChildSide, order: bytes) -> tuple[str, Any]:
    try:
        work, arguments = side.unpacked(order)
        return "done", side.packed(work(*arguments))
    except MemoryError:
        return "memory", None
    except Exception as error:  # it is the parent's to raise
        is_known = isinstance(error, WorkerError) or type(error).__module__ == "builtins"
        return "raised", error if is_known else RuntimeError(repr(error))


def main() -> None:
    """Serve at the descriptor that the command line names."""
    serve(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    main()
