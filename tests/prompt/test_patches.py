"""Patches against transformers' own processor: the same grid, the same order, the same values."""

import json

import numpy as np
import pytest
import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.engine.requests import clip, picture
from worker.checkpoint.preprocessor import read_preprocessor
from worker.core.settings import EMBEDDED_MODEL
from worker.models.pixel_values import pixel_values
from worker.prompt.patches import of_frames, of_picture
from worker.prompt.sizes import Size, image_size, video_size

RULES = read_preprocessor(EMBEDDED_MODEL)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def processor() -> Qwen2VLImageProcessorPil:
    config = json.loads((EMBEDDED_MODEL / "preprocessor_config.json").read_text())
    return Qwen2VLImageProcessorPil(
        **{key: value for key, value in config.items() if not key.endswith(("_class", "_type"))}
    )


@pytest.mark.parametrize(
    ("width", "height", "levels"),
    [(256, 128, 0), (128, 128, 0), (200, 150, 5), (96, 96, 5), (640, 480, 5), (100, 300, 5), (600, 200, 5)],
)
def test_values_are_the_references(processor: Qwen2VLImageProcessorPil, width: int, height: int, levels: int) -> None:
    """Without a resize the values are equal; with one, Pillow's and torch's bicubic differ by a few levels of 255."""
    shown = picture(1, width, height)
    theirs = processor(images=[shown.rgb], return_tensors="pt", input_data_format="channels_last")
    ours = of_picture(shown.rgb, image_size(height, width, RULES, 10**6), RULES)
    assert [list(ours.grid)] == theirs["image_grid_thw"].tolist()
    values = pixel_values([ours], RULES, CPU, torch.float32)
    difference = (values - theirs["pixel_values"]).abs().max() * 127.5
    assert difference <= levels + 1e-3


def test_a_still_is_seen_twice() -> None:
    shown = picture(2, 128, 128)
    still = pixel_values([of_picture(shown.rgb, Size(128, 128), RULES)], RULES, CPU, torch.float32)
    doubled = pixel_values([of_frames([shown.rgb] * 2, Size(128, 128), RULES)], RULES, CPU, torch.float32)
    assert torch.equal(still, doubled)


def test_frames_of_a_clip_are_paired_in_order() -> None:
    frames = clip(3, num_frames=4).frames
    patches = of_frames(frames, video_size(4, 128, 128, RULES, 10**6), RULES)
    assert patches.grid == (2, 8, 8)
    pixels = patches.pixels.view(2, 4, 4, 2, 2, 3, 2, 16, 16).numpy()
    assert np.array_equal(pixels[1, 0, 0, 0, 0, :, 1], frames[3][:16, :16].transpose(2, 0, 1))
    assert np.array_equal(pixels[0, 2, 1, 1, 0, :, 0], frames[0][80:96, 32:48].transpose(2, 0, 1))
