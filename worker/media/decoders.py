"""The table of decoders: a reference of each kind to what it becomes, one picture or clip, or several.

To add a kind, as documents that become a picture a page, write its decoder and give it a row in `DECODERS`.
"""

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from worker.core.contract import Controls, File, Frames, Kind, Media
from worker.core.errors import (
    MediaCorrupt,
    MediaDimensions,
    MediaError,
    MediaTooManyItems,
    MediaUnsupportedType,
    MediaVideoNoFrames,
)
from worker.core.media_protocol import SizePolicy
from worker.core.opened import RGB, Clip, Opened, Picture, Source
from worker.core.settings import Settings
from worker.media import animation, frames, picture, video
from worker.media.allowance import Allowance
from worker.media.handing_over import InParent
from worker.media.sniff import VIDEOS, SniffResult, VideoFormat, media_type, sniff
from worker.media.sources import Sources
from worker.media.workers import Workers

T = TypeVar("T")
HEADER_BYTES = 2**20  # of memory, at the most, to read a header or to choose frames
INDEX_BYTES = 96 * 2**20  # to read the times of all frames of a file


@dataclass(frozen=True)
class DecodeContext:
    """What a decoder works with. left: what the request may still bring; keeps_files: whether what is opened remembers
    its file's bytes; kept_pixels: of each picture that keeps its size, larger ones are made so small."""

    settings: Settings
    sources: Sources
    workers: Workers
    size_policy: SizePolicy
    left: Allowance
    keeps_files: bool = False
    kept_pixels: int = 0

    async def decode(
        self, num_bytes: int, work: Callable[..., T], *arguments: Any, timeout_s: float | None = None
    ) -> T:
        """See `Workers.decode`, in this request's turn."""
        return await self.workers.decode(num_bytes, work, *arguments, owner=self.left, timeout_s=timeout_s)

    def kept(self, *files: bytes) -> tuple[bytes, ...]:
        return files if self.keeps_files else ()


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
    policy, began_at = context.size_policy, time.monotonic()
    async with context.sources.opened(item.source, "image", context.left) as data:
        read_at = time.monotonic()
        header = await _header(context, data, item.controls)
        height, width, tokens = policy.picture(header.height, header.width, item.controls)
        context.left.take_tokens(tokens)
        if item.keeps_size:
            scale = min(1.0, math.sqrt(context.kept_pixels / header.num_pixels))
            height, width = max(height, int(header.height * scale)), max(width, int(header.width * scale))
        resize = InParent(policy.resized)
        rgb = await context.decode(header.decode_bytes, picture.decode, header, (height, width), resize)
        source = Source(
            header.height,
            header.width,
            header.orientation,
            files=context.kept(data),
            type=media_type(data),
            num_bytes=len(data),
            fetch_s=read_at - began_at,
            decode_s=time.monotonic() - read_at,
            warnings=header.warnings,
        )
        return (Picture(rgb, item.controls, source),)


async def open_video(context: DecodeContext, item: Media) -> tuple[Opened, ...]:
    """A list of frames, a video file, or an animation as a video. Raises MediaError."""
    if isinstance(item.source, Frames):
        return (await _clip_of_frames(context, item.source, item.where, item.controls),)
    began_at = time.monotonic()
    async with context.sources.opened(item.source, "video", context.left) as data:
        read_at, found = time.monotonic(), sniff(data)
        if found.video is None and found.picture not in animation.MOVING:
            raise MediaUnsupportedType(detail=f"this is {found.name}, not a supported video: {VIDEOS}")
        clip = await _clip_of_file(context, data, found, item.controls)
        assert clip.source is not None
        fetch_s, decode_s = read_at - began_at, time.monotonic() - read_at
        return (replace(clip, source=replace(clip.source, fetch_s=fetch_s, decode_s=decode_s)),)


DECODERS: Mapping[Kind, Decoder] = {"image": open_picture, "video": open_video}


async def _header(context: DecodeContext, data: bytes, controls: Controls) -> picture.Header:
    header = await context.decode(HEADER_BYTES, picture.read_header, data, context.settings, controls.color)
    if controls.strict_media and header.still.lacks_end:
        raise MediaCorrupt(detail="strict_media is set, and the end marker is missing")
    context.left.take_pixels(header.num_pixels)
    context.workers.check_memory(header.decode_bytes)
    return header


async def _clip_of_frames(context: DecodeContext, source: Frames, where: str, controls: Controls) -> Clip:
    """Their headers first: what the first frame's size would make too large, or does not fit, is not decoded."""
    count, policy = len(source.frames), context.size_policy
    if count > context.settings.max_frames:
        raise MediaTooManyItems(detail=f"{count} frames, limit {context.settings.max_frames} (MAX_FRAMES)")
    places = [f"{where}.frames[{index}]" for index in range(count)]

    async def header(file: File, place: str) -> tuple[picture.Header, tuple[bytes, ...], int, float]:
        with named(place):
            data = await context.sources.read(file, "image", context.left)
            read_at = time.monotonic()
            return await _header(context, data, controls), context.kept(data), len(data), read_at

    async def pixels(of: picture.Header, place: str, size: tuple[int, int]) -> RGB:
        with named(place):
            return await context.decode(of.decode_bytes, picture.decode, of, size, InParent(policy.resized))

    began_at = time.monotonic()
    async with context.sources.room_for(count, context.left):
        read = await together([header(file, place) for file, place in zip(source.frames, places, strict=True)])
        headers, files = [of for of, *_ in read], tuple(file for _, kept, *_ in read for file in kept)
        read_at = max(at for *_, at in read)
        first = headers[0]
        for other, place in zip(headers, places, strict=True):
            if (other.height, other.width) != (first.height, first.width):
                raise MediaDimensions(where=place, detail="all frames of a video must have the same size")
        height, width, tokens = policy.clip(first.height, first.width, count, controls)
        context.left.take_tokens(tokens)
        size = height, width
        shown = await together([pixels(of, place, size) for of, place in zip(headers, places, strict=True)])
    warnings = tuple(dict.fromkeys(told for of in headers for told in of.warnings))
    opened = Source(
        first.height,
        first.width,
        first.orientation,
        files=files,
        num_bytes=sum(size for _, _, size, _ in read),
        fetch_s=read_at - began_at,
        decode_s=time.monotonic() - read_at,
        warnings=warnings,
    )
    return Clip(tuple(shown), source.fps, source.times, controls, is_sized=True, source=opened)


