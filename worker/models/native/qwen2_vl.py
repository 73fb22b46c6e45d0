"""Qwen2-VL. Its text model is Qwen2.5-VL's; in its vision tower every patch sees its whole frame."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from worker.checkpoint.family import one_span
from worker.checkpoint.family_rules import QWEN2_TEMPLATE, QWEN2_VL_PIXELS
from worker.models.family import ModelFamily
from worker.models.native.attention import Segments
from worker.models.native.code import NativeCode
from worker.models.native.grids import Grid, frames, patch_positions
from worker.models.native.layers import Tensors, frequencies, layer_norm, linear, rotary
from worker.models.native.linear import Linear
from worker.models.native.shapes import Layout, VisionShape
from worker.models.native.tower import block
from worker.models.varlen import Varlen


class Tower:
    """Patches to what the text model reads."""

    def __init__(self, tensors: Tensors, shape: VisionShape, device: torch.device) -> None:
        root, hidden = "model.visual", shape.hidden
        kernel = (shape.channels, shape.temporal, shape.patch, shape.patch)
        width = hidden * shape.merge**2
        self.shape, self._device = shape, device
        self._patches = Linear(tensors.take(f"{root}.patch_embed.proj.weight", hidden, *kernel).view(hidden, -1))
        self._blocks = [
            block(tensors, f"{root}.blocks.{index}", shape, up="fc1", down="fc2") for index in range(shape.depth)
        ]
        self._before_merging = layer_norm(tensors, f"{root}.merger.ln_q", hidden)
        self._merge_up = linear(tensors, f"{root}.merger.mlp.0", width, width)
        self._merge_down = linear(tensors, f"{root}.merger.mlp.2", shape.out, width)
        self._frequencies = frequencies(shape.theta, shape.head_dim // 2, device)

    def __call__(
        self, pixels: Tensor, grids: Sequence[Grid], kernel: Varlen | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """(tokens, out) of all pictures and videos behind each other; there are no deep layers. pixels:
        (patches, channels * temporal * patch * patch). kernel: attention by lengths, where the device has one."""
        shape = self.shape
        hidden = self._patches(pixels)
        positions = patch_positions(grids, shape.merge).to(self._device)
        cos_sin = rotary((positions[..., None].float() * self._frequencies).flatten(1), torch.float32)
        segments = Segments(frames(grids), self._device, kernel)
        for layer in self._blocks:
            hidden = layer(hidden, cos_sin, segments, _quick_gelu)
        merged = self._before_merging(hidden).reshape(-1, shape.hidden * shape.merge**2)
        return self._merge_down(functional.gelu(self._merge_up(merged))), []


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


_LAYOUT = Layout(
    sections=(16, 24, 24),
    is_interleaved=False,
    has_qk_norm=False,
    has_bias=True,
    eps=1e-5,
    theta=1e6,
    activation="quick_gelu",
    tower={
        "depth": 32,
        "embed_dim": 1280,
        "mlp_ratio": 4,
        "num_heads": 16,
        "hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
    has_mlp_ratio=True,
)
QWEN2_VL = ModelFamily(
    video_text=one_span,
    is_video_timed=False,
    coordinates="thousandths",
    pixel_rules=QWEN2_VL_PIXELS,
    template=QWEN2_TEMPLATE,
    native=NativeCode(_LAYOUT, Tower),
)
