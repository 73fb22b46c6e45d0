"""The vision tower of Qwen3-VL: learned positions between which patches lie, and deep features on the way."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from worker.models.native.grids import Grid, between, frames, places
from worker.models.native.layers import Affine, Tensors, affine, frequencies, rotate, turns, within_segments
from worker.models.native.shapes import VisionShape

EPS = 1e-6


@dataclass(frozen=True, eq=False)
class _Norm:
    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], self.weight, self.bias, EPS)


@dataclass(frozen=True, eq=False)
class _Block:
    before_attention: _Norm
    qkv: Affine
    out: Affine
    before_mlp: _Norm
    up: Affine
    down: Affine


@dataclass(frozen=True, eq=False)
class _Merger:
    """merge x merge patches to one token. is_late: the norm is over all of them together."""

    norm: _Norm
    up: Affine
    down: Affine
    is_late: bool

    def __call__(self, x: Tensor) -> Tensor:
        width = self.up.weight.shape[1]
        x = self.norm(x.reshape(-1, width)) if self.is_late else self.norm(x).reshape(-1, width)
        return self.down(functional.gelu(self.up(x)))


class Tower:
    """Patches to what the text model reads."""

    def __init__(self, tensors: Tensors, shape: VisionShape, device: torch.device) -> None:
        root, hidden = "model.visual", shape.hidden
        kernel = (shape.channels, shape.temporal, shape.patch, shape.patch)
        weight = tensors.take(f"{root}.patch_embed.proj.weight", hidden, *kernel).view(hidden, -1)
        self._shape, self._device = shape, device
        self._patches = Affine(weight, tensors.take(f"{root}.patch_embed.proj.bias", hidden))
        self._positions = tensors.take(f"{root}.pos_embed.weight", shape.positions, hidden)
        self._blocks = [_block(tensors, f"{root}.blocks.{index}", shape) for index in range(shape.depth)]
        self._merger = _merger(tensors, f"{root}.merger", shape, is_late=False)
        lists = f"{root}.deepstack_merger_list"
        self._deep = {
            layer: _merger(tensors, f"{lists}.{index}", shape, is_late=True) for index, layer in enumerate(shape.deep)
        }
        self._frequencies = frequencies(shape.theta, shape.head_dim // 2, device)

    def __call__(self, pixels: Tensor, grids: Sequence[Grid]) -> tuple[Tensor, list[Tensor]]:
        """(tokens, out) of all pictures and videos behind each other, and the same for each deep layer. pixels:
        (patches, channels * temporal * patch * patch)."""
        shape, device = self._shape, self._device
        index, share = (x.to(device) for x in between(grids, shape.merge, int(shape.positions**0.5)))
        learned = (functional.embedding(index, self._positions) * share[..., None]).sum(1)
        hidden = self._patches(pixels) + learned.to(pixels.dtype)
        angles = (places(grids, shape.merge).to(device)[..., None].float() * self._frequencies).flatten(1)
        cos_sin, lengths = turns(angles, torch.float32), frames(grids)
        deep = []
        for layer, block in enumerate(self._blocks):
            qkv = block.qkv(block.before_attention(hidden)).view(len(hidden), 3, shape.heads, -1)
            query, keys = (rotate(qkv[:, part].float(), *cos_sin).to(qkv.dtype) for part in (0, 1))
            mixed = within_segments(query, keys, qkv[:, 2], lengths).flatten(1)
            hidden = block.out.onto(hidden, mixed)
            activated = functional.gelu(block.up(block.before_mlp(hidden)), approximate="tanh")
            hidden = block.down.onto(hidden, activated)
            if layer in self._deep:
                deep.append(self._deep[layer](hidden))
        return self._merger(hidden), deep


def _norm(tensors: Tensors, name: str, width: int) -> _Norm:
    return _Norm(tensors.take(f"{name}.weight", width), tensors.take(f"{name}.bias", width))


def _block(tensors: Tensors, name: str, shape: VisionShape) -> _Block:
    hidden = shape.hidden
    return _Block(
        before_attention=_norm(tensors, f"{name}.norm1", hidden),
        qkv=affine(tensors, f"{name}.attn.qkv", 3 * hidden, hidden),
        out=affine(tensors, f"{name}.attn.proj", hidden, hidden),
        before_mlp=_norm(tensors, f"{name}.norm2", hidden),
        up=affine(tensors, f"{name}.mlp.linear_fc1", shape.intermediate, hidden),
        down=affine(tensors, f"{name}.mlp.linear_fc2", hidden, shape.intermediate),
    )


def _merger(tensors: Tensors, name: str, shape: VisionShape, *, is_late: bool) -> _Merger:
    width = shape.hidden * shape.merge**2
    return _Merger(
        norm=_norm(tensors, f"{name}.norm", width if is_late else shape.hidden),
        up=affine(tensors, f"{name}.linear_fc1", width, width),
        down=affine(tensors, f"{name}.linear_fc2", shape.out, width),
        is_late=is_late,
    )
