"""What sequences being decoded keep between steps: keys and values in pools by length, recurrent states by row.

A sequence gets a row in the pool whose width holds its prompt and its longest possible answer, so that it never grows,
its bytes are known when it is admitted, and a long one does not widen the attention of the short. The rows of a step
lie pool behind pool, each pool's kept together: a sequence that leaves is replaced by the last one of its pool.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile
from typing import Any, Protocol

import torch
from torch.nn import functional

from worker.models.kv_widths import POOLS, Wanted, most_answers, rows_for, width_for


class RecurrentStates(Protocol):
    """A recurrent layer's states, one row for each row of the step."""

    def make_room(self, rows: int, filled: Any) -> None:
        """Have memory for so many rows of what a prefill left in this layer."""

    def join(self, row: int, rows: int, filled: Any) -> None:
        """Copy what a prefill left in this layer into a new row among `rows`; those from there on move up by one. Needs
        no memory."""

    def leave(self, row: int, gone: int, rows: int) -> None:
        """Row `gone` of `rows` takes the place of `row`; those behind it move down by one. Needs no memory."""

    def show(self, rows: int) -> None:
        """Let a step of this many rows see and change them."""

    def clear(self) -> None: ...


SHORT = 256  # keys; up to so many plain products are two to three times as fast as the CPU's kernel (docs/log.md)


@dataclass
class Pool:
    """Rows of one width. keys, values: of each layer, (rows, kv_heads, width, head_dim), with room for more than
    `lengths`."""

    width: int
    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values))


@dataclass(frozen=True, eq=False)
class StepGroup:
    """A pool's part in the step under way. span: its rows in the step; columns: where each of them writes. Layers
    may lie on other devices than the step's: `on` has what they need there."""

    pool: Pool
    span: slice
    rows: torch.Tensor
    columns: torch.Tensor
    width: int
    mask: torch.Tensor
    elsewhere: "dict[torch.device, StepGroup]" = field(default_factory=dict)

    def on(self, device: torch.device) -> "StepGroup":
        if device == self.mask.device:
            return self
        if device not in self.elsewhere:
            rows, columns, mask = (tensor.to(device) for tensor in (self.rows, self.columns, self.mask))
            self.elsewhere[device] = StepGroup(self.pool, self.span, rows, columns, self.width, mask)
        return self.elsewhere[device]


