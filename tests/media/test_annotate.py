"""Boxes on pictures: where they are drawn, where their labels go, and what comes back of films."""

import io
import random
from itertools import combinations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from worker.core.contract import MediaInfo
from worker.core.errors import ResultTooLarge
from worker.core.opened import Clip, Opened, Picture
from worker.core.outcome import DetectedObject, Drawing, Outcome, Outputs
from worker.media.annotate import drawn, label_place

GREY = 128
ROOM = 10_000_000


def info_of(width: int, height: int, **more: object) -> MediaInfo:
    fields = {"where": "image", "kind": "image", "tokens": 1, "source_width": width, "source_height": height, **more}
    return MediaInfo.model_validate({"width": width, "height": height, **fields})


def grey(width: int, height: int) -> Picture:
    return Picture(np.full((height, width, 3), GREY, np.uint8))


def opened(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def test_labels_do_not_cover_each_other_while_there_is_room() -> None:
    rng = random.Random(3)
    pen, font = ImageDraw.Draw(Image.new("RGB", (1200, 800))), ImageFont.load_default(size=24)
    taken: list[tuple[float, float, float, float]] = []
    for number in range(20):
        left, top = rng.uniform(0, 1000), rng.uniform(0, 700)
        rect, others = (left, top, left + 90, top + 70), np.reshape(taken, (-1, 4))
        place = label_place(pen, f"person {number}", font, rect, (1200, 800), others, 3)
        assert place[0] >= 0
        assert place[1] >= 0
        assert place[2] <= 1200
        assert place[3] <= 800
        taken.append(place)
    for one, other in combinations(taken, 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def test_a_crowded_picture_still_has_all_labels() -> None:
    pen, font = ImageDraw.Draw(Image.new("RGB", (100, 40))), ImageFont.load_default(size=11)
    taken: list[tuple[float, float, float, float]] = []
    for _ in range(30):
        others = np.reshape(taken, (-1, 4))
        taken.append(label_place(pen, "a label", font, (10, 10, 90, 30), (100, 40), others, 2))
    assert all(place[2] <= 100 and place[3] <= 40 for place in taken)


def test_objects_of_the_source_are_drawn_where_they_are_on_a_smaller_picture() -> None:
    """A picture at half of its source's size."""
    found = DetectedObject(label="x", image=0, box=(200.0, 200.0, 600.0, 400.0))
    [outcome] = drawn(
        [grey(400, 300)],
        [info_of(800, 600)],
        Outputs(annotate=Drawing(format="png")),
        [Outcome(objects=(found,))],
        ROOM,
    )
    [picture] = outcome.annotated
    pixels = opened(picture.data)
    assert pixels.shape == (300, 400, 3)
    rows, columns = np.nonzero(np.abs(pixels - GREY).max(2) > 60)
    assert (columns.min(), columns.max()) == (100, 300)
    assert rows.max() == 200
    assert np.abs(pixels[150, 200] - GREY).max() == 0, "inside of the box nothing is covered"


def test_what_has_no_place_is_not_drawn_and_other_letters_become_a_number() -> None:
    objects = (
        DetectedObject(label="a", image=0, box=(0.0, 0.0, 0.0, 5.0), problem="empty"),
        DetectedObject(label="b", image=None, relative=(1.0, 2.0), problem="image_unknown"),
        DetectedObject(label="红色圆形", image=0, point=(50.0, 50.0)),
        DetectedObject(label=None, image=0, box=(10.0, 60.0, 90.0, 90.0)),
        DetectedObject(label="car", image=0, attributes={"bbox_3d": [1]}),
    )
    outputs = Outputs(annotate=Drawing(format="png"), crops=Drawing(format="png"))
    [outcome] = drawn([grey(100, 100)], [info_of(100, 100)], outputs, [Outcome(objects=objects)], ROOM)
    assert [crop.object for crop in outcome.crops] == [3]
    assert np.abs(opened(outcome.annotated[0].data)[50, 50] - GREY).max() > 60


def test_every_picture_comes_back_and_each_frame_that_has_an_object() -> None:
    frames = tuple(np.full((40, 60, 3), 50 * number, np.uint8) for number in range(3))
    film = info_of(120, 80, kind="video", times=(0.0, 1.0, 2.0))
    objects = (
        DetectedObject(label="a", image=1, box=(20.0, 20.0, 60.0, 60.0), time=1.2, frame_time=1.0),
        DetectedObject(label="b", image=1, box=(0.0, 0.0, 20.0, 20.0), time=2.0, frame_time=2.0),
    )
    outputs = Outputs(annotate=Drawing(format="png"), crops=Drawing(format="png"))
    media: list[Opened] = [grey(50, 50), Clip(frames, 1.0)]
    [outcome] = drawn(media, [info_of(50, 50), film], outputs, [Outcome(objects=objects)], ROOM)
    assert [(each.image, each.time) for each in outcome.annotated] == [(0, None), (1, 1.0), (1, 2.0)]
    crop = opened(outcome.crops[0].data)
    assert crop.shape == (20, 20, 3)
    assert (crop == 50).all(), "of the frame of its time"


def test_pictures_are_made_smaller_until_they_fit_or_fail() -> None:
    rng = np.random.default_rng(1)
    noisy = Picture(rng.integers(0, 255, (600, 800, 3), dtype=np.uint8))
    outputs = Outputs(annotate=Drawing(format="png"))
    [outcome] = drawn([noisy], [info_of(800, 600)], outputs, [Outcome(objects=())], 200_000)
    [picture] = outcome.annotated
    assert len(picture.data) <= (200_000 - 65_536) * 3 / 4
    assert 100 < picture.width < 800
    with pytest.raises(ResultTooLarge):
        drawn([noisy], [info_of(800, 600)], outputs, [Outcome(objects=())], 65_000)


def test_more_objects_than_anybody_can_read_are_drawn_all_the_same() -> None:
    rng = random.Random(1)
    corners = [(rng.uniform(0, 900), rng.uniform(0, 500)) for _ in range(2000)]
    objects = tuple(DetectedObject(label="x", image=0, box=(x, y, x + 9, y + 9), point=(x, y)) for x, y in corners)
    outputs = Outputs(annotate=Drawing())
    [outcome] = drawn([grey(1000, 600)], [info_of(1000, 600)], outputs, [Outcome(objects=objects)], ROOM)
    assert (np.abs(opened(outcome.annotated[0].data) - GREY).max(2) > 60).mean() > 0.5


def test_a_box_at_the_edge_that_has_next_to_no_width_is_a_column_of_pixels() -> None:
    found = DetectedObject(label="x", image=0, box=(999.99, 2.0, 1000.0, 400.0))
    outputs = Outputs(crops=Drawing())
    [outcome] = drawn([grey(500, 300)], [info_of(1000, 600)], outputs, [Outcome(objects=(found,))], ROOM)
    assert (outcome.crops[0].width, outcome.crops[0].height) == (1, 199)
    wrong = found.model_copy(update={"box": (1000.0, 2.0, 1000.0, 400.0)})
    [outcome] = drawn([grey(500, 300)], [info_of(1000, 600)], outputs, [Outcome(objects=(wrong,))], ROOM)
    assert outcome.crops[0].width == 1


def test_a_side_that_the_format_has_no_room_for_is_made_smaller() -> None:
    outputs = Outputs(annotate=Drawing(format="webp"))
    [outcome] = drawn([grey(20_000, 4)], [info_of(20_000, 4)], outputs, [Outcome(objects=())], ROOM)
    assert outcome.annotated[0].width == 16_383


def test_a_longer_side_is_bounded() -> None:
    outputs = Outputs(annotate=Drawing(max_side=64), crops=Drawing(max_side=8, format="webp"))
    found = DetectedObject(label="x", image=0, box=(0.0, 0.0, 100.0, 50.0))
    [outcome] = drawn([grey(300, 150)], [info_of(300, 150)], outputs, [Outcome(objects=(found,))], ROOM)
    assert (outcome.annotated[0].width, outcome.annotated[0].height) == (64, 32)
    assert (outcome.crops[0].width, outcome.crops[0].height) == (8, 4)
