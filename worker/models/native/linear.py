"""Products with a weight, by whatever is fastest on the device, in the layout that this wants."""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from worker.checkpoint.cpu import is_known_to_onednn

# torch's `linear` hands float32 to MKL, which on some processors is a third as fast as oneDNN (docs/log.md). These are
# the operations that `torch.compile` puts in its place; they take the weight as it lies, or packed.
HAS_ONEDNN = torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")
WIDE_FROM = 16  # rows; with fewer, making float32 of a weight takes longer than it saves
WIDE_BYTES = 2 * 2**20  # of a weight in float32 at a time: what the processor's cache keeps


class Products(Protocol):
    """A weight in some layout. weight: (out, in) as it lies, or an object that holds it otherwise."""

    weight: Any

    def __call__(self, x: Tensor) -> Tensor:
        """(rows, in) to (rows, out)."""
        ...

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        """`residual` plus what `x` becomes, (rows, out)."""
        ...


class Plain:
    """torch's own. pads: see `padding`."""

    def __init__(self, weight: Tensor, bias: Tensor | None, *, pads: bool) -> None:
        self.weight, self._bias, self._pads = weight, bias, pads

    def __call__(self, x: Tensor) -> Tensor:
        more = padding(len(x)) if self._pads else 0
        if more:
            return functional.linear(functional.pad(x, (0, 0, 0, more)), self.weight, self._bias)[: len(x)]
        return functional.linear(x, self.weight, self._bias)

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        if self._bias is not None or (self._pads and padding(len(x))):
            return residual + self(x)
        return torch.addmm(residual, x, self.weight.t())


class OneDnn:
    """oneDNN's, with a weight as it lies or packed by `_reorder_linear_weight`."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self._bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        product: Tensor
        if more := padding(len(x)):
            padded = functional.pad(x, (0, 0, 0, more))
            product = torch.ops.mkldnn._linear_pointwise.default(padded, self.weight, self._bias, "none", [], "")
            return product[: len(x)]
        product = torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self._bias, "none", [], "")
        return product

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        if padding(len(x)):
            return residual + self(x)
        total: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.weight, self._bias, "add")
        return total


class Widened:
    """A weight in 16 bits, as it lies, on a CPU where oneDNN does not take those: several rows are multiplied in
    float32, a part of the weight at a time, in a half to a sixth of the time that torch's loops take."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self._bias = weight, bias
        self._at_once = max(1, WIDE_BYTES // (4 * weight.shape[1]))

    def __call__(self, x: Tensor) -> Tensor:
        if len(x) < WIDE_FROM:
            return functional.linear(x, self.weight, self._bias)
        wide = x.float()
        parts = [functional.linear(wide, part.float()).to(x.dtype) for part in torch.split(self.weight, self._at_once)]
        product = torch.cat(parts, 1)
        return product if self._bias is None else product.add_(self._bias)

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        return residual + self(x)


class HalfWeight:
    """FBGEMM's: float32 by a weight in float16, which becomes float32 as it is read. weight: made by
    `linear_prepack_fp16`; it has the bias, too. Other dtypes are converted to float32 and back."""

    def __init__(self, weight: Any) -> None:
        self.weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        return self._product(x).to(x.dtype)

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        return self._product(x).add_(residual).to(residual.dtype)

    def _product(self, x: Tensor) -> Tensor:
        product: Tensor = torch.ops.quantized.linear_dynamic_fp16.default(x.float(), self.weight)
        return product


class Linear:
    """weight: (out, in); bias: (out,) or None.

    products: may be exchanged for those of another layout on another thread; each product reads it once. width: in.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.bias, self.width = bias, weight.shape[1]
        self.products = as_it_lies(weight, bias)

    def __call__(self, x: Tensor) -> Tensor:
        """(tokens, in) to (tokens, out)."""
        return self.products(x)

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        """`residual` plus what `x` becomes; in one operation where there can be one."""
        return self.products.onto(residual, x)


def as_it_lies(weight: Tensor, bias: Tensor | None) -> Products:
    """On the CPU all goes to oneDNN, where torch was built with it and it takes the dtype."""
    on_cpu = HAS_ONEDNN and weight.device.type == "cpu"
    if on_cpu and weight.dtype == torch.float32:
        return OneDnn(weight, bias)
    if on_cpu and not is_known_to_onednn(weight.dtype):
        return Widened(weight, bias)
    return Plain(weight, bias, pads=on_cpu)


def padding(rows: int) -> int:
    """How many rows of zeros are added for oneDNN, which makes and keeps code for each number of rows, 0.6 MiB a
    weight's shape: up to a power of two, from 16 on to a multiple of 16, and of an eighth to a quarter of them from 128
    on."""
    if rows <= 16:
        return (1 << (rows - 1).bit_length()) - rows
    return -rows % max(16, 1 << (rows - 1).bit_length() - 3)
