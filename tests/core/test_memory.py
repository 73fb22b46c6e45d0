"""Memory that the C library keeps."""

import ctypes

import psutil
import pytest

from worker.core import memory

CHUNK = 100_000  # bytes; less than what the C library asks the system for by itself


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


def test_what_was_freed_goes_back_to_the_system() -> None:
    chunks = [bytearray(CHUNK) for _ in range(2000)]
    kept = chunks[1::2]  # between them nothing can go back by itself
    del chunks
    before = resident()
    memory.trim()
    assert resident() < before - 500 * CHUNK
    assert len(kept) == 1000


def test_a_c_library_without_it_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    memory.trim()
