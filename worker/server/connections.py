"""The connections of the HTTP server: fewer than the process has descriptors, and none that waits for nothing for ever.

A newcomer takes the place of the connection that has waited longest without a request, so that silent ones cannot keep
others out.
"""

import logging
import resource
from dataclasses import dataclass
from typing import Protocol

from worker.core.settings import Settings

log = logging.getLogger(__name__)
RESERVED_DESCRIPTORS = 128  # for files, fetches, child processes and what the libraries open
KIB = 1024


class Connection(Protocol):
    """What the table asks of a connection."""

    @property
    def address(self) -> str:
        """Of its client."""
        ...

    def evict(self) -> None:
        """Close at once: another has come, and there is no request on this one."""
        ...


@dataclass(frozen=True)
class Limits:
    """What a connection may take. pipelined: requests of one connection at once; part_bytes: that are read before it is
    asked how many there are; buffered_bytes: of a body that the application has not taken; linger_s: to read on after
    an answer that came before the end of its request's body, so that the client hears it."""

    head_timeout_s: float
    idle_timeout_s: float
    send_timeout_s: float
    pipelined: int = 8
    buffered_bytes: int = 256 * KIB
    part_bytes: int = 4 * KIB
    linger_s: float = 5.0
    linger_bytes: int = 16 * KIB * KIB
    close_s: float = 5.0

    @classmethod
    def of(cls, settings: Settings) -> "Limits":
        return cls(settings.head_timeout_s, settings.idle_timeout_s, settings.send_timeout_s)


class Connections:
    """The table. limit: most of them at once."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        # Those without a request, by the address of their client; the one that waits longest is first.
        self._idle: dict[str, dict[Connection, None]] = {}
        self._active: set[Connection] = set()
        self._num_idle = 0

    def __len__(self) -> int:
        return self._num_idle + len(self._active)

    def add(self, connection: Connection) -> bool:
        """Take a new connection; whether there was room. Where there is none, one without a request is evicted: of the
        address that has most of them the one that waits longest."""
        while len(self) >= self.limit and self._idle:
            most = max(self._idle.values(), key=len)
            longest = next(iter(most))
            self.remove(longest)
            longest.evict()
        if len(self) >= self.limit:
            return False
        self.mark_idle(connection)
        return True

    def mark_idle(self, connection: Connection) -> None:
        """It has no request now."""
        self.remove(connection)
        self._idle.setdefault(connection.address, {})[connection] = None
        self._num_idle += 1

    def mark_active(self, connection: Connection) -> None:
        """A request's head is there."""
        self.remove(connection)
        self._active.add(connection)

    def remove(self, connection: Connection) -> None:
        """It is closed; again does nothing."""
        self._active.discard(connection)
        idle = self._idle.get(connection.address, {})
        if connection in idle:
            del idle[connection]
            self._num_idle -= 1
            if not idle:
                del self._idle[connection.address]


def room_for_connections(wanted: int) -> int:
    """So many connections, or as many as the process's limit of descriptors leaves beside what else it opens. The soft
    limit is raised as far as that needs and the hard one allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + RESERVED_DESCRIPTORS
    if soft < needed and soft != resource.RLIM_INFINITY:
        soft = needed if hard == resource.RLIM_INFINITY else min(hard, needed)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    room = max(soft - RESERVED_DESCRIPTORS, soft // 2)
    log.warning("%d descriptors leave room for %d connections, not %d", soft, room, wanted)
    return room
