"""Clients that leave while nothing is read from them: they have shut down their side, or a request of theirs waits.

One that has shut down its side may listen or be gone, which looks the same. But to one that is gone the kernel answers
any byte with a reset, so after a while it is probed by one.
"""

import asyncio
import select
from collections.abc import Callable
from typing import Any

POLL_S = 0.1
POLLS_BEFORE_PROBE = 5  # of a client that has shut down its side


class DisconnectDetector:
    """Polls a connection. is_wanted: whether to go on. probe: sends a byte that the client must ignore; False where
    there is none, and the client counts as gone. on_gone: called when nobody is there."""

    def __init__(self, is_wanted: Callable[[], bool], probe: Callable[[], bool], on_gone: Callable[[], None]) -> None:
        self._is_wanted, self._probe, self._on_gone = is_wanted, probe, on_gone
        self._is_polling = False

    def watch(self, transport: asyncio.Transport) -> None:
        """Begin to poll; again does nothing."""
        if not self._is_polling:
            self._is_polling = True
            asyncio.get_running_loop().call_later(POLL_S, self._poll, transport, 0)

    def _poll(self, transport: asyncio.Transport, num_silent: int) -> None:
        self._is_polling = False
        if transport.is_closing() or not self._is_wanted():
            return
        events = _events_of(transport.get_extra_info("socket"))
        num_silent += bool(events & select.POLLRDHUP)
        is_reset = bool(events & (select.POLLHUP | select.POLLERR))
        if is_reset or (num_silent == POLLS_BEFORE_PROBE and not self._probe()):
            self._on_gone()
            return
        self._is_polling = True
        asyncio.get_running_loop().call_later(POLL_S, self._poll, transport, num_silent)


def _events_of(connection: Any) -> int:
    """What the kernel says of a connection, without reading from it."""
    if connection is None or connection.fileno() < 0:
        return select.POLLHUP
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLRDHUP)
    return sum(events for _, events in poll.poll(0))
