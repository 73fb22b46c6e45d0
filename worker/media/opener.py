"""All media of a request at once: references to `Picture` and `Clip`, under the limits of the whole request.

Whatever fails or is cancelled, nothing stays behind: there are no temporary files, and the memory of pictures
being decoded is counted over all requests.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from worker.contract import RGB, Clip, Frames, Inline, Media, Opened, Picture, Url
from worker.errors import (
    MediaDecodeTimeout,
    MediaDimensions,
    MediaError,
    MediaTooLarge,
    MediaTooManyItems,
    MediaUnsupportedType,
)
from worker.media import inline, picture
from worker.media.budget import Budget
from worker.media.sniff import sniff
from worker.settings import Settings


class Fetches(Protocol):
    """Gets bytes from addresses."""

    async def fetch(self, address: str, max_bytes: int, timeout_s: float) -> bytes: ...


class Opener:
    """Opens media for any number of requests at once. Close it when done."""

    def __init__(self, settings: Settings, fetcher: Fetches) -> None:
        self._settings = settings
        self._fetcher = fetcher
        self._budget = Budget(settings.decode_memory_bytes)
        self._threads = ThreadPoolExecutor(settings.prepare_threads, thread_name_prefix="media")

    def close(self) -> None:
        self._threads.shutdown()

    async def open(self, items: Sequence[Media]) -> tuple[Opened, ...]:
        """Pictures and clips in the order of `items`. Raises MediaError with the item's place."""
        self._check_counts(items)
        left = _Bytes(self._settings.max_job_bytes)
        return tuple(await _together([self._open(item, left) for item in items]))

    def _check_counts(self, items: Sequence[Media]) -> None:
        for kind, limit in (("image", self._settings.max_images), ("video", self._settings.max_videos)):
            found = [item for item in items if item.kind == kind]
            if len(found) > limit:
                raise MediaTooManyItems(where=found[limit].where, detail=f"{len(found)} {kind}s, at most {limit}")

    async def _open(self, item: Media, left: "_Bytes") -> Opened:
        if item.kind == "image":
            assert not isinstance(item.source, Frames)
            return Picture(await self._picture(item.source, item.where, left))
        if isinstance(item.source, Frames):
            return await self._clip(item.source, item.where, left)
        raise await self._refuse_video_file(item.source, item.where, left)

    async def _clip(self, source: Frames, where: str, left: "_Bytes") -> Clip:
        limit = self._settings.max_frames
        if len(source.frames) > limit:
            raise MediaTooManyItems(where=where, detail=f"{len(source.frames)} frames, at most {limit}")
        places = [f"{where}.frames[{index}]" for index in range(len(source.frames))]
        jobs = [self._picture(frame, place, left) for frame, place in zip(source.frames, places, strict=True)]
        frames = await _together(jobs)
        for frame, place in zip(frames, places, strict=True):
            if frame.shape != frames[0].shape:
                raise MediaDimensions(where=place, detail="all frames of a video must have one size")
        return Clip(tuple(frames), source.fps)

    async def _refuse_video_file(self, source: Url | Inline, where: str, left: "_Bytes") -> MediaError:
        if isinstance(source, Inline):
            found = sniff(await self._bytes(source, where, left))
            if found.picture is not None:
                return MediaUnsupportedType(where=where, detail=f"this is {found.name}; a video is needed")
        return MediaUnsupportedType(where=where, detail="video files are not read yet; send a list of frames")

    async def _picture(self, source: Url | Inline, where: str, left: "_Bytes") -> RGB:
        data = await self._bytes(source, where, left)
        header = picture.read_header(data, where, self._settings)
        if header.decode_bytes > self._budget.total:
            raise MediaDimensions(where=where, detail="decoding needs more memory than the worker may use")
        async with self._budget.hold(header.decode_bytes):
            decoding = asyncio.get_running_loop().run_in_executor(self._threads, picture.decode, header)
            try:
                return await asyncio.wait_for(decoding, self._settings.decode_timeout_s)
            except TimeoutError:
                raise MediaDecodeTimeout(where=where) from None

    async def _bytes(self, source: Url | Inline, where: str, left: "_Bytes") -> bytes:
        limit = min(self._settings.max_image_bytes, left.count)
        try:
            if isinstance(source, Url):
                data = await self._fetcher.fetch(source.url, limit, self._settings.image_timeout_s)
            else:
                loop = asyncio.get_running_loop()
                data = await loop.run_in_executor(self._threads, inline.decode, source.data, limit)
        except MediaError as error:
            raise error.at(where) from None
        left.take(len(data), where)
        return data


@dataclass
class _Bytes:
    """What a request may still bring."""

    count: int

    def take(self, size: int, where: str) -> None:
        if size > self.count:
            raise MediaTooLarge(where=where, detail="all media of the request together")
        self.count -= size


T = TypeVar("T")


async def _together(jobs: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All results in order. The first failure, or being cancelled, cancels and awaits the rest."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
