"""What the vision towers share: attention within frames or windows, and the block of those with LayerNorm."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from worker.models.native.attention import Segments
from worker.models.native.layers import (
    LayerNorm,
    Tensors,
    apply_rotary,
    layer_norm,
    linear,
)
from worker.models.native.linear import Linear
from worker.models.native.shapes import VisionShape

CosSin = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Attention:
    """qkv: (3 * hidden, hidden); out: (hidden, hidden)."""

    qkv: Linear
    out: Linear
    heads: int

    def onto(self, residual: Tensor, x: Tensor, cos_sin: CosSin, segments: Segments) -> Tensor:
        """`residual` plus attention of `x`, (patches, hidden), within segments; turned in float32."""
        qkv = self.qkv(x).view(len(x), 3, self.heads, -1)
        query, keys = (apply_rotary(qkv[:, part].float(), *cos_sin).to(qkv.dtype) for part in (0, 1))
        return self.out.onto(residual, segments.attend(query, keys, qkv[:, 2]).flatten(1))


@dataclass(frozen=True, eq=False)
class Block:
    """Attention and an MLP, each behind a LayerNorm."""

    before_attention: LayerNorm
    attention: Attention
    before_mlp: LayerNorm
    up: Linear
    down: Linear

    def __call__(
        self, hidden: Tensor, cos_sin: CosSin, segments: Segments, activate: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """(patches, hidden)."""
        hidden = self.attention.onto(hidden, self.before_attention(hidden), cos_sin, segments)
        return self.down.onto(hidden, activate(self.up(self.before_mlp(hidden))))


def attention(tensors: Tensors, name: str, shape: VisionShape) -> Attention:
    """Raises ModelError."""
    hidden = shape.hidden
    return Attention(
        qkv=linear(tensors, f"{name}.qkv", 3 * hidden, hidden),
        out=linear(tensors, f"{name}.proj", hidden, hidden),
        heads=shape.heads,
    )


def block(tensors: Tensors, name: str, shape: VisionShape, *, up: str, down: str) -> Block:
    """`up`, `down`: what the MLP's projections are called. Raises ModelError."""
    hidden = shape.hidden
    return Block(
        before_attention=layer_norm(tensors, f"{name}.norm1", hidden),
        attention=attention(tensors, f"{name}.attn", shape),
        before_mlp=layer_norm(tensors, f"{name}.norm2", hidden),
        up=linear(tensors, f"{name}.mlp.{up}", shape.intermediate, hidden),
        down=linear(tensors, f"{name}.mlp.{down}", hidden, shape.intermediate),
    )
