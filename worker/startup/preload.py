"""Imports that wait for nothing: native libraries linked beside them, and modules that are never used left unread."""

import contextlib
import ctypes
import importlib
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

UNUSED = ("paramiko", "tomlkit")  # a third of the SDK's import, for its command line
PROBE = "cpuinfo"  # the module with which the SDK asks for the processor's name
# How often OpenMP's threads spin before they sleep: 40 us. The default, 4 ms, is a little faster on cores that nobody
# else uses; on two cores beside one busy process it is eleven times slower (`benchmarks.spinning`).
SPINS = b"3000"
_TORCH = (("libtorch_global_deps.so", os.RTLD_GLOBAL), ("libtorch.so", os.RTLD_LOCAL))  # as torch itself begins


@contextlib.contextmanager
def linking_torch() -> Iterator[None]:
    """In here torch's libraries are linked by a thread, without the interpreter's lock, as foreign functions run.
    Until it ends no other native module can be imported. What fails here is found again, and told, by torch."""

    def link() -> None:
        for name, scope in _TORCH:
            if (folder / name).is_file():
                opened(bytes(folder / name), os.RTLD_NOW | scope)

    spec = importlib.util.find_spec("torch")
    folder = Path(spec.origin).parent / "lib" if spec is not None and spec.origin is not None else Path()
    system = ctypes.CDLL(None)
    opened = system.dlopen
    opened.restype = ctypes.c_void_p
    system.setenv(b"GOMP_SPINCOUNT", SPINS, 0)  # OpenMP reads it when it is linked; another value is left
    thread = threading.Thread(target=link, name="linking", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()  # a process that ends in the middle of it crashes


class _StandIn(ModuleType):
    """Has what it is given; for all else it imports the module whose name it has."""

    def __getattr__(self, attribute: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), attribute)


@contextlib.contextmanager
def sparing() -> Iterator[None]:
    """In here modules that the SDK names, and does not use in a worker, are not read; it keeps what stands for them."""
    known = {"brand_raw": name} if (name := processor()) else {}
    stand_ins = {unused: _StandIn(unused) for unused in (*UNUSED, PROBE) if unused not in sys.modules}
    if PROBE in stand_ins:
        stand_ins[PROBE].get_cpu_info = lambda: known  # type: ignore[attr-defined]
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for unused, stand_in in stand_ins.items():
            if sys.modules.get(unused) is stand_in:
                del sys.modules[unused]


def processor() -> str:
    """Its name; empty where the system does not say."""
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
        for line in lines:
            field, _, value = line.partition(":")
            if field.strip() == "model name":
                return value.strip()
    return ""
