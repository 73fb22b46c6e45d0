"""A semaphore weighted by bytes: as many holders at once as their weights allow, first come first served."""

import asyncio
from collections import deque


class Budget:
    """`total` bytes to hold. Belongs to whichever event loop uses it; makes its futures there."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = total
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def free(self) -> int:
        return self._free

    async def take(self, size: int) -> None:
        """Wait until `size` bytes are free, and hold them. A size over the total must be refused before."""
        assert size <= self.total
        if not self._waiting and size <= self._free:
            self._free -= size
            return
        entry = (size, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        try:
            await entry[1]
        except asyncio.CancelledError:
            self._give_up(entry)
            raise

    def give(self, size: int) -> None:
        """Let go what `take` held."""
        self._free += size
        self._admit()

    def _give_up(self, entry: tuple[int, asyncio.Future[None]]) -> None:
        if entry in self._waiting:
            self._waiting.remove(entry)
        elif entry[1].done() and not entry[1].cancelled():
            self._free += entry[0]
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free:
            size, turn = self._waiting.popleft()
            if not turn.done():
                self._free -= size
                turn.set_result(None)
