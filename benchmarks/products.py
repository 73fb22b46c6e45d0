"""All matrix products of a decode step on the CPU: torch's own `linear` against the layouts that the worker measures.

python -m benchmarks.products [--threads 2] [--rounds 9] [--dtype float32] [--save]

Milliseconds of all products of a model of 256 million parameters, one after the other, by the number of rows: by
torch's `linear` (float32: MKL), as the weights lie in the file, and packed in each layout that this processor has for
the dtype. The weights are numbers of bfloat16, as published ones are. The layouts take turns. To 3 rows zeros are
added.
"""

import argparse
from collections.abc import Callable
from itertools import chain

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.report import environment, in_turns, save, table_of
from worker.checkpoint.weights import DTYPES
from worker.models.native.linear import Linear
from worker.models.native.packing import LAYOUTS, is_right

LAYER, LAYERS, HEAD = ((2048, 1024), (1024, 1024), (6144, 1024), (1024, 3072)), 14, (32_768, 1024)
ROWS = (1, 2, 3, 4, 8, 16, 32, 64, 128, 512)
Step = list[tuple[int, Callable[[Tensor], Tensor]]]  # the width and the product of each weight


def steps(dtype: torch.dtype) -> dict[str, Step]:
    """By the name of the layout."""
    shapes = [*chain.from_iterable([LAYER] * LAYERS), HEAD]
    weights = [(torch.randn(shape) * 0.02).bfloat16().to(dtype) for shape in shapes]
    found: dict[str, Step] = {
        "`linear`": [(weight.shape[1], _usual(weight)) for weight in weights],
        "as it lies": [(weight.shape[1], Linear(weight)) for weight in weights],
    }
    for layout in (layout for layout in LAYOUTS if is_right(layout, dtype)):
        name = layout.__name__.removeprefix("in_").replace("_", " ").replace("onednns", "oneDNN's")
        found[name] = [(weight.shape[1], layout(weight, None)) for weight in weights]
    return found


def _usual(weight: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: functional.linear(x, weight)


def ways(found: dict[str, Step], rows: int, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """A whole step of so many rows in each layout."""
    fed = {width: torch.randn(rows, width).to(dtype) for width in (1024, 3072)}

    def way(step: Step) -> Callable[[], object]:
        return lambda: [product(fed[width]) for width, product in step]

    return {name: way(step) for name, step in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--save", action="store_true", help="write JSON and the table into benchmarks/results/")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype = DTYPES[options.dtype]
    with torch.inference_mode():
        found = steps(dtype)
        rows = {count: in_turns(ways(found, count, dtype), options.rounds) for count in ROWS}
    table = table_of("rows", rows)
    print(table)
    if options.save:
        command = f"python -m benchmarks.products --threads {options.threads} --dtype {options.dtype}"
        save(f"products-cpu-{options.dtype}", environment(command, threads=options.threads, milliseconds=rows), table)


if __name__ == "__main__":
    main()
