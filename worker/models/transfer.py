"""Numbers on their way between the host and a device, without a wait for what the device has to do before."""

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def uploaded(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device; to a GPU from pinned memory."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class DeviceMark:
    """A place in what a GPU does: where what has been launched until now ends."""

    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._event.record(torch.cuda.current_stream(device))

    def seconds_since(self, other: "DeviceMark") -> float:
        """Of the device, from the other one to this; waits for both."""
        self._event.synchronize()
        other._event.synchronize()
        return float(other._event.elapsed_time(self._event)) / 1000


def marker_for(device: torch.device) -> Callable[[], DeviceMark] | None:
    """Marks what a device does; None for one that is waited for anyway."""
    return partial(DeviceMark, device) if device.type == "cuda" else None


def downloading(numbers: Tensor) -> Callable[[], npt.NDArray[np.float64]]:
    """(numbers,) float64 on the CPU, for whoever waits until the device has computed them; from a GPU into pinned
    memory, from now on."""
    if numbers.device.type != "cuda":
        return numbers.numpy
    host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
    host.copy_(numbers, non_blocking=True)
    is_there = torch.cuda.Event()  # type: ignore[no-untyped-call]
    is_there.record(torch.cuda.current_stream(numbers.device))

    def read() -> npt.NDArray[np.float64]:
        is_there.synchronize()
        return host.numpy()

    return read
