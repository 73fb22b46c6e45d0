"""What the engine asks of a KV cache. Two implement it: pools of rows by width (`kv_pools`), for the CPU and for the
library's models, and one arena (`kv_arena`), for attention by lengths."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from worker.models.kv_widths import KVLayout, Wanted


class NoRoom(torch.OutOfMemoryError):
    """The memory of a cache holds no more tokens now."""


class KVCache(Protocol):
    """Keys and values of the sequences being decoded: the rows of a step, in the cache's own order."""

    @property
    def layout(self) -> KVLayout: ...

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row of the step."""
        ...

    @property
    def num_live(self) -> int: ...

    @property
    def num_bytes(self) -> int:
        """Memory that rows hold."""
        ...

    @property
    def has_states(self) -> bool:
        """Whether a step changes recurrent states, which cannot be cut back."""
        ...

    def bytes_with(self, wanted: Sequence[Wanted]) -> int:
        """Memory that there must be if these requests began beside the rows that there are."""
        ...

    def expect(self, most: Sequence[int]) -> None:
        """Sequences of up to so many tokens are about to join."""
        ...

    def prefill_cache(self, num_tokens: int, most: int) -> Any:
        """An empty `PrefillCache` for a prefill of so many tokens to fill, of a sequence that may become as long as
        `most`. Raises NoRoom."""
        ...

    def join(self, prefilled: Any, length: int, most: int) -> int:
        """A new row with what a prefill of `length` tokens left, that may grow to `most` tokens. The row's number in
        the step; those from there on move up by one. Raises NoRoom."""
        ...

    def leave(self, row: int) -> int:
        """Drop a row; the number that the row had which takes its place. Those behind that one move down by one."""
        ...

    def make_room(self, counts: Sequence[int]) -> bool:
        """Have room for so many more tokens of each row; False where there is none."""
        ...

    def end_step(self) -> None:
        """Each row has the tokens that it was fed."""
        ...

    def trim(self) -> None:
        """Give back memory that no row needs."""
        ...

    def clear(self) -> None:
        """Drop all rows and their memory."""
        ...
