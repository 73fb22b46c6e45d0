"""Video files: which frames come out, at what times, upright; and what is refused."""

import contextlib
import io
import random
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.media.films import chosen, film, number_of
from worker.core.contract import Controls
from worker.core.errors import (
    MediaCorrupt,
    MediaDimensions,
    MediaError,
    MediaParamInvalid,
    MediaUnsupportedType,
    MediaVideoNoFrames,
    MediaVideoTooLong,
)
from worker.core.opened import RGB, Clip
from worker.core.settings import Settings
from worker.media import demux, frames, video
from worker.media.packets import spans_of
from worker.media.sniff import sniff

AS_SENT = Settings()


def as_it_is(rgb: RGB, num_frames: int) -> RGB:
    return rgb


def seen(data: bytes, settings: Settings = AS_SENT, **controls: Any) -> Clip:
    """What comes out of a file."""
    found = sniff(data)
    assert found.video is not None
    packets = video.read_packets(data, found.video, settings)
    if packets.is_unclear:
        packets = video.examine(data, found.video, packets, settings)
    return video.decode(
        data, found.video, packets, chosen(packets.times, Controls(**controls), settings), settings, as_it_is
    )


def numbers(clip: Clip) -> list[int]:
    return [number_of(one) for one in clip.frames]


FILES = {
    "H.264 in MP4": {},
    "H.264 in QuickTime": {"form": "mov"},
    "H.264 in MPEG-TS": {"form": "mpegts"},
    "H.264 in Matroska": {"form": "matroska"},
    "H.264 with many B-frames": {"options": {"bf": "4", "g": "40"}},
    "H.264 with short groups": {"options": {"g": "5"}},
    "H.264 with open groups": {"options": {"g": "12", "x264-params": "open-gop=1:bframes=3"}},
    "HEVC in MP4": {"codec": "libx265", "options": {"x265-params": "log-level=none"}},
    "HEVC of 10 bits": {"codec": "libx265", "pixels": "yuv420p10le", "options": {"x265-params": "log-level=none"}},
    "VP8 in WebM": {"codec": "libvpx", "form": "webm"},
    "VP9 in WebM": {"codec": "libvpx-vp9", "form": "webm", "options": {"cpu-used": "8", "deadline": "realtime"}},
    "AV1 in MP4": {"codec": "libsvtav1", "options": {"preset": "12", "svtav1-params": "tune=0"}},
    "MPEG-4 in AVI": {"codec": "mpeg4", "form": "avi", "options": {"b": "2M"}},
    "odd sides": {"size": (170, 102)},
}


@pytest.mark.parametrize("name", FILES)
def test_the_very_frames_of_the_reference_come_out_of_every_kind_of_file(name: str) -> None:
    clip = seen(film(60, **FILES[name]), nframes=10)  # type: ignore[arg-type]
    expected = np.linspace(0, 59, 10).round().astype(int).tolist()
    assert numbers(clip) == expected
    assert clip.times == pytest.approx([index / 30 for index in expected], abs=0.002)


@pytest.mark.parametrize(
    ("controls", "expected"),
    [
        ({}, 4),  # two seconds at 2 a second
        ({"fps": 4}, 8),
        ({"fps": 1}, 4),  # min_frames' default
        ({"fps": 1, "min_frames": 2}, 2),
        ({"fps": 100}, 16),  # MAX_VIDEO_FPS
        ({"fps": 8, "max_frames": 6}, 6),
        ({"nframes": 7}, 8),  # round half to even, as Python does
        ({"nframes": 1000}, 60),
        ({"video_start": 0.5, "video_end": 1.5, "fps": 8}, 8),
    ],
)
def test_how_many_frames_come_out(controls: dict[str, Any], expected: int) -> None:
    assert len(seen(FILM, **controls).frames) == expected


FILM = film(60)


def test_a_part_of_a_film_is_seen_from_its_start_to_its_end() -> None:
    clip = seen(FILM, video_start=0.5, video_end=1.0, nframes=4)
    assert numbers(clip) == [15, 20, 25, 30]
    assert clip.times is not None
    assert clip.times == pytest.approx([0.5, 20 / 30, 25 / 30, 1.0], abs=0.001)


