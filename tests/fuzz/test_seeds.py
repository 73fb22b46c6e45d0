"""The fuzzer's seeds, and every fault that it once found: a picture, a video or a coded error."""

from pathlib import Path

import pytest

from tests.fuzz.structure import changed
from tests.fuzz.target import SETTINGS, open_anything
from worker.media.picture import decode, read_header

SEEDS = sorted((Path(__file__).parent / "seeds").iterdir())


@pytest.mark.parametrize("seed", SEEDS, ids=lambda path: path.name)
def test_a_seed_is_opened_or_refused(seed: Path) -> None:
    open_anything(seed.read_bytes())


@pytest.mark.parametrize("name", ["h264.mp4", "rotated.mp4", "sound.mp4", "h264.mkv", "stream.webm", "rgb.avif"])
def test_a_file_whose_structure_is_changed_is_opened_or_refused(name: str) -> None:
    data = (Path(__file__).parent / "seeds" / name).read_bytes()
    others = set()
    for seed in range(60):
        other = changed(data, seed)
        others.add(other)
        open_anything(other)
    assert len(others) > 40


def test_the_target_sees_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: what is wrong in the code under the target comes out of it."""
    [png] = [seed.read_bytes() for seed in SEEDS if seed.name == "rgb.png"]
    assert decode(read_header(png, SETTINGS)).shape == (16, 24, 3)
    monkeypatch.setattr("worker.media.picture.decode", lambda header: decode(header)[:, :5])
    with pytest.raises(AssertionError):
        open_anything(png)
