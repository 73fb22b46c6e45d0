"""Decoding in child processes: the same pictures, and what goes wrong there stays there."""

import asyncio
import os
import pickle
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.fakes import encoded
from tests.media.films import film
from tests.media.isolated_work import doubled, environment, hungry, scribble, shows_a_pixel
from worker.checkpoint.preprocessor import read_preprocessor
from worker.core.contract import Controls, Media, Upload
from worker.core.errors import MediaCorrupt, MediaDecoderCrashed, MediaDecodeTimeout, MediaTooLarge
from worker.core.opened import Clip, Picture
from worker.core.settings import EMBEDDED_MODEL, Settings
from worker.media.handing_over import Arena, InParent, Order
from worker.media.isolate import Children, Use
from worker.media.opener import Opener
from worker.media.workers import Workers
from worker.prompt.size_policy import SmartResizePolicy

FILM = film(20)  # one for both: under load, encoding it again may give other bytes
PNG = encoded(Image.linear_gradient("L").resize((90, 60)))


def media(kind: str, data: bytes) -> Media:
    return Media(kind=kind, source=Upload(data=data), where=kind)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    made = Children()
    yield made
    made.close()


def run(children: Children, work: Any, *arguments: Any, timeout_s: float = 20.0, num_bytes: int = 2**24) -> Any:
    return children.run(work, arguments, num_bytes, timeout_s)


def test_what_is_opened_is_the_same_in_both_ways() -> None:
    def opened(**more: Any) -> tuple[Any, ...]:
        settings = Settings(prepare_threads=2, **more)
        opener = Opener(settings, None, SmartResizePolicy(read_preprocessor(EMBEDDED_MODEL), settings))  # type: ignore[arg-type]
        try:
            return tuple(shown for [shown] in asyncio.run(opener.open([media("image", PNG), media("video", FILM)])))
        finally:
            opener.close()

    (picture, clip), (own_picture, own_clip) = opened(), opened(media_isolate="process")
    assert isinstance(picture, Picture) and isinstance(clip, Clip)
    assert np.array_equal(picture.rgb, own_picture.rgb)
    assert clip.times == own_clip.times
    assert all(np.array_equal(one, other) for one, other in zip(clip.frames, own_clip.frames, strict=True))


def test_a_file_that_is_broken_is_told_with_its_place() -> None:
    settings = Settings(prepare_threads=1, media_isolate="process")
    opener = Opener(settings, None, SmartResizePolicy(read_preprocessor(EMBEDDED_MODEL), settings))  # type: ignore[arg-type]
    try:
        with pytest.raises(MediaCorrupt, match="image: "):
            asyncio.run(opener.open([media("image", PNG[:60])]))
        [[seen]] = asyncio.run(opener.open([media("image", PNG)]))
    finally:
        opener.close()
    assert isinstance(seen, Picture)


def test_a_crash_is_one_files_own(children: Children) -> None:
    with pytest.raises(MediaDecoderCrashed) as failure:
        run(children, os.abort)
    assert failure.value.is_retryable
    for _ in range(4):
        assert run(children, max, 1, 2) == 2


def test_who_leaves_when_its_work_is_done_does_not_end_anothers(children: Children) -> None:
    """Its child may be doing another's by then."""
    uses: list[Use] = []
    assert children.run(max, (1, 2), 2**24, 20.0, uses.append) == 2
    before = set(children._all)

    def leaving(_: Any) -> int:
        uses[0].kill()
        return 7

    assert run(children, shows_a_pixel, InParent(leaving)) == 5
    assert children._all == before


def test_what_crashed_once_is_tried_once_more(children: Children) -> None:
    tries: list[int] = []

    def counted(_: Any) -> int:
        tries.append(1)
        if len(tries) == 1:
            for child in list(children._all):
                os.kill(child.pid, signal.SIGKILL)
        return len(tries)

    assert run(children, shows_a_pixel, InParent(counted)) == 5
    assert len(tries) == 2


def test_a_function_that_fails_in_the_parent_fails_the_work_and_no_later_one(children: Children) -> None:
    def failing(_: Any) -> None:
        raise MediaTooLarge(detail="our words")

    for _ in range(3):
        with pytest.raises(MediaTooLarge, match="our words"):
            run(children, shows_a_pixel, InParent(failing))
        assert run(children, max, 1, 2) == 2


