"""Qwen2.5-VL. In its vision tower patches see their window, and in some layers their whole frame."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from worker.checkpoint.family import one_span
from worker.checkpoint.family_rules import QWEN2_TEMPLATE, QWEN2_VL_PIXELS
from worker.models.family import ModelFamily
from worker.models.native.attention import Segments
from worker.models.native.code import NativeCode
from worker.models.native.grids import Grid, frames, patch_positions, windows
from worker.models.native.layers import JOINED, NORM_EPS, RMSNorm, Tensors, frequencies, linear, rotary
from worker.models.native.linear import Linear
from worker.models.native.shapes import Layout, VisionShape
from worker.models.native.tower import Attention, attention
from worker.models.varlen import Varlen


@dataclass(frozen=True, eq=False)
class _Block:
    before_attention: RMSNorm
    attention: Attention
    before_mlp: RMSNorm
    gate_up: Linear
    down: Linear


class Tower:
    """Patches to what the text model reads."""

    def __init__(self, tensors: Tensors, shape: VisionShape, device: torch.device) -> None:
        root, hidden = "model.visual", shape.hidden
        kernel = (shape.channels, shape.temporal, shape.patch, shape.patch)
        width = hidden * shape.merge**2
        self.shape, self._device = shape, device
        self._patches = Linear(tensors.take(f"{root}.patch_embed.proj.weight", hidden, *kernel).view(hidden, -1))
        self._blocks = [_block(tensors, f"{root}.blocks.{index}", shape) for index in range(shape.depth)]
        self._before_merging = RMSNorm(tensors.take(f"{root}.merger.ln_q.weight", hidden), NORM_EPS)
        self._merge_up = linear(tensors, f"{root}.merger.mlp.0", width, width)
        self._merge_down = linear(tensors, f"{root}.merger.mlp.2", shape.out, width)
        self._frequencies = frequencies(shape.theta, shape.head_dim // 2, device)

    def __call__(
        self, pixels: Tensor, grids: Sequence[Grid], kernel: Varlen | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """(tokens, out) of all pictures and videos behind each other; there are no deep layers. pixels:
        (patches, channels * temporal * patch * patch). kernel: attention by lengths, where the device has one."""
        shape, device = self.shape, self._device
        merge = shape.merge
        order, lengths = windows(grids, merge, shape.window // merge // shape.patch)
        in_windows, in_frames = (Segments(each, device, kernel) for each in (lengths, frames(grids)))
        patch_order = (order[:, None] * merge**2 + torch.arange(merge**2)).flatten().to(device)
        hidden = self._patches(pixels)[patch_order]
        angles = (patch_positions(grids, merge).to(device)[..., None].float() * self._frequencies).flatten(1)
        cos_sin = rotary(angles[patch_order], torch.float32)
        for layer, block in enumerate(self._blocks):
            segments = in_frames if layer in shape.full else in_windows
            hidden = block.attention.onto(hidden, block.before_attention(hidden), cos_sin, segments)
            gate, up = block.gate_up(block.before_mlp(hidden)).chunk(2, -1)
            hidden = block.down.onto(hidden, functional.silu(gate) * up)
        merged = self._before_merging(hidden).reshape(len(order), -1)
        merged = self._merge_down(functional.gelu(self._merge_up(merged)))
        return merged[order.argsort().to(device)], []


def _block(tensors: Tensors, name: str, shape: VisionShape) -> _Block:
    hidden, rows = shape.hidden, [shape.intermediate] * 2
    _, names = JOINED
    return _Block(
        before_attention=RMSNorm(tensors.take(f"{name}.norm1.weight", hidden), NORM_EPS),
        attention=attention(tensors, f"{name}.attn", shape),
        before_mlp=RMSNorm(tensors.take(f"{name}.norm2.weight", hidden), NORM_EPS),
        gate_up=Linear(
            tensors.joined(f"{name}.mlp.", names, ".weight", rows, hidden),
            tensors.joined(f"{name}.mlp.", names, ".bias", rows),
        ),
        down=linear(tensors, f"{name}.mlp.down_proj", hidden, shape.intermediate),
    )


_LAYOUT = Layout(
    sections=(16, 24, 24),
    is_interleaved=False,
    has_qk_norm=False,
    has_bias=True,
    eps=1e-5,
    theta=1e6,
    activation="silu",
    tower={
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 3584,
    },
    window=112,
    full=(7, 15, 23, 31),
)
QWEN2_5_VL = ModelFamily(
    video_text=one_span,
    is_video_timed=False,
    tokens_per_second=4,
    coordinates="resized_pixels",
    pixel_rules=QWEN2_VL_PIXELS,
    template=QWEN2_TEMPLATE,
    native=NativeCode(_LAYOUT, Tower),
)