def test_frames_of_a_varying_rate_are_chosen_by_the_clock() -> None:
    """Half a second at 30 a second, then one frame a second."""
    times = [index / 30 for index in range(16)] + [1.5 + index for index in range(8)]
    clip = seen(film(24, times=times, form="matroska"), nframes=8)
    wanted = np.linspace(0, times[-1], 8)
    nearest = [int(np.abs(np.asarray(times) - at).argmin()) for at in wanted]
    assert numbers(clip) == nearest
    assert clip.times == pytest.approx([times[index] for index in nearest], abs=0.002)


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (2, 2), (3, 2), (5, 4)])
def test_short_films(count: int, expected: int) -> None:
    assert len(seen(film(count)).frames) == expected


def test_a_film_that_does_not_begin_at_zero() -> None:
    clip = seen(film(20, times=[7 + index / 10 for index in range(20)], form="matroska"), nframes=4)
    assert clip.times is not None
    assert clip.times[0] == 0


def test_a_film_is_seen_upright(tmp_path: Path) -> None:
    upright, turned = seen(FILM, nframes=2).frames[0], seen(rotated(FILM), nframes=2).frames[0]
    assert turned.shape == (upright.shape[1], upright.shape[0], 3)
    assert np.array_equal(np.rot90(upright, -1), turned)


def rotated(data: bytes) -> bytes:
    """The same MP4 with the display matrix of a phone held upright: a quarter turn clockwise."""
    at = data.index(b"tkhd") + 4 + 40
    plain = b"".join(value.to_bytes(4, "big", signed=True) for value in (65536, 0, 0, 0, 65536, 0, 0, 0, 2**30))
    assert data[at : at + 36] == plain
    matrix = (0, 65536, 0, -65536, 0, 0, 96 * 65536, 0, 2**30)
    return data[:at] + b"".join(value.to_bytes(4, "big", signed=True) for value in matrix) + data[at + 36 :]


def test_every_frame_goes_through_shrink_and_hears_how_many_there_are() -> None:
    found = sniff(FILM).video
    assert found is not None
    packets = video.read_packets(FILM, found, AS_SENT)
    told = []

    def shrink(rgb: RGB, num_frames: int) -> RGB:
        told.append(num_frames)
        return rgb[::4, ::4]

    clip = video.decode(FILM, found, packets, chosen(packets.times, Controls(nframes=6), AS_SENT), AS_SENT, shrink)
    assert told == [6] * 6
    assert clip.is_sized
    assert clip.frames[0].shape == (24, 40, 3)


@pytest.mark.parametrize(
    ("data", "settings", "controls", "error"),
    [
        (film(60), Settings(max_video_s=1.5), {}, MediaVideoTooLong),
        (film(60), Settings(max_video_packets=59), {}, MediaVideoTooLong),
        (film(2, size=(320, 200)), Settings(max_video_side=319), {}, MediaDimensions),
        (film(2, size=(320, 200)), Settings(max_video_frame_pixels=63_999), {}, MediaDimensions),
        (film(20), AS_SENT, {"video_start": 9}, MediaParamInvalid),
        (film(20), AS_SENT, {"video_start": 0.001, "video_end": 0.002}, MediaVideoNoFrames),
        (film(20)[:600], AS_SENT, {}, MediaCorrupt),
        (film(20, codec="prores_ks", form="mov", pixels="yuv422p10le"), AS_SENT, {}, MediaUnsupportedType),
        (film(20, codec="jpeg2000", form="mov", pixels="rgb24"), AS_SENT, {}, MediaUnsupportedType),
        (b"\x1aE\xdf\xa3" + b"x" * 5000, AS_SENT, {}, MediaCorrupt),
        (b"\0\0\0\x18ftypisom" + bytes(4000), AS_SENT, {}, MediaError),
    ],
)
def test_what_is_refused(data: bytes, settings: Settings, controls: dict[str, Any], error: type[MediaError]) -> None:
    with pytest.raises(error):
        seen(data, settings, **controls)


@pytest.mark.filterwarnings("ignore")
def test_broken_bytes_give_frames_or_a_coded_error_and_nothing_else() -> None:
    rng = np.random.default_rng(1)
    for _ in range(60):
        data = np.frombuffer(FILM, np.uint8).copy()
        data[rng.integers(0, len(data), 20)] = rng.integers(0, 256, 20)
        if sniff(data.tobytes()).video is not None:
            with contextlib.suppress(MediaError):
                assert seen(data.tobytes(), nframes=4).frames


