"""How tokens of prompts and of answers go through the text model, and where their keys and values are: in pools of
rows, or in an arena with attention by lengths."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor

from worker.models.kv_arena import ArenaShape, KVArena, Packed, Part, packed
from worker.models.kv_cache import KVCache
from worker.models.kv_pools import KVPools
from worker.models.kv_widths import ARENA, POOLS, KVLayout
from worker.models.native.attention import causal_attention, causal_mask
from worker.models.native.graphs import Recorder, StepGraphs, fed_numbers, feed_newest
from worker.models.native.layers import NativePrefillCache
from worker.models.native.text import Attend, TextModel
from worker.models.runner import Newest, PrefillChunk, placed
from worker.models.transfer import uploaded
from worker.models.varlen import Lengths, Varlen


class Stepping(Protocol):
    """See `models.runner.Runner` for what the members are."""

    @property
    def layout(self) -> KVLayout: ...

    @property
    def graphs(self) -> StepGraphs | None: ...

    def kv_cache(self, max_bytes: int) -> KVCache: ...

    def prefill(self, chunks: Sequence[PrefillChunk]) -> Tensor: ...

    def decode(
        self,
        tokens: list[int],
        positions: list[int],
        cache: KVCache,
        before: Sequence[Sequence[int]],
        newest: Newest | None,
        idle: Sequence[int],
    ) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class _Embedded:
    """What the text model is fed of chunks behind each other: (tokens, hidden), rotary tables, and what is added at
    `spots` in the first layers."""

    hidden: Tensor
    cos_sin: tuple[Tensor, Tensor]
    spots: Tensor | None
    deep: list[Tensor]


def _embedded(text: TextModel, chunks: Sequence[PrefillChunk], device: torch.device) -> _Embedded:
    hidden = text.embed(uploaded(torch.tensor([token for chunk in chunks for token in chunk.ids]), device))
    spots: Tensor | None = None
    deep: list[Tensor] = []
    if (found := placed(chunks, device)) is not None:
        spots, features, deep = found
        hidden[spots] = features
    positions = uploaded(torch.cat([chunk.positions for chunk in chunks], 1), device)
    return _Embedded(hidden, text.rotary(positions), spots, deep)


def _arena_shape(text: TextModel) -> ArenaShape:
    shape = text.shape
    return ArenaShape(shape.layers, shape.kv_heads, shape.head_dim, text.dtype)


class PooledSteps:
    """On the CPU, and where there is no attention by lengths."""

    layout = POOLS
    graphs = None

    def __init__(self, text: TextModel, device: torch.device) -> None:
        self._text, self._device = text, device
        self._scale = text.shape.head_dim**-0.5

    def kv_cache(self, max_bytes: int) -> KVPools:  # noqa: ARG002  # pools are made as they are needed
        layers, shape = self._text.shape.layers, _arena_shape(self._text)
        return KVPools(
            layers, shape.bytes_per_token, self._device, shape.dtype, lambda count: NativePrefillCache(layers, count)
        )

    def prefill(self, chunks: Sequence[PrefillChunk]) -> Tensor:
        """The chunks lie behind each other, without padding: only attention knows to whom a token belongs."""
        fed = _embedded(self._text, chunks, self._device)
        lengths = [chunk.length for chunk in chunks]
        attends = [self._attend_after(chunk.cache, chunk.length) for chunk in chunks]

        def attend(layer: int, query: Tensor, keys_values: Tensor) -> Tensor:
            parts = (torch.split(part, lengths) for part in (query, keys_values))
            return torch.cat([attend_one(layer, *both) for attend_one, *both in zip(attends, *parts, strict=True)])

        one = attends[0] if len(chunks) == 1 else attend
        hidden = self._text.forward(fed.hidden, fed.cos_sin, one, fed.spots, fed.deep)
        last = torch.tensor(lengths, device=self._device).cumsum(0) - 1
        return self._text.logits(hidden[last])

    def _attend_after(self, cache: NativePrefillCache, count: int) -> Attend:
        """Attention of a prompt's next tokens to those in the cache and to each other, each to none after it."""
        mask = causal_mask(count, cache.length, self._device)

        def attend(layer: int, query: Tensor, keys_values: Tensor) -> Tensor:
            keys, values = keys_values.permute(1, 2, 0, 3)[:, None]
            all_keys, all_values = cache.update(keys, values, layer)
            mixed = causal_attention(query.transpose(0, 1), all_keys[0], all_values[0], self._scale, mask)
            return mixed.transpose(0, 1).flatten(1)

        return attend

    def decode(
        self,
        tokens: list[int],
        positions: list[int],
        cache: KVCache,
        before: Sequence[Sequence[int]],
        newest: Newest | None,
        idle: Sequence[int],
    ) -> Tensor:
        """The newest token of each row, and behind all of these what the rows are fed before them, row by row: no
        padding, and the head sees the newest only."""
        assert isinstance(cache, KVPools) and newest is None and not idle
        if any(before):
            cache.lay_out_after([len(part) for part in before])
            earlier = [
                position
                for newest, part in zip(positions, before, strict=True)
                for position in range(newest - len(part), newest)
            ]
            fed = [*tokens, *chain.from_iterable(before)], [*positions, *earlier]
            ids, places = torch.tensor(fed, device=self._device)
        else:
            ids, places, columns = torch.tensor([tokens, positions, cache.lengths], device=self._device)
            cache.lay_out(columns)
        rows = len(tokens)
        hidden, turned = self._text.embed(ids), self._text.rotary(places.expand(3, -1))

        def attend(layer: int, query: Tensor, keys_values: Tensor) -> Tensor:
            keys, values = keys_values[:, 0], keys_values[:, 1]
            cache.write(layer, keys[:rows].unsqueeze(2), values[:rows].unsqueeze(2))
            if rows == len(query):
                return cache.attend(layer, query.unsqueeze(2), self._scale).flatten(1)
            cache.write_before(layer, keys[rows:], values[rows:])
            newest = cache.attend(layer, query[:rows].unsqueeze(2), self._scale)
            earlier = cache.attend_before(layer, query[rows:], self._scale)
            return torch.cat([newest.flatten(1), earlier.flatten(1)])

        return self._text.logits(self._text.forward(hidden, turned, attend)[:rows])