@pytest.mark.parametrize("sent", [os.system, os.path.join, subprocess.Popen, "worker.media.isolate\nos.system"])
def test_what_a_child_sends_is_never_called(sent: Any, tmp_path: Path) -> None:
    class Gadget:
        def __reduce__(self) -> Any:
            return sent, (f"touch {tmp_path}/made",)

    if isinstance(sent, str):
        data = b"c" + sent.encode() + b"\n(S'touch " + str(tmp_path).encode() + b"/made'\ntR."
    else:
        data = pickle.dumps(Gadget())
    with pytest.raises((pickle.UnpicklingError, AttributeError)):
        Order(Arena(-1)).unpacked(data)
    assert not list(tmp_path.iterdir())


def test_a_server_that_has_ended_is_started_again() -> None:
    alone = Children()
    try:
        assert run(alone, max, 1, 2) == 2
        alone._server.kill()
        alone._server.wait()
        with pytest.raises(MediaDecoderCrashed):
            run(alone, os.abort)
        assert run(alone, max, 1, 2) == 2
    finally:
        alone.close()


def test_a_child_has_nothing_of_the_workers_environment(children: Children, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "secret")
    names = run(children, environment)
    assert "API_KEY" not in names and "PATH" in names


def test_large_bytes_and_pixels_go_both_ways(children: Children) -> None:
    """What stays in the parent is there in the result; arenas grow and shrink again."""
    for size in (10, 100_000, 50_000_000):
        shown: list[int] = []

        def keep(rgb: Any, name: str, shown: list[int] = shown) -> str:
            shown.append(int(rgb.sum()))
            return f"{name} of {rgb.shape}"

        height = max(1, size // 3000)
        assert run(children, doubled, bytes(size), height, InParent(keep), num_bytes=2**28) == [
            size, f"first of ({height}, 1000, 3)", f"second of ({height}, 1000, 3)"
        ]  # fmt: skip
        assert shown == [height * 3000, 2 * height * 3000]


def test_what_takes_too_long_is_ended() -> None:
    alone = Children()
    try:
        pid = run(alone, os.getpid)
        with pytest.raises(MediaDecodeTimeout):
            run(alone, time.sleep, 600, timeout_s=0.3)
        assert run(alone, os.getpid) != pid
        end = time.monotonic() + 10
        while is_running(pid) and time.monotonic() < end:
            os.sched_yield()
        assert not is_running(pid)
    finally:
        alone.close()


def test_who_leaves_frees_the_place_at_once() -> None:
    workers = Workers(Settings(media_isolate="process", prepare_threads=1))

    async def leave() -> int:
        task = asyncio.create_task(workers.decode(1, time.sleep, 600, timeout_s=600))
        while not workers._children or all(child.is_idle for child in workers._children._all):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return await workers.decode(1, max, 1, 2)

    try:
        assert asyncio.run(asyncio.wait_for(leave(), 30)) == 2
    finally:
        workers.close()


def test_nothing_stays_behind() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        made = Children()
        pid = run(made, os.getpid)
        made.close()
    assert len(os.listdir("/proc/self/fd")) == before
    end = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < end:
        os.sched_yield()
    assert not is_running(pid)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def test_memory_is_limited_and_the_child_goes_on(children: Children) -> None:
    with pytest.raises(MediaTooLarge, match="more memory"):
        run(children, hungry, 2**29)
    assert run(children, hungry, 2**20) == 2**20


def test_nothing_is_written_to_a_file(children: Children, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="too large"):
        run(children, scribble, str(tmp_path / "x"))
    assert not (tmp_path / "x").exists() or not (tmp_path / "x").stat().st_size


def test_errors_keep_what_they_say_on_the_way() -> None:
    error = MediaTooLarge(where="image", detail="at most 5 bytes", retryable=True)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.message, again.is_retryable) == (MediaTooLarge, error.message, True)


def test_controls_travel_too() -> None:
    assert pickle.loads(pickle.dumps(Controls(fps=2.0))) == Controls(fps=2.0)
