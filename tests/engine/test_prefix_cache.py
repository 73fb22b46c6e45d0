"""Beginnings that prompts share: found by the hashes of blocks, kept once, forgotten from their ends."""

import random
from typing import Any

import pytest
import torch

from worker.engine.prefix_cache import SHORTEST_PREFIX, PrefixCache
from worker.models.native.layers import NativePrefillCache
from worker.prompt.types import BLOCK, Prompt

LAYERS = 2
BYTES = 2 * LAYERS * 4  # of a token: one number as key and one as value, in each layer
NOTHING = torch.empty(0, dtype=torch.long)


def prompt(tokens: list[int], scope: bytes = b"a") -> Prompt:
    fingerprint = torch.tensor(tokens)
    return Prompt(tuple(tokens), NOTHING.expand(3, 0), 0, (), NOTHING, NOTHING, fingerprint, scope=scope)


def computed(asked: Prompt, length: int | None = None) -> NativePrefillCache:
    """Keys and values that depend on all tokens before."""
    length = len(asked.ids) if length is None else length
    cache = NativePrefillCache(LAYERS, length)
    numbers = torch.tensor(asked.ids[:length], dtype=torch.float).cumsum(0).view(1, 1, -1, 1)
    for layer in range(LAYERS):
        cache.update(numbers + layer, numbers * 2 + layer, layer)
    return cache


def found(prefixes: PrefixCache, asked: Prompt) -> int:
    """How much is known; what comes out of the cache is what would be computed."""
    cache = NativePrefillCache(LAYERS, len(asked.ids))
    known = prefixes.known(asked)
    length = prefixes.fill(asked, cache)
    assert known == length
    assert cache.length == length
    if length:
        for ours, right in zip(cache.layers, computed(asked, length).layers, strict=True):
            assert ours.keys is not None and right.keys is not None
            assert torch.equal(ours.keys, right.keys)
            assert torch.equal(ours.values, right.values)  # type: ignore[arg-type]
    return length


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (range(100), range(100), 99),  # the last token is always computed
        (range(96), range(96), 95),
        (range(100), range(120), 100),
        (range(120), range(100), 99),
        (range(100), [*range(50), *range(900, 950)], 50),  # to the token, not to the block
        (range(100), [*range(48), *range(900, 950)], 48),
        (range(100), [*range(SHORTEST_PREFIX - 1), *range(900, 950)], 0),
        (range(100), [*range(SHORTEST_PREFIX), 900, 901], SHORTEST_PREFIX),
        (range(20), range(20), 0),
        (range(100), range(1, 101), 0),
    ],
)
def test_the_longest_common_beginning_is_found(first: Any, second: Any, expected: int) -> None:
    prefixes = PrefixCache(2**20)
    prefixes.keep(prompt(list(first)), computed(prompt(list(first))))
    assert found(prefixes, prompt(list(second))) == expected
    assert prefixes.num_hits == (expected > 0)


def test_nothing_is_found_in_another_scope() -> None:
    prefixes = PrefixCache(2**20)
    asked = prompt(list(range(100)))
    prefixes.keep(asked, computed(asked))
    assert found(prefixes, prompt(list(range(100)), b"b")) == 0
    assert asked.shared_blocks(prompt(list(range(100)), b"b")) == 0
    assert asked.shared_blocks(prompt([*range(40), 7])) == 40 // BLOCK
    other = prompt(list(range(100)), b"b")
    prefixes.keep(other, computed(other))
    assert prefixes.num_bytes == 2 * 100 * BYTES


def test_what_a_conversation_has_in_common_is_kept_once() -> None:
    prefixes = PrefixCache(2**20)
    turns = [prompt(list(range(length))) for length in (64, 128, 200, 264)]
    for turn in turns:
        found(prefixes, turn)
        prefixes.keep(turn, computed(turn))
    assert prefixes.num_bytes == (200 // BLOCK * BLOCK + (264 - 200 // BLOCK * BLOCK) + 200 % BLOCK) * BYTES
    assert found(prefixes, prompt([*range(264), 5])) == 264
    prefixes.keep(turns[0], computed(turns[0]))
    prefixes.keep(turns[-1], computed(turns[-1]))
    assert prefixes.num_bytes == (264 + 200 % BLOCK) * BYTES


def test_the_end_that_was_not_used_for_longest_is_forgotten_first() -> None:
    prefixes = PrefixCache(200 * BYTES)
    system = list(range(96))
    branches = [prompt([*system, *range(1000 * n, 1000 * n + 32)]) for n in (1, 2, 3)]
    for branch in branches:
        prefixes.keep(branch, computed(branch))
    assert prefixes.num_bytes == (128 + 32 + 32) * BYTES
    assert found(prefixes, branches[0]) == 127
    fourth = prompt([*system, *range(4000, 4032)])
    prefixes.keep(fourth, computed(fourth))  # the second goes, and what all lie behind stays
    assert [found(prefixes, branch) for branch in (*branches, fourth)] == [127, 96, 127, 127]
    assert prefixes.num_bytes <= 200 * BYTES
    whole = prompt(list(range(5000, 5190)))
    prefixes.keep(whole, computed(whole))
    assert [found(prefixes, branch) for branch in (*branches, fourth, whole)] == [0, 0, 0, 0, 189]
    assert prefixes.num_bytes == 190 * BYTES


def test_what_is_larger_than_all_of_it_is_not_kept() -> None:
    prefixes = PrefixCache(100 * BYTES)
    short, long = prompt(list(range(64))), prompt(list(range(128)))
    prefixes.keep(short, computed(short))
    prefixes.keep(long, computed(long))
    assert (found(prefixes, short), found(prefixes, long)) == (63, 64)
    assert prefixes.num_bytes == 64 * BYTES
    prefixes.clear()
    assert (found(prefixes, short), prefixes.num_bytes) == (0, 0)


def test_the_memory_of_what_is_kept_is_its_own() -> None:
    """A part of a prefill does not hold the whole of it."""
    prefixes = PrefixCache(2**20)
    first, second = prompt(list(range(64))), prompt(list(range(960)))
    for asked in (first, second):
        prefixes.keep(asked, computed(asked))
    held = {id(part.untyped_storage()): part.untyped_storage().nbytes() for run in prefixes._runs.values()
            for pair in run.layers for part in pair}  # fmt: skip
    assert sum(held.values()) == prefixes.num_bytes == 960 * BYTES


@pytest.mark.parametrize("seed", range(5))
def test_it_finds_what_a_search_through_all_that_is_kept_would_find(seed: int) -> None:
    rng = random.Random(seed)
    prefixes = PrefixCache(1500 * BYTES)
    kept: list[list[int]] = []
    for _ in range(200):
        tokens = list(rng.choice(kept)) if kept and rng.random() < 0.7 else []
        tokens = tokens[: rng.randint(0, len(tokens))] + [rng.randrange(3) for _ in range(rng.randint(1, 120))]
        asked = prompt(tokens)
        length = found(prefixes, asked)
        common = max((next((n for n, (a, b) in enumerate(zip(tokens, other, strict=False)) if a != b),
                           min(len(tokens), len(other))) for other in kept), default=0)  # fmt: skip
        assert length <= common
        prefixes.keep(asked, computed(asked))
        kept.append(tokens)
        assert prefixes.num_bytes == sum(run.num_bytes for run in prefixes._runs.values()) <= 1500 * BYTES
        assert set(prefixes._by_hash) == {known for run in prefixes._runs.values() for known in run.hashes}
        assert all(run.parent is None or id(run.parent) in prefixes._runs for run in prefixes._runs.values())
