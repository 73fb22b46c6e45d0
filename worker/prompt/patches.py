"""Pixels to patches in the model's order. They stay bytes until they are on the device: an eighth of the usual size."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from worker.checkpoint.preprocessor import PreprocessorConfig
from worker.core.opened import RGB
from worker.prompt.sizes import Size


@dataclass(frozen=True, eq=False)
class Patches:
    """Patches of one picture or video. pixels: (t * h * w, channels * copies * patch * patch) uint8; grid: (t, h, w).

    A still has one temporal copy here (copies = 1); `models.pixel_values` repeats it on the device.
    """

    pixels: torch.Tensor
    grid: tuple[int, int, int]
    copies: int

    def num_tokens(self, merge: int) -> int:
        t, h, w = self.grid
        return t * h * w // merge**2

    @property
    def patches_a_frame(self) -> int:
        return self.grid[1] * self.grid[2]

    def between(self, first: int, end: int) -> "Patches":
        """Frames of a video, each of `copies` pictures, from the first to the one before `end`."""
        t, h, w = self.grid
        if end - first == t:
            return self
        size = self.patches_a_frame
        return Patches(self.pixels[first * size : end * size], (end - first, h, w), self.copies)


def grids(patches: Sequence[Patches]) -> torch.Tensor | None:
    """(items, 3) grids, or None where there are none, as transformers' models want them."""
    return torch.tensor([each.grid for each in patches]) if patches else None


def of_picture(rgb: RGB, size: Size, preprocessor: PreprocessorConfig) -> Patches:
    """Patches of a still, (height, width, 3) uint8, resized to `size`."""
    return _patches([resized(rgb, size)], 1, preprocessor)


def of_frames(frames: Sequence[RGB], size: Size, preprocessor: PreprocessorConfig) -> Patches:
    """Patches of a video; the number of frames is a multiple of the temporal patch."""
    return _patches([resized(frame, size) for frame in frames], preprocessor.temporal, preprocessor)


def resized(rgb: RGB, size: Size) -> torch.Tensor:
    """(3, height, width) uint8; bicubic with antialiasing on bytes, as the reference resizes."""
    pixels = torch.from_numpy(rgb).permute(2, 0, 1)
    if pixels.shape[1:] == (size.height, size.width):
        return pixels
    target = (size.height, size.width)
    return torch.nn.functional.interpolate(pixels[None], size=target, mode="bicubic", antialias=True)[0]


def _patches(frames: list[torch.Tensor], copies: int, preprocessor: PreprocessorConfig) -> Patches:
    video = torch.stack(frames)
    count, channels, height, width = video.shape
    p, m = preprocessor.patch, preprocessor.merge
    t, h, w = count // copies, height // p, width // p
    video = video.view(t, copies, channels, h // m, m, p, w // m, m, p)
    flat = video.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, channels * copies * p * p)
    return Patches(flat, (t, h, w), copies)
