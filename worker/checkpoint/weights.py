"""A checkpoint's tensors, read by native code while Python is busy with imports.

On the CPU they are the mapped files themselves, converted only where another dtype is asked for; not the table of
embeddings, of which each prompt needs a few rows. To a CUDA device they go through small pinned buffers, several at a
time, so that the host never holds more than those.
"""

import json
import logging
import mmap
import re
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from worker.checkpoint.locate import READERS, shards
from worker.checkpoint.memory import check_room
from worker.core.errors import ModelError
from worker.core.safe_json import JsonObject

log = logging.getLogger(__name__)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_STORED = {
    "F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
BUFFER_BYTES = 32 * 2**20
MAX_HEADER_BYTES = 100 * 2**20
_NOT_READ = re.compile(r"^(model\.)?mtp\.|\.rotary_emb\.inv_freq$|\.rotary_pos_emb\.inv_freq$")
_TABLE = re.compile(r"(^|\.)embed_tokens\.weight$")
_ADAPTER = re.compile(r"\.lora_[AB]\.|\.base_layer\.")
_PAGE = mmap.PAGESIZE


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: `begin` and `end` in bytes of the file."""

    file: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, eq=False)
class MappedFile:
    """A file as one tensor of bytes. used: of which bytes something is not a copy."""

    pages: mmap.mmap
    whole: torch.Tensor
    used: list[slice] = field(default_factory=list)

    def read(self) -> None:
        """Have the pages in memory that are used."""
        for span in self.used:
            self.whole[span][::_PAGE].max()

    def give_back(self, begin: int, end: int) -> None:
        """The pages between these bytes of the file are not needed now; they are read again where they are."""
        first, last = -(-begin // _PAGE) * _PAGE, end if end == len(self.whole) else end // _PAGE * _PAGE
        if first < last:
            self.pages.madvise(mmap.MADV_DONTNEED, first, last - first)


class WeightReader:
    """Reads all tensors of a folder on a thread of its own, from `start` on. On the CPU the tensors are there before
    all of their pages are, and embeddings are in the dtype of the file."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.folder = folder
        self.device = device
        self.dtype = dtype
        self.seconds = 0.0
        self._tensors: dict[str, torch.Tensor] = {}
        self._files: list[MappedFile] = []
        self._failure: ModelError | None = None
        self._are_there = threading.Event()
        self._thread = threading.Thread(target=self._run, name="weights")

    def start(self) -> "WeightReader":
        self._thread.start()
        return self

    def tensors(self) -> dict[str, torch.Tensor]:
        """By their names in the files, on the device, floating ones in the dtype; once. Raises ModelError."""
        self._are_there.wait()
        if self._failure is not None:
            raise self._failure
        tensors, self._tensors = self._tensors, {}
        return tensors

    def give_back(self, tensor: torch.Tensor) -> None:
        """A tensor of these, or one that shares their memory, is not needed now: pages of a mapped file are free."""
        for file in self._files:
            begin = tensor.data_ptr() - file.whole.data_ptr()
            if 0 <= begin < len(file.whole):
                file.give_back(begin, begin + tensor.nbytes)

    def finish(self) -> float:
        """Wait until all is read; the seconds that it took."""
        self._thread.join()
        return self.seconds

    def _run(self) -> None:
        began = time.monotonic()
        try:
            found = stored_in(self.folder)
            stored = used(found)
            _refuse_packed(stored)
            if len(stored) < len(found):
                size = sum(one.end - one.begin for one in found) - sum(one.end - one.begin for one in stored)
                what = "%d tensors (%.2f GiB) are not loaded: layers for multi-token prediction and rotary tables"
                log.info(what, len(found) - len(stored), size / 2**30)
            check_room(num_bytes(stored, self.dtype), self.device)
            if self.device.type == "cpu":
                self._files, self._tensors = mapped(stored, self.device, self.dtype)
                self._are_there.set()
                for file in self._files:
                    file.read()
            else:
                self._tensors = copied(stored, self.device, self.dtype)
        except ModelError as error:
            self._failure = error
        except (OSError, torch.OutOfMemoryError, RuntimeError) as error:
            self._failure = ModelError(f"the weights in {self.folder} could not be read: {error}")
        self.seconds = time.monotonic() - began
        self._are_there.set()


def headers(file: Path) -> Iterator[StoredTensor]:
    """The tensors of a safetensors file, without reading them. Raises ModelError, which names the file."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise ModelError(f"{file} is not a complete safetensors file: download it again")
        try:
            header: JsonObject = json.loads(stream.read(length))
        except ValueError:
            raise ModelError(f"{file} has an invalid header: download it again") from None
    first, ends = 8 + length, 0
    found = []
    try:
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                if entry["dtype"] not in _STORED:
                    raise ModelError(f"{file}: {name} has the dtype {entry['dtype']}, which is not supported")
                dtype, shape = _STORED[entry["dtype"]], tuple(entry["shape"])
                if end - begin != torch.Size(shape).numel() * dtype.itemsize:
                    raise ModelError(f"{file}: {name} has a size that does not fit its shape")
                found.append(StoredTensor(file, name, dtype, shape, first + begin, first + end))
                ends = max(ends, end)
    except (KeyError, TypeError, ValueError):
        raise ModelError(f"{file} has an invalid header: download it again") from None
    if size != first + ends:
        raise ModelError(f"{file} has {size} bytes, its header says {first + ends}: download it again")
    yield from found


def stored_in(folder: Path) -> list[StoredTensor]:
    """The tensors of all of a checkpoint's files. Raises ModelError."""
    return [entry for shard in shards(folder) for entry in headers(folder / shard)]


def used(stored: Sequence[StoredTensor]) -> list[StoredTensor]:
    """Without those that no forward of this worker reads: layers for multi-token prediction, and rotary tables, which
    are computed. Raises ModelError where an adapter lies beside the weights that it belongs to."""
    adapter = next((tensor.name for tensor in stored if _ADAPTER.search(tensor.name)), None)
    if adapter is not None:
        raise ModelError(f"the weights contain an adapter ({adapter}): merge it first (`merge_and_unload`)")
    return [tensor for tensor in stored if not _NOT_READ.search(tensor.name)]


def _refuse_packed(stored: Sequence[StoredTensor]) -> None:
    """Raises ModelError where matrices are quantised."""
    for one in stored:
        if one.name.endswith(("weight", "_packed", "_proj")) and not (
            one.dtype.is_floating_point and one.dtype.itemsize > 1
        ):
            raise ModelError(
                f"{one.file.name} has {one.name} as {one.dtype}, and config.json has no quantization_config: use the "
                "model's bfloat16 checkpoint, or the config.json that belongs to these weights"
            )


def num_bytes(stored: Sequence[StoredTensor], dtype: torch.dtype, bits: int | None = None) -> int:
    """Of all tensors in the dtype they will have; with `bits`, of the matrices with so many bits a number. Embeddings
    and the head stay as they are."""

    def of(entry: StoredTensor) -> int:
        is_small = (
            bits is not None and len(entry.shape) == 2 and "embed" not in entry.name and "lm_head" not in entry.name
        )
        return (
            torch.Size(entry.shape).numel() * (bits or 0 if is_small else 8 * _target(entry.dtype, dtype).itemsize) // 8
        )

    return sum(of(entry) for entry in stored)


def in_dtype(tensor: torch.Tensor, wanted: torch.dtype) -> torch.Tensor:
    """The tensor, in the dtype that it is to be computed with."""
    return tensor.to(_target(tensor.dtype, wanted))


def _target(stored: torch.dtype, wanted: torch.dtype) -> torch.dtype:
    return wanted if stored in DTYPES.values() else stored


def mapped(
    stored: Sequence[StoredTensor], device: torch.device, dtype: torch.dtype
) -> tuple[list[MappedFile], dict[str, torch.Tensor]]:
    """Tensors that are the files' own pages, not yet read; copies where another dtype is wanted, but for embeddings.
    Those of a file share one storage, so that neighbours can be seen as one tensor."""
    tensors: dict[str, torch.Tensor] = {}
    files: dict[Path, MappedFile] = {}
    for entry in stored:
        if entry.file not in files:
            with entry.file.open("rb") as opened:
                pages = mmap.mmap(opened.fileno(), 0, mmap.MAP_PRIVATE)
            files[entry.file] = MappedFile(pages, torch.frombuffer(pages, dtype=torch.uint8))
        file = files[entry.file]
        raw = file.whole[entry.begin : entry.end]
        raw = raw.clone() if entry.begin % entry.dtype.itemsize else raw
        target = _target(entry.dtype, dtype)
        is_table = entry.dtype != target and _TABLE.search(entry.name) is not None
        if entry.dtype == target and len(raw):
            file.used.append(slice(entry.begin, entry.end))
        tensors[entry.name] = raw.view(entry.dtype).view(entry.shape).to(device, entry.dtype if is_table else target)
        if entry.dtype != target and not is_table:
            file.give_back(entry.begin, entry.end)
    return list(files.values()), tensors


def copied(stored: Sequence[StoredTensor], device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Tensors on a device, through a few buffers that are filled while others are on their way."""
    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]
    spare = threading.local()

    def copy(entry: StoredTensor) -> torch.Tensor:
        if not hasattr(spare, "buffer"):
            spare.buffer = torch.empty(BUFFER_BYTES, dtype=torch.uint8, pin_memory=device.type == "cuda")
            spare.stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        raw = torch.empty(entry.end - entry.begin, dtype=torch.uint8, device=device)
        with entry.file.open("rb", buffering=0) as file, torch.cuda.stream(spare.stream):
            file.seek(entry.begin)
            for at in range(0, len(raw), BUFFER_BYTES):
                part = spare.buffer[: min(BUFFER_BYTES, len(raw) - at)]
                _fill(file, memoryview(part.numpy()))
                raw[at : at + len(part)].copy_(part, non_blocking=True)
                if spare.stream is not None:
                    spare.stream.synchronize()  # the buffer is free again; the other readers go on meanwhile
            tensor = raw.view(entry.dtype).view(entry.shape).to(_target(entry.dtype, dtype))
            if spare.stream is not None:
                spare.stream.synchronize()
        return tensor

    with ThreadPoolExecutor(READERS, thread_name_prefix="weights") as readers:
        return dict(zip([entry.name for entry in stored], readers.map(copy, stored), strict=True))


def _fill(file: Any, view: memoryview) -> None:
    while view:
        count = file.readinto(view)
        if not count:
            raise ModelError(f"{file.name} is truncated: download it again")
        view = view[count:]
