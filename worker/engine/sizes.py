"""Sides in pixels at which the model sees pictures and videos. Pure arithmetic, equal to the reference's.

Source: `smart_resize` of qwen-vl-utils 0.0.14 and of transformers' Qwen2-VL and Qwen3-VL processors.
"""

import math
from dataclasses import dataclass

from worker.engine.rules import PixelRules


@dataclass(frozen=True)
class Size:
    """Sides in pixels, multiples of the factor."""

    height: int
    width: int


def image_size(height: int, width: int, rules: PixelRules, max_tokens: int) -> Size:
    """The size for a picture; the operator's `max_tokens` may lower the checkpoint's limit, never raise it."""
    most = min(rules.image_max_pixels, max_tokens * rules.factor**2)
    return _fit(height, width, 1, rules.factor, min(rules.image_min_pixels, most), most)


def video_size(num_frames: int, height: int, width: int, rules: PixelRules, max_tokens: int) -> Size:
    """The size for every frame of a video of `num_frames` (even) frames."""
    most = min(rules.video_max_pixels, max_tokens * rules.factor**2 * rules.temporal)
    least = min(rules.video_min_pixels, most)
    if rules.caps_frames:
        a_frame = max(min(rules.frame_max_tokens * rules.factor**2, most // num_frames), int(least * 1.05))
        most = a_frame * num_frames
    if min(height, width) < rules.factor:
        scale = max(rules.factor / height, rules.factor / width)
        height, width = int(height * scale), int(width * scale)
    return _fit(height, width, num_frames, rules.factor, least, most)


def _fit(height: int, width: int, num_frames: int, factor: int, least: int, most: int) -> Size:
    """`round` is Python's, half to even, as the reference's is."""
    h, w = round(height / factor) * factor, round(width / factor) * factor
    if num_frames * h * w > most:
        beta = math.sqrt(num_frames * height * width / most)
        h = max(factor, math.floor(height / beta / factor) * factor)
        w = max(factor, math.floor(width / beta / factor) * factor)
    elif num_frames * h * w < least:
        beta = math.sqrt(least / (num_frames * height * width))
        h = math.ceil(height * beta / factor) * factor
        w = math.ceil(width * beta / factor) * factor
    return Size(h, w)
