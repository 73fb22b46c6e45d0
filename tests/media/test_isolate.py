"""Decoding in child processes: the same pictures, and what goes wrong there stays there."""

import asyncio
import os
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.fakes import encoded
from tests.media.films import film
from worker.checkpoint.preprocessor import read_preprocessor
from worker.core.contract import Clip, Controls, Media, Picture, Upload
from worker.core.errors import MediaCorrupt, MediaDecodeTimeout, MediaTooLarge
from worker.core.settings import EMBEDDED_MODEL, Settings
from worker.media.isolate import Children
from worker.media.opener import Opener
from worker.prompt.size_policy import SmartResizePolicy

FILM = film(20)  # one for both: under load, encoding it again may give other bytes
PNG = encoded(Image.linear_gradient("L").resize((90, 60)))


def media(kind: str, data: bytes) -> Media:
    return Media(kind=kind, source=Upload(data=data), where=kind)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    made = Children(2, 256 * 2**20, ["worker.media.opener"])
    yield made
    made.close()


def run(children: Children, work: Any, *arguments: Any, timeout_s: float = 20.0) -> Any:
    return asyncio.run(children.run(work, arguments, timeout_s))


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
    with pytest.raises(MediaCorrupt, match="could not be decoded"):
        run(children, os.abort)
    for _ in range(4):
        assert run(children, max, 1, 2) == 2


def test_what_takes_too_long_is_ended() -> None:
    alone = Children(1, 256 * 2**20, ["worker.media.opener"])
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


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def hungry(num_bytes: int) -> int:
    return len(bytearray(num_bytes))


def test_memory_is_limited_and_the_child_goes_on(children: Children) -> None:
    with pytest.raises(MemoryError):
        run(children, hungry, 2**31)
    assert run(children, hungry, 2**20) == 2**20


def scribble(path: str) -> int:
    with open(path, "wb") as file:
        return file.write(b"x")


def test_nothing_is_written_to_a_file(children: Children, tmp_path: Path) -> None:
    with pytest.raises((OSError, MediaCorrupt)):
        run(children, scribble, str(tmp_path / "x"))
    assert not (tmp_path / "x").exists() or not (tmp_path / "x").stat().st_size


def test_errors_keep_what_they_say_on_the_way() -> None:
    error = MediaTooLarge(where="image", detail="at most 5 bytes", retryable=True)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.message, again.is_retryable) == (MediaTooLarge, error.message, True)


def test_controls_travel_too() -> None:
    assert pickle.loads(pickle.dumps(Controls(fps=2.0))) == Controls(fps=2.0)
