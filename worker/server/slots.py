"""Who may be served now: slots of uploads and of requests, the bytes of bodies, and tokens a minute, each with a
caller's share."""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable

from worker.core.errors import QueueFull
from worker.core.http_errors import RateLimited
from worker.core.settings import Settings
from worker.core.units import of_bytes

log = logging.getLogger(__name__)
MINUTE_S = 60.0
# Of all connections: of those with uploads and of those with requests, so that some always have neither and can be
# evicted, for a health check.
SHARE_OF_CONNECTIONS = 3 / 8
EVICTABLE_S = 1.0  # that an upload has taken; most take milliseconds


class Slots:
    """All slots of one server. limit: concurrent requests; max_uploads: concurrent uploads."""

    def __init__(
        self,
        settings: Settings,
        num_connections: int,
        *,
        num_callers: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_uploads = max(1, int(num_connections * SHARE_OF_CONNECTIONS))
        self.limit = min(settings.max_requests, self.max_uploads)
        if self.limit < settings.max_requests:
            log.warning("%d connections leave room for %d requests at once", num_connections, self.limit)
        self._of_one, self._num_callers = settings.max_requests_per_key, num_callers
        self._max_bytes, self._rate = settings.max_bodies_bytes, settings.tokens_per_minute
        self._clock = clock
        self._uploads: dict[str, dict[Slot, float]] = {}  # by caller, with when they began; the oldest is first
        self._running, self._bytes = Counter[str](), Counter[str]()
        self._tokens: dict[str, tuple[float, float]] = {}  # by caller: what is left, and when it was

    def enter(self, caller: str, *, uses_tokens: bool) -> "Slot":
        """A request whose head has come. Where there is no slot for another upload, the oldest one is evicted, of the
        caller that has too many or most, unless it has just begun. Raises QueueFull, RateLimited."""
        if uses_tokens:
            self._check_tokens(caller)
        own = self._uploads.get(caller, {})
        if len(own) >= self._share(self.max_uploads):
            self._evict_one(own)
        elif sum(map(len, self._uploads.values())) >= self.max_uploads:
            self._evict_one(max(self._uploads.values(), key=len))
        slot = Slot(self, caller)
        self._uploads.setdefault(caller, {})[slot] = self._clock()
        return slot

    def _evict_one(self, uploads: "dict[Slot, float]") -> None:
        """Raises QueueFull."""
        oldest, began = next(iter(uploads.items()))
        if self._clock() - began < EVICTABLE_S:
            raise QueueFull(detail=f"{len(uploads)} uploads are in progress")
        self._end_upload(oldest)
        oldest.evict()

    def _end_upload(self, slot: "Slot") -> None:
        uploads = self._uploads.get(slot.caller, {})
        uploads.pop(slot, None)
        if not uploads:
            self._uploads.pop(slot.caller, None)

    def _share(self, whole: int) -> int:
        return whole if self._num_callers() < 2 else max(1, whole // 2)

    def _run(self, slot: "Slot") -> None:
        of_one = self._share(self.limit) if self._of_one is None else min(self._of_one, self.limit)
        if self._running.total() >= self.limit:
            raise QueueFull(detail=f"limit {self.limit} (MAX_REQUESTS)")
        if self._running[slot.caller] >= of_one:
            raise QueueFull(detail=f"limit {of_one} for this key (MAX_REQUESTS_PER_KEY)")
        self._end_upload(slot)
        self._running[slot.caller] += 1

    def _hold(self, caller: str, num_bytes: int) -> None:
        if self._bytes.total() + num_bytes > self._max_bytes:
            raise QueueFull(detail=f"their bodies take {of_bytes(self._max_bytes)}")
        if self._bytes[caller] + num_bytes > self._share(self._max_bytes):
            raise QueueFull(detail=f"the bodies of this key take {of_bytes(self._share(self._max_bytes))}")
        self._bytes[caller] += num_bytes

    def _leave(self, slot: "Slot", num_bytes: int, *, has_run: bool) -> None:
        if has_run:
            _less(self._running, slot.caller, 1)
        self._end_upload(slot)
        _less(self._bytes, slot.caller, num_bytes)

    # What a request uses is known when it ends: a caller may be in debt, and waits until it is paid.

    def _check_tokens(self, caller: str) -> None:
        if self._rate is None:
            return
        left = self._left(caller, self._rate)
        if left <= 0:
            wait_s = max(1, math.ceil((1 - left) * MINUTE_S / self._rate))
            raise RateLimited(detail=f"limit {self._rate}, try again in {wait_s} s", wait_s=wait_s)

    def spend(self, caller: str, num_tokens: int) -> None:
        """So many tokens were used for the caller."""
        if self._rate is not None:
            self._tokens[caller] = (self._left(caller, self._rate) - num_tokens, self._clock())

    def _left(self, caller: str, rate: int) -> float:
        left, at = self._tokens.get(caller, (float(rate), self._clock()))
        return min(float(rate), left + (self._clock() - at) * rate / MINUTE_S)


class Slot:
    """One request's slot: of an upload, then of a running request. Leave it when done. on_evict: called when it must
    make room for another upload."""

    def __init__(self, slots: Slots, caller: str) -> None:
        self.caller, self.is_evicted = caller, False
        self.on_evict: Callable[[], None] = lambda: None
        self._slots = slots
        self._num_bytes, self._has_run, self._has_left = 0, False, False

    def evict(self) -> None:
        self.is_evicted = True
        self.on_evict()

    def hold(self, num_bytes: int) -> None:
        """More bytes of its body have come. Raises QueueFull."""
        self._slots._hold(self.caller, num_bytes)
        self._num_bytes += num_bytes

    def run(self) -> None:
        """Its body is complete. Raises QueueFull."""
        self._slots._run(self)
        self._has_run = True

    def spend(self, num_tokens: int) -> None:
        self._slots.spend(self.caller, num_tokens)

    def leave(self) -> None:
        """Again does nothing."""
        if not self._has_left:
            self._has_left = True
            self._slots._leave(self, self._num_bytes, has_run=self._has_run)


def _less(counts: "Counter[str]", name: str, number: int) -> None:
    counts[name] -= number
    if counts[name] <= 0:
        del counts[name]