@dataclass(frozen=True, eq=False)
class FedBefore:
    """What a row of the step is fed before its newest token. place: of the row in its pool; columns: where it is
    written; span: where it lies among what all rows are fed so; mask: (tokens, columns.stop), what each may read."""

    pool: Pool
    place: int
    columns: slice
    span: slice
    mask: torch.Tensor

    def write(self, at: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        for store, fresh in ((self.pool.keys[at], keys), (self.pool.values[at], values)):
            store[self.place, :, self.columns] = fresh[self.span].transpose(0, 1)

    def attend(self, at: int, query: torch.Tensor, scale: float) -> torch.Tensor:
        """(tokens, heads, head_dim) of this row."""
        keys, values = (s[at][self.place, :, : self.columns.stop] for s in (self.pool.keys, self.pool.values))
        part = query[self.span].transpose(0, 1)
        is_grouped = len(keys) != len(part)
        mixed = functional.scaled_dot_product_attention(
            part[None], keys[None], values[None], attn_mask=self.mask, scale=scale, enable_gqa=is_grouped
        )
        return mixed[0].transpose(0, 1)


def _fed_before(pools: Sequence[Pool], counts: Sequence[int], device: torch.device) -> list[FedBefore]:
    """counts: tokens before the newest one, of each row of the pools."""
    before: list[FedBefore] = []
    start, left = 0, iter(counts)
    for pool in pools:
        for place, (length, more) in enumerate(zip(pool.lengths, left, strict=False)):
            if more:
                end = length + more
                mask = torch.ones(more, end, dtype=torch.bool, device=device).tril(length)
                before.append(FedBefore(pool, place, slice(length, end), slice(start, start + more), mask))
                start += more
    return before


class KVPools:
    """See `models.kv_cache.KVCache`. prefill_cache: an empty `PrefillCache` for so many tokens; states: of those
    layers, by number, that do not attend."""

    layout = POOLS

    def __init__(
        self,
        num_layers: int,
        bytes_per_token: int,
        device: torch.device,
        dtype: torch.dtype,
        prefill_cache: Callable[[int], Any],
        states: Mapping[int, RecurrentStates] | None = None,
    ) -> None:
        self._prefill_cache = prefill_cache
        self._bytes_per_token = bytes_per_token
        self._device, self._dtype = device, dtype
        self.pools: dict[int, Pool] = {}
        self._groups: list[StepGroup] = []
        self._fed_before: list[FedBefore] = []
        self._expected: dict[int, int] = {}
        self._states = dict(states or {})
        attending = [layer for layer in range(num_layers) if layer not in self._states]
        self._attending = {layer: index for index, layer in enumerate(attending)}
        self.model_view: Any = None  # this cache as the model's own code wants to see it

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row of the step."""
        return [length for pool in self.pools.values() for length in pool.lengths]

    @property
    def num_live(self) -> int:
        return sum(len(pool.lengths) for pool in self.pools.values())

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
        return sum(pool.num_bytes for pool in list(self.pools.values()))

    @property
    def _filled(self) -> list[Pool]:
        """The pools with rows, as these follow each other in the step."""
        return [pool for pool in self.pools.values() if pool.lengths]

    def bytes_with(self, wanted: Sequence[Wanted]) -> int:
        """The pools if the answers joined, and the prompts on the way there."""
        counts = {width: len(pool.lengths) for width, pool in self.pools.items() if pool.lengths}
        for most in most_answers(wanted):
            width = width_for(most)
            counts[width] = counts.get(width, 0) + 1
        held = {width: pool.num_bytes for width, pool in self.pools.items()}
        prompts = sum(each.now for each in wanted) * self._bytes_per_token
        return prompts + sum(
            max(rows_for(count) * width * self._bytes_per_token, held.get(width, 0)) for width, count in counts.items()
        )

    def prefill_cache(self, num_tokens: int, most: int) -> Any:  # noqa: ARG002  # its row is made when it joins
        return self._prefill_cache(num_tokens)

    def make_room(self, counts: Sequence[int]) -> bool:  # noqa: ARG002  # a row is as wide as it may become
        return True

    def expect(self, most: Sequence[int]) -> None:
        """Their pools grow at once instead of row by row."""
        self._expected = {}
        for wanted in most:
            width = width_for(wanted)
            self._expected[width] = self._expected.get(width, 0) + 1
        if self._expected:
            self.trim()

    def trim(self) -> None:
        """Give back the memory of pools that are empty and not expected to be filled."""
        self._forget_step()
        self.pools = {width: pool for width, pool in self.pools.items() if pool.lengths or self._expected.get(width, 0)}

    def join(self, prefilled: Any, length: int, most: int) -> int:
        """Copy what a prefill of `length` tokens left into a new row that may grow to `most` tokens. The row's number
        in the step; those from there on move up by one."""
        width = width_for(most)
        pool = self.pools.get(width) or Pool(width)
        row = len(pool.lengths)
        for index, filled in enumerate(prefilled.layers):
            if index in self._attending:
                self._fill(pool, pool.keys, self._attending[index], filled.keys, length)
                self._fill(pool, pool.values, self._attending[index], filled.values, length)
        for layer, states in self._states.items():
            states.make_room(self.num_live + 1, prefilled.layers[layer])
        # From here on nothing fails: all layers have the row, or none has.
        self._expected[width] = max(0, self._expected.get(width, 0) - 1)
        self.pools[width] = pool
        before = takewhile(lambda other: other is not pool, self.pools.values())
        place = sum(len(other.lengths) for other in before) + row
        for layer, states in self._states.items():
            states.join(place, self.num_live, prefilled.layers[layer])
        pool.lengths.append(length)
        return place

    def _fill(self, pool: Pool, stores: list[torch.Tensor], at: int, filled: torch.Tensor | None, length: int) -> None:
        assert filled is not None
        row = len(pool.lengths)
        if at == len(stores) or stores[at].shape[0] <= row:
            rows = rows_for(row + max(1, self._expected.get(pool.width, 0)))
            grown = filled.new_empty(rows, filled.shape[1], pool.width, filled.shape[3])
            if at < len(stores):
                grown[:row] = stores[at][:row]
                stores[at] = grown
            else:
                stores.append(grown)
        stores[at][row, :, :length] = filled[0, :, :length]
        stores[at][row, :, length:] = 0  # a mask hides numbers, but not what is none

    def leave(self, row: int) -> int:
        """Drop a row of the step: the last one of its pool takes its place, and those behind that one move down by one.
        The number that the last one had."""
        rows, at = self.num_live, row
        for pool in self._filled:
            if at < len(pool.lengths):
                break
            at -= len(pool.lengths)
        last = len(pool.lengths) - 1
        gone = row - at + last
        if at != last:
            for store in (*pool.keys, *pool.values):
                store[at] = store[last]
            pool.lengths[at] = pool.lengths[last]
        pool.lengths.pop()
        for states in self._states.values():
            states.leave(row, gone, rows)
            if rows == 1:
                states.clear()
        self._forget_step()  # it would hold the memory of a pool that goes
        self.pools = {width: each for width, each in self.pools.items() if each.lengths}
        return gone

    def clear(self) -> None:
        """Drop all rows and their memory."""
        self._forget_step()
        self.pools.clear()
        for states in self._states.values():
            states.clear()

    def begin_step(self) -> None:
        """Lay out the step: where each row writes, and what it may read."""
        self.lay_out(torch.tensor(self.lengths, device=self._device))

    def lay_out(self, columns: torch.Tensor) -> None:
        """`begin_step` with the rows' lengths on the device."""
        self._lay_out(columns, [max(pool.lengths) + 1 for pool in self._filled])

    def lay_out_after(self, counts: Sequence[int]) -> None:
        """`begin_step` where each row is fed so many tokens before its newest one. Not for recurrent states."""
        ends = [length + more for length, more in zip(self.lengths, counts, strict=True)]
        left = iter(ends)
        widths = [max(islice(left, len(pool.lengths))) + 1 for pool in self._filled]
        self._lay_out(torch.tensor(ends, device=self._device), widths)
        self._fed_before = _fed_before(self._filled, counts, self._device)

    def _lay_out(self, columns: torch.Tensor, widths: Sequence[int]) -> None:
        """widths: of each pool with rows, what its rows may read."""
        self._forget_step()
        start = 0
        for pool, width in zip(self._filled, widths, strict=True):
            end = start + len(pool.lengths)
            self._groups.append(self._group(pool, slice(start, end), columns[start:end], width))
            start = end
        for states in self._states.values():
            states.show(self.num_live)

    def _forget_step(self) -> None:
        self._groups, self._fed_before = [], []

    def _group(self, pool: Pool, span: slice, columns: torch.Tensor, width: int) -> StepGroup:
        hidden = torch.arange(width, device=self._device)[None] > columns[:, None]
        mask = torch.zeros(hidden.shape, dtype=self._dtype, device=self._device)
        mask.masked_fill_(hidden, torch.finfo(self._dtype).min)
        rows = torch.arange(len(columns), device=self._device)
        return StepGroup(pool, span, rows, columns, width, mask[:, None, None])

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put the step's keys and values, (rows, kv_heads, 1, head_dim), where each row's next token belongs."""
        at = self._attending[layer]
        for group in (group.on(keys.device) for group in self._groups):
            for store, fresh in ((group.pool.keys[at], keys), (group.pool.values[at], values)):
                store[group.rows, :, group.columns] = fresh[group.span, :, 0]

    def write_before(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put keys and values of what the rows are fed before their newest tokens, (tokens, kv_heads, head_dim), where
        they belong."""
        for fed in self._fed_before:
            fed.write(self._attending[layer], keys, values)

    def attend_before(self, layer: int, query: torch.Tensor, scale: float) -> torch.Tensor:
        """(tokens, heads, head_dim) for the queries of these tokens, of the same shape."""
        return torch.cat([fed.attend(self._attending[layer], query, scale) for fed in self._fed_before])

    def attend(self, layer: int, query: torch.Tensor, scale: float) -> torch.Tensor:
        """(rows, 1, heads, head_dim) for the step's queries, (rows, heads, 1, head_dim)."""
        at = self._attending[layer]
        mixed = []
        for group in (group.on(query.device) for group in self._groups):
            rows = len(group.rows)
            keys, values = (s[at][:rows, :, : group.width] for s in (group.pool.keys, group.pool.values))
            mixed.append(grouped(query[group.span], keys, values, group.mask, scale))
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)

    def end_step(self) -> None:
        """Each row has one more token, and what it was fed before that."""
        for fed in self._fed_before:
            fed.pool.lengths[fed.place] = fed.columns.stop
        self._forget_step()
        for pool in self.pools.values():
            pool.lengths = [length + 1 for length in pool.lengths]


def grouped(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """(rows, 1, heads, dim) from query (rows, heads, 1, dim), keys and values (rows, kv_heads, width, dim).

    mask: (rows, 1, 1, width), added to the scores.
    """
    rows, heads, _, dim = query.shape
    block = query.reshape(rows, keys.shape[1], heads // keys.shape[1], dim)
    if rows > 1 and keys.shape[2] <= SHORT and query.dtype == torch.float32 and query.device.type == "cpu":
        # torch's kernel multiplies for each row and head by itself, which takes longer than the products.
        scores = torch.matmul(block, keys.transpose(-1, -2)).mul_(scale).add_(mask)
        return torch.matmul(scores.softmax(-1), values).reshape(rows, 1, heads, -1)
    mixed = functional.scaled_dot_product_attention(block, keys, values, attn_mask=mask, scale=scale)
    return mixed.reshape(rows, 1, heads, -1)
