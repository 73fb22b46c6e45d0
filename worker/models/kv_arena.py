"""Keys and values of all sequences in one tensor, each in one piece that grows with it: what a step reads is what
lives, whatever was there before, and memory is taken for tokens that there are.

A piece that is full grows where it is, or moves to a larger gap, a quarter longer than it is: a token is copied some
four times in its life, which is nothing beside the weights that each step reads. A prompt is computed in the piece that
its answer goes on in. Attention is told where each sequence begins and how long it is (`varlen`), so a graph of a step
serves sequences of any lengths.
"""

import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from worker.models.kv_cache import NoRoom
from worker.models.kv_places import Move, Place, Places
from worker.models.kv_widths import ARENA, HEADROOM, UNIT, Wanted, rounded, token_bytes
from worker.models.transfer import uploaded
from worker.models.varlen import Lengths


@dataclass(frozen=True)
class ArenaShape:
    """Of the text model's keys and values."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def bytes_per_token(self) -> int:
        return token_bytes(self.layers, self.kv_heads, self.head_dim, self.dtype.itemsize)


@dataclass(frozen=True, eq=False)
class Part:
    """Of a sequence in a forward: `count` tokens behind the `length` that its place holds already."""

    place: Place
    length: int
    count: int


@dataclass(frozen=True, eq=False)
class Packed:
    """Parts behind each other, on the device. columns: (tokens,) int64, where each token's keys and values belong."""

    columns: Tensor
    lengths: Lengths


@dataclass(eq=False)
class _Row:
    place: Place
    length: int
    most: int


@dataclass(frozen=True, eq=False)
class _Layer:
    """(1, kv_heads, tokens, head_dim) each."""

    keys: Tensor
    values: Tensor


