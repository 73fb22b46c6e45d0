"""References to bytes: uploads, base64, files that the operator allows, addresses."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from worker.core.contract import File, Inline, Kind, Upload
from worker.core.errors import MediaTooLarge
from worker.core.settings import Settings
from worker.core.units import over
from worker.media import inline, local
from worker.media.allowance import Allowance
from worker.media.budget import Budget
from worker.media.workers import Workers

FETCHES_SHARE = 4  # one request fetches at most this part of MAX_FETCHES at once


class Fetches(Protocol):
    """Gets bytes from addresses. `expect` hears of the length that the other side announces, `take` of what comes."""

    async def fetch(
        self,
        address: str,
        max_bytes: int,
        timeout_s: float,
        take: Callable[[int], None],
        expect: Callable[[int], None] = ...,
    ) -> bytes: ...


class Sources:
    """Reads files for any number of requests at once. `left`, what a request may still bring, tells requests apart."""

    def __init__(self, settings: Settings, fetcher: Fetches, workers: Workers) -> None:
        self._settings, self._fetcher, self._workers = settings, fetcher, workers
        most = settings.max_fetches
        self.fetches = Budget(most, per_owner=max(1, most // FETCHES_SHARE))

    @asynccontextmanager
    async def opened(self, file: File, kind: Kind, left: Allowance) -> AsyncIterator[bytes]:
        """The bytes of a file; their memory is counted within. Raises MediaError."""
        async with self._workers.files.held(self._most_bytes(file, kind), left) as share:
            data = await self.read(file, kind, left, share.shrink)
            share.shrink(0 if isinstance(file, Upload) else len(data))
            yield data

    @asynccontextmanager
    async def room_for(self, num_files: int, left: Allowance) -> AsyncIterator[None]:
        """The memory for so many pictures' files, which are all read before the first is decoded."""
        most = min(num_files * self._settings.max_image_bytes, self._settings.max_job_bytes)
        async with self._workers.files.held(most, left):
            yield

    async def read(
        self, file: File, kind: Kind, left: Allowance, expect: Callable[[int], None] = lambda _: None
    ) -> bytes:
        """The same, uncounted. Raises MediaError."""
        limit = self._limit(kind)
        if isinstance(file, Upload):
            if len(file.data) > limit:
                raise MediaTooLarge(detail=over(limit, len(file.data)))
            left.take_bytes(len(file.data))
            return file.data
        if isinstance(file, Inline):
            num_bytes = min(len(file.data), limit)
            data = await self._workers.run(num_bytes, inline.decode, file.data, min(limit, left.num_bytes), owner=left)
            left.take_bytes(len(data))
            return data
        roots = self._settings.media_roots
        if roots and file.url[: len(local.SCHEME)].lower() == local.SCHEME:
            data = await self._workers.run(1, local.read, file.url, roots, min(limit, left.num_bytes), owner=left)
            left.take_bytes(len(data))
            return data
        timeout_s = self._settings.image_timeout_s if kind == "image" else self._settings.video_timeout_s
        async with self.fetches.held(1, left):
            return await self._fetcher.fetch(file.url, limit, timeout_s, left.take_bytes, expect)

    def _limit(self, kind: Kind) -> int:
        return self._settings.max_image_bytes if kind == "image" else self._settings.max_video_bytes

    def _most_bytes(self, file: File, kind: Kind) -> int:
        """Before it is read; an upload is there already."""
        if isinstance(file, Upload):
            return 0
        return min(len(file.data), self._limit(kind)) if isinstance(file, Inline) else self._limit(kind)
