"""Films as people really have them. The frames that come out and their times are those that ffmpeg shows."""

import asyncio
import gc
import io
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.media import film_kinds as kinds
from tests.media.films import film, number_of
from tests.media.judges import TO_SDR, ffmpeg_frames, ffmpeg_picture, needs_ffmpeg
from tests.media.test_opener import AsItIs, Slow
from worker.core.contract import Controls, Media, Upload
from worker.core.errors import MediaCorrupt, MediaError, MediaUnsupportedType
from worker.core.opened import RGB, Clip
from worker.core.settings import Settings
from worker.media import video
from worker.media.opener import Opener
from worker.media.packets import Packets
from worker.media.sniff import sniff

AS_SENT = Settings(media_isolate="process")
FRAME_S = 1 / 30
X265 = {"x265-params": "log-level=none:keyint=30"}
VP9 = {"cpu-used": "8", "deadline": "realtime", "g": "30"}


def whole(data: bytes) -> tuple[Clip, Packets]:
    """Every frame of a film that comes out."""
    form = sniff(data).video
    assert form is not None
    packets = video.read_packets(data, form, AS_SENT)
    while True:
        if packets.is_unclear and not packets.is_examined:
            packets = video.examine(data, form, packets, AS_SENT)
        clip = video.decode(data, form, packets, range(len(packets.times)), AS_SENT, lambda rgb, _: rgb)
        if packets.is_examined or (clip.source is not None and not clip.source.frames_lost):
            return clip, packets
        packets = video.examine(data, form, packets, AS_SENT)


def seen(data: bytes, settings: Settings = AS_SENT, **controls: Any) -> Clip:
    """What a request sees."""
    opener = OPENERS.get(settings) or OPENERS.setdefault(settings, Opener(settings, Slow(), AsItIs()))
    media = Media(kind="video", source=Upload(data=data), where="video", controls=Controls(**controls))
    [[clip]] = asyncio.run(opener.open([media]))
    assert isinstance(clip, Clip)
    return clip


OPENERS: dict[Settings, Opener] = {}


@pytest.fixture(autouse=True, scope="module")
def openers() -> Iterator[None]:
    """What requests see comes from child processes, as where the worker is deployed."""
    yield
    for opener in OPENERS.values():
        opener.close()


def numbers(frames: Sequence[RGB]) -> list[int]:
    return [number_of(rgb) for rgb in frames]


def codes(clip: Clip) -> list[str]:
    assert clip.source is not None
    return [told.code for told in clip.source.warnings]


def _edited(edits: Sequence[tuple[float, float, float]], **options: Any) -> Callable[[], bytes]:
    """Of each edit its seconds, where it starts in the film (-1: nothing is shown), and its speed."""

    def make() -> bytes:
        data = film(120, **options)
        units, first = kinds.media_units(data), kinds.first_media_time(data)
        return kinds.with_edits(
            data,
            [
                (round(seconds * 1000), -1 if start < 0 else first + round(start * units), speed)
                for seconds, start, speed in edits
            ],
        )

    return make


