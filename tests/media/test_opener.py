"""All media of a request: order, limits over the whole, and nothing left behind."""

import asyncio
import base64
import io
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.fakes import as_base64
from tests.media.films import film, number_of
from worker.checkpoint.preprocessor import read_preprocessor
from worker.core.contract import ChatRequest, Controls, Frames, Inline, Kind, Media, Message, Text, Url
from worker.core.errors import (
    MediaCorrupt,
    MediaDecodeTimeout,
    MediaDimensions,
    MediaError,
    MediaFetchTimeout,
    MediaTokenBudget,
    MediaTooLarge,
    MediaTooManyItems,
    MediaUnsupportedType,
    MediaUrlForbidden,
)
from worker.core.media_protocol import with_opened
from worker.core.opened import RGB, Clip, Opened, Picture
from worker.core.settings import EMBEDDED_MODEL, Settings
from worker.media import picture
from worker.media.decoders import DECODERS, DecodeContext, open_picture
from worker.media.opener import Opener
from worker.prompt.size_policy import SmartResizePolicy


class Shelf:
    """Addresses to bytes; an unknown address never answers."""

    def __init__(self, **files: bytes) -> None:
        self.files = files
        self.num_open = 0

    async def fetch(
        self, address: str, max_bytes: int, timeout_s: float, take: Callable[[int], None], expect: object = None
    ) -> bytes:
        self.num_open += 1
        try:
            if address not in self.files:
                await asyncio.Event().wait()
            return self.files[address]
        finally:
            self.num_open -= 1


class Slow:
    async def fetch(
        self, address: str, max_bytes: int, timeout_s: float, take: Callable[[int], None], expect: object = None
    ) -> bytes:
        raise MediaFetchTimeout(detail="our words")


class AsItIs:
    """An size_policy that sees everything at its own size, a token for each pixel."""

    max_tokens = 10**9

    def picture(self, height: int, width: int, controls: Controls) -> tuple[int, int, int]:
        return height, width, height * width

    def clip(self, height: int, width: int, num_frames: int, controls: Controls) -> tuple[int, int, int]:
        return height, width, height * width * num_frames

    def max_pixels(self, kind: Kind) -> int:
        return 1000

    def resized(self, rgb: RGB, height: int, width: int) -> RGB:
        return rgb


def inline(colour: str, size: tuple[int, int] = (8, 6)) -> Inline:
    return Inline(data=as_base64(Image.new("RGB", size, colour)))


def image(source: Url | Inline, where: str = "image") -> Media:
    return Media(kind="image", source=source, where=where)


def clip(*colours: str, fps: float | None = None) -> Media:
    return Media(kind="video", source=Frames(frames=tuple(inline(c) for c in colours), fps=fps), where="video")


def opened(items: Sequence[Media], settings: Settings | None = None) -> tuple[Opened, ...]:
    opener = Opener(settings or Settings(), Slow(), AsItIs())
    try:
        return tuple(one for opened in asyncio.run(opener.open(items)) for one in opened)
    finally:
        opener.close()


def test_pictures_and_clips_come_in_order() -> None:
    first, second, third = opened([image(inline("red")), clip("lime", "blue", fps=4), image(inline("white"))])
    assert isinstance(first, Picture)
    assert first.rgb[0, 0].tolist() == [255, 0, 0]
    assert isinstance(second, Clip)
    assert [frame[0, 0].tolist() for frame in second.frames] == [[0, 255, 0], [0, 0, 255]]
    assert second.fps == 4
    assert isinstance(third, Picture)
    assert np.all(third.rgb == 255)


def test_a_file_below_an_allowed_folder_is_opened(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6), "blue").save(tmp_path / "blue.png")
    allowed = Settings(allowed_media_paths=f"/srv:{tmp_path}")
    [shown] = opened([image(Url(url=f"file://{tmp_path}/blue.png"))], allowed)
    assert isinstance(shown, Picture)
    assert shown.rgb[0, 0].tolist() == [0, 0, 255]


def test_frames_keep_their_own_times() -> None:
    frames = Frames(frames=(inline("red"), inline("blue")), times=(1.5, 4.0))
    [shown] = opened([Media(kind="video", source=frames, where="video")])
    assert isinstance(shown, Clip)
    assert shown.times == (1.5, 4.0)


