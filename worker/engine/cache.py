"""What sequences being decoded keep between steps: keys and values in pools by length, recurrent states by row.

A sequence gets a row in the pool whose width holds its prompt and its longest possible answer, so that it never
moves, its bytes are known when it is admitted, and a long one does not widen the attention of the short. The rows of
a step are kept together: a sequence that leaves is replaced by the last one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn import functional

SMALLEST_WIDTH = 256


def width_for(tokens: int) -> int:
    """The width of the pool for a sequence of up to `tokens`: 256, 384, 512, 768, 1024, … tokens."""
    width = SMALLEST_WIDTH
    while width < tokens:
        width = width * 3 // 2 if width & (width - 1) == 0 else width * 4 // 3
    return width


def rows_for(count: int) -> int:
    """The rows that a pool has memory for when it holds `count`: doubled up to 8, then eight more at a time."""
    return 1 << (count - 1).bit_length() if count <= 8 else -(-count // 8) * 8


class States(Protocol):
    """A recurrent layer's states, one row for each row of the step."""

    def join(self, row: int, filled: Any) -> None:
        """Copy what a prefill left in this layer into a row."""

    def move(self, source: int, target: int) -> None: ...

    def show(self, rows: int) -> None:
        """Let a step of this many rows see and change them."""

    def clear(self) -> None: ...


@dataclass
class _Pool:
    """Rows of one width. slots: the row of the step that each row here belongs to."""

    width: int
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    slots: list[int]


@dataclass(frozen=True, eq=False)
class _Group:
    """A pool's part in the step under way. index: its rows in the step, None where they are all rows in order."""

    pool: _Pool
    index: torch.Tensor | None
    rows: torch.Tensor
    columns: torch.Tensor
    width: int
    mask: torch.Tensor


