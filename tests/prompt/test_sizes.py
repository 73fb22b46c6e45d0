"""Sides in pixels, against the reference's own function and its limits."""

import random

import pytest
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as video_smart_resize

from worker.checkpoint.family_rules import QWEN2_VL_PIXELS
from worker.checkpoint.preprocessor import PreprocessorConfig, read_preprocessor
from worker.core.contract import Controls
from worker.core.errors import MediaParamInvalid
from worker.core.settings import EMBEDDED_MODEL, Settings
from worker.prompt.sizes import TOTAL_TOKENS, Size, image_size, video_size, video_tokens

REAL = PreprocessorConfig(16, 2, 2, (0.5,) * 3, (0.5,) * 3, 65536, 16777216, 4096, 25165824, 2.0, True, 768)
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


def test_limits_may_be_those_of_each_frame() -> None:
    """As Qwen2-VL and Qwen2.5-VL have them: a long video is not made smaller for its length, nor a short one's frames
    left below the least."""
    assert video_size(60, 360, 640, QWEN2_VL_PIXELS, UNLIMITED) == Size(364, 644)
    assert video_size(6, 40, 60, QWEN2_VL_PIXELS, UNLIMITED) == Size(56, 84)
    assert video_size(2, 1080, 1920, QWEN2_VL_PIXELS, UNLIMITED) == Size(560, 1008)  # 768 tokens a frame
    for frames in (64, 256, 768):
        size = video_size(frames, 1080, 1920, QWEN2_VL_PIXELS, UNLIMITED)
        assert frames * size.height * size.width <= TOTAL_TOKENS * 28 * 28 * 2


def test_a_video_takes_no_more_than_half_of_what_the_model_takes() -> None:
    assert video_tokens(Settings(), 8_192) == 4_096
    assert video_tokens(Settings(), 262_144) == video_tokens(Settings(), None) == 16_384


def test_the_rules_are_read_from_the_checkpoint() -> None:
    rules = read_preprocessor(EMBEDDED_MODEL)
    assert (rules.factor, rules.image_min_pixels, rules.image_max_pixels) == (32, 128 * 128, 256 * 256)
    assert rules.video_fps == 2


LIMIT = 2040 * 32 * 32  # pixels that the operator allows in the next test


@pytest.mark.parametrize(
    ("controls", "sides", "least", "most"),
    [
        ({}, (1080, 1920), 65_536, LIMIT),
        ({"max_pixels": 262_144}, (1080, 1920), 65_536, 262_144),
        ({"min_pixels": 10**6, "max_pixels": 10**7}, (500, 700), 10**6, LIMIT),
        ({"min_pixels": 10**9}, (1080, 1920), LIMIT, LIMIT),
        ({"resized_height": 280, "resized_width": 420}, (280, 420), 65_536, LIMIT),
        ({"resized_height": 100_000, "resized_width": 100_000}, (100_000, 100_000), 65_536, LIMIT),
    ],
)
def test_a_caller_chooses_within_the_operators_limit(
    controls: dict[str, int], sides: tuple[int, int], least: int, most: int
) -> None:
    sent = (1080, 1920) if "resized_height" in controls else sides
    expected = smart_resize(*sides, 32, least, most)
    assert image_size(*sent, REAL, 2040, Controls(**controls)) == Size(*expected)


def test_a_picture_cannot_be_stretched_beyond_all_measure() -> None:
    with pytest.raises(MediaParamInvalid):
        image_size(100, 100, REAL, 1000, Controls(resized_height=32, resized_width=100_000))


@pytest.mark.parametrize("controls", [{"total_pixels": 2 * 10**6}, {"max_pixels": 128 * 32 * 32}, {}])
def test_a_video_stays_within_what_was_asked_for(controls: dict[str, int]) -> None:
    size = video_size(16, 1080, 1920, REAL, 16_384, Controls(**controls))
    assert size.height * size.width <= controls.get("max_pixels", 10**9)
    assert size.height * size.width * 16 / REAL.temporal <= controls.get("total_pixels", 10**9)


@pytest.mark.parametrize("index", range(40))
def test_the_size_of_a_call_bounds_pictures_and_videos_as_the_processors_do(index: int) -> None:
    rng = random.Random(index)
    height, width = rng.randint(40, 2000), rng.randint(40, 2000)
    least = rng.randint(2, 60) * 32 * 32
    most = least + rng.randint(10, 4000) * 32 * 32
    controls = Controls(shortest_edge=least, longest_edge=most)
    assert image_size(height, width, REAL, UNLIMITED, controls) == Size(*smart_resize(height, width, 32, least, most))
    frames = rng.choice((2, 4, 16, 64))
    capped = max(min(768 * 32 * 32, most // frames), int(least * 1.05)) * frames
    expected = video_smart_resize(frames, height, width, 2, 32, least, capped)
    assert video_size(frames, height, width, REAL, UNLIMITED, controls) == Size(*expected)
