"""All media of a request at once: references to `Picture` and `Clip`, under the limits of the whole request.

Whatever fails or is cancelled, nothing stays behind: there are no temporary files, and the memory of pictures
being decoded is counted over all requests.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from worker.core.contract import RGB, Clip, Controls, Frames, Inline, Media, Opened, Picture, Upload, Url
from worker.core.errors import (
    MediaDecodeTimeout,
    MediaDimensions,
    MediaError,
    MediaTokenBudget,
    MediaTooLarge,
    MediaTooManyItems,
    MediaUnsupportedType,
)
from worker.core.settings import Settings
from worker.media import animation, frames, inline, local, picture, video
from worker.media.budget import Budget
from worker.media.isolate import Children
from worker.media.sniff import sniff

T = TypeVar("T")
KEPT_BYTES = 128 * 2**20  # of the frames of a video at the model's size


class Fetches(Protocol):
    """Gets bytes from addresses."""

    async def fetch(self, address: str, max_bytes: int, timeout_s: float, take: Callable[[int], None]) -> bytes: ...


class Sees(Protocol):
    """Says at what size a model sees pictures and the frames of a video."""

    @property
    def max_tokens(self) -> int: ...

    def picture(self, height: int, width: int, controls: Controls) -> tuple[int, int, int]: ...

    def clip_tokens(self, height: int, width: int, num_frames: int, controls: Controls) -> int: ...

    def shrink(self, rgb: RGB, num_frames: int, controls: Controls) -> RGB: ...


class Opener:
    """Opens media for any number of requests at once. Close it when done."""

    def __init__(self, settings: Settings, fetcher: Fetches, eye: Sees) -> None:
        self._settings = settings
        self._fetcher = fetcher
        self._eye = eye
        self._memory = Budget(settings.decode_memory_bytes)
        self._slots = Budget(settings.prepare_threads)
        self._fetches = Budget(settings.max_fetches)
        self._threads = ThreadPoolExecutor(settings.prepare_threads, thread_name_prefix="media")
        self._children: Children | None = None
        if settings.media_isolate == "process":
            modules = [__name__, type(eye).__module__]
            self._children = Children(settings.prepare_threads, settings.decode_memory_bytes, modules)

    def close(self) -> None:
        self._threads.shutdown()
        if self._children is not None:
            self._children.close()

    async def open(self, items: Sequence[Media]) -> tuple[Opened, ...]:
        """Pictures and clips in the order of `items`. Raises MediaError with the item's place."""
        self._check_counts(items)
        left = self._allowance()
        return tuple(await _together([self._open(item, left) for item in items]))

    def _allowance(self) -> "_Allowance":
        return _Allowance(self._settings.max_job_bytes, self._settings.max_job_pixels, self._eye.max_tokens)

    async def read(self, items: Sequence[Media]) -> tuple[bytes, ...]:
        """The files of pictures, in the order of `items`, not yet opened. Raises MediaError with the item's place."""
        self._check_counts(items)
        settings = self._settings
        limits = (self._allowance(), settings.max_image_bytes, settings.image_timeout_s)
        sources = [(item.source, item.where) for item in items if not isinstance(item.source, Frames)]
        return tuple(await _together([self._bytes(source, where, *limits) for source, where in sources]))

    def _check_counts(self, items: Sequence[Media]) -> None:
        for kind, limit in (("image", self._settings.max_images), ("video", self._settings.max_videos)):
            found = [item for item in items if item.kind == kind]
            if len(found) > limit:
                raise MediaTooManyItems(where=found[limit].where, detail=f"{len(found)} {kind}s, at most {limit}")

    async def _open(self, item: Media, left: "_Allowance") -> Opened:
        if item.kind == "image":
            assert not isinstance(item.source, Frames)
            try:
                header = await self._header(item.source, item.where, left)
                height, width, tokens = self._eye.picture(header.height, header.width, item.controls)
                left.take_tokens(tokens)
                rgb = await self._pixels(header, item.where, (height, width))
                is_part = rgb.shape[0] * rgb.shape[1] < header.num_pixels
                return Picture(rgb, item.controls, (header.height, header.width) if is_part else None)
            except MediaError as error:
                raise error.at(item.where) from None
        if isinstance(item.source, Frames):
            return await self._clip(item.source, item.where, item.controls, left)
        return await self._video(item.source, item.where, item.controls, left)

    async def _clip(self, source: Frames, where: str, controls: Controls, left: "_Allowance") -> Clip:
        limit = self._settings.max_frames
        if len(source.frames) > limit:
            raise MediaTooManyItems(where=where, detail=f"{len(source.frames)} frames, at most {limit}")
        places = [f"{where}.frames[{index}]" for index in range(len(source.frames))]
        headers = await _together(
            [self._header(frame, place, left) for frame, place in zip(source.frames, places, strict=True)]
        )
        first = headers[0]
        for header, place in zip(headers, places, strict=True):
            if (header.height, header.width) != (first.height, first.width):
                raise MediaDimensions(where=place, detail="all frames of a video must have one size")
        try:
            left.take_tokens(self._eye.clip_tokens(first.height, first.width, len(headers), controls))
        except MediaError as error:
            raise error.at(where) from None
        frames = await _together([self._pixels(header, place) for header, place in zip(headers, places, strict=True)])
        return Clip(tuple(frames), source.fps, source.times, controls)

    async def _video(self, source: Url | Inline | Upload, where: str, controls: Controls, left: "_Allowance") -> Clip:
        settings = self._settings
        data = await self._bytes(source, where, left, settings.max_video_bytes, settings.video_timeout_s)
        found = sniff(data)
        timeout = settings.video_decode_timeout_s

        shrink = _Shrink(self._eye, controls)
        try:
            times: video.Packets | animation.Times
            if found.video is not None:
                read, make = video.read_packets, video.decode
                times = await self._apart(1, where, read, data, found.video, settings, timeout_s=timeout)
                work: tuple[Any, ...] = (make, data, found.video, times)
            elif found.picture in animation.MOVING:
                header = await self._apart(1, where, picture.read_header, data, settings)
                self._check_memory(header.decode_bytes)
                read_times = animation.read_times
                times = await self._apart(
                    header.decode_bytes, where, read_times, data, found, settings, timeout_s=timeout
                )
                work = (animation.decode, data, found, times)
            else:
                raise MediaUnsupportedType(detail=f"this is {found.name}; a video is needed")
            limits = frames.Limits(settings.max_video_fps, settings.max_frames)
            chosen = await self._in_thread(1, where, frames.choose, times.times, controls, limits)
            left.take_tokens(self._eye.clip_tokens(times.height, times.width, len(chosen), controls))
            memory = times.decode_bytes + KEPT_BYTES
            self._check_memory(memory)
            clip: Clip = await self._apart(memory, where, *work, chosen, settings, shrink, timeout_s=timeout)
            return clip
        except MediaError as error:
            raise error.at(where) from None

    async def _header(self, source: Url | Inline | Upload, where: str, left: "_Allowance") -> picture.Header:
        settings = self._settings
        data = await self._bytes(source, where, left, settings.max_image_bytes, settings.image_timeout_s)
        try:
            header = await self._apart(1, where, picture.read_header, data, settings)
            left.take_pixels(header.num_pixels)
            self._check_memory(header.decode_bytes)
        except MediaError as error:
            raise error.at(where) from None
        return header

    def _check_memory(self, num_bytes: int) -> None:
        if num_bytes > self._memory.total:
            raise MediaDimensions(detail="decoding needs more memory than the worker may use")

    async def _pixels(self, header: picture.Header, where: str, wanted: tuple[int, int] | None = None) -> RGB:
        try:
            return await self._apart(header.decode_bytes, where, picture.decode, header, wanted)
        except MediaError as error:
            raise error.at(where) from None

    async def _bytes(
        self, source: Url | Inline | Upload, where: str, left: "_Allowance", limit: int, timeout_s: float
    ) -> bytes:
        try:
            if isinstance(source, Upload):
                if len(source.data) > limit:
                    raise MediaTooLarge(detail=f"at most {limit} bytes")
                left.take_bytes(len(source.data))
                return source.data
            if isinstance(source, Inline):
                limit = min(limit, left.num_bytes)
                data = await self._in_thread(1, where, inline.decode, source.data, limit)
                left.take_bytes(len(data))
                return data
            roots = self._settings.media_roots
            if roots and source.url[: len(local.SCHEME)].lower() == local.SCHEME:
                data = await self._in_thread(1, where, local.read, source.url, roots, min(limit, left.num_bytes))
                left.take_bytes(len(data))
                return data
            await self._fetches.take(1)
            try:
                return await self._fetcher.fetch(source.url, limit, timeout_s, left.take_bytes)
            finally:
                self._fetches.give(1)
        except MediaError as error:
            raise error.at(where) from None

    async def _apart(
        self, num_bytes: int, where: str, work: Callable[..., T], *arguments: Any, timeout_s: float | None = None
    ) -> T:
        """Run `work` on a stranger's bytes: on a thread, or in a child process where the settings say so."""
        if self._children is None:
            return await self._in_thread(num_bytes, where, work, *arguments, timeout_s=timeout_s)
        await self._memory.take(num_bytes)
        try:
            await self._slots.take(1)
            try:
                return await self._children.run(work, arguments, timeout_s or self._settings.decode_timeout_s)
            except MediaError as error:
                raise error.at(where) from None
            finally:
                self._slots.give(1)
        finally:
            self._memory.give(num_bytes)

    async def _in_thread(
        self, num_bytes: int, where: str, work: Callable[..., T], *arguments: Any, timeout_s: float | None = None
    ) -> T:
        """Run `work` when a thread and the memory are free; both are held until it has really ended.

        The clock starts when the thread does. A thread cannot be stopped: after a timeout or a cancel it works on,
        and what it holds stays held.
        """
        await self._memory.take(num_bytes)
        try:
            await self._slots.take(1)
        except asyncio.CancelledError:
            self._memory.give(num_bytes)
            raise
        loop = asyncio.get_running_loop()

        def let_go(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has closed
                loop.call_soon_threadsafe(self._memory.give, num_bytes)
                loop.call_soon_threadsafe(self._slots.give, 1)

        running = self._threads.submit(work, *arguments)
        running.add_done_callback(let_go)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(running), timeout_s or self._settings.decode_timeout_s)
        except TimeoutError:
            raise MediaDecodeTimeout(where=where) from None


@dataclass(frozen=True)
class _Shrink:
    """Frames of a video to the size at which they are seen; can be sent to a child process."""

    eye: Sees
    controls: Controls

    def __call__(self, rgb: RGB, num_frames: int) -> RGB:
        return self.eye.shrink(rgb, num_frames, self.controls)


@dataclass
class _Allowance:
    """What a request may still bring."""

    num_bytes: int
    num_pixels: int
    num_tokens: int

    def take_bytes(self, count: int) -> None:
        self.num_bytes -= count
        if self.num_bytes < 0:
            raise MediaTooLarge(detail="all media of the request together")

    def take_pixels(self, count: int) -> None:
        self.num_pixels -= count
        if self.num_pixels < 0:
            raise MediaDimensions(detail="too many pixels in all media of the request together")

    def take_tokens(self, count: int) -> None:
        self.num_tokens -= count
        if self.num_tokens < 0:
            raise MediaTokenBudget(detail=f"{-self.num_tokens} more than there may be in the request")


async def _together(jobs: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All results in order. The first failure, or being cancelled, cancels and awaits the rest."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
