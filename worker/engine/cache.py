"""What sequences being decoded keep between steps: keys and values in pools by length, recurrent states by row.

A sequence gets a row in the pool whose width holds its prompt and its longest possible answer, so that it never
moves, its bytes are known when it is admitted, and a long one does not widen the attention of the short. The rows of
a step are kept together: a sequence that leaves is replaced by the last one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, LinearAttentionLayer

from worker.engine.attention import grouped

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


class SlotLayer(CacheLayerMixin):
    """An attention layer's side of a step: it only writes; reading is `SlotCache.attend`."""

    def __init__(self, owner: "SlotCache", index: int) -> None:
        super().__init__()
        self._owner, self._index = owner, index

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        raise AssertionError("rows are made by SlotCache.join")

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write this step's keys and values, (rows, kv_heads, 1, head_dim)."""
        self._owner.write(self._index, key_states, value_states)
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return self._owner.longest

    def get_max_length(self) -> int:
        return -1


class SlotStates(LinearAttentionLayer):
    """A recurrent layer's convolution and recurrent states, one row for each row of the step."""

    def __init__(self) -> None:
        super().__init__()
        self.stores: list[torch.Tensor] = []

    def join(self, row: int, filled: LinearAttentionLayer) -> None:
        fresh = [filled.conv_states[0], filled.recurrent_states[0]]
        if not self.stores or self.stores[0].shape[0] <= row:
            grown = [one.new_zeros(rows_for(row + 1), *one.shape[1:]) for one in fresh]
            for new, old in zip(grown, self.stores, strict=False):
                new[: old.shape[0]] = old
            self.stores = grown
        for store, state in zip(self.stores, fresh, strict=True):
            store[row] = state[0]
        self.conv_kernel_size[0] = filled.conv_kernel_size[0]

    def move(self, source: int, target: int) -> None:
        for store in self.stores:
            store[target] = store[source]

    def show(self, rows: int) -> None:
        """Let a step of this many rows see and change its states."""
        conv, recurrent = (store[:rows] for store in self.stores)
        self.conv_states[0], self.recurrent_states[0] = conv, recurrent
        self.is_conv_states_initialized[0] = self.is_recurrent_states_initialized[0] = True
        self.has_previous_state[0] = True


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
    """Rows for the sequences being decoded. `like` is a model's empty cache; it says which layers are of which kind."""

    def __init__(self, like: Cache, bytes_per_token: int, device: torch.device, dtype: torch.dtype) -> None:
        self.lengths: list[int] = []
        self._bytes_per_token = bytes_per_token
        self._device, self._dtype = device, dtype
        self._pools: dict[int, _Pool] = {}
        self._home: list[tuple[int, int]] = []  # of each row of the step: its pool's width and its row there
        self._groups: list[_Group] = []
        self._expected: dict[int, int] = {}
        self._attending: dict[int, int] = {}
        layers: list[Any] = []
        for index, layer in enumerate(like.layers):
            is_recurrent = isinstance(layer, LinearAttentionLayer)
            if not is_recurrent:
                self._attending[index] = len(self._attending)
            layers.append(SlotStates() if is_recurrent else SlotLayer(self, index))
        self._states = [layer for layer in layers if isinstance(layer, SlotStates)]
        self.model_view = Cache(layers=layers)

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

    def join(self, prefilled: Cache, length: int, most: int) -> None:
        """Copy what a prefill of `length` tokens left into a new last row that may grow to `most` tokens."""
        width = width_for(most)
        pool = self._pools.get(width) or _Pool(width, [], [], [])
        row = len(pool.slots)
        for index, filled in enumerate(prefilled.layers):
            if index in self._attending:
                self._fill(pool.keys, self._attending[index], filled.keys, width, row, length)
                self._fill(pool.values, self._attending[index], filled.values, width, row, length)
        self._expected[width] = max(0, self._expected.get(width, 0) - 1)
        for states, filled in zip(self._states, _recurrent(prefilled), strict=True):
            states.join(len(self.lengths), filled)
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
            for states in self._states:
                states.move(last, row)
        self.lengths.pop()
        self._home.pop()
        if not self.lengths:
            self.clear()

    def clear(self) -> None:
        """Drop all rows and their memory."""
        self.lengths, self._home, self._groups = [], [], []
        self._pools.clear()
        for states in self._states:
            states.stores = []

    def begin_step(self) -> None:
        """Lay out the step: where each row writes, and what it may read."""
        self._groups = [self._group(pool) for pool in self._pools.values()]
        for states in self._states:
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


def _recurrent(cache: Cache) -> list[LinearAttentionLayer]:
    return [layer for layer in cache.layers if isinstance(layer, LinearAttentionLayer)]
