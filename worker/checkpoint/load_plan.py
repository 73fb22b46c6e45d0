"""How a checkpoint that was found is loaded: onto which devices, in which dtype, and by whom its weights are read."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from worker.checkpoint.cpu import multiplies
from worker.checkpoint.locate import Checkpoint, find, read_json
from worker.checkpoint.memory import check_room, free_bytes
from worker.checkpoint.quantised import is_quantised
from worker.checkpoint.weights import DTYPES, WeightReader, num_bytes, stored_in, used
from worker.core.errors import ModelError
from worker.core.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadPlan:
    """A model that was found. reader: of its weights, on their way; None where the library has to read them itself,
    because they are quantised or are to be, or go to several devices. num_devices: how many."""

    found: Checkpoint
    device: torch.device
    dtype: torch.dtype
    reader: WeightReader | None
    num_devices: int = 1


def begin(settings: Settings, found: Checkpoint | None = None) -> LoadPlan:
    """Begin to read the weights of the model that was found, or is now. Raises ModelError."""
    found = found or find(settings)
    device = device_of(settings.device)
    dtype = dtype_of(settings.dtype, device, found.folder)
    if is_quantised(settings, found.folder, has_gpu=device.type == "cuda"):
        bits = {"8bit": 8, "4bit": 4}.get(settings.quantization)
        check_room(num_bytes(used(stored_in(found.folder)), dtype, bits), device)
        return LoadPlan(found, device, dtype, None)
    num_devices = devices_for(found.folder, dtype) if settings.device == "auto" and device.type == "cuda" else 1
    if num_devices > 1:
        return LoadPlan(found, device, dtype, None, num_devices)
    return LoadPlan(found, device, dtype, WeightReader(found.folder, device, dtype).start())


def devices_for(folder: Path, dtype: torch.dtype) -> int:
    """Over how many GPUs the weights have to be spread: one where they fit, else all. Raises ModelError."""
    free = [free_bytes(torch.device("cuda", index)) for index in range(torch.cuda.device_count())]
    size = num_bytes(used(stored_in(folder)), dtype)
    if len(free) == 1 or size <= free[0]:
        return 1
    if size > sum(free):
        raise ModelError(
            f"the weights need {size / 2**30:.1f} GiB, but {len(free)} GPUs have {sum(free) / 2**30:.1f} GiB free. "
            "Use a smaller model, a smaller DTYPE or a machine with more memory"
        )
    return len(free)


def device_of(wanted: str) -> torch.device:
    """The device that the setting names. Raises ModelError where there is none."""
    has_cuda = torch.cuda.is_available()
    if wanted == "auto":
        return torch.device("cuda" if has_cuda else "cpu")
    if wanted.startswith("cuda") and not has_cuda:
        raise ModelError(
            f"DEVICE={wanted}, but there is no CUDA device. Set DEVICE=cpu, or use a machine with an NVIDIA GPU"
        )
    return torch.device(wanted)


def dtype_of(wanted: str, device: torch.device, folder: Path) -> torch.dtype:
    """What the setting says; `auto` is the checkpoint's own, but float32 on a CPU that does not multiply that."""
    if wanted != "auto":
        return DTYPES[wanted]
    own = _own_dtype(folder)
    if device.type == "cpu" and not multiplies(own):
        log.info("DTYPE=auto is float32: this CPU has no instructions for %s", str(own).removeprefix("torch."))
        return torch.float32
    return own


def _own_dtype(folder: Path) -> torch.dtype:
    config = read_json(folder / "config.json")
    for part in (config.get("text_config") or {}, config):
        for name in ("dtype", "torch_dtype"):
            if part.get(name) in DTYPES:
                return DTYPES[part[name]]
    return torch.bfloat16
