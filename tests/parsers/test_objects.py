"""Objects in an answer's text, in pixels of the source: cases as data, however the text is cut into pieces."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from worker.core.contract import MediaInfo
from worker.models.families import FAMILIES
from worker.parsers.object_scan import MAX_OBJECTS
from worker.parsers.objects import ObjectParser, seconds_of

PICTURE = MediaInfo(where="image", kind="image", width=100, height=100, tokens=1, coordinates="thousandths")
CASES = json.loads((Path(__file__).parent / "grounding" / "cases.json").read_text())["cases"]


def media_of(case: dict[str, Any]) -> list[MediaInfo]:
    return [
        MediaInfo(
            where="image",
            kind=picture.get("kind", "image"),
            width=picture["seen"][0],
            height=picture["seen"][1],
            tokens=1,
            times=tuple(picture.get("times", ())),
            source_width=picture["source"][0],
            source_height=picture["source"][1],
            orientation=picture.get("orientation", 1),
            coordinates=FAMILIES[case["family"]].coordinates,
        )
        for picture in case["images"]
    ]


def parsed(text: str, media: list[MediaInfo], step: int) -> ObjectParser:
    parser = ObjectParser(media)
    told = [each for at in range(0, len(text), step) for each in parser.push(text[at : at + step])]
    told += parser.finish()
    assert told == parser.objects
    return parser


@pytest.mark.parametrize("step", [1, 2, 7, 10_000])
@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_a_case(case: dict[str, Any], step: int) -> None:
    parser = parsed(case["text"], media_of(case), step)
    assert len(parser.objects) == len(case["objects"])
    for found, wanted in zip(parser.objects, case["objects"], strict=True):
        for name, value in wanted.items():
            mine = getattr(found, name)
            if isinstance(value, list) and mine is not None:
                assert mine == pytest.approx(value, abs=0.011), name
            else:
                assert mine == value, name
    assert (parser.num_broken, parser.is_whole) == (case.get("broken", 0), case.get("is_whole", True))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_stored_place_is_where_the_pixels_are(orientation: int) -> None:
    """Against Pillow's own turning: the object is a white rectangle in the stored frame."""
    stored = np.zeros((60, 90), np.uint8)
    stored[10:25, 30:70] = 255
    image = Image.fromarray(stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.info["exif"] = exif.tobytes()
    upright = np.asarray(ImageOps.exif_transpose(image))
    rows, columns = np.nonzero(upright)
    box = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
    height, width = upright.shape
    info = MediaInfo(
        where="image", kind="image", width=width, height=height, tokens=1, source_width=width, source_height=height,
        orientation=orientation, coordinates="resized_pixels",
    )  # fmt: skip
    [found] = parsed(json.dumps({"bbox_2d": box, "label": "a"}), [info], 5).objects
    assert found.box == tuple(box)
    assert (found.box_stored or found.box) == (30.0, 10.0, 70.0, 25.0)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (2, 2.0), (2.5, 2.5), ("2.5", 2.5), ("2.5s", 2.5), ("2.5 seconds", 2.5), ("3秒", 3.0), ("01:02.50", 62.5),
        ("1:02:03.25", 3723.25), ("<0.4 seconds>", 0.4), ("soon", None), (True, None), (-1, None), (None, None),
    ],
)  # fmt: skip
def test_times_as_models_write_them(value: object, seconds: float | None) -> None:
    assert seconds_of(value) == seconds


def test_a_picture_0_that_comes_late_counts_for_those_before_as_well() -> None:
    media = [PICTURE, PICTURE]
    parser = ObjectParser(media)
    told = parser.push('{"image": 1, "bbox_2d": [0, 0, 100, 100]}')
    assert [each.image for each in told] == [0]
    told = parser.push('{"image": 0, "bbox_2d": [0, 0, 100, 100]}')
    assert [each.image for each in told] == [0]
    assert parser.finish() == []
    assert [each.image for each in parser.objects] == [1, 0]


def test_thousands_of_points_of_one_object_do_not_repeat_all_that_is_said_of_it() -> None:
    points = [[1, 1]] * (2 * MAX_OBJECTS)
    text = json.dumps({"points": points, "label": "a" * 5_000, "note": "b" * 5_000})
    objects = parsed(text, [PICTURE], 10_000).objects
    assert len(objects) == MAX_OBJECTS
    assert objects[0].attributes == {"note": "b" * 5_000}
    assert sum(len(str(each)) for each in objects) < 2_000_000
    [small, other] = parsed('{"points": [[1, 1], [2, 2]], "label": "a", "color": "red"}', [PICTURE], 10).objects
    assert small.attributes == other.attributes == {"color": "red"}


def test_long_and_hostile_texts_take_no_longer_than_their_length() -> None:
    """Each piece is looked at once: what is undecided is bounded."""
    media = media_of(CASES[0])
    for text in (
        "(1, " * 20_000,
        "[1," * 20_000,
        '{"a' * 5_000,
        '{"box": [' * 5_000,
        "{ " * 20_000,
        "( " * 100 + "x",
        "( , (" * 40 + "x",
        '{"' + "\n{" * 20_000,
        '{"a' + '{"b' * 20_000,
        "<point x" * 10_000,
        "<points " + "x1" * 20_000,
        "{'a': " + "-" * 50_000 + "1, 'bbox': [1]}",
    ):
        parsed(text, media, 50)
