"""Experts in place of a layer's MLP: each token goes to a few of many, and what they say is weighed."""

import torch
from torch import Tensor
from torch.nn import functional

from worker.models.native.layers import Tensors
from worker.models.native.linear import Linear
from worker.models.native.shapes import TextShape


class Experts:
    """router: (experts, hidden); gate_up: (experts, 2 intermediate, hidden); down: (experts, hidden, intermediate)."""

    def __init__(self, router: Tensor, gate_up: Tensor, down: Tensor, per_token: int) -> None:
        self._router, self._per_token = Linear(router), per_token
        self._gate_up, self._down = gate_up.transpose(1, 2), down.transpose(1, 2)
        self._numbers = torch.arange(len(router), device=router.device)

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        """`residual` plus what the experts make of `x`, (tokens, hidden). Tokens of one expert lie behind each other
        and are multiplied at once. How many those are is not asked of the device where torch has a kernel for it: in
        bfloat16, on GPUs of capability 9.0 and 10.0."""
        scores, chosen = self._router(x).topk(self._per_token)
        weights = scores.softmax(-1, dtype=torch.float32).to(x.dtype)  # of the chosen alone: their shares of each other
        flat = chosen.flatten()
        order = flat.argsort(stable=True)
        ends = (flat[:, None] == self._numbers).sum(0).cumsum(0, dtype=torch.int32)
        gate, up = functional.grouped_mm(x[order // self._per_token], self._gate_up, offs=ends).chunk(2, -1)
        said = functional.grouped_mm(functional.silu(gate) * up, self._down, offs=ends)
        said = said[order.argsort()].view(len(x), self._per_token, -1)
        return torch.baddbmm(residual[:, None], weights[:, None], said)[:, 0]


def experts(tensors: Tensors, name: str, shape: TextShape) -> Experts:
    """Of a layer. Published checkpoints have the matrices the other way round. Raises ModelError."""
    hidden, inner, count = shape.hidden, shape.expert_intermediate, shape.experts
    if inner != hidden:
        is_turned = tensors.shape(f"{name}.experts.down_proj") == (count, inner, hidden)
    else:
        is_turned = tensors.shape(f"{name}.experts.gate_up_proj") == (count, hidden, 2 * inner)

    def matrices(part: str, out: int, into: int) -> Tensor:
        sides = (into, out) if is_turned else (out, into)
        tensor = tensors.take(f"{name}.experts.{part}", count, *sides)
        return tensor.transpose(1, 2) if is_turned else tensor

    router = tensors.take(f"{name}.gate.weight", count, hidden)
    gate_up = matrices("gate_up_proj", 2 * inner, hidden)
    return Experts(router, gate_up, matrices("down_proj", hidden, inner), shape.per_token)
