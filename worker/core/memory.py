"""Memory of this process that the C library keeps."""

import contextlib
import ctypes


def trim() -> None:
    """What was freed goes back to the system. Where the C library has no such call, as musl's, it may stay."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