B_FRAMES = {"options": {"bf": "4", "g": "40"}}
SHORT_GROUPS = {"options": {"g": "10"}}
# Each: how it is made, and the numbers that are shown.
EDITS: dict[str, tuple[Callable[[], bytes], list[int]]] = {
    "the beginning is trimmed": (_edited([(2.5, 1.5, 1)]), [*range(45, 120)]),
    "the beginning is trimmed, many B-frames": (_edited([(2.5, 1.5, 1)], **B_FRAMES), [*range(45, 120)]),
    "the beginning is trimmed, short groups": (_edited([(2.5, 1.5, 1)], **SHORT_GROUPS), [*range(45, 120)]),
    "the beginning is trimmed, HEVC": (
        _edited([(2.5, 1.5, 1)], codec="libx265", options=X265),
        [*range(45, 120)],
    ),
    "the end is trimmed": (_edited([(1.2, 0, 1)]), [*range(36)]),
    "both are trimmed": (_edited([(1, 1, 1)]), [*range(30, 60)]),
    "two parts": (_edited([(0.5, 1, 1), (0.5, 3, 1)], **SHORT_GROUPS), [*range(30, 45), *range(90, 105)]),
    "two parts of one group": (_edited([(0.5, 0.5, 1), (0.5, 2, 1)]), [*range(15, 30), *range(60, 75)]),
    "two parts, the later first": (_edited([(0.5, 2, 1), (0.5, 0.5, 1)]), [*range(60, 75), *range(15, 30)]),
    "one part twice": (_edited([(0.5, 1, 1), (0.5, 1, 1)]), [*range(30, 45)] * 2),
    "nothing at first": (_edited([(0.5, -1, 1), (2.5, 1, 1)]), [*range(30, 105)]),
    "twice the speed": (_edited([(2, 0, 2)]), [*range(60)]),
    "half the speed": (_edited([(8, 0, 0.5)]), [*range(120)]),
}
CLOSE_S = FRAME_S * 1.5  # where an edit ends, ffmpeg's times may go back by a frame: ours go on
CONTAINERS: dict[str, tuple[Callable[[], bytes], int]] = {
    "H.264 with B-frames in AVI": (lambda: film(60, form="avi", options={"bf": "3"}), 60),
    "MPEG-4 with B-frames in AVI": (lambda: film(60, codec="mpeg4", form="avi", options={"bf": "2", "b": "2M"}), 60),
    "raw H.264": (lambda: film(60, form="h264", options={"bf": "3"}), 60),
    "raw HEVC": (lambda: film(60, codec="libx265", form="hevc", options=X265), 60),
    "raw MPEG-4": (lambda: film(60, codec="mpeg4", form="m4v", options={"bf": "2", "b": "2M"}), 60),
    "raw MPEG-2": (lambda: film(60, codec="mpeg2video", form="mpeg2video", options={"bf": "2", "b": "4M"}), 60),
    "IVF": (lambda: film(60, codec="libvpx", form="ivf"), 60),
    "MPEG-1 in MPEG-PS": (lambda: film(60, codec="mpeg1video", form="mpeg", options={"b": "4M"}), 60),
    "MPEG-2 in MPEG-PS": (lambda: film(60, codec="mpeg2video", form="vob", options={"bf": "2", "b": "4M"}), 60),
    "MPEG-2 in MPEG-TS": (lambda: film(60, codec="mpeg2video", form="mpegts", options={"bf": "2", "b": "4M"}), 60),
    "H.264 in FLV": (lambda: film(60, form="flv", options={"bf": "3"}), 60),
    "Sorenson in FLV": (lambda: film(60, codec="flv", form="flv", options={"b": "4M"}), 60),
    "WMV 2": (lambda: film(60, codec="wmv2", form="asf", options={"b": "4M"}), 60),
    "WMV 1": (lambda: film(60, codec="wmv1", form="asf", options={"b": "4M"}), 60),
    "DivX 3 in AVI": (lambda: film(60, codec="msmpeg4", form="avi", options={"b": "4M"}), 60),
    "Motion JPEG in AVI": (lambda: film(60, codec="mjpeg", form="avi", pixels="yuvj420p"), 60),
    "Motion JPEG in QuickTime": (lambda: film(60, codec="mjpeg", form="mov", pixels="yuvj420p"), 60),
    "H.263 in 3GP": (lambda: film(60, codec="h263", form="3gp", size=(176, 144), options={"b": "2M"}), 60),
    "AVCHD, 192-byte packets": (lambda: kinds.with_long_packets(film(60, form="mpegts")), 60),
    "fragments": (
        lambda: kinds.remuxed(film(60, options={"g": "15"}), "mp4", {"movflags": "frag_keyframe+empty_moov"}),
        60,
    ),
    **{
        f"{atom.decode()} before ftyp": (lambda atom=atom: kinds.box(atom, bytes(8)) + film(60), 60)  # type: ignore[misc]
        for atom in (b"skip", b"free", b"pnot", b"uuid", b"wide")
    },
    "skip before ftyp, counted": (lambda: kinds.with_counted_box(film(60), b"skip"), 60),
    "styp before ftyp": (lambda: kinds.box(b"styp", b"msdh" + bytes(4) + b"msdh") + film(60), 60),
    "a second clip behind the first": (
        lambda: kinds.joined(film(60, form="mpegts"), film(60, form="mpegts")),
        120,
    ),
}  # fmt: skip


