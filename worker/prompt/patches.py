"""Pixels to patches in the model's order. They stay bytes until they are on the device: an eighth of the usual size."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from worker.checkpoint.preprocessor import PixelRules
from worker.core.contract import RGB, Controls
from worker.core.settings import Settings
from worker.prompt.sizes import Size, image_size, video_size


@dataclass(frozen=True, eq=False)
class Patches:
    """Patches of one picture or video. pixels: (t * h * w, channels * copies * patch * patch) uint8; grid: (t, h, w).

    A still has one temporal copy here (copies = 1); `normalised` repeats it on the device.
    """

    pixels: torch.Tensor
    grid: tuple[int, int, int]
    copies: int

    def num_tokens(self, merge: int) -> int:
        t, h, w = self.grid
        return t * h * w // merge**2


def of_picture(rgb: RGB, size: Size, rules: PixelRules) -> Patches:
    """Patches of a still, (height, width, 3) uint8, resized to `size`."""
    return _patches([_resized(rgb, size)], 1, rules)


def of_frames(frames: Sequence[RGB], size: Size, rules: PixelRules) -> Patches:
    """Patches of a video; the number of frames is a multiple of the temporal patch."""
    return _patches([_resized(frame, size) for frame in frames], rules.temporal, rules)


class Eye:
    """The size at which the model sees, for whoever opens media: known from headers, before anything is decoded."""

    def __init__(self, rules: PixelRules, settings: Settings, max_model_len: int | None = None) -> None:
        self._rules = rules
        self.max_tokens = min(settings.max_media_tokens or sys.maxsize, max_model_len or sys.maxsize)
        self._max_image_tokens = settings.max_image_tokens
        self._max_tokens = settings.max_video_tokens

    def picture(self, height: int, width: int, controls: Controls) -> tuple[int, int, int]:
        """Height and width at which a picture is seen, and its tokens. Raises MediaParamInvalid."""
        size = image_size(height, width, self._rules, self._max_image_tokens, controls)
        return size.height, size.width, size.height * size.width // self._rules.factor**2

    def clip_tokens(self, height: int, width: int, num_frames: int, controls: Controls) -> int:
        """Tokens of a video of `num_frames` frames. Raises MediaParamInvalid."""
        count = num_frames + -num_frames % self._rules.temporal
        size = video_size(count, height, width, self._rules, self._max_tokens, controls)
        return count // self._rules.temporal * size.height * size.width // self._rules.factor**2

    def shrink(self, rgb: RGB, num_frames: int, controls: Controls) -> RGB:
        """One of `num_frames` frames, (height, width, 3), at the model's size. Raises MediaParamInvalid."""
        height, width = rgb.shape[:2]
        size = video_size(num_frames, height, width, self._rules, self._max_tokens, controls)
        shrunk: RGB = _resized(rgb, size).permute(1, 2, 0).contiguous().numpy()
        return shrunk


def _resized(rgb: RGB, size: Size) -> torch.Tensor:
    """(3, height, width) uint8; bicubic with antialiasing on bytes, as the reference resizes."""
    pixels = torch.from_numpy(rgb).permute(2, 0, 1)
    if pixels.shape[1:] == (size.height, size.width):
        return pixels
    target = (size.height, size.width)
    return torch.nn.functional.interpolate(pixels[None], size=target, mode="bicubic", antialias=True)[0]


def _patches(frames: list[torch.Tensor], copies: int, rules: PixelRules) -> Patches:
    video = torch.stack(frames)
    count, channels, height, width = video.shape
    p, m = rules.patch, rules.merge
    t, h, w = count // copies, height // p, width // p
    video = video.view(t, copies, channels, h // m, m, p, w // m, m, p)
    flat = video.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, channels * copies * p * p)
    return Patches(flat, (t, h, w), copies)


def normalised(patches: Sequence[Patches], rules: PixelRules, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """(patches, channels * temporal * patch * patch) on the device: (value / 255 - mean) / std, computed in float32."""
    return torch.cat([_normalised(one, rules, device) for one in patches]).to(dtype)


def _normalised(patches: Patches, rules: PixelRules, device: torch.device) -> torch.Tensor:
    channels = len(rules.mean)
    mean = torch.tensor(rules.mean, device=device).view(1, channels, 1, 1) * 255
    std = torch.tensor(rules.std, device=device).view(1, channels, 1, 1) * 255
    values = _copied(patches.pixels, device).float().view(len(patches.pixels), channels, patches.copies, -1)
    values = (values - mean) / std
    return values.expand(-1, -1, rules.temporal, -1).reshape(len(patches.pixels), -1)


@cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _copied(pixels: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Bytes to the device; to a GPU from pinned memory, on a stream of their own: they pass what is being computed."""
    if device.type != "cuda":
        return pixels.to(device)
    now, aside = torch.cuda.current_stream(device), _copies(device)
    with torch.cuda.stream(aside):
        moved = pixels.pin_memory().to(device, non_blocking=True)
    now.wait_stream(aside)
    moved.record_stream(now)
    return moved
