"""What a decode step takes at least on a card: the bytes that it must read over the card's bandwidth, and its kernels.

python -m benchmarks.gpu_estimate

Arithmetic, nothing is run: the weights of the text model once, and keys and values of every token that lives, by the
bandwidth that the maker names; beside it, 1.5 µs for each kernel of a recorded step, as many as torch counts operations
(`tests/engine/test_cuda_fake.py`), and three more for attention. What a card does `python -m benchmarks.gpu` measures.
"""

import torch

from benchmarks.gpu_bench import GIB, table
from benchmarks.gpu_model import drawn

CARDS = {"H100": (3.35e12, 80), "H200": (4.8e12, 141), "RTX 4090": (1.008e12, 24)}  # bytes a second, GB
STEPS = (("2b", 1, 1024), ("4b", 8, 1024), ("8b", 1, 1024), ("8b", 1, 8192), ("8b", 32, 8192), ("8b", 64, 1024))
KERNELS_A_LAYER, KERNEL_MS, OVERHEAD_GIB = 18, 0.0015, 3


def main() -> None:
    rows: list[list[object]] = []
    for shape, count, context in STEPS:
        model = drawn(shape, torch.device("meta"))
        layers, per_token = model.runner.text.shape.layers, model.runner.bytes_per_token
        read = model.text_bytes + count * context * per_token
        cells: list[object] = []
        for bandwidth, memory in CARDS.values():
            if read + OVERHEAD_GIB * GIB > memory * 1e9:
                cells += ["no room", ""]
                continue
            floor = read / bandwidth * 1e3
            cells += [floor, floor + layers * KERNELS_A_LAYER * KERNEL_MS]
        rows.append([f"{shape.upper()}, {count} of {context:,}", read / 1e9, *cells])
    heads = [f"{card}, {what}, ms" for card in CARDS for what in ("bytes", "and kernels")]
    print(table(" | ".join(["rows and tokens", "GB", *heads]), rows))


if __name__ == "__main__":
    main()