def _times_agree(ours: Sequence[float], theirs: Sequence[float | None], tolerance: float = 0.002) -> bool:
    """Both from the first frame whose time ffmpeg knows."""
    known = [(at, their) for at, their in zip(ours, theirs, strict=True) if their is not None]
    return all(abs((at - known[0][0]) - their) <= tolerance for at, their in known)


@pytest.mark.parametrize("name", EDITS)
def test_of_an_edited_film_what_its_edit_list_says_is_seen(name: str) -> None:
    make, expected = EDITS[name]
    clip, _ = whole(make())
    assert numbers(clip.frames) == expected
    assert clip.times is not None
    assert clip.times[0] == 0
    assert all(later > sooner for sooner, later in pairwise(clip.times))
    assert ("VIDEO_TRIMMED" in codes(clip)) == (name not in ("half the speed",))


@needs_ffmpeg
@pytest.mark.parametrize("name", EDITS)
def test_ffmpeg_shows_the_same_frames_of_an_edited_film_at_the_same_times(name: str, tmp_path: Path) -> None:
    make, expected = EDITS[name]
    (tmp_path / "film.mp4").write_bytes(make())
    clip, _ = whole(make())
    theirs, times = ffmpeg_frames(tmp_path / "film.mp4")
    assert theirs == expected
    assert clip.times is not None
    assert _times_agree(clip.times, times, CLOSE_S if "two parts" in name else 0.002)


