"""Keys and values in slots, in an arena and in pages: milliseconds of a step's attention, and memory held.

python -m benchmarks.kv_layout [--threads 2] [--save]

The attention of one layer, 16 query heads and 8 of keys, 128 numbers each, float32. Slots are the worker's: pools by
length, a step's attention reads slices. The arena is what it has on a GPU, where one kernel is told where each row
lies; without that kernel, as here, each row is attended to by itself. Pages hold 16 tokens each, wherever; without a
kernel that follows a table, a step gathers them first. Memory is for answers as long as they may become in slots, with
some tokens to come in the arena, and as long as they are in pages.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional

from benchmarks.report import environment, save
from worker.models.kv_arena import ArenaShape, KVArena, packed
from worker.models.kv_pools import KVPools, grouped
from worker.models.native.layers import NativePrefillCache

HEADS, KV_HEADS, DIM, PAGE = 16, 8, 128, 16
CPU = torch.device("cpu")
WORKS = {  # rows, tokens now (from, to), tokens that the longest answer may still add
    "16 rows of 512": (16, (512, 512), 64),
    "16 rows of 64 to 2,048": (16, (64, 2048), 256),
    "1 row of 4,096": (1, (4096, 4096), 256),
    "32 rows of 128": (32, (128, 128), 128),
}


def milliseconds(work: Callable[[], object], times: int = 30) -> float:
    took = []
    for index in range(times + 3):
        begin = time.perf_counter()
        work()
        took += [time.perf_counter() - begin] if index >= 3 else []
    return 1000 * statistics.median(took)


def slots(lengths: list[int], more: int) -> tuple[float, int]:
    """Milliseconds of a step, bytes held."""
    cache = KVPools(1, 2 * KV_HEADS * DIM * 4, CPU, torch.float32, lambda count: NativePrefillCache(1, count))
    for length in lengths:
        filled = NativePrefillCache(1, length)
        filled.update(torch.randn(1, KV_HEADS, length, DIM), torch.randn(1, KV_HEADS, length, DIM), 0)
        cache.join(filled, length, length + more)
    query, fresh = torch.randn(len(lengths), HEADS, 1, DIM), torch.randn(len(lengths), KV_HEADS, 1, DIM)

    def step() -> None:
        cache.begin_step()
        cache.write(0, fresh, fresh)
        cache.attend(0, query, DIM**-0.5)

    return milliseconds(step), cache.num_bytes


def arena(lengths: list[int], more: int) -> tuple[float, int]:
    """The same in an arena, row by row."""
    shape = ArenaShape(1, KV_HEADS, DIM, torch.float32)
    cache = KVArena(shape, (sum(lengths) + len(lengths) * 2 * more + 4096) * shape.bytes_per_token, CPU)
    for length in lengths:
        cache.join(cache.prefill_cache(length, length + more), length, length + more)
    cache.store.normal_()
    query = torch.randn(len(lengths), HEADS, DIM)
    fresh = torch.randn(len(lengths), 2, KV_HEADS, DIM)

    def step() -> None:
        layout = packed(cache.parts([1] * len(lengths)), CPU)
        cache.write(0, layout.columns, fresh)
        keys, values = cache.keys(0), cache.values(0)
        assert layout.lengths.used is not None
        starts, used_tokens = layout.lengths.starts.tolist(), layout.lengths.used.tolist()
        mixed = []
        for row, (start, used) in enumerate(zip(starts, used_tokens, strict=False)):
            block = query[row].view(1, KV_HEADS, HEADS // KV_HEADS, DIM)
            known, said = (part[start : start + used].transpose(0, 1)[None] for part in (keys, values))
            mixed.append(functional.scaled_dot_product_attention(block, known, said))
        torch.cat(mixed)

    return milliseconds(step), cache.num_bytes


def pages(lengths: list[int]) -> tuple[float, int]:
    """The same with pages gathered for each step."""
    counts = [-(-(length + 1) // PAGE) for length in lengths]
    store = [torch.randn(sum(counts), KV_HEADS, PAGE, DIM) for _ in range(2)]
    free = list(range(sum(counts)))
    random.Random(1).shuffle(free)
    table = torch.zeros(len(lengths), max(counts), dtype=torch.long)
    for row, count in enumerate(counts):
        table[row, :count] = torch.tensor([free.pop() for _ in range(count)])
    at = torch.tensor(lengths)
    rows = torch.arange(len(lengths))
    hidden = torch.arange(max(counts) * PAGE)[None] > at[:, None]
    mask = torch.zeros(hidden.shape).masked_fill_(hidden, torch.finfo(torch.float32).min)[:, None, None]
    query, fresh = torch.randn(len(lengths), HEADS, 1, DIM), torch.randn(len(lengths), KV_HEADS, DIM)

    def step() -> None:
        seen = []
        for one in store:
            one[table[rows, at // PAGE], :, at % PAGE] = fresh
            gathered = one[table.flatten()].view(len(lengths), -1, KV_HEADS, PAGE, DIM)
            seen.append(gathered.transpose(1, 2).flatten(2, 3))
        grouped(query, seen[0], seen[1], mask, DIM**-0.5)

    return milliseconds(step), sum(one.nbytes for one in store)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    heads = ("rows and tokens", *(f"{way}, {of}" for of in ("ms", "MiB") for way in ("slots", "arena", "pages")))
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    found = {}
    with torch.inference_mode():
        for name, (rows, (least, most), more) in WORKS.items():
            lengths = [random.Random(f"{name}{row}").randint(least, most) for row in range(rows)]
            ways = {"slots": slots(lengths, more), "arena": arena(lengths, more), "pages": pages(lengths)}
            found[name] = {way: {"ms": took, "bytes": held} for way, (took, held) in ways.items()}
            cells = [f"{took:.2f}" for took, _ in ways.values()] + [f"{held / 2**20:.1f}" for _, held in ways.values()]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    shown = "\n".join(lines)
    print(shown)
    if options.save:
        save("kv-layout-cpu", environment("python -m benchmarks.kv_layout", threads=options.threads, rows=found), shown)


if __name__ == "__main__":
    main()
