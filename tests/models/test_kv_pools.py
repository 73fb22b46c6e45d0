"""Rows of keys and values: pools by length, rows that move, memory that is let go."""

import gc
import random
import weakref
from typing import Any

import pytest
import torch

from worker.models.kv_pools import KVPools, grouped
from worker.models.kv_widths import Wanted, rows_for, width_for
from worker.models.native.layers import NativePrefillCache

CPU = torch.device("cpu")
LAYERS, KV_HEADS, DIM = 2, 2, 4
BYTES_PER_TOKEN = 2 * LAYERS * KV_HEADS * DIM * 4


def filled(length: int, value: float) -> NativePrefillCache:
    cache = NativePrefillCache(LAYERS, length)
    for layer in range(LAYERS):
        shape = (1, KV_HEADS, length, DIM)
        cache.update(torch.full(shape, value), torch.full(shape, value), layer)
    return cache


def empty() -> KVPools:
    return KVPools(LAYERS, BYTES_PER_TOKEN, CPU, torch.float32, lambda count: NativePrefillCache(LAYERS, count))


def step(cache: KVPools, values: list[float]) -> list[float]:
    """One decode step in which each row writes its value; the mean of all values that each row sees."""
    cache.begin_step()
    fresh = torch.tensor(values).view(-1, 1, 1, 1).expand(-1, KV_HEADS, 1, DIM)
    for layer in range(LAYERS):
        cache.write(layer, fresh, fresh)
        seen = cache.attend(layer, torch.zeros(len(values), 4, 1, DIM), 1.0)  # queries of zero weigh all alike
    cache.end_step()
    assert seen.shape == (len(values), 1, 4, DIM)
    return [float(value) for value in seen[:, 0, 0, 0]]


def test_each_row_sees_its_own_tokens_only() -> None:
    cache = empty()
    cache.join(filled(3, 1.0), 3, 10)
    cache.join(filled(1, 2.0), 1, 10)
    assert step(cache, [5.0, 4.0]) == [2.0, 3.0]


def test_rows_of_different_widths_share_a_step() -> None:
    cache, places = empty(), []
    for value, most in ((1.0, 2000), (2.0, 100), (3.0, 2000), (4.0, 300)):
        places.append(cache.join(filled(2, value), 2, most))
    assert places == [0, 1, 1, 3]
    assert step(cache, [4.0, 6.0, 5.0, 7.0]) == [2.0, 4.0, 3.0, 5.0]


def test_rows_fed_several_tokens_see_what_came_before_each() -> None:
    """A row of three tokens is fed two before its newest, another of the same pool none, one of another pool one."""
    cache = empty()
    for value, length, most in ((1.0, 3, 10), (2.0, 1, 10), (4.0, 2, 2000)):
        cache.join(filled(length, value), length, most)
    cache.lay_out_after([2, 0, 1])
    newest, before = torch.tensor([7.0, 4.0, 5.0]), torch.tensor([3.0, 5.0, 1.0])
    for layer in range(LAYERS):
        fresh = before.view(-1, 1, 1).expand(-1, KV_HEADS, DIM)
        cache.write_before(layer, fresh, fresh)
        fresh = newest.view(-1, 1, 1, 1).expand(-1, KV_HEADS, 1, DIM)
        cache.write(layer, fresh, fresh)
        seen = cache.attend(layer, torch.zeros(3, 4, 1, DIM), 1.0)[:, 0, 0, 0]
        earlier = cache.attend_before(layer, torch.zeros(3, 4, DIM), 1.0)[:, 0, 0]
    cache.end_step()
    torch.testing.assert_close(seen, torch.tensor([18 / 6, 3.0, 14 / 4]))
    torch.testing.assert_close(earlier, torch.tensor([6 / 4, 11 / 5, 9 / 3]))
    assert cache.lengths == [6, 2, 4]
    assert step(cache, [3.0, 0.0, 1.0]) == pytest.approx([3.0, 2.0, 3.0])


@pytest.mark.parametrize("seed", range(5))
def test_whatever_joins_and_leaves_each_row_keeps_its_own_tokens(seed: int) -> None:
    """Against a plain list for each row."""
    rng = random.Random(seed)
    cache, rows = empty(), []
    for count in range(120):
        if rows and rng.random() < 0.45:
            row = rng.randrange(len(rows))
            moved = rows.pop(gone := cache.leave(row))
            if gone != row:
                rows[row] = moved
        else:
            length, value = rng.randint(1, 5), float(count)
            row = cache.join(filled(length, value), length, rng.choice((8, 300, 500, 1000)))
            rows.insert(row, [value] * length)
        if rows:
            values = [float(rng.randint(0, 50)) for _ in rows]
            for row, value in zip(rows, values, strict=True):
                row.append(value)
            assert step(cache, values) == pytest.approx([sum(row) / len(row) for row in rows])
    for _ in range(len(rows)):
        cache.leave(0)
    assert cache.num_bytes == 0