class ArenaPrompt:
    """What a prefill fills; see `models.runner.PrefillCache`. Its place is free again when nobody has it any more."""

    def __init__(self, arena: "KVArena", place: Place) -> None:
        self.arena, self.place, self.length = arena, place, 0
        self._finalizer = weakref.finalize(self, arena.dropped.append, place)

    def keep_place(self) -> bool:
        """The place becomes a row's. Whether it was nobody else's before."""
        return self._finalizer.detach() is not None

    @property
    def layers(self) -> list[_Layer]:
        part = self.arena.store[:, self.place.start : self.place.start + self.length]
        return [_Layer(*layer.permute(1, 2, 0, 3)[:, None]) for layer in part]

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Put keys and values, (1, kv_heads, tokens, head_dim), behind those that the layer has; all of them. The last
        layer comes last."""
        start, count = self.place.start + self.length, keys.shape[2]
        for which, fresh in enumerate((keys, values)):
            self.arena.store[layer, start : start + count, which] = fresh[0].transpose(0, 1)
        whole = self.arena.store[layer, self.place.start : start + count].permute(1, 2, 0, 3)[:, None]
        if layer == len(self.arena.store) - 1:
            self.length += count
        return whole[0], whole[1]


class KVArena:
    """See `models.kv_cache.KVCache`. store: (layers, tokens, 2, kv_heads, head_dim), keys and values of a token side by
    side, so that one operation writes both. dropped: places of prompts that are no more, from any thread."""

    layout = ARENA
    has_states = False

    def __init__(self, shape: ArenaShape, max_bytes: int, device: torch.device) -> None:
        self._bytes_per_token = shape.bytes_per_token
        self._places = Places(max(2 * UNIT, max_bytes // self._bytes_per_token))
        nobodys = self._places.take(UNIT)  # where rows write that a graph has and a step has not
        assert nobodys is not None
        self._nobodys = nobodys
        size = (shape.layers, self._places.num_tokens, 2, shape.kv_heads, shape.head_dim)
        self.store = torch.empty(size, dtype=shape.dtype, device=device)
        self.dropped: deque[Place] = deque()
        self._rows: list[_Row] = []
        self._fed: list[int] = []

    @property
    def lengths(self) -> list[int]:
        return [row.length for row in self._rows]

    @property
    def num_live(self) -> int:
        return len(self._rows)

    @property
    def num_bytes(self) -> int:
        """Memory of the rows that there are; the arena itself is as large as it is."""
        return sum(row.place.size for row in list(self._rows)) * self._bytes_per_token

    @property
    def max_tokens(self) -> int:
        """The longest that a sequence may become."""
        return self._places.num_tokens - UNIT

    def bytes_with(self, wanted: Sequence[Wanted]) -> int:
        fresh = sum(each.num_answers * _first_size(each.now, each.most) for each in wanted)
        return UNIT * self._bytes_per_token + self.num_bytes + fresh * self._bytes_per_token

    def expect(self, most: Sequence[int]) -> None:
        """There is nothing to prepare."""

    def prefill_cache(self, num_tokens: int, most: int) -> ArenaPrompt:
        return ArenaPrompt(self, self._taken(_first_size(num_tokens, most)))

    def join(self, prefilled: ArenaPrompt, length: int, most: int) -> int:
        """The row is at the end of the step. The first answer to a prompt goes on in its place, others have a copy."""
        if prefilled.arena is self and prefilled.keep_place():
            place = prefilled.place
        else:
            place = self._taken(_first_size(length, most))
            source = prefilled.place.start
            self.store[:, place.start : place.start + length] = prefilled.arena.store[:, source : source + length]
        self._rows.append(_Row(place, length, most))
        return len(self._rows) - 1

    def leave(self, row: int) -> int:
        """The last row of the step takes its place."""
        last = self._rows.pop()
        gone = len(self._rows)
        if row != gone:
            self._rows[row], last = last, self._rows[row]
        self._places.free(last.place)
        return gone

    def make_room(self, counts: Sequence[int]) -> bool:
        return all(self._has_room(row, count) for row, count in zip(self._rows, counts, strict=True))

    def _has_room(self, row: _Row, count: int) -> bool:
        needed = row.length + count
        if needed <= row.place.size:
            return True
        self._free_dropped()
        longer = min(self.max_tokens, row.most, needed + max(HEADROOM, row.length // 4))
        for size in (max(needed, longer), needed):
            if self._places.grow(row.place, size):
                return True
            if (place := self._places.take(size)) is not None:
                self._copy(Move(row.place.start, place.start, row.length))
                self._places.free(row.place)
                row.place = place
                return True
        if self._places.num_free < rounded(needed) - row.place.size:
            return False
        self._squeeze()
        for move in self._places.open_behind(row.place, needed):
            self._copy(move)
        return True

    def _taken(self, size: int) -> Place:
        """Raises NoRoom."""
        self._free_dropped()
        place = self._places.take(size)
        if place is None and self._places.num_free >= rounded(size):
            self._squeeze()
            place = self._places.take(size)
        if place is None:
            raise NoRoom(f"{size} tokens of {self._places.num_free} that are free in the KV cache")
        return place

    def _free_dropped(self) -> None:
        while self.dropped:
            self._places.free(self.dropped.popleft())

    def _squeeze(self) -> None:
        for move in self._places.squeeze():
            self._copy(move)

    def _copy(self, move: Move) -> None:
        """Where both overlap, in pieces that do not, those first that others are copied onto: no memory is needed."""
        size = min(move.size, abs(move.target - move.source))
        begins = range(0, move.size, size)
        for begin in begins if move.target < move.source else reversed(begins):
            count = min(size, move.size - begin)
            piece = self.store[:, move.source + begin : move.source + begin + count]
            self.store[:, move.target + begin : move.target + begin + count] = piece

    def parts(self, counts: Sequence[int]) -> list[Part]:
        """The rows' part in a step that feeds each so many tokens; one that is fed none is fed one elsewhere. Raises
        NoRoom."""
        if not self.make_room(counts):
            raise NoRoom("the KV cache has no room for a step")
        self._fed = list(counts)
        nothing = Part(self._nobodys, 0, 1)
        return [
            Part(row.place, row.length, count) if count else nothing
            for row, count in zip(self._rows, counts, strict=True)
        ]

    def write(self, layer: int, columns: Tensor, fresh: Tensor) -> None:
        """fresh: (tokens, 2, kv_heads, head_dim)."""
        self.store[layer].index_copy_(0, columns, fresh)

    def keys(self, layer: int) -> Tensor:
        """(tokens, kv_heads, head_dim) of the whole arena."""
        return self.store[layer, :, 0]

    def values(self, layer: int) -> Tensor:
        return self.store[layer, :, 1]

    def end_step(self) -> None:
        for row, count in zip(self._rows, self._fed, strict=True):
            row.length += count
        self._fed = [0] * len(self._rows)

    def trim(self) -> None:
        """Memory of prompts that are no more is free again; the arena stays."""
        self._free_dropped()

    def clear(self) -> None:
        for row in self._rows:
            self._places.free(row.place)
        self._rows.clear()
        self._free_dropped()
        self.store = self.store.new_empty(0)


def _first_size(now: int, most: int) -> int:
    """Tokens that a sequence is given when it begins: those that it has, and some to come."""
    return rounded(max(now, min(most, now + HEADROOM)))


def packed(parts: Sequence[Part], device: torch.device) -> Packed:
    """What attention and the cache are told of parts behind each other in a forward."""
    columns = torch.cat([torch.arange(part.count) + (part.place.start + part.length) for part in parts])
    ends = [0, *accumulate(part.count for part in parts)]
    starts = [*(part.place.start for part in parts), 0]
    used = [part.length + part.count for part in parts]
    small = uploaded(torch.tensor([*ends, *starts, *used], dtype=torch.int32), device)
    on_device = torch.split(small, [len(ends), len(starts), len(used)])
    lengths = Lengths(on_device[0], on_device[1], on_device[2], max(part.count for part in parts), max(used))
    return Packed(uploaded(columns, device), lengths)