def test_a_text_that_names_a_file_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "secret.mp4").write_bytes(FILM)
    for text in (
        f"ffconcat version 1.0\nfile {tmp_path}/secret.mp4\n",
        f"#EXTM3U\n#EXTINF:1,\n{tmp_path}/secret.mp4\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\n",
    ):
        assert sniff(text.encode()).video is None
        with pytest.raises(MediaCorrupt):
            video.read_packets(text.encode(), "mov,mp4,m4a,3gp,3g2,mj2", AS_SENT)


def test_the_times_of_a_steady_film_are_chosen_as_the_reference_does() -> None:
    """`linspace(0, total - 1, n).round()` for every length and count, ties included."""
    limits = frames.Limits(240, 768)
    for total in range(2, 80):
        times = [index / 25 for index in range(total)]
        for count in range(2, total + 1, 2):
            chosen = frames.choose(times, Controls(nframes=count), limits)
            assert chosen == np.linspace(0, total - 1, count).round().astype(int).tolist()


@pytest.mark.parametrize("options", [{"bf": "4", "g": "60"}, {"g": "7"}, {"g": "12", "x264-params": "open-gop=1"}])
def test_what_is_left_out_of_decoding_changes_no_pixel(options: dict[str, str]) -> None:
    data = film(60, options=options)
    with av.open(io.BytesIO(data), "r") as container:
        everything = [one.to_ndarray(format="rgb24") for one in container.decode(video=0)]
    for count in (2, 6, 20, 60):
        clip = seen(data, nframes=count)
        assert numbers(clip) == np.linspace(0, 59, count).round().astype(int).tolist()
        for index, rgb in zip(numbers(clip), clip.frames, strict=True):
            assert np.array_equal(rgb, everything[index])


@pytest.mark.parametrize("name", FILES)
def test_any_frames_of_any_kind_of_file_are_the_ones_that_a_plain_decoder_shows(name: str) -> None:
    """Every third frame alone, and chance sets of them: bit for bit."""
    data, rng = film(60, **FILES[name]), random.Random(1)  # type: ignore[arg-type]
    found = sniff(data).video
    assert found is not None
    packets = video.read_packets(data, found, AS_SENT)
    with av.open(io.BytesIO(data), "r") as container:
        everything = [one.to_ndarray(format="rgb24") for one in container.decode(video=0)]
    for wanted in (*([index] for index in range(0, 60, 3)), *(sorted(rng.sample(range(60), 7)) for _ in range(6))):
        clip = video.decode(data, found, packets, wanted, AS_SENT, as_it_is)
        assert len(clip.frames) == len(wanted)
        assert all(np.array_equal(rgb, everything[at]) for at, rgb in zip(wanted, clip.frames, strict=True))


def test_what_nothing_wanted_depends_on_is_not_decoded() -> None:
    """The control of the test above: of 12 groups of pictures, those of the two wanted frames are decoded."""
    data = film(60, options={"g": "5", "bf": "0"})
    found = sniff(data).video
    assert found is not None
    packets = video.read_packets(data, found, AS_SENT)
    assert len(packets.keys) == 12
    assert spans_of(packets, [0, 59]) == [range(1), range(55, 60)]
    wanted = frozenset({packets.places[0], packets.places[59]})
    with demux.opened(data, found, AS_SENT) as opened_film:
        assert len(list(opened_film.frames(spans_of(packets, [0, 59]), wanted))) == 6


def test_in_a_group_nothing_is_decoded_behind_the_last_wanted_frame() -> None:
    data = film(60, options={"g": "60", "bf": "0"})
    found = sniff(data).video
    assert found is not None
    packets = video.read_packets(data, found, AS_SENT)
    assert spans_of(packets, [0, 20]) == [range(21)]


@pytest.mark.parametrize(
    ("fps", "form", "codec"), [(24, "mp4", "libx264"), (30, "webm", "libvpx-vp9"), (25, "mp4", "libx264")]
)
def test_two_frames_a_second_of_three_seconds_are_six(fps: int, form: str, codec: str) -> None:
    data = film(3 * fps, fps=fps, form=form, codec=codec)
    found = sniff(data).video
    assert found is not None
    times = video.read_packets(data, found, AS_SENT).times
    assert len(chosen(times, Controls(fps=2.0), AS_SENT)) == 6
    assert len(chosen(times, Controls(fps=2.1), AS_SENT)) == 6
    assert len(chosen(times, Controls(fps=1.9), AS_SENT)) == 4
