"""Memory at the most, while a model is loaded and while it serves, by our model code, the library's, and `generate`.

python -m benchmarks.memory [--jobs 16] [--dtype float32] [--save]

Half a billion random parameters in bfloat16, baked as an image carries them (1 GB). Each way has a process of its own,
whose peak (`VmHWM`) is set back between the parts: loading with the warm-up, then each kind of work of
`benchmarks.throughput`, all jobs at once. Mapped weights count once they are touched; beside them: torch imported and
the weights read, the same jobs by `generate` one after the other, the engine with the tiny model (what a process takes
whatever its weights are), and the host's part of a copy to a device, here one that keeps nothing (torch's `meta`).
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import models
from benchmarks.cold_start import READ, run
from benchmarks.report import environment, in_a_process, save
from benchmarks.throughput import KINDS, Job, all_at_once, jobs, one_at_a_time
from builder.bake import bake
from worker.checkpoint.weights import DTYPES, copied, headers, num_bytes, stored_in
from worker.core.safe_json import JsonObject
from worker.core.settings import EMBEDDED_MODEL, Settings
from worker.core.settings import load as settings
from worker.models.loading import load
from worker.startup.build import start

MIB = 2**20
WAYS = ("`generate`, one at a time", "engine on transformers", "engine")
TINY = "engine, with the tiny model instead"  # only loaded: its work is not that of the others
COPIED = ("a process before it copies", "the same while it copies weights to a device")


def peak() -> int:
    """MiB of this process at the most since the last call, or since it began."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def child(way: str, folder: str, count: int, dtype: str) -> None:
    """Prints the peaks of one way as JSON."""
    torch.set_num_threads(2)
    if way in COPIED:
        if way == COPIED[1]:
            peak()
            copied(list(headers(Path(folder) / "model.safetensors")), torch.device("meta"), DTYPES[dtype])
        print(json.dumps({"loading": peak()}))
        return
    code = "native" if way in (WAYS[2], TINY) else "transformers"
    chosen = settings({"DEVICE": "cpu", "DTYPE": dtype, "MODEL_PATH": folder, "MODEL_CODE": code})
    work, close = _alone(chosen) if way == WAYS[0] else _served(chosen, count)
    found = {"loading": peak()}
    for kind in KINDS if way != TINY else ():
        work(jobs(kind, count))
        found[kind] = peak()
    print(json.dumps(found))
    close()


def _alone(chosen: Settings) -> tuple[Callable[[list[Job]], object], Callable[[], object]]:
    model = load(chosen)
    return lambda work: one_at_a_time(model, work), lambda: None


def _served(chosen: Settings, count: int) -> tuple[Callable[[list[Job]], object], Callable[[], object]]:
    serving = start(chosen.model_copy(update={"max_num_seqs": count}))
    return lambda work: asyncio.run(all_at_once(serving.engine, work)), serving.close


def measure(folder: Path, count: int, dtype: str) -> list[JsonObject]:
    """A row for each way, MiB."""
    _, read, _ = run([sys.executable, "-c", READ, str(folder), "cpu"])
    rows: list[JsonObject] = [{"way": "import torch, weights read as they lie", "loading": int(read)}]
    for way in (*WAYS, TINY, *COPIED):
        model = EMBEDDED_MODEL if way == TINY else folder
        printed = in_a_process("benchmarks.memory", "--way", way, model, "--jobs", count, "--dtype", dtype)
        rows.append({"way": way, **printed})
        print(rows[-1], flush=True)
    return rows


def table(rows: list[JsonObject], weights: int) -> str:
    lines = [
        f"| weights of {weights} MiB, by | loading, MiB | " + " | ".join(f"{kind}, MiB" for kind in KINDS) + " |",
        "|---|---|" + "---|" * len(KINDS),
    ]
    for row in rows:
        lines.append(f"| {row['way']} | " + " | ".join(str(row.get(part, "")) for part in ("loading", *KINDS)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=16)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the model in memory")
    parser.add_argument("--way", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--save", action="store_true", help="write JSON and the table into benchmarks/results/")
    options = parser.parse_args()
    if options.way:
        way, where = options.way
        child(way, where, options.jobs, options.dtype)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        models.write_real_size(folder)
        bake(folder)
        weights = num_bytes(stored_in(folder), DTYPES[options.dtype]) // MIB
        rows = measure(folder, options.jobs, options.dtype)
    shown = table(rows, weights)
    print(shown)
    if options.save:
        command = f"python -m benchmarks.memory --jobs {options.jobs} --dtype {options.dtype}"
        save(f"memory-{options.dtype}-cpu", environment(command, weights_mib=weights, rows=rows), shown)


if __name__ == "__main__":
    main()
