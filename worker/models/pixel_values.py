"""Patches on a device, normalised: what a vision tower reads."""

from collections.abc import Sequence
from functools import cache

import torch

from worker.checkpoint.preprocessor import PreprocessorConfig
from worker.prompt.patches import Patches


def pixel_values(
    patches: Sequence[Patches], preprocessor: PreprocessorConfig, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """(patches, channels * temporal * patch * patch) on the device: (value / 255 - mean) / std, computed in float32."""
    return torch.cat([_normalised(item, preprocessor, device) for item in patches]).to(dtype)


def _normalised(patches: Patches, preprocessor: PreprocessorConfig, device: torch.device) -> torch.Tensor:
    channels = len(preprocessor.mean)
    mean = torch.tensor(preprocessor.mean, device=device).view(1, channels, 1, 1) * 255
    std = torch.tensor(preprocessor.std, device=device).view(1, channels, 1, 1) * 255
    values = _copied(patches.pixels, device).float().view(len(patches.pixels), channels, patches.copies, -1)
    values = (values - mean) / std
    return values.expand(-1, -1, preprocessor.temporal, -1).reshape(len(patches.pixels), -1)


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
