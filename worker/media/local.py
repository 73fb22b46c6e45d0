"""Files that a request may name, as `file:///…`, because the operator allows the folder they lie in."""

import os
import stat
from pathlib import Path
from urllib.parse import unquote, urlsplit

from worker.core.errors import MediaFetchFailed, MediaTooLarge, MediaUrlForbidden, MediaUrlInvalid
from worker.core.units import over

SCHEME = "file:"


def read(address: str, roots: tuple[Path, ...], max_bytes: int) -> bytes:
    """The file's bytes. Links are followed first and judged by where they lead.

    Raises MediaUrlInvalid, MediaUrlForbidden, MediaFetchFailed, MediaTooLarge.
    """
    try:
        parts = urlsplit(address)
        name = unquote(parts.path, errors="strict")
    except ValueError:
        raise MediaUrlInvalid() from None
    if parts.scheme != "file" or parts.netloc not in ("", "localhost") or parts.query or parts.fragment or "\0" in name:
        raise MediaUrlInvalid()
    if not name.startswith("/"):
        raise MediaUrlInvalid()
    try:
        path = Path(name).resolve()
    except (OSError, RuntimeError):  # a circle of links
        raise MediaUrlForbidden() from None
    _check_place(path, roots)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        raise MediaFetchFailed(detail="the file does not exist or cannot be read") from None
    try:
        _check_place(Path(f"/proc/self/fd/{descriptor}").resolve(), roots)  # a folder may have become a link meanwhile
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise MediaUrlForbidden()
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(max_bytes + 1)
    finally:
        os.close(descriptor)
    if len(data) > max_bytes:
        raise MediaTooLarge(detail=over(max_bytes))
    return data


def _check_place(path: Path, roots: tuple[Path, ...]) -> None:
    if not any(path.is_relative_to(root) for root in roots):
        raise MediaUrlForbidden()
