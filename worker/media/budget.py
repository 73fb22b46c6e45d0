"""Shares of something limited, as bytes or places: in turns among requests, with a reserve that small work alone takes.

A request with eight large pictures does not make one with a small picture wait for all of them, and small ones coming
again and again do not keep a large one waiting for ever.
"""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


class Share:
    """What is held. `give` it back; again does nothing."""

    def __init__(self, budget: "Budget", size: int, owner: object, *, is_small: bool) -> None:
        self._budget, self.size, self._owner, self._is_small = budget, size, owner, is_small
        budget.change(size, owner, is_small=is_small)

    def shrink(self, size: int) -> None:
        """Hold no more than `size`."""
        freed = self.size - min(size, self.size)
        self.size -= freed
        if freed:
            self._budget.change(-freed, self._owner, is_small=self._is_small)

    def give(self) -> None:
        self.shrink(0)


@dataclass(eq=False)
class _Waiting:
    size: int
    owner: object
    is_small: bool
    turn: "asyncio.Future[Share]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Budget:
    """`total` to share. reserve: the part of it that large work never takes; small: the largest share that is small
    work. per_owner: the most that one request holds of what is not small. largest: of a share. Belongs to whichever
    event loop uses it."""

    def __init__(self, total: int, *, reserve: int = 0, small: int = 0, per_owner: int | None = None) -> None:
        self.total = total
        self.largest = min(total - reserve, total if per_owner is None else per_owner)
        self._reserve, self._small, self._per_owner = reserve, small, per_owner
        self._held = Counter[bool]()  # by small work, and by other
        self._by_owner = Counter[int]()
        self._small_waiting: deque[_Waiting] = deque()
        self._waiting: OrderedDict[int, deque[_Waiting]] = OrderedDict()  # by request, in turns

    @property
    def free(self) -> int:
        return self.total - self._held.total()

    async def take(self, size: int, owner: object = None, *, is_small: bool | None = None) -> Share:
        """Wait until `size` is free, and hold it. More than `largest` must be refused before. is_small: where it is not
        the size that says so."""
        small = size <= self._small if is_small is None else is_small
        assert size <= (self.total if small else self.largest)
        entry = _Waiting(size, owner, small)
        if small:
            self._small_waiting.append(entry)
        else:
            self._waiting.setdefault(id(owner), deque()).append(entry)
        self._admit()
        try:
            return await entry.turn
        except asyncio.CancelledError:
            self._give_up(entry)
            raise

    @asynccontextmanager
    async def held(self, size: int, owner: object = None, *, is_small: bool | None = None) -> AsyncIterator[Share]:
        """A share within a context; a size over `largest` is `largest`."""
        share = await self.take(min(size, self.largest), owner, is_small=is_small)
        try:
            yield share
        finally:
            share.give()

    def change(self, size: int, owner: object, *, is_small: bool) -> None:
        """More is held, or less: for `Share` alone."""
        self._held[is_small] += size
        if owner is not None and self._per_owner is not None and not is_small:
            self._by_owner[id(owner)] += size
            if not self._by_owner[id(owner)]:
                del self._by_owner[id(owner)]
        if size < 0:
            self._admit()

    def _give_up(self, entry: _Waiting) -> None:
        if entry.turn.done() and not entry.turn.cancelled():
            entry.turn.result().give()
            return
        if entry in self._small_waiting:
            self._small_waiting.remove(entry)
        waiting = self._waiting.get(id(entry.owner), deque())
        if entry in waiting:
            waiting.remove(entry)
            if not waiting:
                del self._waiting[id(entry.owner)]
        self._admit()

    def _admit(self) -> None:
        while (entry := self._next_small() or self._next_large()) is not None:
            if not entry.turn.done():
                entry.turn.set_result(Share(self, entry.size, entry.owner, is_small=entry.is_small))

    def _next_small(self) -> _Waiting | None:
        """Beyond the reserve small work goes first only where no other waits."""
        if not self._small_waiting:
            return None
        size = self._small_waiting[0].size
        is_reserved = self._held[True] + size <= self._reserve
        return self._small_waiting.popleft() if size <= self.free and (is_reserved or not self._waiting) else None

    def _next_large(self) -> _Waiting | None:
        """The first one of the request whose turn it is; where there is no room for it, nobody passes it."""
        room = self.free - max(0, self._reserve - self._held[True])
        for owner, waiting in self._waiting.items():
            if self._per_owner is not None and self._by_owner[owner] + waiting[0].size > self._per_owner:
                continue
            if waiting[0].size > room:
                return None
            entry = waiting.popleft()
            if waiting:
                self._waiting.move_to_end(owner)
            else:
                del self._waiting[owner]
            return entry
        return None
