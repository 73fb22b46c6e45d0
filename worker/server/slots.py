"""Who may be served now: slots of requests and of bodies that come, the memory of bodies, and tokens a minute, each
with a caller's share."""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable

from worker.core.errors import QueueFull
from worker.core.http_errors import RateLimited
from worker.core.settings import Settings

log = logging.getLogger(__name__)
MINUTE_S = 60.0
# Of all connections, so that some never have a request on them, and can give way to a newcomer: a health check.
SHARE_OF_CONNECTIONS = 3 / 8


class Slots:
    """All slots of one server. limit: requests at once; as many bodies may come at the same time."""

    def __init__(
        self,
        settings: Settings,
        num_connections: int,
        *,
        num_callers: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit = max(1, min(settings.max_requests, int(num_connections * SHARE_OF_CONNECTIONS)))
        if self.limit < settings.max_requests:
            log.warning("%d connections leave room for %d requests at once", num_connections, self.limit)
        self._of_one, self._num_callers = settings.max_requests_per_key, num_callers
        self._max_bytes, self._rate = settings.max_bodies_bytes, settings.tokens_per_minute
        self._clock = clock
        self._coming, self._running, self._bytes = Counter[str](), Counter[str](), Counter[str]()
        self._tokens: dict[str, tuple[float, float]] = {}  # by caller: what is left, and when it was

    def enter(self, caller: str, *, uses_tokens: bool) -> "Slot":
        """A request whose head has come. Raises QueueFull, RateLimited."""
        if uses_tokens:
            self._check_tokens(caller)
        self._check(self._coming, caller, "bodies are being received")
        self._coming[caller] += 1
        return Slot(self, caller)

    def _share(self, whole: int) -> int:
        return whole if self._num_callers() < 2 else max(1, whole // 2)

    def _check(self, taken: "Counter[str]", caller: str, what: str) -> None:
        of_one = self._share(self.limit) if self._of_one is None else min(self._of_one, self.limit)
        if taken.total() >= self.limit:
            raise QueueFull(detail=f"{self.limit} {what}")
        if taken[caller] >= of_one:
            raise QueueFull(detail=f"{of_one} {what} for this key")

    def _run(self, caller: str) -> None:
        self._check(self._running, caller, "requests are unfinished")
        _less(self._coming, caller, 1)
        self._running[caller] += 1

    def _hold(self, caller: str, num_bytes: int) -> None:
        if self._bytes.total() + num_bytes > self._max_bytes:
            raise QueueFull(detail=f"bodies of {self._max_bytes} bytes are held")
        if self._bytes[caller] + num_bytes > self._share(self._max_bytes):
            raise QueueFull(detail=f"bodies of {self._share(self._max_bytes)} bytes are held for this key")
        self._bytes[caller] += num_bytes

    def _leave(self, caller: str, num_bytes: int, *, has_run: bool) -> None:
        _less(self._running if has_run else self._coming, caller, 1)
        _less(self._bytes, caller, num_bytes)

    # What a request uses is known when it ends: a caller may be in debt, and waits until it is paid.

    def _check_tokens(self, caller: str) -> None:
        if self._rate is None:
            return
        left = self._left(caller, self._rate)
        if left <= 0:
            wait_s = max(1, math.ceil((1 - left) * MINUTE_S / self._rate))
            raise RateLimited(detail=f"{self._rate} a minute", wait_s=wait_s)

    def spend(self, caller: str, num_tokens: int) -> None:
        """So many tokens were used for the caller."""
        if self._rate is not None:
            self._tokens[caller] = (self._left(caller, self._rate) - num_tokens, self._clock())

    def _left(self, caller: str, rate: int) -> float:
        left, at = self._tokens.get(caller, (float(rate), self._clock()))
        return min(float(rate), left + (self._clock() - at) * rate / MINUTE_S)


class Slot:
    """One request's slot: of a body that comes, then of a request that runs. Leave it when done."""

    def __init__(self, slots: Slots, caller: str) -> None:
        self._slots, self._caller = slots, caller
        self._num_bytes, self._has_run, self._has_left = 0, False, False

    def hold(self, num_bytes: int) -> None:
        """More bytes of its body have come. Raises QueueFull."""
        self._slots._hold(self._caller, num_bytes)
        self._num_bytes += num_bytes

    def run(self) -> None:
        """Its body is whole. Raises QueueFull."""
        self._slots._run(self._caller)
        self._has_run = True

    def spend(self, num_tokens: int) -> None:
        self._slots.spend(self._caller, num_tokens)

    def leave(self) -> None:
        """Again does nothing."""
        if not self._has_left:
            self._has_left = True
            self._slots._leave(self._caller, self._num_bytes, has_run=self._has_run)


def _less(counts: "Counter[str]", name: str, number: int) -> None:
    counts[name] -= number
    if counts[name] <= 0:
        del counts[name]