def test_an_animated_picture_is_a_video_where_a_video_is_asked_for() -> None:
    out = io.BytesIO()
    pictures = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    pictures[0].save(out, "GIF", save_all=True, append_images=pictures[1:], duration=300)
    source = Inline(data=base64.b64encode(out.getvalue()).decode())
    moving, still = opened([Media(kind="video", source=source, where="video"), image(source)])
    assert isinstance(moving, Clip) and len(moving.frames) == 2
    assert isinstance(still, Picture)


class Counts(AsItIs):
    """An size_policy with a budget that remembers what was decoded."""

    max_tokens = 100


@pytest.mark.parametrize(
    "items",
    [
        [image(inline("red", (10, 11)), "late")],
        [image(inline("red", (10, 9)), "early"), image(inline("red", (4, 4)), "late")],
        [Media(kind="video", source=Frames(frames=(inline("red", (8, 8)),) * 2), where="late")],
    ],
)
def test_too_many_tokens_are_refused_before_anything_is_decoded(
    items: list[Media], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[object] = []
    if len(items) == 1:
        monkeypatch.setattr("worker.media.picture.decode", lambda *given: decoded.append(given))
    opener = Opener(Settings(prepare_threads=1), Slow(), Counts())
    with pytest.raises(MediaTokenBudget, match="tokens too many"):
        asyncio.run(opener.open(items))
    opener.close()
    assert not decoded


@pytest.mark.parametrize(
    ("items", "settings", "error", "where"),
    [
        ([image(inline("red"), f"i{n}") for n in range(3)], Settings(max_images=2), MediaTooManyItems, "i2"),
        ([clip("red"), clip("red"), clip("red")], Settings(), MediaTooManyItems, "video"),
        ([clip(*["red"] * 5)], Settings(max_frames=4), MediaTooManyItems, "video"),
        ([image(inline("red"))], Settings(max_image_bytes=20), MediaTooLarge, "image"),
        (
            [image(inline("red"), "a"), image(inline("red"), "b")],
            Settings(max_job_bytes=100, prepare_threads=1),
            MediaTooLarge,
            "b",
        ),
        ([image(inline("red"))], Settings(decode_memory_bytes=100), MediaDimensions, "image"),
        ([clip(*["red"] * 4)], Settings(max_job_pixels=150, prepare_threads=1), MediaDimensions, "video.frames[3]"),
        ([image(Inline(data="AAAA"), "x.y")], Settings(), MediaUnsupportedType, "x.y"),
        ([image(Url(url="u"), "messages[0].content[1]")], Settings(), MediaFetchTimeout, "messages[0].content[1]"),
        (
            [Media(kind="video", source=Url(url="https://a.test/x.mp4"), where="video")],
            Settings(),
            MediaFetchTimeout,
            "video",
        ),
        ([Media(kind="video", source=inline("red"), where="video")], Settings(), MediaUnsupportedType, "video"),
        ([image(Url(url="file:///etc/hostname"))], Settings(allowed_media_paths="/srv"), MediaUrlForbidden, "image"),
    ],
)
def test_limits_hold_and_name_the_item(
    items: list[Media], settings: Settings, error: type[MediaError], where: str
) -> None:
    with pytest.raises(MediaError) as failure:
        opened(items, settings)
    assert type(failure.value) is error
    assert failure.value.where == where


def film_in(source: Url | Inline, **controls: int) -> Media:
    return Media(kind="video", source=source, where="messages[0].content[1]", controls=Controls(**controls))


@pytest.mark.parametrize("is_inline", [False, True])
def test_a_video_file_comes_by_address_and_inline(is_inline: bool) -> None:
    data = film(30)
    source = Inline(data=base64.b64encode(data).decode()) if is_inline else Url(url="film")
    opener = Opener(Settings(), Shelf(film=data), AsItIs())
    try:
        [[clip]] = asyncio.run(opener.open([film_in(source, nframes=4)]))
    finally:
        opener.close()
    assert isinstance(clip, Clip)
    assert [number_of(frame) for frame in clip.frames] == [0, 10, 19, 29]


@pytest.mark.parametrize(
    ("data", "settings", "error"),
    [
        (film(8), Settings(max_video_bytes=100), MediaTooLarge),
        (film(8), Settings(decode_memory_bytes=1_000_000), MediaDimensions),
        (film(8)[:500], Settings(), MediaCorrupt),
        (b"ffconcat version 1.0", Settings(), MediaUnsupportedType),
    ],
)
def test_a_video_file_that_is_refused_is_named(data: bytes, settings: Settings, error: type[MediaError]) -> None:
    source = Inline(data=base64.b64encode(data).decode())
    with pytest.raises(MediaError) as failure:
        opened([film_in(source)], settings)
    assert type(failure.value) is error
    assert failure.value.where == "messages[0].content[1]"


def test_frames_of_two_sizes_are_refused() -> None:
    frames = Frames(frames=(inline("red"), inline("red", (9, 6))))
    with pytest.raises(MediaDimensions) as failure:
        opened([Media(kind="video", source=frames, where="video")])
    assert failure.value.where == "video.frames[1]"


def test_the_first_failure_ends_the_other_fetches() -> None:
    shelf = Shelf(broken=b"\x89PNG\r\n\x1a\n")
    opener = Opener(Settings(), shelf, AsItIs())

    async def run() -> None:
        with pytest.raises(MediaCorrupt):
            await opener.open([image(Url(url="never"), "a"), image(Url(url="broken"), "b")])
        assert shelf.num_open == 0

    asyncio.run(run())
    opener.close()


def test_being_cancelled_ends_the_fetches() -> None:
    shelf = Shelf()
    opener = Opener(Settings(), shelf, AsItIs())

    async def run() -> None:
        task = asyncio.create_task(opener.open([image(Url(url="never"), "a"), image(Url(url="never"), "b")]))
        while shelf.num_open < 2:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        assert shelf.num_open == 0

    asyncio.run(run())
    opener.close()


def test_after_many_failures_the_memory_is_whole_again() -> None:
    opener = Opener(Settings(decode_memory_bytes=2_000_000), Slow(), AsItIs())
    broken = Inline(data=as_base64(Image.effect_noise((64, 64), 90))[:2000])

    async def run() -> None:
        for _ in range(300):
            with pytest.raises(MediaCorrupt):
                await opener.open([image(broken)])
        whole = Image.new("RGB", (250, 250))
        assert len(await opener.open([image(Inline(data=as_base64(whole)))])) == 1

    asyncio.run(run())
    opener.close()


def test_after_a_timeout_the_memory_is_held_until_the_thread_has_really_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, has_begun = threading.Event(), threading.Event()

    def stuck(*_: object) -> None:
        has_begun.set()
        go_on.wait(10)

    monkeypatch.setattr("worker.media.picture.decode", stuck)
    opener = Opener(Settings(decode_timeout_s=0.05), Slow(), AsItIs())

    async def run() -> None:
        with pytest.raises(MediaDecodeTimeout):
            await opener.open([image(inline("red"))])
        assert has_begun.is_set()
        assert opener.workers.memory.free < opener.workers.memory.total
        go_on.set()
        await asyncio.get_running_loop().run_in_executor(None, opener.close)
        await asyncio.sleep(0)
        assert opener.workers.memory.free == opener.workers.memory.total

    asyncio.run(run())


def test_waiting_for_a_thread_is_not_decoding_time(monkeypatch: pytest.MonkeyPatch) -> None:
    decode = picture.decode

    def slow(*arguments: Any) -> RGB:
        threading.Event().wait(0.1)
        return decode(*arguments)

    monkeypatch.setattr("worker.media.picture.decode", slow)
    opener = Opener(Settings(decode_timeout_s=0.4, prepare_threads=1), Slow(), AsItIs())
    items = [image(inline("red"), f"i{index}") for index in range(8)]
    assert len(asyncio.run(opener.open(items))) == 8
    opener.close()


def test_not_all_addresses_are_fetched_at_once_and_one_request_leaves_room_for_others() -> None:
    """Sixteen addresses that never answer once stopped all fetching."""
    shelf = Shelf()
    opener = Opener(Settings(max_fetches=8), shelf, AsItIs())

    async def run() -> None:
        tasks = []
        for num_open in (2, 4, 6, 8, 8):
            items = [image(Url(url="never"), f"i{index}") for index in range(9)]
            tasks.append(asyncio.create_task(opener.open(items)))
            for _ in range(50):
                await asyncio.sleep(0)
            assert shelf.num_open == num_open
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert opener.sources.fetches.free == 8

    asyncio.run(run())
    opener.close()


def test_one_reference_may_become_many_pictures() -> None:
    """A document is a decoder and a row of the table: this one cuts a picture into pages."""

    async def pages(context: DecodeContext, item: Media) -> tuple[Opened, ...]:
        [whole] = await open_picture(context, item)
        assert isinstance(whole, Picture)
        half = whole.rgb.shape[1] // 2
        return Picture(whole.rgb[:, :half], item.controls), Picture(whole.rgb[:, half:], item.controls)

    opener = Opener(Settings(), Slow(), AsItIs(), {**DECODERS, "image": pages})
    message = Message(role="user", parts=(Text(text="Read"), image(inline("red"), "doc"), Text(text="and this")))
    request = ChatRequest(messages=(message,))
    try:
        request, opened = with_opened(request, asyncio.run(opener.open(request.media)))
    finally:
        opener.close()
    assert [(part.kind, part.where) for part in request.media] == [("image", "doc.pages[0]"), ("image", "doc.pages[1]")]
    kinds = [type(part).__name__ for part in request.messages[0].parts]
    assert kinds == ["Text", "Media", "Media", "Text"]
    assert len(opened) == 2


def test_a_picture_is_shrunk_where_it_is_decoded_and_its_file_goes() -> None:
    settings = Settings(max_image_tokens=64)
    opener = Opener(settings, Slow(), SmartResizePolicy(read_preprocessor(EMBEDDED_MODEL), settings))

    async def run() -> None:
        items = [image(inline("red", (900, 600))), clip(*["red"] * 4)]
        async with opener.room(items) as room:
            most = opener.workers.pixels.free
            [[still], [moving]] = await opener.open(items)
            assert isinstance(still, Picture) and isinstance(moving, Clip)
            assert still.rgb.nbytes <= 64 * 32 * 32 * 3
            assert still.size == (600, 900)
            assert moving.is_sized
            assert still.source is not None and moving.source is not None
            assert not still.source.files and not moving.source.files
            room.settle([still, moving])
            held = opener.workers.pixels.total - opener.workers.pixels.free
            assert held == still.rgb.nbytes + sum(frame.nbytes for frame in moving.frames)
            assert opener.workers.pixels.free > most
        for budget in (opener.workers.pixels, opener.workers.files, opener.workers.memory, opener.sources.fetches):
            assert budget.free == budget.total

    asyncio.run(run())
    opener.close()


def test_pictures_that_keep_their_size_stay_within_the_memory_for_pixels() -> None:
    settings = Settings(max_image_tokens=64, decode_memory_bytes=64 * 2**20)
    opener = Opener(settings, Slow(), SmartResizePolicy(read_preprocessor(EMBEDDED_MODEL), settings))
    items = [image(inline("red", (2400, 1200))).model_copy(update={"keeps_size": True}) for _ in range(3)]

    async def run() -> None:
        async with opener.room(items) as room:
            held = opener.workers.pixels.total - opener.workers.pixels.free
            pictures = [only for [only] in await opener.open(items)]
            taken = sum(only.rgb.nbytes for only in pictures if isinstance(only, Picture))
            assert 0.9 * held < taken <= held
            room.settle(pictures)
        async with opener.room(items[:1]):
            [[only]] = await opener.open(items[:1])
            assert isinstance(only, Picture)
            assert only.rgb.shape == (1200, 2400, 3)

    asyncio.run(run())
    opener.close()


def test_a_small_picture_does_not_wait_for_anothers_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three requests of eight large pictures each once made it wait for all of them."""
    go_on, order = threading.Event(), list[str]()
    decode = picture.decode

    def watched(header: picture.Header, *rest: Any) -> RGB:
        if header.num_pixels > 1000:
            go_on.wait(10)
        order.append("large" if header.num_pixels > 1000 else "small")
        return decode(header, *rest)

    monkeypatch.setattr("worker.media.picture.decode", watched)
    monkeypatch.setattr("worker.media.workers.SMALL_BYTES", 2 * 2**20)
    opener = Opener(Settings(prepare_threads=2), Slow(), AsItIs())

    async def run() -> None:
        large = [
            asyncio.create_task(opener.open([image(inline("red", (1000, 1000)), f"i{n}") for n in range(8)]))
            for _ in range(3)
        ]
        for _ in range(100):
            await asyncio.sleep(0)
        await asyncio.wait_for(opener.open([image(inline("blue"))]), 10)
        assert order == ["small"]
        go_on.set()
        await asyncio.gather(*large)

    asyncio.run(run())
    opener.close()
