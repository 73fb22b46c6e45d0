"""Weights in the layout that this processor multiplies by fastest: found out and packed behind the first answer, on a
thread of its own, one after the other.

A start does not wait for it, and memory holds no more than the weights once and the one being packed twice (where it
is in 16 bits and becomes float16, also in float32): pages of a mapped file are given back. Which layout is faster
depends on the processor, the dtype and the number of rows, so it is measured on the model's own weights (docs/log.md).
"""

import contextlib
import logging
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from worker.checkpoint.cpu import multiplies
from worker.core.memory import trim
from worker.models.native.linear import HalfWeight, Linear, OneDnn, Products

log = logging.getLogger(__name__)
ROWS = 16  # that oneDNN's layout is chosen for; it serves any number
SMALLEST = 2**18  # numbers of a weight; with less there is nothing to gain
STEPS = (1, 2, 4, 16)  # rows of the steps that are told apart
PRODUCTS = 8  # that are measured, of each kind
LEAST_GAIN = 0.03
LOOKS_AFTER = 256  # steps
NICE = 10
HALF_ERROR = 2.0**-25  # of a number below the smallest normal one of float16
AT_ONCE = 1024  # rows of a weight that are looked at
_OURS = "worker.models.native."


def linears(part: Any) -> Iterator[Linear]:
    """All of a model's, or a part's."""
    if isinstance(part, Linear):
        yield part
    elif isinstance(part, list | tuple):
        for each in part:
            yield from linears(each)
    elif isinstance(part, dict):
        yield from linears(list(part.values()))
    elif type(part).__module__.startswith(_OURS):
        yield from linears(list(vars(part).values()))


def in_onednns_layout(weight: Tensor, bias: Tensor | None) -> Products:
    """Raises RuntimeError where oneDNN does not multiply this dtype here."""
    return OneDnn(torch.ops.mkldnn._reorder_linear_weight(weight, ROWS), bias)


def in_float16(weight: Tensor, bias: Tensor | None) -> Products:
    """A weight of float32 in half of the memory, or one in 16 bits that the processor has no instructions for; computed
    with in float32. Raises ValueError where it would be another weight: those that were bfloat16 or float16 in the
    checkpoint are the same, to what float16 says of its smallest numbers. Raises RuntimeError without FBGEMM."""
    if weight.dtype != torch.float32 and multiplies(weight.dtype):
        raise ValueError("the processor has instructions for its dtype")
    for part in torch.split(weight, AT_ONCE):
        if not (part.half().float() - part.float()).abs_().max() <= HALF_ERROR:
            raise ValueError("float16 does not have its numbers")
    return HalfWeight(torch.ops.quantized.linear_prepack_fp16(weight.float(), None if bias is None else bias.float()))


Layout = Callable[[Tensor, Tensor | None], Products]
LAYOUTS: tuple[Layout, ...] = (in_float16, in_onednns_layout)


def is_right(layout: Layout, dtype: torch.dtype) -> bool:
    """Whether products in this layout can be had here, and are right: tried on small ones."""
    weight = torch.linspace(-1, 1, 64 * 64).view(64, 64).sin().bfloat16().to(dtype)
    x = torch.linspace(-2, 1, 8 * 64).view(8, 64).cos().to(dtype)
    try:
        product = layout(weight, None)(x)
    except (RuntimeError, ValueError, AttributeError) as error:
        log.debug("%s is not for %s here: %s", layout.__name__, dtype, str(error).partition("\n")[0])
        return False
    expected = functional.linear(x.float(), weight.float())
    atol = 1e-4 if dtype == torch.float32 else 1e-2
    return bool(torch.allclose(product.float(), expected, rtol=2 * torch.finfo(dtype).eps, atol=atol))


@dataclass(frozen=True)
class Measured:
    """Seconds of a product in another layout and as the weight lies, by the number of rows."""

    layout: Layout
    packed: Mapping[int, float]
    plain: Mapping[int, float]

    def share(self, steps: Mapping[int, int]) -> float:
        """Of the time that steps take now, where there were so many of each of `STEPS`."""
        packed, plain = (sum(took[rows] * count for rows, count in steps.items()) for took in (self.packed, self.plain))
        return packed / plain

    @property
    def is_always_faster(self) -> bool:
        return all(self.share({rows: 1}) < 1 - LEAST_GAIN for rows in STEPS)


