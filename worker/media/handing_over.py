"""Work handed to a child process and back: large bytes and pixels by shared memory, the rest by a socket.

A function that is wrapped in `InParent` stays in the parent: the child calls it with pixels, and what it gives is kept
there and takes its place in the child's result. So the child needs no torch, and what comes of a picture is never sent
twice. What a child sends is not trusted: only values of our own classes are made of it.
"""

import io
import mmap
import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from worker.core.opened import RGB

FOR_SMALL, FOR_LARGE = b"s", b"l"  # the kinds of children
NICE = 10  # of large work, below the engine and small pictures
_TRUSTED = (
    *("worker.core.contract", "worker.core.errors", "worker.core.media_warnings", "worker.core.opened"),
    "worker.media.",
)
LARGE = 64 * 1024  # bytes that are worth a place in shared memory
ARENA_BYTES = 2**32  # of addresses; memory is taken as it is written
KEPT_BYTES = 32 * 2**20


@dataclass(frozen=True)
class InParent:
    """A function of pixels that runs in the parent, wherever it is called."""

    function: Callable[..., Any]

    def __call__(self, rgb: RGB, *arguments: Any) -> Any:
        return self.function(rgb, *arguments)

    def allocate(self, height: int, width: int) -> RGB:
        """Room for pixels that it will be called with: in a child, where the parent sees them."""
        return np.empty((height, width, 3), np.uint8)


@dataclass(frozen=True)
class Kept:
    """In a child: what the parent has kept of the pixels that it was shown."""

    index: int


@dataclass(frozen=True)
class Pixels:
    """Pixels in the arena: their place, and (height, width, 3)."""

    offset: int
    shape: tuple[int, ...]


@dataclass
class Arena:
    """The shared memory of a parent and its child. fd: of it; used: bytes of it that are taken. A process that has
    touched its pages once writes to them twenty times as fast: the first of them stay mapped, and are not given back.
    """

    fd: int
    used: int = 0
    _kept: mmap.mmap | None = None

    def put(self, data: bytes) -> tuple[int, int]:
        """The place of these bytes. For the parent alone: a child may write no file."""
        offset, self.used = self.used, self.used + len(data)
        view = memoryview(data)
        while view:
            view = view[os.pwrite(self.fd, view, self.used - len(view)) :]
        return offset, len(data)

    def get(self, offset: int, size: int) -> bytes:
        parts = []
        while size > 0:
            parts.append(os.pread(self.fd, size, offset))
            offset, size = offset + len(parts[-1]), size - len(parts[-1])
        return b"".join(parts)

    def pixels(self, at: Pixels) -> RGB:
        """A view of the pixels."""
        size = int(np.prod(at.shape))
        end = at.offset + size
        if end <= KEPT_BYTES:
            self._kept = self._kept or mmap.mmap(self.fd, KEPT_BYTES)
            return np.frombuffer(self._kept, np.uint8, size, at.offset).reshape(at.shape)
        begin = at.offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        view = mmap.mmap(self.fd, end - begin, offset=begin)
        return np.frombuffer(view, np.uint8, size, at.offset - begin).reshape(at.shape)

    def clear(self, used: int) -> None:
        """Begin anew; what was used beyond the pages that are kept is given back."""
        self.used = 0
        if used > KEPT_BYTES:
            os.ftruncate(self.fd, KEPT_BYTES)
            os.ftruncate(self.fd, ARENA_BYTES)


@dataclass
class Order:
    """Work on its way to a child: what is pickled, and what stays. kept: what the functions that stay have given."""

    arena: Arena
    functions: list[InParent] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def packed(self, order: Any) -> bytes:
        out = io.BytesIO()
        pickler = pickle.Pickler(out, pickle.HIGHEST_PROTOCOL)
        pickler.persistent_id = self._stays  # type: ignore[method-assign]
        pickler.dump(order)
        return out.getvalue()

    def _stays(self, value: Any) -> Any:
        if isinstance(value, InParent):
            self.functions.append(value)
            return "function", len(self.functions) - 1
        if type(value) is bytes and len(value) >= LARGE:
            return "bytes", *self.arena.put(value)
        return None

    @property
    def end(self) -> int:
        """Of what was used of the arena."""
        return max([self.arena.used, *self.ends])

    def run(self, index: int, pixels: Pixels, arguments: Sequence[Any]) -> int:
        """Have a function that stayed look at pixels in the arena; the number under which what it gives is kept."""
        self.ends.append(pixels.offset + int(np.prod(pixels.shape)))
        seen = self.arena.pixels(pixels)
        given = self.functions[index](seen, *arguments)
        is_seen = isinstance(given, np.ndarray) and np.may_share_memory(given, seen)
        self.kept.append(given.copy() if is_seen else given)
        return len(self.kept) - 1

    def unpacked(self, data: bytes) -> Any:
        """What a child sent. Raises UnpicklingError, and whatever else damaged values raise."""
        return _FromChild(data, self.kept).load()


class _FromChild(pickle.Unpickler):
    """Makes values of our own classes alone, and the errors that Python has: nothing that a child sends is called."""

    def __init__(self, data: bytes, kept: Sequence[Any]) -> None:
        super().__init__(io.BytesIO(data))
        self._kept = kept

    def persistent_load(self, pid: Any) -> Any:
        return self._kept[pid]

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        found = super().find_class(module_name, global_name)
        is_class = isinstance(found, type) and found.__module__ == module_name
        is_ours = is_class and module_name.startswith(_TRUSTED)
        is_error = is_class and module_name == "builtins" and issubclass(found, Exception)
        if is_ours or is_error or found is partial:
            return found
        raise pickle.UnpicklingError(f"a child sent {module_name}.{global_name}")


class _Remote:
    """A function that stayed in the parent, as the child has it."""

    def __init__(self, index: int, connection: Connection, arena: Arena) -> None:
        self._index, self._connection, self._arena = index, connection, arena
        self._allocated: RGB | None = None

    def allocate(self, height: int, width: int) -> RGB:
        self._allocated = self._arena.pixels(Pixels(self._arena.used, (height, width, 3)))
        return self._allocated

    def __call__(self, rgb: RGB, *arguments: Any) -> Kept:
        at = Pixels(self._arena.used, rgb.shape)
        if rgb is not self._allocated:
            self._arena.pixels(at)[:] = rgb
        self._connection.send_bytes(pickle.dumps(("call", self._index, at, arguments)))
        return Kept(self._connection.recv())


class ChildSide:
    """The same in the child."""

    def __init__(self, connection: Connection, arena: Arena) -> None:
        self._connection, self._arena = connection, arena

    def unpacked(self, data: bytes) -> Any:
        unpickler = pickle.Unpickler(io.BytesIO(data))
        unpickler.persistent_load = self._load  # type: ignore[method-assign]
        return unpickler.load()

    def _load(self, place: Any) -> Any:
        if place[0] == "bytes":
            self._arena.used = max(self._arena.used, place[1] + place[2])
            return self._arena.get(place[1], place[2])
        return _Remote(place[1], self._connection, self._arena)

    def packed(self, result: Any) -> bytes:
        out = io.BytesIO()
        pickler = pickle.Pickler(out, pickle.HIGHEST_PROTOCOL)
        pickler.persistent_id = lambda value: value.index if isinstance(value, Kept) else None  # type: ignore[method-assign]
        pickler.dump(result)
        return out.getvalue()
