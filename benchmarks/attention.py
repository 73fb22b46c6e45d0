"""Attention on the CPU, one layer: what the model code does, beside torch's one kernel and plain products.

python -m benchmarks.attention [--threads 2] [--rounds 3] [--save]

Chunks of 1,024 tokens behind a past, steps of short answers, patches of one picture; float32, medians in milliseconds.
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.report import environment, in_turns, save, table_of
from worker.models.kv_pools import grouped
from worker.models.native.attention import Segments, causal_attention, causal_mask

HEADS, KV_HEADS, CHUNK, BLOCK = 16, 8, 1024, 512
Way = Callable[[], Tensor]


def in_blocks(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Plain products of (heads, tokens, dim), for a block of queries after the other; nothing is hidden."""
    parts = []
    for block in query.split(BLOCK, 1):  # type: ignore[no-untyped-call]
        parts.append(torch.matmul(torch.matmul(block, keys.transpose(1, 2)).softmax(-1), values))
    return torch.cat(parts, 1)


def chunk(past: int, dim: int) -> dict[str, Way]:
    query = torch.randn(HEADS, CHUNK, dim)
    keys, values = (torch.randn(KV_HEADS, past + CHUNK, dim) for _ in range(2))
    mask = torch.ones(CHUNK, past + CHUNK, dtype=torch.bool).tril(past)
    every = [part.repeat_interleave(HEADS // KV_HEADS, 0) for part in (keys, values)]
    attend = functional.scaled_dot_product_attention
    return {
        "ours": lambda: causal_attention(query, keys, values, dim**-0.5, causal_mask(CHUNK, past, query.device)),
        "torch's kernel": lambda: attend(query[None], keys[None], values[None], attn_mask=mask, enable_gqa=True),
        "plain products": lambda: in_blocks(query, *every),
    }


def step(rows: int, width: int, dim: int = 64) -> dict[str, Way]:
    query = torch.randn(rows, HEADS, 1, dim)
    keys, values = (torch.randn(rows, KV_HEADS, width, dim) for _ in range(2))
    mask = torch.zeros(rows, 1, 1, width)
    block = query.view(rows, KV_HEADS, HEADS // KV_HEADS, dim)
    attend = functional.scaled_dot_product_attention
    return {
        "ours": lambda: grouped(query, keys, values, mask, dim**-0.5),
        "torch's kernel": lambda: attend(block, keys, values, attn_mask=mask),
        "plain products": lambda: torch.matmul(
            torch.matmul(block, keys.transpose(2, 3)).add_(mask).softmax(-1), values
        ),
    }


def patches(count: int, dim: int = 72) -> dict[str, Way]:
    query, keys, values = (torch.randn(count, HEADS, dim) for _ in range(3))
    q, k, v = (part.transpose(0, 1) for part in (query, keys, values))
    return {
        "ours": lambda: Segments([count], query.device).attend(query, keys, values),
        "torch's kernel": lambda: functional.scaled_dot_product_attention(q[None], k[None], v[None]),
        "plain products": lambda: in_blocks(q, k, v),
    }


def work() -> dict[str, dict[str, Way]]:
    found = {
        f"chunk of {CHUNK} behind {past:,}, head size {dim}": chunk(past, dim)
        for dim in (64, 128)
        for past in (1024, 8192)
    }
    found |= {f"step of {rows} rows, {width} keys": step(rows, width) for rows in (1, 16) for width in (40, 256, 512)}
    return found | {f"{count:,} patches": patches(count) for count in (1024, 4096)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write JSON and the table into benchmarks/results/")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        rows = {name: in_turns(ways, options.rounds) for name, ways in work().items()}
    table = table_of("", rows)
    print(table)
    if options.save:
        command = f"python -m benchmarks.attention --threads {options.threads}"
        save("attention-cpu", environment(command, threads=options.threads, milliseconds=rows), table)


if __name__ == "__main__":
    main()
