"""What the models share: tensors by name, rotary positions, attention within segments, keys and values of a prompt."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import torch
from torch import Tensor
from torch.nn import functional

from worker.engine.checkpoint import ModelError

# What is one projection here: the last part of the names before `.weight` and `.bias`, in order.
JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))

# Names of older checkpoints, as newer ones have them.
_RENAMED = (
    (re.compile(r"^visual\."), "model.visual."),
    (re.compile(r"^model\.(?!visual\.|language_model\.)"), "model.language_model."),
)
_NOT_NEEDED = re.compile(r"\.inv_freq$")


class Tensors:
    """A checkpoint's tensors, each taken once. What is missing, of another shape, or left over is a ModelError."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._left: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            for pattern, new in _RENAMED:
                name = pattern.sub(new, name)
            if not _NOT_NEEDED.search(name):
                self._left[name] = tensor

    def take(self, name: str, *shape: int) -> Tensor:
        """The tensor of this name. Raises ModelError."""
        tensor = self._left.pop(name, None)
        if tensor is None:
            raise ModelError(f"the tensor {name} is missing")
        if tensor.shape != shape:
            raise ModelError(f"the tensor {name} has the shape {tuple(tensor.shape)}, not {shape}")
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """That of a tensor that was not taken; empty where it is not there."""
        return tuple(self._left[name].shape) if name in self._left else ()

    def joined(self, prefix: str, names: Sequence[str], suffix: str, rows: Sequence[int], *rest: int) -> Tensor:
        """Several tensors as one, one behind the other. Where they lie so in memory, as `builder.bake` lays them, it is
        that memory; else a copy, and theirs goes."""
        parts = [self.take(f"{prefix}{name}{suffix}", count, *rest) for name, count in zip(names, rows, strict=True)]
        storages = {part.untyped_storage().data_ptr() for part in parts}
        follows = (one.data_ptr() + one.nbytes == other.data_ptr() for one, other in pairwise(parts))
        if len(storages) == 1 and all(follows):
            return parts[0].as_strided((sum(rows), *rest), parts[0].stride())
        return torch.cat(parts)

    def drop(self, name: str) -> None:
        """A tensor that nobody needs."""
        self._left.pop(name, None)

    def close(self) -> None:
        """Raises ModelError where a tensor was not taken."""
        if self._left:
            raise ModelError(f"{len(self._left)} tensors have no place in the model, as {min(self._left)}")


# Measured with the CPU's library (docs/log.md): it multiplies a weight with up to four columns at the memory's full
# speed, with one at half of it, and with more than four it first copies the weight, which only many make up for.
FEW_ROWS = 32
SKINNY = 4
SEVERAL = 12  # up to so many rows are faster as several times four, where the weight's rows are short
SHORT = 2048


