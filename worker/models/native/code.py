"""A family's own model code: the layout of its layers, and its vision tower."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from worker.models.native.grids import Grid
from worker.models.native.layers import Tensors
from worker.models.native.shapes import Layout, VisionShape
from worker.models.varlen import Varlen


class Tower(Protocol):
    """Patches to what the text model reads."""

    def __call__(
        self, pixels: Tensor, grids: Sequence[Grid], kernel: Varlen | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """(tokens, out) of all pictures and videos behind each other, and the same for each deep layer. pixels:
        (patches, channels * temporal * patch * patch). kernel: attention by lengths, where the device has one."""
        ...


@dataclass(frozen=True)
class NativeCode:
    """tower: from a checkpoint's tensors; raises ModelError where they are not the family's."""

    layout: Layout
    tower: Callable[[Tensors, VisionShape, torch.device], Tower]
