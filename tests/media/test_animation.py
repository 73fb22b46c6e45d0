"""Animated pictures as videos: the right frames at the right times, and nothing that does not end."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.media.films import chosen
from worker.core.contract import Controls
from worker.core.errors import MediaCorrupt, MediaDimensions, MediaUnsupportedType, MediaVideoTooLong
from worker.core.opened import RGB, Clip
from worker.core.settings import Settings
from worker.media import animation
from worker.media.sniff import sniff

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255))
FORMATS = ["GIF", "WEBP", "PNG"]


def animated(form: str, durations: int | list[int] = 500, size: tuple[int, int] = (40, 30), **options: Any) -> bytes:
    frames = [Image.new("RGB", size, colour) for colour in COLOURS]
    out = io.BytesIO()
    more = {"lossless": True} if form == "WEBP" else {}
    frames[0].save(out, form, save_all=True, append_images=frames[1:], duration=durations, loop=0, **more, **options)
    return out.getvalue()


def as_it_is(rgb: RGB, _: int) -> RGB:
    return rgb


def opened(data: bytes, controls: Controls | None = None, settings: Settings | None = None) -> Clip:
    settings, found = settings or Settings(), sniff(data)
    read = animation.read_times(data, found, settings)
    return animation.decode(data, found, read, chosen(read.times, controls or Controls(), settings), settings, as_it_is)


def colours(clip: Clip) -> list[tuple[int, ...]]:
    return [tuple(round(value / 255) * 255 for value in frame[5, 5].tolist()) for frame in clip.frames]


@pytest.mark.parametrize("form", FORMATS)
def test_all_frames_come_at_their_times(form: str) -> None:
    clip = opened(animated(form))
    assert colours(clip) == list(COLOURS)
    assert clip.times == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5])
    assert clip.is_sized


@pytest.mark.parametrize("form", FORMATS)
def test_controls_choose_among_them(form: str) -> None:
    assert colours(opened(animated(form), Controls(nframes=2))) == [COLOURS[0], COLOURS[5]]
    part = opened(animated(form), Controls(nframes=2, video_start=0.4, video_end=1.1))
    assert colours(part) == [COLOURS[1], COLOURS[2]]


@pytest.mark.parametrize("form", FORMATS)
def test_unequal_times_are_the_files_own(form: str) -> None:
    clip = opened(animated(form, [100, 1000, 100, 100, 2000, 100]), Controls(nframes=6))
    assert {round(at, 3) for at in clip.times or ()} <= {0.0, 0.1, 1.1, 1.2, 1.3, 3.3}
    assert clip.times is not None and clip.times[-1] == pytest.approx(3.3)


def test_a_frame_without_a_duration_is_shown_as_browsers_show_it() -> None:
    assert opened(animated("GIF", 0), Controls(nframes=6)).times == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])


def test_what_is_transparent_is_on_white() -> None:
    frames = [Image.new("RGBA", (20, 20), (0, 0, 0, 0)), Image.new("RGBA", (20, 20), (255, 0, 0, 255))]
    out = io.BytesIO()
    frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:], duration=100, lossless=True)
    assert np.all(opened(out.getvalue()).frames[0] == 255)


@pytest.mark.parametrize("form", FORMATS)
def test_a_still_is_no_video(form: str) -> None:
    out = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(out, form)
    with pytest.raises(MediaUnsupportedType, match="of one frame, not a video"):
        opened(out.getvalue())


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("limits", "error"),
    [
        ({"max_video_packets": 5}, MediaVideoTooLong),
        ({"max_video_s": 2.0}, MediaVideoTooLong),
        ({"max_image_side": 39}, MediaDimensions),
    ],
)
def test_limits_hold(form: str, limits: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        opened(animated(form), settings=Settings(**limits))


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_cut_short_is_told_or_gives_what_is_there(form: str) -> None:
    data = animated(form, size=(200, 150))
    for part in (0.2, 0.5, 0.8):
        try:
            clip = opened(data[: int(len(data) * part)])
        except (MediaCorrupt, MediaUnsupportedType):
            continue
        assert 1 <= len(clip.frames) <= 6
