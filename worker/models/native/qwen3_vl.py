"""Qwen3-VL, dense and with experts. Its vision tower has learned positions between which patches lie, and deep features
on the way."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from worker.checkpoint.family import timed_spans
from worker.checkpoint.family_rules import QWEN3_VL_PIXELS, QWEN3_VL_SAMPLING
from worker.models.family import ModelFamily
from worker.models.native.attention import Segments
from worker.models.native.code import NativeCode
from worker.models.native.grids import Grid, frames, interpolation, patch_positions
from worker.models.native.layers import LayerNorm, Tensors, frequencies, layer_norm, linear, rotary
from worker.models.native.linear import Linear
from worker.models.native.shapes import Layout, VisionShape
from worker.models.native.tower import block
from worker.models.varlen import Varlen


@dataclass(frozen=True, eq=False)
class _Merger:
    """merge x merge patches to one token. is_late: the norm is over all of them together."""

    norm: LayerNorm
    up: Linear
    down: Linear
    is_late: bool

    def __call__(self, x: Tensor) -> Tensor:
        width = self.up.width
        x = self.norm(x.reshape(-1, width)) if self.is_late else self.norm(x).reshape(-1, width)
        return self.down(functional.gelu(self.up(x)))


class Tower:
    """Patches to what the text model reads."""

    def __init__(self, tensors: Tensors, shape: VisionShape, device: torch.device) -> None:
        root, hidden = "model.visual", shape.hidden
        kernel = (shape.channels, shape.temporal, shape.patch, shape.patch)
        weight = tensors.take(f"{root}.patch_embed.proj.weight", hidden, *kernel).view(hidden, -1)
        self.shape, self._device = shape, device
        self._patches = Linear(weight, tensors.take(f"{root}.patch_embed.proj.bias", hidden))
        self._positions = tensors.take(f"{root}.pos_embed.weight", shape.positions, hidden)
        self._blocks = [
            block(tensors, f"{root}.blocks.{index}", shape, up="linear_fc1", down="linear_fc2")
            for index in range(shape.depth)
        ]
        self._merger = _merger(tensors, f"{root}.merger", shape, is_late=False)
        lists = f"{root}.deepstack_merger_list"
        self._deep = {
            layer: _merger(tensors, f"{lists}.{index}", shape, is_late=True) for index, layer in enumerate(shape.deep)
        }
        self._frequencies = frequencies(shape.theta, shape.head_dim // 2, device)

    def __call__(
        self, pixels: Tensor, grids: Sequence[Grid], kernel: Varlen | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """(tokens, out) of all pictures and videos behind each other, and the same for each deep layer. pixels:
        (patches, channels * temporal * patch * patch). kernel: attention by lengths, where the device has one."""
        shape, device = self.shape, self._device
        index, share = (x.to(device) for x in interpolation(grids, shape.merge, int(shape.positions**0.5)))
        learned = (functional.embedding(index, self._positions) * share[..., None]).sum(1)
        hidden = self._patches(pixels) + learned.to(pixels.dtype)
        angles = (patch_positions(grids, shape.merge).to(device)[..., None].float() * self._frequencies).flatten(1)
        cos_sin, segments = rotary(angles, torch.float32), Segments(frames(grids), device, kernel)
        deep = []
        for layer, one in enumerate(self._blocks):
            hidden = one(hidden, cos_sin, segments, _gelu)
            if layer in self._deep:
                deep.append(self._deep[layer](hidden))
        return self._merger(hidden), deep


def _gelu(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


def _merger(tensors: Tensors, name: str, shape: VisionShape, *, is_late: bool) -> _Merger:
    width = shape.hidden * shape.merge**2
    return _Merger(
        norm=layer_norm(tensors, f"{name}.norm", width if is_late else shape.hidden),
        up=linear(tensors, f"{name}.linear_fc1", width, width),
        down=linear(tensors, f"{name}.linear_fc2", shape.out, width),
        is_late=is_late,
    )


_LAYOUT = Layout(
    sections=(24, 20, 20),
    is_interleaved=True,
    has_qk_norm=True,
    has_bias=False,
    eps=1e-6,
    theta=5e5,
    activation="gelu_pytorch_tanh",
    tower={"patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_heads": 16},
    positions=2304,
    deep=(8, 16, 24),
)
QWEN3_VL = ModelFamily(
    video_text=timed_spans,
    is_video_timed=True,
    coordinates="thousandths",
    pixel_rules=QWEN3_VL_PIXELS,
    card_sampling=QWEN3_VL_SAMPLING,
    native=NativeCode(_LAYOUT, Tower),
)
QWEN3_VL_MOE = replace(QWEN3_VL, native=NativeCode(replace(_LAYOUT, has_experts=True), Tower))
