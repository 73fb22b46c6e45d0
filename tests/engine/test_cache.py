"""Rows of keys and values: they grow, move together, and are let go."""

import torch
from transformers.cache_utils import DynamicCache

from worker.engine.cache import WIDTH_STEP, SlotCache

CPU = torch.device("cpu")


def filled(length: int, value: float) -> DynamicCache:
    cache = DynamicCache()
    for layer in range(2):
        cache.update(torch.full((1, 2, length, 4), value), torch.full((1, 2, length, 4), -value), layer)
    return cache


def step(cache: SlotCache, values: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """One decode step in which each row writes its value; what layer 1 attends to, and the mask."""
    mask = cache.begin_step(torch.float32)
    fresh = torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 2, 1, 4)
    for layer in range(2):
        keys, _ = cache.model_view.update(fresh, -fresh, layer)
    cache.end_step()
    return keys, mask


def seen(keys: torch.Tensor, mask: torch.Tensor) -> list[list[float]]:
    """For each row the keys that the mask lets it see."""
    return [
        [float(keys[row, 0, column, 0]) for column in range(keys.shape[2]) if mask[row, 0, 0, column] == 0]
        for row in range(len(keys))
    ]


def test_each_row_sees_its_own_tokens_only() -> None:
    cache = SlotCache(2, 4, CPU)
    cache.join(filled(3, 1.0), 3)
    cache.join(filled(1, 2.0), 1)
    assert seen(*step(cache, [1.5, 2.5])) == [[1, 1, 1, 1.5], [2, 2.5]]


def test_a_row_that_leaves_is_replaced_by_the_last() -> None:
    cache = SlotCache(2, 4, CPU)
    for value, length in ((1.0, 2), (2.0, 3), (3.0, 1)):
        cache.join(filled(length, value), length)
    cache.leave(0)
    assert seen(*step(cache, [3.5, 2.5])) == [[3, 3.5], [2, 2, 2, 2.5]]
    cache.leave(1)
    cache.join(filled(2, 4.0), 2)
    assert seen(*step(cache, [3.75, 4.5])) == [[3, 3.5, 3.75], [4, 4, 4.5]]


def test_rows_grow_in_number_and_in_width() -> None:
    cache = SlotCache(2, 9, CPU)
    for value in range(9):
        cache.join(filled(WIDTH_STEP - 1, float(value)), WIDTH_STEP - 1)
    for _ in range(3):
        keys, mask = step(cache, [0.5] * 9)
    assert [row[0] for row in seen(keys, mask)] == [float(value) for value in range(9)]
    assert keys.shape[2] == WIDTH_STEP + 2


def test_a_full_cache_does_not_grow_by_decoding() -> None:
    cache = SlotCache(2, 4, CPU)
    for value in range(4):
        cache.join(filled(2, float(value)), 2)
    before = cache.num_bytes
    step(cache, [0.5] * 4)
    assert cache.num_bytes == before


def test_the_memory_is_let_go_with_the_last_row() -> None:
    cache = SlotCache(2, 4, CPU)
    cache.join(filled(2, 1.0), 2)
    assert cache.num_bytes > 0
    cache.leave(0)
    assert cache.num_bytes == 0
    cache.join(filled(2, 5.0), 2)
    assert seen(*step(cache, [5.5])) == [[5, 5, 5.5]]