def measure(part: Linear, weight: Tensor) -> list[Measured]:
    """Each layout that this weight can have, beside the one that it has, in turns: whatever else is computed meanwhile
    is so for all."""
    found = []
    for layout in (layout for layout in LAYOUTS if is_right(layout, weight.dtype)):
        try:
            other = layout(weight, part.bias)
        except ValueError:
            continue
        took: tuple[dict[int, float], dict[int, float]] = {}, {}
        for rows in STEPS:
            x = torch.ones(rows, part.width, dtype=weight.dtype)
            for _ in range(PRODUCTS):
                for products, seconds in zip((other, part.products), took, strict=True):
                    began = time.perf_counter()
                    products(x)
                    seconds[rows] = min(time.perf_counter() - began, seconds.get(rows, math.inf))
        found.append(Measured(layout, *took))
    return found


class WeightPacking:
    """Packs the weights of these in the background, once it has begun and where that is faster: on some processors a
    layout is so for several rows, and not for one. Then it waits for steps of several. give_back: told of memory that
    is not needed now."""

    def __init__(self, parts: Sequence[Linear], give_back: Callable[[Tensor], None]) -> None:
        self._parts = [part for part in parts if _is_to_be_packed(part.products.weight)]
        self._give_back = give_back
        self._threads: list[threading.Thread] = []
        self._undecided: list[Measured] = []
        self._steps: Counter[int] = Counter()
        self._is_closing = False

    def begin(self) -> None:
        """Find out what is faster, and pack where something is in any case; again does nothing."""
        if not self._threads and self._parts and not self._is_closing:
            self._start(self._find_out)

    def saw(self, rows: int) -> None:
        """There was a step of so many rows."""
        if not self._undecided:
            return
        self._steps[max(kind for kind in STEPS if kind <= rows)] += 1
        if self._steps.total() < LOOKS_AFTER:
            return
        steps, self._steps = self._steps, Counter()
        best = min(self._undecided, key=lambda found: found.share(steps))
        if best.share(steps) < 1 - LEAST_GAIN:
            self._undecided = []
            self._start(lambda: self._pack(best.layout))

    def wait(self) -> None:
        """Until what has begun is done."""
        for thread in self._threads:
            thread.join()

    def close(self) -> None:
        """Stop behind the weight at hand."""
        self._is_closing = True
        self.wait()

    def _start(self, work: Callable[[], None]) -> None:
        self._threads.append(threading.Thread(target=work, name="packing", daemon=True))
        self._threads[-1].start()

    @torch.inference_mode()
    def _find_out(self) -> None:
        _step_back()
        by_size = sorted(self._parts, key=lambda part: int(part.products.weight.numel()))
        middle = by_size[len(by_size) // 2]
        found = measure(middle, middle.products.weight)
        always = [each for each in found if each.is_always_faster]
        if always:
            self._pack(min(always, key=lambda each: each.share(dict.fromkeys(STEPS, 1))).layout)
            return
        log.info("weights stay as they lie: no layout is faster for every number of rows here")
        self._undecided = found

    @torch.inference_mode()
    def _pack(self, layout: Layout) -> None:
        _step_back()
        began, counts = time.monotonic(), Counter[str]()
        try:
            for part in self._parts:
                if self._is_closing:
                    return
                old = part.products.weight
                try:
                    part.products = layout(old, part.bias)
                except ValueError:
                    counts["as they lie"] += 1
                else:
                    counts[layout.__name__] += 1
                    self._give_back(old)
                del old
        except RuntimeError as error:  # no memory for one more, for example: what is packed stays so
            log.warning("%d weights are packed, the others stay as they lie: %s", counts.total(), error)
            return
        trim()
        what = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
        log.info("weights are packed in %.1f s: %s", time.monotonic() - began, what)


def _step_back() -> None:
    """Answers are more urgent than what this thread does, and those that it starts."""
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


def _is_to_be_packed(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.numel() >= SMALLEST
