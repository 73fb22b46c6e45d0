"""The table of decoders: a reference of each kind to what it becomes, one picture or clip, or several.

To add a kind, as documents that become a picture a page, write its decoder and give it a row in `DECODERS`.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from worker.core.contract import RGB, Clip, Controls, File, Frames, Kind, Media, Opened, Picture, Source
from worker.core.errors import MediaDimensions, MediaError, MediaTooManyItems, MediaUnsupportedType
from worker.core.media_protocol import SizePolicy
from worker.core.settings import Settings
from worker.media import animation, frames, picture, video
from worker.media.allowance import Allowance
from worker.media.sniff import SniffResult, sniff
from worker.media.sources import Sources
from worker.media.workers import Workers

T = TypeVar("T")
KEPT_BYTES = 128 * 2**20  # of the frames of a video at the model's size


@dataclass(frozen=True)
class DecodeContext:
    """What a decoder works with. left: what the request may still bring."""

    settings: Settings
    sources: Sources
    workers: Workers
    size_policy: SizePolicy
    left: Allowance


Decoder = Callable[[DecodeContext, Media], Coroutine[Any, Any, tuple[Opened, ...]]]


@contextmanager
def named(where: str) -> Iterator[None]:
    """What is raised inside names this place in the request, unless it names a place of its own."""
    try:
        yield
    except MediaError as error:
        raise (error.at(where) if error.where is None else error) from None


async def together(jobs: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All results in order. The first failure, or being cancelled, cancels and awaits the rest."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def open_picture(context: DecodeContext, item: Media) -> tuple[Opened, ...]:
    """An image. Raises MediaError."""
    assert not isinstance(item.source, Frames)
    header = await _header(context, item.source)
    height, width, tokens = context.size_policy.picture(header.height, header.width, item.controls)
    context.left.take_tokens(tokens)
    rgb = await context.workers.decode(header.decode_bytes, picture.decode, header, (height, width))
    source = Source(header.height, header.width, header.orientation, (header.data,))
    return (Picture(rgb, item.controls, source),)


async def open_video(context: DecodeContext, item: Media) -> tuple[Opened, ...]:
    """A list of frames, a video file, or an animation as a video. Raises MediaError."""
    if isinstance(item.source, Frames):
        return (await _clip_of_frames(context, item.source, item.where, item.controls),)
    data = await context.sources.video(item.source, context.left)
    found = sniff(data)
    if found.video is None and found.picture not in animation.MOVING:
        raise MediaUnsupportedType(detail=f"this is {found.name}; a video is needed")
    return (await _clip_of_file(context, data, found, item.controls),)


DECODERS: Mapping[Kind, Decoder] = {"image": open_picture, "video": open_video}


async def _header(context: DecodeContext, file: File) -> picture.Header:
    data = await context.sources.picture(file, context.left)
    header = await context.workers.decode(1, picture.read_header, data, context.settings)
    context.left.take_pixels(header.num_pixels)
    context.workers.check_memory(header.decode_bytes)
    return header


async def _clip_of_frames(context: DecodeContext, source: Frames, where: str, controls: Controls) -> Clip:
    limit = context.settings.max_frames
    if len(source.frames) > limit:
        raise MediaTooManyItems(detail=f"{len(source.frames)} frames, at most {limit}")
    places = [f"{where}.frames[{index}]" for index in range(len(source.frames))]

    async def header(file: File, place: str) -> picture.Header:
        with named(place):
            return await _header(context, file)

    async def pixels(of: picture.Header, place: str) -> RGB:
        with named(place):
            return await context.workers.decode(of.decode_bytes, picture.decode, of, None)

    headers = await together([header(file, place) for file, place in zip(source.frames, places, strict=True)])
    first = headers[0]
    for other, place in zip(headers, places, strict=True):
        if (other.height, other.width) != (first.height, first.width):
            raise MediaDimensions(where=place, detail="all frames of a video must have one size")
    context.left.take_tokens(context.size_policy.clip_tokens(first.height, first.width, len(headers), controls))
    shown = await together([pixels(of, place) for of, place in zip(headers, places, strict=True)])
    files = tuple(of.data for of in headers)
    opened = Source(first.height, first.width, first.orientation, files)
    return Clip(tuple(shown), source.fps, source.times, controls, source=opened)


async def _clip_of_file(context: DecodeContext, data: bytes, found: SniffResult, controls: Controls) -> Clip:
    """Two passes over the file: the times of all frames, then the pixels of those that are wanted."""
    settings, workers = context.settings, context.workers
    timeout_s = settings.video_decode_timeout_s
    times: video.Packets | animation.Times
    if found.video is not None:
        times = await workers.decode(1, video.read_packets, data, found.video, settings, timeout_s=timeout_s)
        work: tuple[Any, ...] = (video.decode, data, found.video, times)
    else:
        header = await workers.decode(1, picture.read_header, data, settings)
        workers.check_memory(header.decode_bytes)
        read = animation.read_times
        times = await workers.decode(header.decode_bytes, read, data, found, settings, timeout_s=timeout_s)
        work = (animation.decode, data, found, times)
    limits = frames.Limits(settings.max_video_fps, settings.max_frames)
    chosen = await workers.run(1, frames.choose, times.times, controls, limits)
    context.left.take_tokens(context.size_policy.clip_tokens(times.height, times.width, len(chosen), controls))
    memory = times.decode_bytes + KEPT_BYTES
    workers.check_memory(memory)
    shrink = _Shrink(context.size_policy, controls)
    clip: Clip = await workers.decode(memory, *work, chosen, settings, shrink, timeout_s=timeout_s)
    source = clip.source or Source(times.height, times.width)
    return replace(clip, source=replace(source, files=(data,)))


@dataclass(frozen=True)
class _Shrink:
    """Frames of a video to the size at which they are seen; can be sent to a child process."""

    size_policy: SizePolicy
    controls: Controls

    def __call__(self, rgb: RGB, num_frames: int) -> RGB:
        return self.size_policy.shrink(rgb, num_frames, self.controls)
