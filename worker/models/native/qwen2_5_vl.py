"""The vision tower of Qwen2.5-VL: patches see their window, and in some layers their whole frame."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from worker.models.native.grids import Grid, frames, places, windows
from worker.models.native.layers import (
    JOINED,
    Affine,
    RMSNorm,
    Tensors,
    affine,
    frequencies,
    rotate,
    turns,
    within_segments,
)
from worker.models.native.shapes import VisionShape

EPS = 1e-6


@dataclass(frozen=True, eq=False)
class _Block:
    before_attention: RMSNorm
    qkv: Affine
    out: Affine
    before_mlp: RMSNorm
    gate_up: Affine
    down: Affine


class Tower:
    """Patches to what the text model reads."""

    def __init__(self, tensors: Tensors, shape: VisionShape, device: torch.device) -> None:
        root, hidden = "model.visual", shape.hidden
        kernel = (shape.channels, shape.temporal, shape.patch, shape.patch)
        width = hidden * shape.merge**2
        self._shape, self._device = shape, device
        self._patches = Affine(tensors.take(f"{root}.patch_embed.proj.weight", hidden, *kernel).view(hidden, -1))
        self._blocks = [_block(tensors, f"{root}.blocks.{index}", shape) for index in range(shape.depth)]
        self._before_merging = RMSNorm(tensors.take(f"{root}.merger.ln_q.weight", hidden), EPS)
        self._merge_up = affine(tensors, f"{root}.merger.mlp.0", width, width)
        self._merge_down = affine(tensors, f"{root}.merger.mlp.2", shape.out, width)
        self._frequencies = frequencies(shape.theta, shape.head_dim // 2, device)

    def __call__(self, pixels: Tensor, grids: Sequence[Grid]) -> tuple[Tensor, list[Tensor]]:
        """(tokens, out) of all pictures and videos behind each other; there are no deep layers. pixels:
        (patches, channels * temporal * patch * patch)."""
        shape, device = self._shape, self._device
        merge = shape.merge
        order, in_windows = windows(grids, merge, shape.window // merge // shape.patch)
        in_frames = frames(grids)
        patch_order = (order[:, None] * merge**2 + torch.arange(merge**2)).flatten().to(device)
        hidden = self._patches(pixels)[patch_order]
        angles = (places(grids, merge).to(device)[..., None].float() * self._frequencies).flatten(1)
        cos_sin = turns(angles[patch_order], torch.float32)
        for layer, block in enumerate(self._blocks):
            qkv = block.qkv(block.before_attention(hidden)).view(len(hidden), 3, shape.heads, -1)
            query, keys = (rotate(qkv[:, part].float(), *cos_sin).to(qkv.dtype) for part in (0, 1))
            lengths = in_frames if layer in shape.full else in_windows
            hidden = block.out.onto(hidden, within_segments(query, keys, qkv[:, 2], lengths).flatten(1))
            gate, up = block.gate_up(block.before_mlp(hidden)).chunk(2, -1)
            hidden = block.down.onto(hidden, functional.silu(gate) * up)
        merged = self._before_merging(hidden).reshape(len(order), -1)
        merged = self._merge_down(functional.gelu(self._merge_up(merged)))
        return merged[order.argsort().to(device)], []


def _block(tensors: Tensors, name: str, shape: VisionShape) -> _Block:
    hidden, rows = shape.hidden, [shape.intermediate] * 2
    _, names = JOINED
    return _Block(
        before_attention=RMSNorm(tensors.take(f"{name}.norm1.weight", hidden), EPS),
        qkv=affine(tensors, f"{name}.attn.qkv", 3 * hidden, hidden),
        out=affine(tensors, f"{name}.attn.proj", hidden, hidden),
        before_mlp=RMSNorm(tensors.take(f"{name}.norm2.weight", hidden), EPS),
        gate_up=Affine(
            tensors.joined(f"{name}.mlp.", names, ".weight", rows, hidden),
            tensors.joined(f"{name}.mlp.", names, ".bias", rows),
        ),
        down=affine(tensors, f"{name}.mlp.down_proj", hidden, shape.intermediate),
    )