class Affine:
    """weight: (out, in); bias: (out,) or None. Few rows in float32 on the CPU are multiplied as columns with the
    weight, which is up to four times as fast if the rows lie behind each other."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias
        self._has_columns = weight.device.type == "cpu" and weight.dtype == torch.float32

    def _step(self, rows: int) -> int:
        """How many rows are multiplied at once as columns; 0 where they stay rows."""
        if not self._has_columns or not 1 < rows <= FEW_ROWS:
            return 0
        if rows <= SKINNY or rows > SEVERAL:
            return rows
        return SKINNY if self.weight.shape[1] <= SHORT else 0

    def __call__(self, x: Tensor) -> Tensor:
        """(tokens, in) to (tokens, out), which need not be contiguous."""
        step = self._step(len(x))
        if not step:
            return functional.linear(x, self.weight, self.bias)
        columns = self._columns(x.contiguous(), step)
        if self.bias is not None:
            columns += self.bias[:, None]
        return columns.t()

    def _columns(self, x: Tensor, step: int) -> Tensor:
        """(out, tokens)."""
        if step == len(x):
            return torch.mm(self.weight, x.t())
        columns = torch.empty(len(self.weight), len(x))
        for at in range(0, len(x), step):
            torch.mm(self.weight, x[at : at + step].t(), out=columns[:, at : at + step])
        return columns

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        """`residual` plus what `x` becomes; in one operation where there is no bias."""
        if self.bias is not None:
            return residual + self(x)
        step = self._step(len(x))
        if not step:
            return torch.addmm(residual, x, self.weight.t())
        if step < len(x):
            return residual + self._columns(x.contiguous(), step).t()
        return torch.addmm(residual.t(), self.weight, x.contiguous().t()).t()


def affine(tensors: Tensors, name: str, out: int, into: int, *, bias: bool = True) -> Affine:
    """Raises ModelError."""
    weight = tensors.take(f"{name}.weight", out, into)
    return Affine(weight, tensors.take(f"{name}.bias", out) if bias else None)


class RMSNorm:
    """Over the last dimension, computed in float32. weight: (dim,), or (heads, dim) where each head has its own.

    A GPU has one kernel for it. For the CPU torch makes eight operations of it; as x / hypot(|x|, sqrt(dim eps)) times
    sqrt(dim) weight it is four.
    """

    def __init__(self, weight: Tensor, eps: float) -> None:
        self._weight, self._eps = weight, eps
        self._has_kernel = weight.device.type == "cuda"
        dim = weight.shape[-1]
        self._scaled = weight.float() * dim**0.5
        self._least = torch.tensor((dim * eps) ** 0.5, device=weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        if not self._has_kernel:
            length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
            return product(x / torch.hypot(length, self._least), self._scaled).to(x.dtype)
        if self._weight.ndim == 1:
            return functional.rms_norm(x, x.shape[-1:], self._weight, self._eps)
        return functional.rms_norm(x, x.shape[-1:], None, self._eps) * self._weight


def product(a: Tensor, b: Tensor) -> Tensor:
    """`a * b` behind each other in memory, whatever lay across in `a`: what comes next wants it so."""
    return torch.mul(a, b, out=torch.empty(a.shape, dtype=a.dtype, device=a.device))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(tokens, heads, dim) turned by `cos` and `sin`, (tokens, 1, dim), behind each other in memory; `sin` has its sign
    already."""
    turned = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin, out=turned)


def turns(angles: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`cos` and `sin` for `rotate` from angles (tokens, dim / 2) in float32."""
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], -1)[:, None].to(dtype), torch.cat([-sin, sin], -1)[:, None].to(dtype)


def frequencies(theta: float, dim: int, device: torch.device) -> Tensor:
    """(dim / 2,) in float32."""
    return (1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.float) / dim))).to(device)


def within_segments(query: Tensor, keys: Tensor, values: Tensor, lengths: Sequence[int]) -> Tensor:
    """(tokens, heads, dim) of attention in which a token sees its own segment, and all of it. Segments of one length
    that follow each other are computed together."""
    mixed, at = [], 0
    for length, run in groupby(lengths):
        count = len(list(run))
        span = slice(at, at + count * length)
        q, k, v = (x[span].view(count, length, *x.shape[1:]).transpose(1, 2) for x in (query, keys, values))
        mixed.append(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1))
        at += count * length
    return mixed[0] if len(mixed) == 1 else torch.cat(mixed)


@dataclass(eq=False)
class _Layer:
    keys: Tensor | None = None
    values: Tensor | None = None


class KeysAndValues:
    """What a prefill leaves; see `face.Filled`."""

    def __init__(self, num_layers: int) -> None:
        self.layers = [_Layer() for _ in range(num_layers)]

    @property
    def length(self) -> int:
        keys = self.layers[0].keys
        return 0 if keys is None else keys.shape[2]

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Put keys and values, (1, kv_heads, tokens, dim), behind those that the layer has; all of them."""
        own = self.layers[layer]
        if own.keys is None or own.values is None:
            own.keys, own.values = keys.contiguous(), values.contiguous()
        else:
            own.keys, own.values = torch.cat([own.keys, keys], 2), torch.cat([own.values, values], 2)
        return own.keys, own.values
