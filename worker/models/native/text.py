"""The text model of all families: they differ in norms, biases and in which frequency turns by which axis.

Tokens of one or many sequences lie behind each other in one tensor, (tokens, hidden); only attention knows to whom
they belong. Queries, keys and values are one projection, gate and up another.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from worker.models.native.experts import Experts, experts
from worker.models.native.layers import JOINED, RMSNorm, Tensors, frequencies, linear, rotary, turn_in_place
from worker.models.native.linear import Linear
from worker.models.native.shapes import TextShape

# (layer, queries (tokens, heads, dim), keys and values (tokens, 2, kv_heads, dim)) -> (tokens, heads * dim)
Attend = Callable[[int, Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Layer:
    """qk_norm: of queries and keys, (heads + kv_heads, dim), each head with its own weight: done at once for all."""

    before_attention: RMSNorm
    qkv: Linear
    qk_norm: RMSNorm | None
    out: Linear
    before_mlp: RMSNorm
    mlp: "Dense | Experts"


@dataclass(frozen=True, eq=False)
class Dense:
    """A layer's MLP, all of it for every token."""

    gate_up: Linear
    down: Linear

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down.onto(residual, functional.silu(gate) * up)


class TextModel:
    """Embedding, layers, final norm, head."""

    def __init__(self, tensors: Tensors, shape: TextShape, device: torch.device) -> None:
        root = "model.language_model"
        self.shape = shape
        self.embedding = tensors.take(f"{root}.embed_tokens.weight", shape.vocabulary, shape.hidden)
        self._layers = [
            _layer(tensors, f"{root}.layers.{index}", shape, index in shape.sparse) for index in range(shape.layers)
        ]
        norm = tensors.take(f"{root}.norm.weight", shape.hidden)
        self.dtype = norm.dtype
        self._norm = RMSNorm(norm, shape.eps)
        self.head = Linear(_head(tensors, shape, self.embedding))
        self._frequencies = frequencies(shape.theta, shape.head_dim, device)
        self.axes = _axes(shape).to(device)

    def embed(self, ids: Tensor) -> Tensor:
        """(tokens, hidden) of ids (tokens,). The table may be in the checkpoint's own dtype: rows become what the model
        computes in as they are looked up."""
        return functional.embedding(ids, self.embedding).to(self.dtype)

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """For all layers, from M-RoPE positions (3, tokens)."""
        angles = positions.float()[self.axes].T * self._frequencies
        return rotary(angles, self.dtype)

    def forward(
        self,
        hidden: Tensor,
        cos_sin: tuple[Tensor, Tensor],
        attend: Attend,
        spots: Tensor | None = None,
        deep: Sequence[Tensor] = (),
    ) -> Tensor:
        """(tokens, hidden) after all layers, before the final norm. deep: what is added at `spots` after each of the
        first layers."""
        heads, kv_heads, dim = self.shape.heads, self.shape.kv_heads, self.shape.head_dim
        for index, layer in enumerate(self._layers):
            qkv = layer.qkv(layer.before_attention(hidden)).view(len(hidden), -1, dim)
            turning = qkv[:, : heads + kv_heads]
            if layer.qk_norm is not None:
                layer.qk_norm.in_place(turning)
            turn_in_place(turning, *cos_sin)
            # Keys and values stay beside each other: a cache can take them in one operation.
            keys_values = qkv[:, heads:].view(len(hidden), 2, kv_heads, dim)
            hidden = layer.out.onto(hidden, attend(index, qkv[:, :heads], keys_values))
            hidden = layer.mlp.onto(hidden, layer.before_mlp(hidden))
            if index < len(deep) and spots is not None:
                hidden.index_add_(0, spots, deep[index])
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """(tokens, vocabulary) of what `forward` gave."""
        return self.head(self._norm(hidden))


def _head(tensors: Tensors, shape: TextShape, embedding: Tensor) -> Tensor:
    """A head in the checkpoint takes precedence over what its config says, as it does in the library; tied where it is
    the embedding once more."""
    if shape.is_tied and not tensors.shape("lm_head.weight"):
        return embedding
    head = tensors.take("lm_head.weight", shape.vocabulary, shape.hidden)
    is_copy = shape.is_tied and not head.is_meta and head.dtype == embedding.dtype and torch.equal(head, embedding)
    return embedding if is_copy else head


def _layer(tensors: Tensors, name: str, shape: TextShape, is_sparse: bool) -> Layer:
    hidden, dim = shape.hidden, shape.head_dim
    rows = [shape.heads * dim, shape.kv_heads * dim, shape.kv_heads * dim]
    names, _ = JOINED
    attention = f"{name}.self_attn"
    bias = tensors.joined(f"{attention}.", names, ".bias", rows) if shape.has_bias else None
    norms = None
    if shape.has_qk_norm:
        query, key = (tensors.take(f"{attention}.{which}_norm.weight", dim) for which in "qk")
        norms = RMSNorm(torch.cat([query.expand(shape.heads, -1), key.expand(shape.kv_heads, -1)]), shape.eps)
    return Layer(
        before_attention=RMSNorm(tensors.take(f"{name}.input_layernorm.weight", hidden), shape.eps),
        qkv=Linear(tensors.joined(f"{attention}.", names, ".weight", rows, hidden), bias),
        qk_norm=norms,
        out=linear(tensors, f"{attention}.o_proj", hidden, shape.heads * dim, bias=False),
        before_mlp=RMSNorm(tensors.take(f"{name}.post_attention_layernorm.weight", hidden), shape.eps),
        mlp=experts(tensors, f"{name}.mlp", shape) if is_sparse else _dense(tensors, f"{name}.mlp", shape),
    )


def _dense(tensors: Tensors, name: str, shape: TextShape) -> Dense:
    _, parts = JOINED
    gate_up = tensors.joined(f"{name}.", parts, ".weight", [shape.intermediate] * 2, shape.hidden)
    return Dense(Linear(gate_up), linear(tensors, f"{name}.down_proj", shape.hidden, shape.intermediate, bias=False))


def _axes(shape: TextShape) -> Tensor:
    """(dim / 2,): whether a frequency turns by time (0), height (1) or width (2)."""
    axes = torch.zeros(shape.head_dim // 2, dtype=torch.long)
    time, height, width = shape.sections
    if shape.is_interleaved:
        axes[1 : 3 * height : 3] = 1
        axes[2 : 3 * width : 3] = 2
    else:
        axes[time : time + height] = 1
        axes[time + height : time + height + width] = 2
    return axes
