"""A checkpoint's tensors, read by native code while Python is busy with imports.

On the CPU they are the mapped files themselves, converted only where another dtype is asked for. To a CUDA device they
go through small pinned buffers, several at a time, so that the host never holds more than those.
"""

import importlib.util
import json
import mmap
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from worker.checkpoint import locate
from worker.checkpoint.locate import READERS, Checkpoint, ModelError, read_json, shards
from worker.core.settings import Settings

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_STORED = {
    "F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_PACKAGES = {"awq": "gptqmodel", "gptq": "gptqmodel", "bitsandbytes": "bitsandbytes", "fp8": "kernels"}
BUFFER_BYTES = 32 * 2**20
MAX_HEADER_BYTES = 100 * 2**20
_PAGE = mmap.PAGESIZE
_CGROUPS = (  # both kinds: where, the limit, what is used of it, and what of that is files' pages, given back at need
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", ("inactive_file", "active_file")),
    (
        Path("/sys/fs/cgroup/memory"),
        *("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ("total_inactive_file", "total_active_file"),
    ),
)


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: `begin` and `end` in bytes of the file."""

    file: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Begun:
    """A model that was found. reading: its weights on their way; None where the library has to read them itself,
    because they are quantised or are to be, or go to several devices. num_devices: how many."""

    found: Checkpoint
    device: torch.device
    dtype: torch.dtype
    reading: "Reading | None"
    num_devices: int = 1


def begin(settings: Settings, found: Checkpoint | None = None) -> Begun:
    """Begin to read the weights of the model that was found, or is now. Raises ModelError."""
    found = found or locate.find(settings)
    device = device_of(settings.device)
    dtype = dtype_of(settings.dtype, device, found.folder)
    if _is_quantised(settings, found.folder, device):
        bits = {"8bit": 8, "4bit": 4}.get(settings.quantization)
        check_room(num_bytes(stored_in(found.folder), dtype, bits), device)
        return Begun(found, device, dtype, None)
    num_devices = devices_for(found.folder, dtype) if settings.device == "auto" and device.type == "cuda" else 1
    if num_devices > 1:
        return Begun(found, device, dtype, None, num_devices)
    return Begun(found, device, dtype, Reading(found.folder, device, dtype).start())


def devices_for(folder: Path, dtype: torch.dtype) -> int:
    """Over how many GPUs the weights have to be spread: one where they fit, else all. Raises ModelError."""
    free = [free_bytes(torch.device("cuda", index)) for index in range(torch.cuda.device_count())]
    needed = num_bytes(stored_in(folder), dtype)
    if len(free) == 1 or needed <= free[0]:
        return 1
    if needed > sum(free):
        raise ModelError(
            f"the weights need {needed / 2**30:.1f} GiB, and {len(free)} GPUs have {sum(free) / 2**30:.1f} GiB free: "
            "a smaller model, a smaller DTYPE or a larger machine"
        )
    return len(free)


def _is_quantised(settings: Settings, folder: Path, device: torch.device) -> bool:
    """Whether the weights are, or are to be. Raises ModelError where that cannot be here."""
    own = (read_json(folder / "config.json").get("quantization_config") or {}).get("quant_method")
    if own is None and settings.quantization == "none":
        return False
    if own is not None and settings.quantization != "none":
        raise ModelError(f"QUANTIZATION is {settings.quantization}, but the checkpoint is quantised by {own}: unset it")
    method = own or "bitsandbytes"
    if device.type != "cuda" and method != "bitsandbytes":
        raise ModelError(f"weights quantised by {method} need a CUDA device: a machine with a GPU, or other weights")
    package = _PACKAGES.get(method)
    if package is not None and importlib.util.find_spec(package) is None:
        remedy = "build it with BITSANDBYTES=1" if package == "bitsandbytes" else "install it there"
        told = f"weights quantised by {method} need the package {package}, which is not in this image: {remedy}"
        raise ModelError(told)
    return True


class Reading:
    """Reads all tensors of a folder on a thread of its own, from `start` on. On the CPU the tensors are there before
    all of their pages are."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.folder = folder
        self.device = device
        self.dtype = dtype
        self.seconds = 0.0
        self._tensors: dict[str, torch.Tensor] = {}
        self._failure: ModelError | None = None
        self._are_there = threading.Event()
        self._thread = threading.Thread(target=self._run, name="weights")

    def start(self) -> "Reading":
        self._thread.start()
        return self

    def tensors(self) -> dict[str, torch.Tensor]:
        """By their names in the files, on the device, floating ones in the dtype; once. Raises ModelError."""
        self._are_there.wait()
        if self._failure is not None:
            raise self._failure
        tensors, self._tensors = self._tensors, {}
        return tensors

    def finish(self) -> float:
        """Wait until all is read; the seconds that it took."""
        self._thread.join()
        return self.seconds

    def _run(self) -> None:
        began = time.monotonic()
        try:
            stored = stored_in(self.folder)
            check_room(num_bytes(stored, self.dtype), self.device)
            if self.device.type == "cpu":
                files, self._tensors = mapped(stored, self.device, self.dtype)
                self._are_there.set()
                for file in files:
                    file[::_PAGE].max()
            else:
                self._tensors = copied(stored, self.device, self.dtype)
        except ModelError as error:
            self._failure = error
        except (OSError, torch.OutOfMemoryError, RuntimeError) as error:
            self._failure = ModelError(f"the weights in {self.folder} could not be read: {error}")
        self.seconds = time.monotonic() - began
        self._are_there.set()


def headers(file: Path) -> Iterator[Stored]:
    """The tensors of a safetensors file, without reading them. Raises ModelError, which names the file."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise ModelError(f"{file} is no whole safetensors file: fetch it again")
        try:
            header: dict[str, Any] = json.loads(stream.read(length))
        except ValueError:
            raise ModelError(f"{file} has a damaged header: fetch it again") from None
    first, ends = 8 + length, 0
    found = []
    try:
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                dtype, shape = _STORED[entry["dtype"]], tuple(entry["shape"])
                if end - begin != torch.Size(shape).numel() * dtype.itemsize:
                    raise ModelError(f"{file}: {name} has not the bytes of its shape")
                found.append(Stored(file, name, dtype, shape, first + begin, first + end))
                ends = max(ends, end)
    except (KeyError, TypeError, ValueError):
        raise ModelError(f"{file} has a damaged header: fetch it again") from None
    if size != first + ends:
        raise ModelError(f"{file} has {size} bytes, its header says {first + ends}: fetch it again")
    yield from found


def stored_in(folder: Path) -> list[Stored]:
    """The tensors of all of a checkpoint's files. Raises ModelError."""
    return [one for shard in shards(folder) for one in headers(folder / shard)]


def num_bytes(stored: Sequence[Stored], dtype: torch.dtype, bits: int | None = None) -> int:
    """Of all tensors in the dtype they will have; with `bits`, of the matrices with so many bits a number. Embeddings
    and the head stay as they are."""

    def of(one: Stored) -> int:
        is_small = bits is not None and len(one.shape) == 2 and "embed" not in one.name and "lm_head" not in one.name
        return torch.Size(one.shape).numel() * (bits or 0 if is_small else 8 * _target(one.dtype, dtype).itemsize) // 8

    return sum(of(one) for one in stored)


def check_room(needed: int, device: torch.device) -> None:
    """Raises ModelError where the weights cannot fit, before any is read."""
    free = free_bytes(device)
    if needed > free:
        raise ModelError(
            f"the weights need {needed / 2**30:.1f} GiB on {device}, and {free / 2**30:.1f} GiB are free: "
            "a smaller model, a smaller DTYPE or a larger machine"
        )


def free_bytes(device: torch.device) -> int:
    """Memory that can still be taken: the device's, or on the CPU the machine's within the container's limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
    free = int(meminfo["MemAvailable"].split()[0]) * 1024
    for group, most, used, cached in _CGROUPS:
        limit = group / most
        if limit.is_file() and (text := limit.read_text(encoding="utf-8").strip()) != "max":
            stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
            held = int((group / used).read_text(encoding="utf-8")) - sum(int(stat.get(name, 0)) for name in cached)
            free = min(free, int(text) - held)
    return free


def device_of(wanted: str) -> torch.device:
    """The device that the setting names. Raises ModelError where there is none."""
    has_cuda = torch.cuda.is_available()
    if wanted == "auto":
        return torch.device("cuda" if has_cuda else "cpu")
    if wanted.startswith("cuda") and not has_cuda:
        raise ModelError(f"DEVICE is {wanted}, but there is no CUDA device: DEVICE=cpu, or a machine with a GPU")
    return torch.device(wanted)


def dtype_of(wanted: str, device: torch.device, folder: Path) -> torch.dtype:
    """What the setting says; `auto` is float32 on the CPU, elsewhere the checkpoint's own."""
    if wanted != "auto":
        return DTYPES[wanted]
    if device.type == "cpu":
        return torch.float32
    config = read_json(folder / "config.json")
    for part in (config.get("text_config") or {}, config):
        for name in ("dtype", "torch_dtype"):
            if part.get(name) in DTYPES:
                return DTYPES[part[name]]
    return torch.bfloat16


def _target(stored: torch.dtype, wanted: torch.dtype) -> torch.dtype:
    return wanted if stored in DTYPES.values() else stored


def mapped(
    stored: Sequence[Stored], device: torch.device, dtype: torch.dtype
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Tensors that are the files' own pages, not yet read; copies where another dtype is wanted. Those of a file share
    one storage, so that neighbours can be seen as one tensor. First the files of which something is not a copy."""
    tensors: dict[str, torch.Tensor] = {}
    files: dict[Path, tuple[mmap.mmap, torch.Tensor]] = {}
    shared: dict[Path, torch.Tensor] = {}
    for one in stored:
        if one.file not in files:
            with one.file.open("rb") as file:
                pages = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE)
            files[one.file] = pages, torch.frombuffer(pages, dtype=torch.uint8)
        pages, whole = files[one.file]
        raw = whole[one.begin : one.end]
        raw = raw.clone() if one.begin % one.dtype.itemsize else raw
        target = _target(one.dtype, dtype)
        if one.dtype == target:
            shared[one.file] = whole
        tensors[one.name] = raw.view(one.dtype).view(one.shape).to(device, target)
        first = -(-one.begin // _PAGE) * _PAGE
        if one.dtype != target and first < one.end:  # a copy: the pages that it was made of are needed no more
            pages.madvise(mmap.MADV_DONTNEED, first, one.end - first)
    return list(shared.values()), tensors


def copied(stored: Sequence[Stored], device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Tensors on a device, through a few buffers that are filled while others are on their way."""
    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]
    spare = threading.local()

    def copy(one: Stored) -> torch.Tensor:
        if not hasattr(spare, "buffer"):
            spare.buffer = torch.empty(BUFFER_BYTES, dtype=torch.uint8, pin_memory=device.type == "cuda")
            spare.stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        raw = torch.empty(one.end - one.begin, dtype=torch.uint8, device=device)
        with one.file.open("rb", buffering=0) as file, torch.cuda.stream(spare.stream):
            file.seek(one.begin)
            for at in range(0, len(raw), BUFFER_BYTES):
                part = spare.buffer[: min(BUFFER_BYTES, len(raw) - at)]
                _fill(file, memoryview(part.numpy()))
                raw[at : at + len(part)].copy_(part, non_blocking=True)
                if spare.stream is not None:
                    spare.stream.synchronize()  # the buffer is free again; the other readers go on meanwhile
            tensor = raw.view(one.dtype).view(one.shape).to(_target(one.dtype, dtype))
            if spare.stream is not None:
                spare.stream.synchronize()
        return tensor

    with ThreadPoolExecutor(READERS, thread_name_prefix="weights") as readers:
        return dict(zip([one.name for one in stored], readers.map(copy, stored), strict=True))


def _fill(file: Any, view: memoryview) -> None:
    while view:
        count = file.readinto(view)
        if not count:
            raise ModelError(f"{file.name} ends too early: fetch it again")
        view = view[count:]
