"""Video files: chosen frames, timestamps, grids, ids and pixel values, over rates, codecs, shapes and controls."""

import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from transformers.video_utils import load_video

from tests.media.film_kinds import of_wide_pixels
from tests.media.films import film, number_of
from tests.parity.conftest import note
from tests.parity.reference import (
    FAMILIES,
    UNLIMITED,
    Both,
    both,
    frames_of,
    opened,
    our_pixels,
    prompt,
    their_frames,
    their_video,
    without_outer_span,
)
from worker.core.contract import Controls
from worker.core.opened import Clip

LEVEL = 2 / 255
FILES: dict[str, dict[str, Any]] = {
    "24 a second": {"count": 72, "fps": 24},
    "30 a second, long": {"count": 300, "fps": 30},
    "60 a second": {"count": 120, "fps": 60},
    "B-frames": {"count": 90, "options": {"bf": "3", "g": "30"}},
    "odd sides": {"count": 40, "size": (322, 182)},
    "tall": {"count": 40, "size": (180, 640)},
    "10 bit": {"count": 40, "codec": "libx265", "pixels": "yuv420p10le", "options": {"x265-params": "log-level=0"}},
    "VP9 in WebM": {"count": 40, "codec": "libvpx-vp9", "form": "webm", "options": {"deadline": "realtime"}},
    "AVI": {"count": 40, "codec": "mpeg4", "form": "avi", "options": {"q:v": "2"}},
}
CONTROLS: dict[str, dict[str, Any]] = {
    "none": {},
    "fps 1": {"fps": 1.0},
    "fps 7.5": {"fps": 7.5},
    "nframes 9": {"nframes": 9},
    "bounded": {"fps": 5.0, "min_frames": 6, "max_frames": 10},
    "part": {"video_start": 0.4, "video_end": 1.1},
    "smaller": {"max_pixels": 64 * 32 * 32},
    "in all": {"total_pixels": 2000 * 32 * 32, "fps": 4.0},
}


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, folder: Path) -> Both:
    return both(request.param, folder)


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return {name: film(**made) for name, made in FILES.items()}


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("name", FILES)
def test_the_chosen_frames_are_those_of_qwen_vl_utils(
    pair: Both, files: dict[str, bytes], name: str, control: str
) -> None:
    given = CONTROLS[control]
    frames, rate = frames_of(files[name])
    seen = opened(pair.model, "video", files[name], Controls(**given))
    assert isinstance(seen, Clip)
    expected = their_frames(given, len(frames), rate)
    ours = [number_of(frame) for frame in seen.frames]
    note("frames chosen from a file", pair.family, float(ours != [number_of(frames[index]) for index in expected]))
    assert ours == [number_of(frames[index]) for index in expected]
    assert seen.times == pytest.approx([index / rate for index in expected], abs=0.002)


@pytest.mark.parametrize("control", ["none", "fps 7.5", "part"])
@pytest.mark.parametrize("name", FILES)
def test_ids_grids_and_pixels_are_the_processors(pair: Both, files: dict[str, bytes], name: str, control: str) -> None:
    given = CONTROLS[control]
    frames, rate = frames_of(files[name])
    indices = their_frames(given, len(frames), rate)
    theirs = their_video(pair, frames, indices, rate, len(frames))
    made = prompt(pair.model, "video", files[name], Controls(**given))
    assert made.items[0].patches.grid == tuple(theirs["video_grid_thw"][0].tolist())
    ids = theirs["input_ids"][0].tolist()
    expected = without_outer_span(pair, ids) if pair.family == "qwen3_vl" else ids
    note("ids of a prompt with a video", pair.family, float(list(made.ids) != expected))
    if FILES[name].get("form") == "webm":  # its times are rounded to a millisecond, theirs are counted by number
        assert told(pair, made.ids) == pytest.approx(told(pair, expected), abs=0.11)
        assert len(made.ids) == len(expected)
    else:
        assert list(made.ids) == expected
    far = float((our_pixels(pair.model, made) - theirs["pixel_values_videos"]).abs().max())
    note(
        "pixel values of a video, in levels of 256",
        pair.family,
        far / (LEVEL * 0.5 / pair.model.spec.preprocessor.std[0]),
    )
    assert far <= 1.01 * LEVEL * 0.5 / min(pair.model.spec.preprocessor.std)


@pytest.mark.parametrize("longest", [20_000, 200_000])
def test_the_size_of_a_call_means_what_it_means_to_the_processor(
    pair: Both, files: dict[str, bytes], longest: int
) -> None:
    name = next(iter(FILES))
    bounds = {"shortest_edge": 4096, "longest_edge": longest}
    frames, rate = frames_of(files[name])
    indices = their_frames({}, len(frames), rate)
    theirs = their_video(pair, frames, indices, rate, len(frames), size=bounds)
    made = prompt(pair.model, "video", files[name], Controls(**bounds))
    assert made.items[0].patches.grid == tuple(theirs["video_grid_thw"][0].tolist())


def told(pair: Both, ids: Sequence[int]) -> list[float]:
    """The seconds that a prompt names."""
    text = pair.model.spec.tokenizer.decode(ids, with_special=True)
    return [float(at) for at in re.findall(r"<(\d+\.\d) seconds>", text)]


def test_pixels_that_are_not_square_are_seen_as_stored_where_that_is_asked_for(pair: Both, tmp_path: Path) -> None:
    """As transformers' reader does; otherwise in the shape of the screen."""
    path = tmp_path / "wide.mp4"
    path.write_bytes(of_wide_pixels(Fraction(2)))
    theirs, _ = load_video(str(path), backend="pyav", num_frames=4)
    assert theirs.shape[1:3] == (96, 160)
    coded = UNLIMITED.model_copy(update={"video_pixel_aspect": "coded"})
    sizes = [opened(pair.model, "video", path.read_bytes(), Controls(), each).size for each in (coded, UNLIMITED)]
    assert sizes == [(96, 160), (96, 320)]


def test_another_frame_is_seen(pair: Both, files: dict[str, bytes]) -> None:
    """A control: one frame later is far away."""
    frames, rate = frames_of(files["24 a second"])
    indices = their_frames({}, len(frames), rate)
    theirs = their_video(pair, frames, [index - 1 if index else 1 for index in indices], rate, len(frames))
    made = prompt(pair.model, "video", files["24 a second"], Controls())
    assert (our_pixels(pair.model, made) - theirs["pixel_values_videos"]).abs().max() > 1
