"""References to bytes: uploads, base64, files that the operator allows, addresses."""

from collections.abc import Callable
from typing import Protocol

from worker.core.contract import File, Inline, Upload
from worker.core.errors import MediaTooLarge
from worker.core.settings import Settings
from worker.media import inline, local
from worker.media.allowance import Allowance
from worker.media.budget import Budget
from worker.media.workers import Workers


class Fetches(Protocol):
    """Gets bytes from addresses."""

    async def fetch(self, address: str, max_bytes: int, timeout_s: float, take: Callable[[int], None]) -> bytes: ...


class Sources:
    """Reads files for any number of requests at once."""

    def __init__(self, settings: Settings, fetcher: Fetches, workers: Workers) -> None:
        self._settings, self._fetcher, self._workers = settings, fetcher, workers
        self.fetches = Budget(settings.max_fetches)

    async def picture(self, file: File, left: Allowance) -> bytes:
        """Raises MediaError."""
        return await self._read(file, left, self._settings.max_image_bytes, self._settings.image_timeout_s)

    async def video(self, file: File, left: Allowance) -> bytes:
        """Raises MediaError."""
        return await self._read(file, left, self._settings.max_video_bytes, self._settings.video_timeout_s)

    async def _read(self, file: File, left: Allowance, limit: int, timeout_s: float) -> bytes:
        if isinstance(file, Upload):
            if len(file.data) > limit:
                raise MediaTooLarge(detail=f"at most {limit} bytes")
            left.take_bytes(len(file.data))
            return file.data
        if isinstance(file, Inline):
            data = await self._workers.run(1, inline.decode, file.data, min(limit, left.num_bytes))
            left.take_bytes(len(data))
            return data
        roots = self._settings.media_roots
        if roots and file.url[: len(local.SCHEME)].lower() == local.SCHEME:
            data = await self._workers.run(1, local.read, file.url, roots, min(limit, left.num_bytes))
            left.take_bytes(len(data))
            return data
        await self.fetches.take(1)
        try:
            return await self._fetcher.fetch(file.url, limit, timeout_s, left.take_bytes)
        finally:
            self.fetches.give(1)
