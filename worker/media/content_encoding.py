"""Bodies that a server packed although it was asked not to: unpacked as they come, a bounded part at a time."""

import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import brotli  # type: ignore[import-untyped]

from worker.core.errors import MediaFetchFailed

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_MEMBERS = 1000  # of gzip, one behind the other
PART_BYTES = 64 * 1024  # that are unpacked at a time
MAX_WINDOW_LOG = 23  # of zstd: 8 MiB, the most that RFC 8878 lets a server use
# Stores keep what an upload said of itself, as aws-chunked, utf-8, binary or image/png: but for these, and for those
# that are decoded, no word changes a byte.
_OTHER_CODINGS = frozenset({"compress", "x-compress", "exi", "pack200-gzip", "dcb", "dcz"})


class _Decoder(Protocol):
    def fed(self, data: bytes) -> Iterator[bytes]:
        """What comes of the next bytes, in parts; a part may be empty, and takes about as long as a full one. Raises
        MediaFetchFailed."""
        ...

    def end(self) -> None:
        """The body has ended. Raises MediaFetchFailed where it should not have."""
        ...


def unpacking(headers: Sequence[str]) -> _Decoder | None:
    """For the values of Content-Encoding; None where nothing is packed. Raises MediaFetchFailed."""
    names = [name.partition(";")[0].strip().lower() for header in headers for name in header.split(",")]
    packed = [name for name in names if name in _MADE or name in _OTHER_CODINGS]
    if not packed:
        return None
    if len(packed) > 1 or packed[0] not in _MADE:
        raise MediaFetchFailed(detail="its server sent a body in a Content-Encoding that is not decoded")
    return _MADE[packed[0]]()


def _damaged() -> MediaFetchFailed:
    return MediaFetchFailed(detail="the compressed body (Content-Encoding) that its server sent is damaged")


class _Zlib:
    """gzip, in one or several members, and deflate, with zlib's head as it should have or without."""

    def __init__(self, window_bits: int) -> None:
        self._window_bits = window_bits
        self._inflater = zlib.decompressobj(window_bits)
        self._has_begun = False
        self._num_members = 0

    def fed(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._inflater.eof:
                self._num_members += 1
                if self._window_bits <= zlib.MAX_WBITS or self._num_members > MAX_MEMBERS:
                    return  # what follows the one stream of deflate
                self._inflater = zlib.decompressobj(self._window_bits)
            try:
                part = self._inflater.decompress(data, PART_BYTES)
            except zlib.error:
                if self._num_members:
                    self._num_members = MAX_MEMBERS + 1  # no member: what somebody put behind the last
                    return
                if self._has_begun or self._window_bits != zlib.MAX_WBITS:
                    raise _damaged() from None
                self._window_bits, self._has_begun = -zlib.MAX_WBITS, True
                self._inflater = zlib.decompressobj(self._window_bits)
                continue
            self._has_begun = True
            data = self._inflater.unconsumed_tail or self._inflater.unused_data
            yield part

    def end(self) -> None:
        if not (self._inflater.eof or self._num_members > MAX_MEMBERS):
            raise _damaged()


class _Brotli:
    def __init__(self) -> None:
        self._decoder = brotli.Decompressor()

    def fed(self, data: bytes) -> Iterator[bytes]:
        try:
            while part := self._decoder.process(data, output_buffer_limit=PART_BYTES):
                yield part
                data = b""  # the rest of it is kept inside until everything has come out
        except brotli.error:
            raise _damaged() from None

    def end(self) -> None:
        try:
            is_finished = self._decoder.is_finished()
        except brotli.error:
            is_finished = False
        if not is_finished:
            raise _damaged()


class _Zstd:
    def __init__(self) -> None:
        options: Mapping[int, int] = {zstd.DecompressionParameter.window_log_max: MAX_WINDOW_LOG}
        self._make: Callable[[], Any] = partial(zstd.ZstdDecompressor, options=options)
        self._decoder = self._make()
        self._num_frames, self._is_over = 0, False

    def fed(self, data: bytes) -> Iterator[bytes]:
        try:
            while not self._is_over and (data or not (self._decoder.needs_input or self._decoder.eof)):
                if self._decoder.eof:
                    self._num_frames += 1
                    self._decoder = self._make()
                yield self._decoder.decompress(data, PART_BYTES)
                data = self._decoder.unused_data if self._decoder.eof else b""
        except zstd.ZstdError:
            if not self._num_frames:
                raise _damaged() from None
            self._is_over = True  # no frame: what somebody put behind the last

    def end(self) -> None:
        if not (self._decoder.eof or self._is_over):
            raise _damaged()


_MADE: Mapping[str, Callable[[], _Decoder]] = {
    "gzip": lambda: _Zlib(16 + zlib.MAX_WBITS),
    "x-gzip": lambda: _Zlib(16 + zlib.MAX_WBITS),
    "deflate": lambda: _Zlib(zlib.MAX_WBITS),
    "br": _Brotli,
    "zstd": _Zstd,
}