class SlotCache:
    """Rows for the sequences being decoded. `states`: of those layers, by number, that do not attend."""

    def __init__(
        self,
        num_layers: int,
        bytes_per_token: int,
        device: torch.device,
        dtype: torch.dtype,
        states: Mapping[int, States] | None = None,
    ) -> None:
        self.lengths: list[int] = []
        self._bytes_per_token = bytes_per_token
        self._device, self._dtype = device, dtype
        self._pools: dict[int, _Pool] = {}
        self._home: list[tuple[int, int]] = []  # of each row of the step: its pool's width and its row there
        self._groups: list[_Group] = []
        self._expected: dict[int, int] = {}
        self._states = dict(states or {})
        attending = [layer for layer in range(num_layers) if layer not in self._states]
        self._attending = {layer: index for index, layer in enumerate(attending)}
        self.model_view: Any = None  # this cache as the model's own code wants to see it

    @property
    def num_live(self) -> int:
        return len(self.lengths)

    @property
    def has_states(self) -> bool:
        """Whether a step changes recurrent states, which cannot be cut back."""
        return bool(self._states)

    @property
    def longest(self) -> int:
        return max(self.lengths, default=0)

    @property
    def num_bytes(self) -> int:
        """Memory that the pools hold."""
        return sum(
            t.numel() * t.element_size() for pool in list(self._pools.values()) for t in (*pool.keys, *pool.values)
        )

    def bytes_with(self, tokens: Sequence[int]) -> int:
        """Memory that the pools would hold if sequences of up to so many tokens joined."""
        counts = {width: len(pool.slots) for width, pool in self._pools.items()}
        for wanted in tokens:
            width = width_for(wanted)
            counts[width] = counts.get(width, 0) + 1
        held = {width: pool.keys[0].shape[0] if pool.keys else 0 for width, pool in self._pools.items()}
        return sum(
            max(rows_for(count), held.get(width, 0)) * width * self._bytes_per_token for width, count in counts.items()
        )

    def expect(self, tokens: Sequence[int]) -> None:
        """Sequences of up to so many tokens are about to join: their pools grow at once instead of row by row."""
        self._expected = {}
        for wanted in tokens:
            width = width_for(wanted)
            self._expected[width] = self._expected.get(width, 0) + 1

    def join(self, prefilled: Any, length: int, most: int) -> None:
        """Copy what a prefill of `length` tokens left into a new last row that may grow to `most` tokens."""
        width = width_for(most)
        pool = self._pools.get(width) or _Pool(width, [], [], [])
        row = len(pool.slots)
        for index, filled in enumerate(prefilled.layers):
            if index in self._attending:
                self._fill(pool.keys, self._attending[index], filled.keys, width, row, length)
                self._fill(pool.values, self._attending[index], filled.values, width, row, length)
        self._expected[width] = max(0, self._expected.get(width, 0) - 1)
        for layer, states in self._states.items():
            states.join(len(self.lengths), prefilled.layers[layer])
        self._pools[width] = pool
        pool.slots.append(len(self.lengths))
        self._home.append((width, row))
        self.lengths.append(length)

    def _fill(
        self, stores: list[torch.Tensor], at: int, filled: torch.Tensor | None, width: int, row: int, length: int
    ) -> None:
        assert filled is not None
        if at == len(stores) or stores[at].shape[0] <= row:
            count = rows_for(row + max(1, self._expected.get(width, 0)))
            grown = filled.new_empty(count, filled.shape[1], width, filled.shape[3])
            if at < len(stores):
                grown[:row] = stores[at][:row]
                stores[at] = grown
            else:
                stores.append(grown)
        stores[at][row, :, :length] = filled[0, :, :length]
        stores[at][row, :, length:] = 0  # a mask hides numbers, but not what is none

    def leave(self, row: int) -> None:
        """Drop a row of the step; the last one takes its place. A pool that is empty gives its memory back."""
        width, at = self._home[row]
        pool = self._pools[width]
        last_at = len(pool.slots) - 1
        if at != last_at:
            moved = pool.slots[last_at]
            length = self.lengths[moved]
            for store in (*pool.keys, *pool.values):
                store[at, :, :length] = store[last_at, :, :length]
            pool.slots[at] = moved
            self._home[moved] = (width, at)
        pool.slots.pop()
        if not pool.slots:
            del self._pools[width]
        last = len(self.lengths) - 1
        if row != last:
            self.lengths[row], self._home[row] = self.lengths[last], self._home[last]
            self._pools[self._home[row][0]].slots[self._home[row][1]] = row
            for states in self._states.values():
                states.move(last, row)
        self.lengths.pop()
        self._home.pop()
        if not self.lengths:
            self.clear()

    def clear(self) -> None:
        """Drop all rows and their memory."""
        self.lengths, self._home, self._groups = [], [], []
        self._pools.clear()
        for states in self._states.values():
            states.clear()

    def begin_step(self) -> None:
        """Lay out the step: where each row writes, and what it may read."""
        self._groups = [self._group(pool) for pool in self._pools.values()]
        for states in self._states.values():
            states.show(self.num_live)

    def _group(self, pool: _Pool) -> _Group:
        lengths = [self.lengths[slot] for slot in pool.slots]
        is_whole = pool.slots == list(range(self.num_live))
        width = max(lengths) + 1
        columns = torch.tensor(lengths, device=self._device)
        hidden = torch.arange(width, device=self._device)[None] > columns[:, None]
        mask = torch.zeros(hidden.shape, dtype=self._dtype, device=self._device)
        mask.masked_fill_(hidden, torch.finfo(self._dtype).min)
        index = None if is_whole else torch.tensor(pool.slots, device=self._device)
        rows = torch.arange(len(lengths), device=self._device)
        return _Group(pool, index, rows, columns, width, mask[:, None, None])

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put the step's keys and values, (rows, kv_heads, 1, head_dim), where each row's next token belongs."""
        at = self._attending[layer]
        for group in self._groups:
            for store, fresh in ((group.pool.keys[at], keys), (group.pool.values[at], values)):
                store[group.rows, :, group.columns] = (fresh if group.index is None else fresh[group.index])[:, :, 0]

    def attend(self, layer: int, query: torch.Tensor, scale: float) -> torch.Tensor:
        """(rows, 1, heads, head_dim) for the step's queries, (rows, heads, 1, head_dim)."""
        at = self._attending[layer]
        mixed = []
        for group in self._groups:
            count = len(group.pool.slots)
            keys, values = (s[at][:count, :, : group.width] for s in (group.pool.keys, group.pool.values))
            own = query if group.index is None else query[group.index]
            mixed.append(grouped(own, keys, values, group.mask, scale))
        if self._groups[0].index is None:
            return mixed[0]
        whole = torch.empty_like(torch.cat(mixed))
        for group, part in zip(self._groups, mixed, strict=True):
            whole[group.index] = part
        return whole

    def end_step(self) -> None:
        """Each row has one more token."""
        self.lengths = [length + 1 for length in self.lengths]


def grouped(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """(rows, 1, heads, dim) from query (rows, heads, 1, dim), keys and values (rows, kv_heads, width, dim).

    mask: (rows, 1, 1, width), added to the scores.
    """
    rows, heads, _, dim = query.shape
    block = query.reshape(rows, keys.shape[1], heads // keys.shape[1], dim)
    mixed = functional.scaled_dot_product_attention(block, keys, values, attn_mask=mask, scale=scale)
    return mixed.reshape(rows, 1, heads, -1)