def test_memory_is_known_before_a_row_joins_and_goes_when_the_last_leaves() -> None:
    cache = empty()
    rng = random.Random(0)
    for _ in range(30):
        most = rng.choice((100, 300, 700, 5000))
        expected = cache.bytes_with([Wanted(2, most)])
        cache.join(filled(2, 1.0), 2, most)
        assert cache.num_bytes == expected - 2 * BYTES_PER_TOKEN == cache.bytes_with([])
    while cache.num_live:
        cache.leave(rng.randrange(cache.num_live))
    assert cache.num_bytes == 0
    assert cache.bytes_with([]) == 0


@pytest.mark.parametrize("tokens", [1, 256, 257, 384, 385, 512, 513, 4097, 100_000])
def test_a_width_holds_the_tokens_and_wastes_less_than_half(tokens: int) -> None:
    width = width_for(tokens)
    assert tokens <= width
    assert width == 256 or width < 1.51 * tokens
    assert width_for(width) == width


@pytest.mark.parametrize("count", range(1, 40))
def test_rows_are_enough_and_not_many_too_many(count: int) -> None:
    assert count <= rows_for(count) < count + 8


def test_grouped_attention_is_the_library_s() -> None:
    torch.manual_seed(0)
    query, keys, values = torch.randn(3, 6, 1, 8), torch.randn(3, 2, 9, 8), torch.randn(3, 2, 9, 8)
    mask = torch.zeros(3, 1, 1, 9).masked_fill(torch.arange(9) > torch.tensor([[[[3]]], [[[8]]], [[[0]]]]), -1e30)
    repeated = (part.repeat_interleave(3, dim=1) for part in (keys, values))
    expected = torch.nn.functional.scaled_dot_product_attention(query, *repeated, attn_mask=mask, scale=0.3)
    torch.testing.assert_close(grouped(query, keys, values, mask, 0.3), expected.transpose(1, 2))


def test_what_is_no_number_does_not_stay_in_a_row() -> None:
    cache = empty()
    cache.join(filled(6, 1.0), 6, 10)
    cache.join(filled(5, torch.nan), 5, 10)
    cache.leave(1)
    cache.join(filled(1, 2.0), 1, 10)
    assert step(cache, [8.0, 4.0]) == [2.0, 3.0]


def test_what_is_no_number_does_not_stay_in_a_row_that_another_moves_to() -> None:
    cache = empty()
    cache.join(filled(6, torch.nan), 6, 10)
    cache.join(filled(9, 1.0), 9, 12)
    cache.join(filled(1, 2.0), 1, 10)
    cache.leave(0)
    assert step(cache, [4.0, 11.0]) == [3.0, 2.0]


def test_the_memory_of_a_pool_that_went_is_held_by_nobody() -> None:
    cache = empty()
    cache.join(filled(3, 1.0), 3, 100)
    step(cache, [2.0])
    store = weakref.ref(cache.pools[256].keys[0])
    cache.begin_step()
    cache.leave(0)
    cache.expect([2000])
    gc.collect()
    assert store() is None
    assert cache.num_bytes == 0


class Numbers:
    """States of one number a row. fails: there is no memory."""

    def __init__(self) -> None:
        self.rows: list[float] = []
        self.room = 0
        self.fails = False

    def make_room(self, rows: int, filled: Any) -> None:
        if self.fails:
            raise torch.OutOfMemoryError
        self.room = max(self.room, rows)

    def join(self, row: int, rows: int, filled: Any) -> None:
        assert rows == len(self.rows) < self.room
        self.rows.insert(row, filled)

    def leave(self, row: int, gone: int, rows: int) -> None:
        self.rows[row] = self.rows[gone]
        self.rows.pop(gone)

    def show(self, rows: int) -> None:
        assert rows == len(self.rows)

    def clear(self) -> None:
        self.rows = []


class Prefilled:
    def __init__(self, value: float) -> None:
        self.layers = [value, value]


def test_without_memory_in_one_layer_no_layer_has_the_row() -> None:
    first, second = Numbers(), Numbers()
    cache = KVPools(2, BYTES_PER_TOKEN, CPU, torch.float32, lambda _: None, {0: first, 1: second})
    for value, most in ((1.0, 100), (2.0, 2000)):
        cache.join(Prefilled(value), 3, most)
    second.fails = True
    with pytest.raises(torch.OutOfMemoryError):
        cache.join(Prefilled(9.0), 3, 100)
    assert cache.num_live == 2
    assert first.rows == second.rows == [1.0, 2.0]
    second.fails = False
    assert cache.join(Prefilled(3.0), 3, 100) == 1
    assert first.rows == second.rows == [1.0, 3.0, 2.0]
    assert cache.leave(0) == 1
    assert first.rows == second.rows == [3.0, 2.0]