class ArenaSteps:
    """Where a kernel attends by lengths: prompts, chunks behind what is known, and rows that are fed one token or
    several are the same to it."""

    layout = ARENA

    def __init__(self, text: TextModel, device: torch.device, kernel: Varlen, record: Recorder | None) -> None:
        self._text, self._device, self._kernel = text, device, kernel
        self._scale = text.shape.head_dim**-0.5
        self._arena: KVArena | None = None
        self.graphs = None if record is None else StepGraphs(self._step, device, record)

    def kv_cache(self, max_bytes: int) -> KVArena:
        self._arena = KVArena(_arena_shape(self._text), max_bytes, self._device)
        if self.graphs is not None:
            self.graphs.forget()  # they read another one
        return self._arena

    def prefill(self, chunks: Sequence[PrefillChunk]) -> Tensor:
        fed = _embedded(self._text, chunks, self._device)
        parts = [Part(chunk.cache.place, chunk.cache.length, chunk.length) for chunk in chunks]
        layout = packed(parts, self._device)
        attend = self._attend(chunks[0].cache.arena, layout)
        hidden = self._text.forward(fed.hidden, fed.cos_sin, attend, fed.spots, fed.deep)
        logits = self._text.logits(hidden[layout.lengths.ends[1:] - 1])
        for chunk in chunks:
            chunk.cache.length += chunk.length
        return logits

    def decode(
        self,
        tokens: list[int],
        positions: list[int],
        cache: KVCache,
        before: Sequence[Sequence[int]],
        newest: Newest | None,
        idle: Sequence[int],
    ) -> Tensor:
        assert isinstance(cache, KVArena)
        counts = [1 + len(part) for part in before] if any(before) else [1] * len(tokens)
        for row in idle:
            counts[row] = 0
        parts = cache.parts(counts)
        if any(before):
            assert newest is None and not idle
            return self._step_of_several(tokens, positions, parts, before, cache)
        numbers = [
            (token, position, part.place.start + part.length, part.place.start, part.length + 1)
            for token, position, part in zip(tokens, positions, parts, strict=True)
        ]
        if self.graphs is not None and cache is self._arena:
            said = self.graphs.logits(numbers, newest)
            if said is not None:
                return said
        fed = uploaded(fed_numbers(numbers, len(numbers)), self._device)
        if newest is not None:
            feed_newest(fed, newest)
        return self._step(fed, max(number[-1] for number in numbers), cache)

    def _step(self, fed: Tensor, longest: int, arena: KVArena | None = None) -> Tensor:
        """(rows, vocabulary) from the numbers of each row, see `graphs.FED`. Nothing in it waits for the device or
        depends on a number that is there."""
        arena = arena or self._arena
        assert arena is not None
        ids, positions, columns = fed[:3, :-1]
        small = fed[3:].int()
        ends = torch.arange(len(ids) + 1, dtype=torch.int32, device=self._device)
        layout = Packed(columns, Lengths(ends, small[0], small[1, :-1], 1, longest))
        hidden, turned = self._text.embed(ids), self._text.rotary(positions.expand(3, -1))
        return self._text.logits(self._text.forward(hidden, turned, self._attend(arena, layout)))

    def _step_of_several(
        self,
        tokens: list[int],
        positions: list[int],
        parts: Sequence[Part],
        before: Sequence[Sequence[int]],
        arena: KVArena,
    ) -> Tensor:
        """(rows, vocabulary) where some rows are fed other tokens before their newest one."""
        ids = [token for newest, part in zip(tokens, before, strict=True) for token in (*part, newest)]
        places = [
            place
            for newest, part in zip(positions, before, strict=True)
            for place in range(newest - len(part), newest + 1)
        ]
        fed = uploaded(torch.tensor([ids, places]), self._device)
        layout = packed(parts, self._device)
        hidden, turned = self._text.embed(fed[0]), self._text.rotary(fed[1].expand(3, -1))
        hidden = self._text.forward(hidden, turned, self._attend(arena, layout))
        return self._text.logits(hidden[layout.lengths.ends[1:] - 1])

    def _attend(self, arena: KVArena, layout: Packed) -> Attend:
        """Write keys and values where they belong, then read those of each sequence."""

        def attend(layer: int, query: Tensor, keys_values: Tensor) -> Tensor:
            arena.write(layer, layout.columns, keys_values)
            seen = arena.keys(layer), arena.values(layer)
            mixed = self._kernel(query, *seen, layout.lengths, scale=self._scale, is_causal=True)
            return mixed.flatten(1)

        return attend
