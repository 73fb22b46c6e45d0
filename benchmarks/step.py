"""Where each millisecond of a decode step on the CPU goes: products, attention, norms, the cache, the rest, and Python.

python -m benchmarks.step [--threads 2] [--dtype float32] [--rows 1,4,16] [--save]

A Qwen3-VL of 256 million random parameters, stored in bfloat16; prompts of the same length without pictures. Each step
is timed alone, and again under torch's profiler: `Python` is the whole step less what the operations take. The worker
as it is behind its first answer, with packed weights, beside the same with the weights as they lie.
"""

import argparse
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import models
from benchmarks.report import environment, save, table_of
from benchmarks.throughput import decoding
from worker.core.settings import load as settings
from worker.models.loading import LoadedModel, load
from worker.models.native.runner import NativeRunner

STEPS = 20
KINDS = {
    "attention": ("flash_attention", "bmm", "softmax", "scaled_dot_product"),
    "products": ("_linear_pointwise", "linear_dynamic_fp16", "mm", "linear"),
    "norms": ("vector_norm", "hypot", "div"),
    "cache": ("index_put",),
}


def kind_of(operation: str) -> str:
    """A column of the table."""
    return next((kind for kind, parts in KINDS.items() if any(part in operation for part in parts)), "other operations")


def profiled(model: LoadedModel, rows: int) -> dict[str, float]:
    """Milliseconds of a step, by kind."""
    runner, slots = model.runner, decoding(model, rows, 4 * STEPS)

    def step() -> None:
        runner.decode([5] * rows, slots.lengths, slots)
        slots.end_step()

    took = []
    for _ in range(STEPS):
        began = time.perf_counter()
        step()
        took.append((time.perf_counter() - began) * 1000)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(STEPS):
            step()
    whole = statistics.median(took[STEPS // 2 :])
    spent: Counter[str] = Counter()
    for event in seen.key_averages():
        spent[kind_of(event.key)] += event.self_cpu_time_total / STEPS / 1000
    figures = {kind: spent[kind] for kind in (*KINDS, "other operations")}
    return {"whole step": whole, **figures, "Python": max(0.0, whole - sum(figures.values()))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rows", default="1,4,16")
    parser.add_argument("--save", action="store_true", help="write JSON and the table into benchmarks/results/")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        models.write(Path(temporary) / "model", torch.bfloat16)
        model = load(settings({"DEVICE": "cpu", "DTYPE": options.dtype, "MODEL_PATH": f"{temporary}/model"}))
        runner = model.runner
        assert isinstance(runner, NativeRunner) and runner.packing is not None
        for layout in ("as they lie", "packed"):
            if layout == "packed":
                runner.begin_tuning()
                runner.packing.wait()
            for rows in map(int, options.rows.split(",")):
                found[f"{rows}, {layout}"] = profiled(model, rows)
        runner.close()
    table = table_of("rows, weights", found)
    print(table)
    if options.save:
        command = f"python -m benchmarks.step --threads {options.threads} --dtype {options.dtype}"
        save(f"step-cpu-{options.dtype}", environment(command, threads=options.threads, milliseconds=found), table)


if __name__ == "__main__":
    main()