@pytest.mark.parametrize("name", CONTAINERS)
def test_of_every_container_the_frames_come_in_order(name: str) -> None:
    make, count = CONTAINERS[name]
    clip, _ = whole(make())
    shown = numbers(clip.frames)
    assert shown == [*range(60)] * (count // 60)
    assert clip.times == pytest.approx([index / 30 for index in range(count)], abs=0.04)
    assert not {"VIDEO_FRAMES_LOST", "VIDEO_TRUNCATED"} & set(codes(clip))


@needs_ffmpeg
@pytest.mark.parametrize("name", [name for name in CONTAINERS if not name.endswith("before ftyp")])
def test_ffmpeg_shows_the_same_of_every_container(name: str, tmp_path: Path) -> None:
    """But for boxes that the index does not count: those ffmpeg does not read."""
    make, _ = CONTAINERS[name]
    (tmp_path / "film").write_bytes(make())
    clip, _ = whole(make())
    theirs, times = ffmpeg_frames(tmp_path / "film")
    assert numbers(clip.frames) == theirs
    if "behind the first" not in name:  # its times begin again there
        assert clip.times is not None
        assert _times_agree(clip.times, times)


@pytest.mark.parametrize("shift", [0, 77])
@pytest.mark.parametrize("part", [0.3, 0.5, 0.7])
def test_a_stream_cut_inside_a_group_begins_at_its_first_whole_frame(part: float, shift: int) -> None:
    data = film(120, form="mpegts", options={"g": "30"})
    at = int(len(data) // 188 * part) * 188 + shift
    clip, _ = whole(data[at:])
    first = number_of(clip.frames[0])
    assert first % 30 == 0
    assert numbers(clip.frames) == [*range(first, 120)]
    assert clip.times is not None
    assert clip.times[0] == 0


@pytest.mark.parametrize("orientation", kinds.MATRICES)
@pytest.mark.parametrize("form", ["mp4", "mov"])
def test_a_film_is_turned_and_mirrored_as_its_matrix_says(orientation: int, form: str) -> None:
    data = film(20, form=form)
    stored, clip = seen(data, nframes=4), seen(kinds.with_matrix(data, orientation), nframes=4)
    for rgb, shown in zip(stored.frames, clip.frames, strict=True):
        assert np.array_equal(shown, kinds.SHOWN[orientation](rgb))
    assert clip.source is not None
    assert clip.source.orientation == orientation
    assert (clip.source.height, clip.source.width) == clip.frames[0].shape[:2]
    assert ("VIDEO_MIRRORED" in codes(clip)) == (orientation in (2, 4, 5, 7))


@needs_ffmpeg
@pytest.mark.parametrize("orientation", [1, 3, 6, 8, 4])
def test_ffmpeg_turns_it_the_same_way(orientation: int, tmp_path: Path) -> None:
    """Of mirrored films ffmpeg 5 shows one: the other three came later."""
    data = kinds.with_matrix(film(2), orientation)
    (tmp_path / "film.mp4").write_bytes(data)
    theirs = ffmpeg_picture(tmp_path / "film.mp4").astype(int)
    assert np.abs(seen(data).frames[0].astype(int) - theirs).mean() < 4


DAMAGED = {
    "H.264": ({"options": {"g": "30", "bf": "2"}}, "mp4"),
    "HEVC": ({"codec": "libx265", "options": X265}, "mp4"),
    "VP9": ({"codec": "libvpx-vp9", "form": "webm", "options": VP9}, "webm"),
    "AV1": ({"codec": "libsvtav1", "options": {"preset": "12", "g": "30", "svtav1-params": "tune=0"}}, "mp4"),
    "MPEG-4": ({"codec": "mpeg4", "options": {"b": "2M", "g": "30"}}, "mp4"),
}


def _plainly_decoded(data: bytes) -> list[int]:
    """What comes out of FFmpeg's decoder, whatever it says in between."""
    shown: list[int] = []
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        for packet in container.demux(stream):
            try:
                frames = stream.decode(packet if packet.size else None)
            except av.FFmpegError:
                continue
            shown += [number_of(frame.to_ndarray(format="rgb24")) for frame in frames]
    return shown


@pytest.mark.parametrize("number", [0, 30, 67, 119])
@pytest.mark.parametrize("codec", DAMAGED)
def test_of_a_film_with_a_bad_packet_the_other_frames_are_seen(codec: str, number: int) -> None:
    options, _ = DAMAGED[codec]
    data = kinds.with_noise(film(120, **options), number)  # type: ignore[arg-type]
    clip, packets = whole(data)
    assert numbers(clip.frames) == _plainly_decoded(data)
    assert len(clip.frames) >= 30
    assert packets.frames_lost == (120 - len(clip.frames) if packets.is_examined else 0)
    assert (packets.frames_lost > 0) == ("VIDEO_FRAMES_LOST" in codes(clip))


UNTOLD = {
    "MPEG-2 in MP4": lambda: kinds.with_noise(film(90, codec="mpeg2video", options={"b": "4M", "g": "30"}), 45),
    "the first packet of MPEG-2": lambda: kinds.with_noise(
        film(90, codec="mpeg2video", options={"b": "4M", "g": "30"}), 0
    ),
    "a hole in MPEG-TS": lambda: kinds.with_hole(film(90, form="mpegts", options={"g": "30"}), 0.4),
    "a hole in WebM": lambda: kinds.with_hole(film(90, form="webm", codec="libvpx-vp9", options=VP9), 0.4),
    "WMV that ends early": lambda: film(90, codec="wmv2", form="asf", options={"b": "4M"})[:-4000],
}


@pytest.mark.parametrize("name", UNTOLD)
def test_damage_that_no_decoder_complains_of_is_reported_and_refused_where_that_is_asked_for(name: str) -> None:
    data = UNTOLD[name]()
    clip = seen(data, nframes=90)
    assert {"VIDEO_FRAMES_LOST", "VIDEO_FRAMES_DAMAGED", "VIDEO_TRUNCATED"} & set(codes(clip))
    with pytest.raises(MediaCorrupt, match="strict_media"):
        seen(data, strict_media=True)


@pytest.mark.parametrize("form", ["mp4", "mov", "matroska", "mpegts", "flv", "avi"])
@pytest.mark.parametrize("options", [{"bf": "3"}, {"g": "12", "x264-params": "open-gop=1:bframes=3"}], ids=str)
def test_a_whole_film_is_not_refused_by_strict_media(form: str, options: dict[str, str]) -> None:
    data = film(60, form=form, options=options)
    for tail in (b"", bytes(50), b"\n"):
        clip = seen(data + tail, strict_media=True)
        assert clip.source is not None
        assert (clip.source.frames_lost, clip.source.is_truncated) == (0, False)


def test_one_absurd_time_costs_no_film() -> None:
    data = bytearray(film(60, codec="libvpx", form="ivf"))
    at = 32
    for _ in range(30):
        at += 12 + int.from_bytes(data[at : at + 4], "little")
    data[at + 4 : at + 12] = b"\xff" * 7 + b"\x3f"
    clip, _ = whole(bytes(data))
    assert numbers(clip.frames) == [*range(60)]
    assert clip.times is not None
    assert clip.times[-1] == pytest.approx(59 / 30, abs=0.05)


def test_frames_are_chosen_among_those_that_come_out() -> None:
    data = kinds.with_noise(film(120, options={"g": "60", "bf": "0"}), 0)
    clip = seen(data, nframes=4)
    assert numbers(clip.frames) == [60, 80, 99, 119]
    assert clip.times == pytest.approx([0, 20 / 30, 39 / 30, 59 / 30], abs=0.002)
    assert clip.source is not None
    assert clip.source.frames_lost == 60
    assert "60 of 120 frames" in clip.source.warnings[0].message


CUT = {
    "MP4, index first": lambda: kinds.faststart(film(120)),
    "fragments": lambda: kinds.remuxed(film(120, options={"g": "15"}), "mp4", {"movflags": "frag_keyframe+empty_moov"}),
    "Matroska": lambda: film(120, form="matroska"),
    "WebM": lambda: film(120, form="webm", codec="libvpx"),
    "MPEG-TS": lambda: film(120, form="mpegts"),
    "AVI": lambda: film(120, form="avi", codec="mpeg4", options={"b": "4M"}),
    "FLV": lambda: film(120, form="flv"),
    "MPEG-PS": lambda: film(120, form="mpeg", codec="mpeg2video", options={"b": "4M"}),
    "Ogg": lambda: film(120, form="ogg", codec="libtheora", options={"b": "4M"}),
}


@pytest.mark.parametrize("part", [0.6, 0.93])
@pytest.mark.parametrize("name", [name for name in CUT if name != "Ogg" or "libtheora" in av.codecs_available])
def test_of_a_film_that_ends_early_what_is_there_is_seen(name: str, part: float) -> None:
    data = CUT[name]()
    data = data[: int(len(data) * part) - 1]
    clip, _ = whole(data)
    assert clip.source is not None
    shown = numbers(clip.frames)
    assert shown[:20] == [*range(20)]
    assert shown == sorted(shown)
    assert len(shown) < 120 or part > 0.9
    assert clip.source.is_truncated or clip.source.frames_lost or name in ("MPEG-PS", "Ogg")
    if name not in ("MPEG-PS", "Ogg"):
        assert "VIDEO_TRUNCATED" in codes(clip)


@needs_ffmpeg
@pytest.mark.parametrize("name", ["MP4, index first", "Matroska", "MPEG-TS", "FLV"])
def test_ffmpeg_shows_as_much_of_it(name: str, tmp_path: Path) -> None:
    data = CUT[name]()
    data = data[: int(len(data) * 0.6) - 1]
    (tmp_path / "film").write_bytes(data)
    theirs, _ = ffmpeg_frames(tmp_path / "film")
    assert numbers(whole(data)[0].frames) == theirs


@pytest.mark.parametrize("name", ["MP4, index first", "Matroska"])
def test_damage_is_refused_where_that_is_asked_for(name: str) -> None:
    data = CUT[name]()
    assert seen(data, strict_media=True).frames
    with pytest.raises(MediaCorrupt, match="strict_media"):
        seen(data[: len(data) * 6 // 10], strict_media=True)
    with pytest.raises(MediaCorrupt, match="strict_media"):
        seen(kinds.with_noise(film(120), 67), strict_media=True)


@pytest.mark.parametrize("codec", DAMAGED)
def test_only_a_film_without_any_frame_is_refused(codec: str) -> None:
    options, _ = DAMAGED[codec]
    data = film(5, **options)  # type: ignore[arg-type]
    for number in range(len(kinds.packets_of(data))):
        data = kinds.with_noise(data, number)
    with pytest.raises(MediaError) as failure:
        seen(data)
    assert failure.value.code in ("MEDIA_CORRUPT", "MEDIA_VIDEO_NO_FRAMES")


GROWING = {
    "VP8 in WebM": ("libvpx", "webm"),
    "VP9 in WebM": ("libvpx-vp9", "webm"),
    "H.264 in MPEG-TS": ("libx264", "mpegts"),
}


@pytest.mark.parametrize("sizes", [((160, 96), (320, 192)), ((320, 192), (160, 96)), ((160, 96), (640, 360))])
@pytest.mark.parametrize("name", GROWING)
def test_frames_that_change_their_size_are_seen_at_the_first(name: str, sizes: tuple[tuple[int, int], ...]) -> None:
    codec, form = GROWING[name]
    clip, _ = whole(kinds.of_two_sizes(codec, form, sizes))
    assert {rgb.shape for rgb in clip.frames} == {(sizes[0][1], sizes[0][0], 3)}
    assert numbers(clip.frames) == [*range(45)] * 2
    assert "VIDEO_SIZE_CHANGES" in codes(clip)


def test_frames_of_another_shape_have_black_bars() -> None:
    clip, _ = whole(kinds.of_two_sizes("libvpx", "webm", ((160, 96), (96, 160)), count=10))
    high = clip.frames[-1]
    width = round(96 * 96 / 160)
    left = (160 - width) // 2
    assert high.shape == (96, 160, 3)
    assert not high[:, : left - 1].any()
    assert not high[:, left + width + 1 :].any()
    assert high[80, left + width - 3].mean() > 180  # the bright end of the ramp


def test_frames_far_larger_than_announced_are_seen_up_to_1080p() -> None:
    """What is announced is what memory was counted by: it is counted anew."""
    settings = Settings(media_isolate="process", max_video_fps=30)
    clip = seen(kinds.of_two_sizes("libvpx", "webm", ((160, 96), (1280, 720)), count=10), settings, fps=30)
    assert numbers(clip.frames) == [*range(10)] * 2
    clip = seen(kinds.of_two_sizes("libvpx", "webm", ((160, 96), (2560, 1440)), count=10), settings, fps=30)
    assert numbers(clip.frames) == [*range(10)]
    assert "VIDEO_FRAMES_LOST" in codes(clip)


@pytest.mark.parametrize(
    ("main", "other", "form"),
    [
        (("libx264", (160, 96), True), ("mjpeg", (64, 64), False), "mov"),
        (("libx264", (160, 96), True), ("libx264", (64, 64), False), "mp4"),
        (("libx264", (160, 96), True), ("libx264", (320, 192), False), "mp4"),
        (("libx264", (160, 96), False), ("libx264", (64, 64), False), "matroska"),
        (("libx264", (160, 96), True), ("libx264", (320, 192), False), "matroska"),
        (("libx264", (160, 96), False), ("prores_ks", (320, 192), True), "mov"),
    ],
)
def test_the_stream_that_a_player_shows_is_seen(main: Any, other: Any, form: str) -> None:
    """The default one, else the largest, whatever comes first; one that can be decoded in any case."""
    clip, _ = whole(kinds.of_two_streams(main, other, form))
    assert numbers(clip.frames) == [*range(60)]
    assert "VIDEO_STREAM_CHOSEN" in codes(clip)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [(Fraction(2), (96, 320)), (Fraction(4, 3), (96, 213)), (Fraction(8, 9), (108, 160)), (Fraction(1), (96, 160))],
)
@pytest.mark.parametrize(("codec", "form"), [("libx264", "mp4"), ("libx264", "mpegts"), ("libx265", "matroska")])
def test_pixels_that_are_not_square_are_seen_in_the_shape_of_the_screen(
    shape: Fraction, expected: tuple[int, int], codec: str, form: str
) -> None:
    data = kinds.of_wide_pixels(shape, codec, form)
    clip = seen(data)
    assert clip.frames[0].shape[:2] == expected
    assert clip.source is not None
    assert (clip.source.height, clip.source.width) == expected
    assert ("VIDEO_PIXELS_STRETCHED" in codes(clip)) == (shape != 1)
    assert number_of(clip.frames[-1]) == 29
    assert seen(data, Settings(media_isolate="process", video_pixel_aspect="coded")).frames[0].shape[:2] == (96, 160)


def test_a_pixel_shape_that_nobody_has_is_a_mistake() -> None:
    assert seen(kinds.of_wide_pixels(Fraction(60))).frames[0].shape[:2] == (96, 160)


CURVES = {"smpte2084": (16, "PQ"), "arib-std-b67": (18, "HLG")}


def _hdr(curve: str) -> bytes:
    number, _ = CURVES[curve]
    params = f"log-level=none:qp=10:colorprim=bt2020:transfer={curve}:colormatrix=bt2020nc"
    ramp = np.linspace(0, 255, 160, dtype=np.uint8)
    rgb = np.zeros((96, 160, 3), np.uint8)
    for band, channels in enumerate(((0, 1, 2), (0,), (1,), (2,), (0, 1), (1, 2))):
        for channel in channels:
            rgb[band * 16 : band * 16 + 16, :, channel] = ramp
    shown = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(
        format="yuv420p10le", dst_colorspace="BT2020", dst_color_range="MPEG"
    )
    return kinds.encoded(shown, "libx265", {"x265-params": params}, number)


@pytest.mark.parametrize("curve", CURVES)
@needs_ffmpeg
def test_hdr_is_mapped_as_ffmpeg_maps_it(curve: str, tmp_path: Path) -> None:
    data = _hdr(curve)
    (tmp_path / "film.mp4").write_bytes(data)
    clip = seen(data)
    theirs = ffmpeg_picture(tmp_path / "film.mp4", *TO_SDR)
    difference = np.abs(clip.frames[0].astype(int) - theirs.astype(int))
    assert difference.mean() < 6
    assert np.percentile(difference, 90) < 16
    assert codes(clip) == ["VIDEO_TONE_MAPPED"]
    grey = clip.frames[0][8, ::8, 1].astype(int)
    assert grey[-1] > 235  # white is white, not grey
    assert all(later >= sooner - 2 for sooner, later in pairwise(grey))


@pytest.mark.parametrize(("codec", "name"), [("prores_ks", "ProRes"), ("ffv1", "FFV1"), ("qtrle", "QuickTime Anim")])
def test_a_codec_that_is_not_decoded_is_named(codec: str, name: str) -> None:
    pixels = {"prores_ks": "yuv422p10le", "qtrle": "rgb24"}.get(codec, "yuv420p")
    form = "matroska" if codec == "ffv1" else "mov"
    with pytest.raises(MediaUnsupportedType, match=f"{name}.*re-encode"):
        seen(film(4, codec=codec, form=form, pixels=pixels))


def test_decoded_frames_are_freed_as_they_are_seen() -> None:
    """Without waiting for Python to collect garbage."""
    data = kinds.with_matrix(film(16, size=(640, 480)), 2)
    form = sniff(data).video
    assert form is not None
    packets = video.read_packets(data, form, AS_SENT)
    alive: list[int] = []

    def shrink(rgb: RGB, num_frames: int) -> RGB:
        alive.append(sum(type(each) is av.VideoFrame for each in gc.get_objects()))
        return rgb[::8, ::8].copy()

    gc.collect()
    gc.disable()
    try:
        video.decode(data, form, packets, range(16), AS_SENT, shrink)
    finally:
        gc.enable()
    assert max(alive) <= min(alive) + 2


def test_a_child_process_decodes_film_after_film() -> None:
    """What a film leaves behind would soon be more than a child process may have."""
    films = [kinds.with_matrix(film(20, size=(320, 240)), orientation) for orientation in (2, 6)]
    for _ in range(15):
        for data in films:
            assert len(seen(data, nframes=4).frames) == 4
