"""A layer's matrix products on the CPU in float32: torch's own `linear` (MKL) against the model code's (oneDNN).

python -m benchmarks.products [--threads 2] [--save]

Milliseconds of one product by its number of rows, for the shapes of a small model. The weights of several layers take
turns, so that none is found in the processor's cache, as in a model. Both take the weight as it lies in the file; to
5, 17 and 100 rows ours adds zeros.
"""

import argparse
from collections.abc import Callable
from itertools import cycle

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.kv_layout import milliseconds
from benchmarks.report import environment, save
from worker.models.native.linear import Linear

SHAPES = {"q, k, v": (4096, 1024), "gate, up": (6144, 1024), "down": (1024, 3072), "head": (32000, 1024)}
ROWS = (1, 2, 4, 5, 8, 16, 17, 32, 96, 100, 512)
NUM_BYTES = 256 * 2**20  # of weights that take turns


def measure(out: int, into: int, rows: int) -> tuple[float, float]:
    """Milliseconds by `linear`, and by ours."""
    weights = [torch.randn(out, into) for _ in range(max(2, NUM_BYTES // (4 * out * into)))]
    x = torch.randn(rows, into)

    def by(products: list[Callable[[], Tensor]]) -> float:
        turn = cycle(products)
        return milliseconds(lambda: next(turn)())

    def usual(weight: Tensor) -> Callable[[], Tensor]:
        return lambda: functional.linear(x, weight)

    def ours(weight: Tensor) -> Callable[[], Tensor]:
        affine = Linear(weight)
        return lambda: affine(x)

    return by([usual(weight) for weight in weights]), by([ours(weight) for weight in weights])


def table(rows: list[dict[str, float | str]]) -> str:
    lines = ["| product | rows | `linear`, ms | ours, ms | as fast |", "|---|---|---|---|---|"]
    for row in rows:
        usual, ours = float(row["usual_ms"]), float(row["ours_ms"])
        lines.append(f"| {row['product']} | {row['rows']} | {usual:.2f} | {ours:.2f} | {usual / ours:.1f}x |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save", action="store_true", help="write JSON and the table into benchmarks/results/")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, float | str]] = []
    with torch.inference_mode():
        for product, (out, into) in SHAPES.items():
            for count in ROWS:
                usual, ours = measure(out, into, count)
                rows.append({"product": product, "rows": count, "usual_ms": usual, "ours_ms": ours})
    print(table(rows))
    if options.save:
        command = f"python -m benchmarks.products --threads {options.threads}"
        save("products-cpu", environment(command, threads=options.threads, rows=rows), table(rows))


if __name__ == "__main__":
    main()
