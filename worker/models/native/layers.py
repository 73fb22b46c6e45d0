"""What the models share: tensors by name, rotary positions, keys and values of a prompt."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from worker.core.errors import ModelError
from worker.models.native.linear import Linear

log = logging.getLogger(__name__)
NORM_EPS = 1e-6  # of the norms of vision towers
# What is one projection here: the last part of the names before `.weight` and `.bias`, in order.
JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))

# Names of older checkpoints, as newer ones have them.
_RENAMED = (
    (re.compile(r"^visual\."), "model.visual."),
    (re.compile(r"^language_model\.(?!model\.|lm_head\.)"), "model.language_model."),  # a model without its head
    (re.compile(r"^language_model\.model\."), "model.language_model."),
    (re.compile(r"^language_model\.lm_head\."), "lm_head."),
    (re.compile(r"^model\.(?!visual\.|language_model\.)"), "model.language_model."),
)
_OWN = ("model.", "lm_head.")
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
            raise ModelError(f"the tensor {name} has the shape {tuple(tensor.shape)} instead of {shape}")
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """That of a tensor that was not taken; empty where it is not there."""
        return tuple(self._left[name].shape) if name in self._left else ()

    def joined(self, prefix: str, names: Sequence[str], suffix: str, rows: Sequence[int], *rest: int) -> Tensor:
        """Several tensors as one, one behind the other. Where they lie so in memory, as `builder.bake` lays them, it is
        that memory; else a copy, and theirs goes."""
        parts = [self.take(f"{prefix}{name}{suffix}", count, *rest) for name, count in zip(names, rows, strict=True)]
        storages = {part.untyped_storage().data_ptr() for part in parts}
        follows = (part.data_ptr() + part.nbytes == following.data_ptr() for part, following in pairwise(parts))
        if len(storages) == 1 and all(follows):
            return parts[0].as_strided((sum(rows), *rest), parts[0].stride())
        return torch.cat(parts)

    def close(self) -> None:
        """Raises ModelError where a tensor of the model was not taken. Others, as of a value head, are left."""
        left = [name for name in self._left if name.startswith(_OWN)]
        if left:
            raise ModelError(f"{len(left)} tensors are not part of the model, for example {min(left)}")
        if self._left:
            log.warning("%d tensors are not the model's and not used, as %s", len(self._left), min(self._left))


def linear(tensors: Tensors, name: str, out: int, into: int, *, bias: bool = True) -> Linear:
    """Raises ModelError."""
    weight = tensors.take(f"{name}.weight", out, into)
    return Linear(weight, tensors.take(f"{name}.bias", out) if bias else None)


class RMSNorm:
    """Over the last dimension, computed in float32. weight: (dim,), or (heads, dim) where each head has its own.

    A GPU has a kernel for it. For the CPU torch makes eight operations of it; as x / hypot(|x|, sqrt(dim eps)) times
    sqrt(dim) weight it is four.
    """

    def __init__(self, weight: Tensor, eps: float) -> None:
        self._weight, self._eps = weight, eps
        self._has_kernel = weight.device.type == "cuda"
        dim = weight.shape[-1]
        if not self._has_kernel:
            self._scaled = weight.float() * dim**0.5
            self._least = torch.tensor((dim * eps) ** 0.5, device=weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        if self._has_kernel:
            return functional.rms_norm(x, x.shape[-1:], self._weight, self._eps)
        return self._normed(x).mul_(self._scaled).to(x.dtype)

    def in_place(self, x: Tensor) -> None:
        """The same, where `x` lies; also where each head has its own weight."""
        if self._has_kernel:
            torch.mul(functional.rms_norm(x, x.shape[-1:], None, self._eps), self._weight, out=x)
        else:
            torch.mul(self._normed(x), self._scaled, out=x)

    def _normed(self, x: Tensor) -> Tensor:
        """In float32, without the weight."""
        wide = x.float()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        return wide / torch.hypot(length, self._least)


@dataclass(frozen=True, eq=False)
class LayerNorm:
    """Over the last dimension. weight, bias: (dim,)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], self.weight, self.bias, NORM_EPS)


def layer_norm(tensors: Tensors, name: str, dim: int) -> LayerNorm:
    """Raises ModelError."""
    return LayerNorm(tensors.take(f"{name}.weight", dim), tensors.take(f"{name}.bias", dim))


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(tokens, heads, dim) turned by `cos` and `sin`, (tokens, 1, dim); `sin` has its sign already."""
    return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), sin)


def turn_in_place(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """`apply_rotary`, where `x` lies."""
    other = x.roll(x.shape[-1] // 2, -1)
    x.mul_(cos).addcmul_(other, sin)


def rotary(angles: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`cos` and `sin` for `apply_rotary` from angles (tokens, dim / 2) in float32."""
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], -1)[:, None].to(dtype), torch.cat([-sin, sin], -1)[:, None].to(dtype)


def frequencies(theta: float, dim: int, device: torch.device) -> Tensor:
    """(dim / 2,) in float32."""
    return (1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.float) / dim))).to(device)


@dataclass(eq=False)
class _Layer:
    keys: Tensor | None = None
    values: Tensor | None = None


class NativePrefillCache:
    """What a prefill of so many tokens leaves; see `models.runner.PrefillCache`."""

    def __init__(self, num_layers: int, num_tokens: int) -> None:
        self.layers = [_Layer() for _ in range(num_layers)]
        self._num_tokens = num_tokens
        self._memory: list[tuple[Tensor, Tensor]] = []  # of each layer, with room for all tokens

    @property
    def length(self) -> int:
        keys = self.layers[0].keys
        return 0 if keys is None else keys.shape[2]

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Put keys and values, (1, kv_heads, tokens, dim), behind those that the layer has; all of them."""
        stored, count = self.layers[layer], keys.shape[2]
        start = 0 if stored.keys is None else stored.keys.shape[2]
        if start == 0 and count >= self._num_tokens:
            stored.keys, stored.values = keys.contiguous(), values.contiguous()
            return stored.keys, stored.values
        if layer == len(self._memory):
            shape = (1, keys.shape[1], max(self._num_tokens, count), keys.shape[3])
            self._memory.append((keys.new_empty(shape), values.new_empty(shape)))
        end = start + count
        for whole, fresh in zip(self._memory[layer], (keys, values), strict=True):
            whole[:, :, start:end] = fresh
        stored.keys, stored.values = (whole[:, :, :end] for whole in self._memory[layer])
        return stored.keys, stored.values
