"""Keys and values in slots against pages: milliseconds of a step's attention, and memory held.

python -m benchmarks.kv_layout [--threads 2] [--save]

The attention of one layer, 16 query heads and 8 of keys, 128 numbers each, float32. Slots are the worker's: pools by
length, a step's attention reads slices. Pages hold 16 tokens each, wherever; without a kernel that follows a table, a
step gathers them first. Memory is for answers as long as they may become in slots, and as long as they are in pages.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.report import environment, save
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
    cache = KVPools(1, 2 * KV_HEADS * DIM * 4, CPU, torch.float32)
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
    lines = ["| rows and tokens | slots, ms | pages, ms | slots, MiB | pages, MiB |", "|---|---|---|---|---|"]
    found = {}
    with torch.inference_mode():
        for name, (rows, (least, most), more) in WORKS.items():
            lengths = [random.Random(f"{name}{row}").randint(least, most) for row in range(rows)]
            (slot_ms, slot_bytes), (page_ms, page_bytes) = slots(lengths, more), pages(lengths)
            found[name] = {"slots_ms": slot_ms, "pages_ms": page_ms, "slots_b": slot_bytes, "pages_b": page_bytes}
            cells = f"{slot_ms:.2f} | {page_ms:.2f} | {slot_bytes / 2**20:.1f} | {page_bytes / 2**20:.1f}"
            lines.append(f"| {name} | {cells} |")
    shown = "\n".join(lines)
    print(shown)
    if options.save:
        save("kv-layout-cpu", environment("python -m benchmarks.kv_layout", threads=options.threads, rows=found), shown)


if __name__ == "__main__":
    main()