async def _clip_of_file(context: DecodeContext, data: bytes, found: SniffResult, controls: Controls) -> Clip:
    """Two passes over the file: the times of all frames, then the pixels of those that are wanted."""
    if found.video is not None:
        clip = await _clip_of_film(context, data, found.video, controls)
    else:
        clip = await _clip_of_animation(context, data, found, controls)
    assert clip.source is not None
    files = context.kept(data)
    return replace(clip, source=replace(clip.source, type=media_type(data), num_bytes=len(data), files=files))


async def _clip_of_film(context: DecodeContext, data: bytes, form: VideoFormat, controls: Controls) -> Clip:
    """What is damaged is decoded once as a whole, to choose among the frames that come out."""
    settings = context.settings
    timeout_s = settings.video_decode_timeout_s
    is_strict = bool(controls.strict_media)
    is_coded_shape = settings.video_pixel_aspect == "coded"
    shrink = InParent(_Shrink(context.size_policy, controls))
    read = video.read_packets
    packets = await context.decode(INDEX_BYTES, read, data, form, settings, timeout_s=timeout_s)
    if is_strict or packets.is_unclear:
        packets = await _examined(context, data, form, packets)
    while True:
        if is_strict and packets.is_damaged:
            raise MediaCorrupt(detail="strict_media is set, and frames are missing or damaged")
        size = (packets.height, packets.width) if is_coded_shape else packets.shown_size
        chosen, tokens = await _chosen(context, packets.times, *size, controls)
        context.workers.check_memory(packets.decode_bytes)
        work = (video.decode, data, form, packets, chosen, settings, shrink, is_coded_shape)
        clip: Clip | None = None
        try:
            clip = await context.decode(packets.decode_bytes, *work, timeout_s=timeout_s)
        except (MediaCorrupt, MediaVideoNoFrames):
            if packets.is_examined:
                raise
        if clip is not None and (packets.is_examined or not (clip.source and clip.source.frames_lost)):
            return clip
        del clip
        context.left.num_tokens += tokens
        packets = await _examined(context, data, form, packets)


async def _examined(context: DecodeContext, data: bytes, form: VideoFormat, packets: video.Packets) -> video.Packets:
    settings = context.settings
    num_bytes = min(packets.examining_bytes, context.workers.memory.largest)
    work = (video.examine, data, form, packets, settings)
    examined: video.Packets = await context.decode(num_bytes, *work, timeout_s=settings.video_decode_timeout_s)
    return examined


async def _clip_of_animation(context: DecodeContext, data: bytes, found: SniffResult, controls: Controls) -> Clip:
    settings = context.settings
    timeout_s = settings.video_decode_timeout_s
    header = await context.decode(HEADER_BYTES, picture.read_header, data, settings, controls.color)
    context.workers.check_memory(header.decode_bytes)
    read_times = animation.read_times
    times = await context.decode(header.decode_bytes, read_times, data, found, settings, timeout_s=timeout_s)
    chosen, _ = await _chosen(context, times.times, times.height, times.width, controls)
    context.workers.check_memory(times.decode_bytes)
    shrink = InParent(_Shrink(context.size_policy, controls))
    work = (animation.decode, data, found, times, chosen, settings, shrink, header.profile)
    clip: Clip = await context.decode(times.decode_bytes, *work, timeout_s=timeout_s)
    assert clip.source is not None
    return replace(clip, source=replace(clip.source, warnings=header.warnings))


async def _chosen(
    context: DecodeContext, times: Sequence[float], height: int, width: int, controls: Controls
) -> tuple[Sequence[int], int]:
    """The frames to see, and their tokens, which the request may still bring. Raises MediaTokenBudget,
    MediaParamInvalid."""
    limits = frames.Limits(context.settings.max_video_fps, context.settings.max_frames)
    chosen: Sequence[int] = await context.workers.run(
        HEADER_BYTES, frames.choose, times, controls, limits, owner=context.left
    )
    *_, tokens = context.size_policy.clip(height, width, len(chosen), controls)
    context.left.take_tokens(tokens)
    return chosen, tokens


@dataclass(frozen=True)
class _Shrink:
    """Frames of a video to the size at which they are seen."""

    size_policy: SizePolicy
    controls: Controls

    def __call__(self, rgb: RGB, num_frames: int) -> RGB:
        height, width = rgb.shape[:2]
        height, width, _ = self.size_policy.clip(height, width, num_frames, self.controls)
        return self.size_policy.resized(rgb, height, width)
