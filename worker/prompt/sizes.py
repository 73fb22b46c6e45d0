"""Sides in pixels at which the model sees pictures and videos. Pure arithmetic, equal to the reference's.

Source: `smart_resize` of qwen-vl-utils 0.0.14 and of transformers' Qwen2-VL and Qwen3-VL processors.
"""

import math
import sys
from dataclasses import dataclass

from worker.checkpoint.preprocessor import PreprocessorConfig
from worker.core.contract import NO_CONTROLS, Controls
from worker.core.errors import MediaParamInvalid
from worker.core.settings import Settings

MAX_RATIO = 200
TOTAL_TOKENS = int(128_000 * 0.9)  # of a temporal patch's pixels: what qwen-vl-utils lets the frames of a video share


def video_tokens(settings: Settings, max_model_len: int | None) -> int:
    """The max tokens of a video: as set, and no more than half of what the model takes."""
    return min(settings.max_video_tokens, (max_model_len or sys.maxsize) // 2)


@dataclass(frozen=True)
class Size:
    """Sides in pixels, multiples of the factor."""

    height: int
    width: int


def image_size(
    height: int, width: int, config: PreprocessorConfig, max_tokens: int, controls: Controls = NO_CONTROLS
) -> Size:
    """The size for a picture; `max_tokens` and the caller may lower the checkpoint's limit, never raise it."""
    most = min(
        config.image_max_pixels,
        max_tokens * config.factor**2,
        controls.max_pixels or config.image_max_pixels,
        controls.longest_edge or config.image_max_pixels,
    )
    most = max(most, config.factor**2)
    least = min(controls.min_pixels or controls.shortest_edge or config.image_min_pixels, most)
    if controls.resized_height and controls.resized_width:
        height, width = controls.resized_height, controls.resized_width
        _check_ratio(height, width)
    return _fit(height, width, 1, config.factor, least, most)


def video_size(
    num_frames: int,
    height: int,
    width: int,
    config: PreprocessorConfig,
    max_tokens: int,
    controls: Controls = NO_CONTROLS,
) -> Size:
    """The size for every frame of a video of `num_frames` (even) frames."""
    shortest = controls.shortest_edge or config.video_min_pixels
    longest = min(controls.longest_edge or config.video_max_pixels, config.video_max_pixels)
    if config.is_video_per_frame:
        shortest *= num_frames
        longest = min(longest * num_frames, TOTAL_TOKENS * config.factor**2 * config.temporal)
    most = min(longest, max_tokens * config.factor**2 * config.temporal)
    if controls.total_pixels:
        most = min(most, controls.total_pixels * config.temporal)
    least = min(controls.min_pixels * num_frames if controls.min_pixels else shortest, most)
    if config.is_video_per_frame:
        most = min(config.frame_max_tokens * config.factor**2 * num_frames, most)
        least = min(least, most)
    elif config.caps_frames:
        a_frame = max(min(config.frame_max_tokens * config.factor**2, most // num_frames), int(least * 1.05))
        most = a_frame * num_frames
    if controls.max_pixels:
        most = min(most, max(controls.max_pixels, config.factor**2) * num_frames)
        least = min(least, most)
    if controls.resized_height and controls.resized_width:
        height, width = controls.resized_height, controls.resized_width
        _check_ratio(height, width)
    if min(height, width) < config.factor:
        scale = max(config.factor / height, config.factor / width)
        height, width = int(height * scale), int(width * scale)
    return _fit(height, width, num_frames, config.factor, least, most)


def _check_ratio(height: int, width: int) -> None:
    """The reference refuses more than 200 : 1, whoever asks for it."""
    if max(height, width) > MAX_RATIO * min(height, width):
        raise MediaParamInvalid(detail=f"{width}x{height}: the longer side may be {MAX_RATIO} times the shorter")


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
