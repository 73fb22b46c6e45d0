"""Sides in pixels, against the reference's own function and its limits."""

import random

import pytest
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from worker.engine.rules import PixelRules, read_rules
from worker.engine.sizes import Size, image_size, video_size
from worker.settings import EMBEDDED_MODEL

REAL = PixelRules(16, 2, 2, (0.5,) * 3, (0.5,) * 3, 65536, 16777216, 4096, 25165824, 2.0, True, 768)
UNLIMITED = 10**9


def test_pictures_are_sized_as_the_reference_sizes_them() -> None:
    rng = random.Random(1)
    for _ in range(3000):
        height, width = rng.randint(1, 5000), rng.randint(1, 5000)
        if max(height, width) > 200 * min(height, width):
            continue
        expected = smart_resize(height, width, 32, REAL.image_min_pixels, REAL.image_max_pixels)
        assert image_size(height, width, REAL, UNLIMITED) == Size(*expected)


@pytest.mark.parametrize("sides", [(4000, 3000), (9000, 100), (640, 480), (10, 10)])
def test_the_operator_may_lower_the_limit(sides: tuple[int, int]) -> None:
    size = image_size(*sides, REAL, max_tokens=100)
    assert size.height * size.width <= 100 * 32 * 32
    assert size.height % 32 == size.width % 32 == 0


def test_videos_keep_to_their_budget() -> None:
    for frames in (2, 4, 64, 256, 768):
        size = video_size(frames, 1080, 1920, REAL, max_tokens=16_384)
        assert frames * size.height * size.width <= min(REAL.video_max_pixels, 16_384 * 32 * 32 * 2)
        assert size.height * size.width <= 768 * 32 * 32


def test_the_rules_are_read_from_the_checkpoint() -> None:
    rules = read_rules(EMBEDDED_MODEL)
    assert (rules.factor, rules.image_min_pixels, rules.image_max_pixels) == (32, 128 * 128, 256 * 256)
    assert rules.video_fps == 2
