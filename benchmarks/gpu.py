"""The engine on a GPU, in the true shapes of Qwen3-VL with random weights: what is right, and what each part takes
beside the card's own bandwidth.

python -m benchmarks.gpu [--shape 2b|4b|8b] [--parts right,steps,...] [--save]

It needs torch 2.11 or newer, transformers, tokenizers, jinja2, and the few wheels that `benchmarks/gpu_wheels.sh` puts
into `.whl/`; nothing is downloaded, and the checkpoint is made on the card. Each part is printed and written to --out
as soon as it is done, and one that fails does not end the others. `--trial` runs all of it with a tiny shape on
whatever is there, a CPU too, for its code: the figures mean nothing.
"""

import argparse
import json
import platform
import queue
import subprocess
import sys
import time
import traceback
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_bench import GIB, Bench
from benchmarks.gpu_parts import PARTS
from worker.core.errors import WorkerError
from worker.core.safe_json import JsonObject
from worker.models.varlen import kernel_for, plain, without_cudnn


def environment(bench: Bench) -> JsonObject:
    facts: JsonObject = {
        "date": date.today().isoformat(),
        "command": f"python -m benchmarks.gpu --shape {bench.shape}",
        "shape": bench.shape,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if bench.is_gpu:
        card = torch.cuda.get_device_properties(bench.device)
        facts |= {"gpu": card.name, "memory_gib": card.total_memory / GIB, "processors": card.multi_processor_count}
        facts |= {"cuda": torch.version.cuda, "driver_free_gib": torch.cuda.mem_get_info(bench.device)[0] / GIB}
    return facts


def bandwidth(bench: Bench) -> JsonObject:
    """Of a copy within the card, bytes read and written: what a step is held to."""
    source = torch.empty(bench.amount(4 * GIB // 8), dtype=torch.float64, device=bench.device).normal_()
    target = torch.empty_like(source)
    rate = 2 * source.nbytes / bench.ms(lambda: target.copy_(source), 5) * 1e3
    return {"bytes_per_s": rate, "shown": f"copy within the card: {rate / 1e9:.0f} GB/s"}


def run_parts(bench: Bench, names: list[str], out: Path, limit_s: float) -> None:
    """Part after part; what is known is written after each."""
    begin = time.perf_counter()
    for name in names:
        if time.perf_counter() - begin > limit_s:
            print(f"\n## {name}: no time left", flush=True)
            continue
        part_began = time.perf_counter()
        try:
            found = bandwidth(bench) if name == "bandwidth" else PARTS[name](bench)
        except FAILURES as error:  # the other parts are as good without it
            traceback.print_exc()
            found = {"failed": f"{type(error).__name__}: {error}", "shown": f"failed: {type(error).__name__}: {error}"}
            bench.forget_model()
        found["seconds"] = time.perf_counter() - part_began
        bench.facts[name] = found
        print(f"\n## {name} ({found['seconds']:.1f} s)\n\n{found['shown']}", flush=True)
        write(bench.facts, out)


def write(facts: dict[str, Any], out: Path) -> None:
    """The figures as JSON, the tables as Markdown."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(facts, indent=2, default=str) + "\n", encoding="utf-8")
    about = ", ".join(f"{key} {value}" for key, value in facts["environment"].items())
    parts = [f"## {name}\n\n{found['shown']}" for name, found in facts.items() if name != "environment"]
    out.with_suffix(".md").write_text("\n\n".join([about, *parts]) + "\n", encoding="utf-8")


# What may end a part: of torch, of the library, of files and processes, of the engine.
FAILURES = (
    *(RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError, ImportError, OSError),
    *(subprocess.SubprocessError, queue.Empty, WorkerError),
)
ALL = (
    "bandwidth",
    "choices",
    "right",
    "steps",
    "sampling",
    "prefill",
    "tower",
    "capture",
    "engine",
    "start",
    "generate",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("2b", "4b", "8b"), default="8b")
    parser.add_argument("--parts", default=",".join(ALL), help="of these, in their order")
    parser.add_argument("--out", type=Path, help="where to write, without ending; --save: to benchmarks/results")
    parser.add_argument("--limit-s", type=float, default=500.0, help="no part begins later")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--trial", action="store_true", help="a tiny shape on whatever is there")
    options = parser.parse_args()
    has_gpu = torch.cuda.is_available()
    if not has_gpu and not options.trial:
        sys.exit("no GPU: torch sees no CUDA device. --trial runs it on the CPU, for its code")
    device = torch.device("cuda", 0) if has_gpu else torch.device("cpu")
    without_cudnn(device)
    kernel = kernel_for(device, torch.bfloat16) if has_gpu else plain
    if kernel is None:
        sys.exit("no attention by lengths on this GPU: it needs compute capability 8.0")
    shape, scale = ("trial", 0.02) if options.trial else (options.shape, 1.0)
    bench = Bench(device, shape, scale, kernel)
    bench.facts["environment"] = environment(bench)
    print(json.dumps(bench.facts["environment"]), flush=True)
    results = Path(__file__).parent / "results" / f"{date.today().isoformat()}-gpu-{shape.replace(' ', '-')}"
    out = results if options.save else options.out or Path("gpu-results")
    asked = options.parts.split(",")
    run_parts(bench, [name for name in ALL if name in asked], out, options.limit_s)


if __name__ == "__main__":
    main()
