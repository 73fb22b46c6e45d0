"""What real files have in their indexes is taken, and so is a stream that is as large as it says."""

import random
from collections.abc import Callable

import pytest
from PIL import Image

from tests.fakes import encoded
from tests.media import index_attacks
from tests.media.films import film
from tests.media.index_attacks import with_long_sound
from worker.core.errors import MediaDecodeTimeout, MediaError
from worker.core.settings import Settings
from worker.media import av1, ebml, iso_boxes, riff, video
from worker.media.sniff import sniff

FILMS: dict[str, tuple[Callable[[], bytes], int]] = {
    "MP4": (lambda: film(30), 30),
    "MP4 with sound": (index_attacks.with_sound, 4),
    "fragments": (index_attacks.fragmented, 4),
    "QuickTime with plain sound": (with_long_sound, 30),
    "Matroska": (lambda: film(30, form="matroska"), 30),
    "WebM": (lambda: film(30, form="webm", codec="libvpx"), 30),
    "AVI": (lambda: film(30, form="avi", codec="mpeg4"), 30),
    "MPEG-TS": (lambda: film(30, form="mpegts"), 30),
}


@pytest.mark.parametrize("name", FILMS)
def test_the_index_of_a_real_file_is_read(name: str) -> None:
    make, count = FILMS[name]
    data = make()
    form = sniff(data).video
    assert form is not None
    assert len(video.read_packets(data, form, Settings()).times) == count


@pytest.mark.parametrize("form", ["MP4", "Matroska"])
def test_time_is_looked_at_with_every_packet(form: str) -> None:
    data = film(30, form=form.lower())
    found = sniff(data).video
    assert found is not None
    with pytest.raises(MediaDecodeTimeout):
        video.read_packets(data, found, Settings(video_decode_timeout_s=1e-9))


@pytest.mark.parametrize("size", [(64, 48), (1, 1), (333, 777)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_sequence_header_says_the_sides(size: tuple[int, int], mode: str) -> None:
    assert av1.largest_picture(encoded(Image.new(mode, size), "AVIF")) == size[0] * size[1]


def test_so_does_that_of_an_animation() -> None:
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    assert av1.largest_picture(encoded(frames[0], "AVIF", save_all=True, append_images=frames[1:])) == 1200


@pytest.mark.parametrize("kind", [b"stts", b"ctts", b"stsc", b"stsz", b"trun", b"elst", b"stsd", b"hdlr", b"iloc"])
def test_a_table_that_ends_with_the_file_is_no_fault(kind: bytes) -> None:
    for size in range(20):
        box = (8 + size).to_bytes(4, "big") + kind + b"\xff" * size
        data = (8 + len(box)).to_bytes(4, "big") + b"trak" + box
        iso_boxes.refuse_large_index(data, 2**80)
        av1.largest_picture(data)


@pytest.mark.parametrize("seed", range(40))
def test_broken_boxes_and_elements_end_in_a_coded_error_or_in_nothing(seed: int) -> None:
    draw = random.Random(seed)
    whole = {
        "mp4": film(4), "matroska": film(4, form="matroska"), "avi": film(4, form="avi", codec="mpeg4"),
        "avif": encoded(Image.new("RGB", (64, 48)), "AVIF"),
    }  # fmt: skip
    for data in whole.values():
        broken = bytearray(data[: draw.randrange(16, len(data))])
        for _ in range(draw.randrange(40)):
            broken[draw.randrange(len(broken))] = draw.choice((0, 1, 0xFF, draw.randrange(256)))
        for look in (
            lambda given: iso_boxes.refuse_large_index(given, 1000),
            ebml.refuse_large_index,
            lambda given: riff.refuse_large_index(given, 1000),
            av1.largest_picture,
        ):
            try:
                look(bytes(broken))
            except MediaError:
                continue
