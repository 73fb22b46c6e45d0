"""One range of tokens: places that grow, move and close gaps; what each sequence reads is its own."""

import gc
import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from worker.models.kv_arena import ArenaShape, KVArena, packed
from worker.models.kv_cache import NoRoom
from worker.models.kv_places import Move, Place, Places
from worker.models.kv_widths import ARENA, HEADROOM, UNIT, Wanted, rounded
from worker.models.varlen import TEXT_MODES, TOWER_MODES, is_right, plain

CPU = torch.device("cpu")
SHAPE = ArenaShape(layers=2, kv_heads=2, head_dim=4, dtype=torch.float32)


def arena(tokens: int) -> KVArena:
    return KVArena(SHAPE, tokens * SHAPE.bytes_per_token, CPU)


def joined(cache: KVArena, length: int, value: float, most: int) -> int:
    """A row whose keys and values are all one number."""
    prompt = cache.prefill_cache(length, most)
    for layer in range(SHAPE.layers):
        fresh = torch.full((1, SHAPE.kv_heads, length, SHAPE.head_dim), value + layer)
        prompt.update(fresh, fresh, layer)
    return cache.join(prompt, length, most)


def step(cache: KVArena, counts: list[int], values: list[float]) -> list[float]:
    """One step in which each row is fed so many tokens of its value; the mean of what the last of each sees."""
    layout = packed(cache.parts(counts), CPU)
    fresh = torch.cat([torch.full((count,), value) for count, value in zip(counts, values, strict=True)])
    seen = torch.empty(0)
    for layer in range(SHAPE.layers):
        both = (fresh + layer)[:, None, None, None].expand(-1, 2, SHAPE.kv_heads, SHAPE.head_dim)
        cache.write(layer, layout.columns, both)
        query = torch.zeros(len(fresh), 4, SHAPE.head_dim)  # weighs all alike
        seen = plain(query, cache.keys(layer), cache.values(layer), layout.lengths, scale=1.0, is_causal=True)
        seen = seen[layout.lengths.ends[1:].long() - 1, 0, 0] - layer
    cache.end_step()
    return [float(value) for value in seen]


@pytest.mark.parametrize("seed", range(6))
def test_whatever_joins_leaves_grows_and_moves_each_row_keeps_its_own_tokens(seed: int) -> None:
    """Against a plain list for each row, in an arena that is too small for all of them to grow at once."""
    rng = random.Random(seed)
    cache, rows = arena(3000), []
    num_refused = 0
    for count in range(250):
        if rows and rng.random() < 0.3:
            row = rng.randrange(len(rows))
            moved = rows.pop(gone := cache.leave(row))
            if gone != row:
                rows[row] = moved
        else:
            length = rng.randint(1, 400)
            try:
                row = joined(cache, length, float(count), length + rng.choice((1, 100, 2000)))
                rows.insert(row, [float(count)] * length)
            except NoRoom:
                num_refused += 1
        if not rows:
            continue
        counts = [rng.choice((1, 1, 1, 3, 200)) for _ in rows]
        while not cache.make_room(counts):
            rows.pop(cache.leave(len(rows) - 1))
            counts.pop()
            num_refused += 1
        if rows:
            values = [float(rng.randint(0, 50)) for _ in rows]
            for row, value, fed in zip(rows, values, counts, strict=True):
                row += [value] * fed
            assert step(cache, counts, values) == pytest.approx([sum(row) / len(row) for row in rows], rel=1e-4)
            assert cache.lengths == [len(row) for row in rows]
    assert num_refused > 5
    for _ in range(len(rows)):
        cache.leave(0)
    assert cache.num_bytes == 0
    assert cache.bytes_with([]) == UNIT * SHAPE.bytes_per_token


@pytest.mark.parametrize("seed", range(4))
def test_places_never_overlap_and_moves_keep_what_is_in_them(seed: int) -> None:
    rng = random.Random(seed)
    places, memory = Places(40 * UNIT), [0] * (40 * UNIT)
    taken: dict[int, Place] = {}

    def follow(moves: list[Move]) -> None:
        for move in moves:
            memory[move.target : move.target + move.size] = memory[move.source : move.source + move.size]

    for name in range(1, 400):
        if taken and rng.random() < 0.4:
            places.free(taken.pop(rng.choice(list(taken))))
        elif (place := places.take(rng.randint(1, 6 * UNIT))) is not None:
            taken[name] = place
            memory[place.start : place.end] = [name] * place.size
        if rng.random() < 0.2:
            follow(places.squeeze())
            if taken and places.num_free >= UNIT:
                grown = rng.choice(list(taken))
                follow(places.open_behind(taken[grown], taken[grown].size + UNIT))
                memory[taken[grown].end - UNIT : taken[grown].end] = [grown] * UNIT
        elif taken:
            grown = rng.choice(list(taken))
            end, wanted = taken[grown].end, taken[grown].size + rng.randint(1, 2 * UNIT)
            if places.grow(taken[grown], wanted):
                assert taken[grown].size == rounded(wanted)
                memory[end : taken[grown].end] = [grown] * (taken[grown].end - end)
        for name_of, place in taken.items():
            assert memory[place.start : place.end] == [name_of] * place.size
        assert places.num_free == places.num_tokens - sum(place.size for place in taken.values())
        assert all(place.end <= places.num_tokens for place in taken.values())


def test_nothing_is_reserved_for_tokens_that_are_never_made() -> None:
    """Four answers of up to 3,000 tokens in memory for 3,000: each has what it holds and some to come."""
    cache = arena(3000)
    for value in range(4):
        joined(cache, 100, float(value), 3000)
    assert cache.num_live == 4
    assert cache.num_bytes <= 4 * rounded(100 + HEADROOM) * SHAPE.bytes_per_token


def test_an_answer_never_has_more_than_it_may_become() -> None:
    cache = arena(16_384)
    joined(cache, 10_000, 1.0, 10_300)
    for _ in range(3):
        assert cache.make_room([100])
        step(cache, [100], [1.0])
    assert cache.num_bytes == rounded(10_300) * SHAPE.bytes_per_token


def test_moving_needs_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all memory is taken, pieces are still copied onto themselves."""
    cache = arena(1984)
    for value, length in ((1.0, 200), (2.0, 500), (3.0, 300)):
        joined(cache, length, value, length + 600)
    cache.leave(0)
    monkeypatch.setattr(torch.Tensor, "clone", lambda _: pytest.fail("memory for a copy"))
    where = [part.place.start for part in cache.parts([1, 1])]
    assert cache.make_room([500, 300])
    assert step(cache, [500, 300], [3.0, 2.0]) == pytest.approx([3.0, 2.0], rel=1e-4)
    assert [part.place.start for part in cache.parts([1, 1])] != where


def test_a_prompt_is_computed_where_its_answer_goes_on_and_other_answers_have_copies() -> None:
    cache = arena(4000)
    prompt = cache.prefill_cache(100, 500)
    where = prompt.place
    cache.join(prompt, 100, 500)
    cache.join(prompt, 100, 500)
    places = [part.place for part in cache.parts([1, 1])]
    assert places[0] is where
    assert places[1].start >= where.end


def test_the_place_of_a_prompt_that_nobody_has_any_more_is_free_again() -> None:
    cache = arena(600)
    prompt = cache.prefill_cache(500, 500)
    with pytest.raises(NoRoom):
        cache.prefill_cache(100, 100)
    del prompt
    gc.collect()
    assert cache.prefill_cache(500, 500).place.size == rounded(500)


def test_what_a_request_needs_alone_is_what_it_finds() -> None:
    for answers in (1, 3):
        tokens = ARENA.alone(700, 1000, answers)
        cache = arena(tokens)
        prompt = cache.prefill_cache(700, 1000)
        rows = [cache.join(prompt, 700, 1000) for _ in range(answers)]
        for _ in range(3):
            assert cache.make_room([100] * len(rows))
            step(cache, [100] * len(rows), [1.0] * len(rows))
        assert cache.lengths == [1000] * answers
        assert ARENA.max_positions(700, answers, tokens) >= 1000
        assert ARENA.at_once(1000, tokens) == answers


def test_memory_that_an_answer_wants_is_known_before_it_begins() -> None:
    cache = arena(5000)
    for now, most in ((10, 5000), (300, 310), (77, 90)):
        expected = cache.bytes_with([Wanted(now, most)])
        joined(cache, now, 1.0, most)
        assert cache.bytes_with([]) == expected


def test_the_plain_arithmetic_is_right_and_what_is_wrong_is_not(caplog: pytest.LogCaptureFixture) -> None:
    """A kernel that forgets one key, that has a mask of its own, that answers NaN, or that raises is not used."""

    def without_last(*of: Any, **rules: Any) -> torch.Tensor:
        *tensors, lengths = of
        used, starts = lengths.used, lengths.starts
        if used is not None:
            return plain(*tensors, replace(lengths, used=used - (used > 1).int()), **rules)
        ends_of_keys = starts - (torch.arange(len(starts)) == len(starts) - 1).int()
        return plain(*tensors, replace(lengths, starts=ends_of_keys), **rules)

    def not_causal(*of: Any, **rules: Any) -> torch.Tensor:
        return plain(*of, **(rules | {"is_causal": not rules["is_causal"]}))

    def nothing(query: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return torch.full_like(query, torch.nan)

    def refusing(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("head_size should be a multiple of 8\nand more")

    for modes in (TEXT_MODES, TOWER_MODES):
        assert is_right(plain, modes, 4, 2, 16, torch.float32, CPU)
        for kernel in (without_last, not_causal, nothing, refusing):
            caplog.clear()
            assert not is_right(kernel, modes, 4, 2, 16, torch.float32, CPU)  # type: ignore[arg-type]
            assert "attention by lengths is not used" in caplog.text
            assert "and more" not in caplog.text
