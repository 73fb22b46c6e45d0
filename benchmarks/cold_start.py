"""Seconds from a process's first moment to the first token of its first answer, of this worker and of the usual way.

python -m benchmarks.cold_start --rounds 5 --save

A Qwen3-VL of half a billion random parameters (1 GB in bfloat16, the family's own vocabulary) is asked about one
picture. In turns, each in a process of its own: `import torch` alone, and with the weights read (the floor), bare
imports of torch and the library's model code, the usual way (imports one after the other, `from_pretrained`, first
request), and `python handler.py` on the same model as an image carries it, by the library's model code and by ours.
`--cold` drops the weights from the page cache before each start. With a CUDA device the model lies there.
"""

import argparse
import base64
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks import models
from benchmarks.report import environment, plot, save
from builder.bake import bake
from worker.core.safe_json import JsonObject

ROOT = Path(__file__).parents[1]
QUESTION = "What is in the picture?"
PAINT = (*(f"C{number}" for number in range(10)), "black", "gold", "navy", "pink")
WAYS = (
    "import torch",
    "import torch, read the weights",
    "imports only",
    "from_pretrained",
    "this worker, transformers",
    "this worker",
)

IMPORTS = "import torch, transformers.models.qwen3_vl.modeling_qwen3_vl; print('FIRST', flush=True)"

TORCH = "import torch; print('FIRST', flush=True)"

READ = """
import sys
import torch
from safetensors.torch import load_file

tensors = load_file(sys.argv[1] + "/model.safetensors", device=sys.argv[2])
total = sum(float(tensor.reshape(-1)[::2048].max()) for tensor in tensors.values())  # a value of each page
print("FIRST", total, flush=True)
"""

USUAL = """
import base64, io, sys
import runpod
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

folder, device, picture, question = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
seen = processor(images=[image], return_tensors="pt")
content = [{"type": "image"}, {"type": "text", "text": question}]
text = tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
count = int(seen["image_grid_thw"].prod()) // 4
ids = tokenizer(text.replace("<|image_pad|>", "<|image_pad|>" * count), return_tensors="pt").input_ids
kinds = (ids == model.config.image_token_id).int()
given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds, **seen}
given = {name: value.to(device) for name, value in given.items()}
with torch.inference_mode():
    said = model.generate(**given, max_new_tokens=1, do_sample=False)
print("FIRST", said[0, -1].item(), flush=True)
"""


def picture() -> str:
    """A small JPEG in base64: the start is measured here, not the prefill."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((320, 240)).convert("RGB").save(buffer, "JPEG")
    return base64.b64encode(buffer.getvalue()).decode()


def commands(folder: Path, baked: Path, device: str) -> dict[str, list[str]]:
    shown = picture()
    asked = {"input": {"prompt": QUESTION, "image": shown, "max_tokens": 1, "temperature": 0}}

    def worker(code: str) -> list[str]:
        variables = {"MODEL_PATH": baked, "DEVICE": device, "DTYPE": "bfloat16", "RUNPOD_LOG_LEVEL": "ERROR"}
        settings = [f"{name}={value}" for name, value in {**variables, "MODEL_CODE": code}.items()]
        return ["env", *settings, sys.executable, "handler.py", "--test_input", json.dumps(asked)]

    return {
        "import torch": [sys.executable, "-c", TORCH],
        "import torch, read the weights": [sys.executable, "-c", READ, str(baked), device],
        "imports only": [sys.executable, "-c", IMPORTS],
        "from_pretrained": [sys.executable, "-c", USUAL, str(folder), device, shown, QUESTION],
        "this worker, transformers": worker("transformers"),
        "this worker": worker("native"),
    }


def run(command: list[str]) -> tuple[float, float, dict[str, float]]:
    """Seconds until the first token is out, MiB of memory at the most, and the phases that the worker tells."""
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    seconds, peak, lines = 0.0, 0.0, []
    for line in process.stdout:
        lines.append(line)
        if not seconds and (line.startswith("FIRST") or line == "}\n"):
            seconds = time.perf_counter() - began
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
            peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    if process.wait() or not seconds:
        raise RuntimeError(f"{command[:3]} ended with {process.returncode} and no answer")
    text = "".join(lines)
    phases = json.loads(text[text.index("{\n") : text.index("\n}\n") + 2])["cold_start"] if "{\n" in text else {}
    return seconds, peak, phases


def forget(folder: Path) -> None:
    """Drop the weights from the page cache."""
    for file in folder.glob("*.safetensors"):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def measure(folder: Path, baked: Path, device: str, rounds: int, is_cold: bool) -> list[JsonObject]:
    ways = commands(folder, baked, device)
    seen: dict[str, list[tuple[float, float, dict[str, float]]]] = defaultdict(list)
    for _ in range(rounds):
        for way in WAYS:
            if is_cold:
                forget(folder)
                forget(baked)
            seen[way].append(run(ways[way]))
            print(f"{way}: {seen[way][-1][0]:.2f} s", file=sys.stderr, flush=True)
    rows = []
    for way in WAYS:
        seconds = [sample[0] for sample in seen[way]]
        middle = sorted(seen[way], key=lambda sample: sample[0])[len(seconds) // 2]
        rows.append(
            {
                "way": way,
                "weights": "from disk" if is_cold else "in the page cache",
                "seconds": round(statistics.median(seconds), 2),
                "all": [round(value, 2) for value in seconds],
                "peak_mib": round(statistics.median(sample[1] for sample in seen[way])),
                "phases": middle[2],
            }
        )
    return rows


def table(rows: list[JsonObject]) -> str:
    lines = [
        "| weights | what | to the first token, s | min to max | vs. from_pretrained | vs. imports only | peak MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        usual, bare = (
            next(other["seconds"] for other in rows if other["weights"] == row["weights"] and other["way"] == way)
            for way in ("from_pretrained", "imports only")
        )
        lines.append(
            f"| {row['weights']} | {row['way']} | {row['seconds']} | {min(row['all'])} to {max(row['all'])} "
            f"| {row['seconds'] / usual:.2f}x | {row['seconds'] / bare:.2f}x | {row['peak_mib']} |"
        )
    return "\n".join(lines) + "\n"


def draw(rows: list[JsonObject], axis: Any) -> None:
    """The worker's phases, one bar for each kind of start, beside the totals of the others."""
    colours: dict[str, str] = {}
    for index, row in enumerate(rows):
        left = 0.0
        left_out = ("total", "overlapped_")
        phases = {name: took for name, took in row["phases"].items() if not name.startswith(left_out)}
        if not phases:
            axis.barh(index, row["seconds"], color="lightgrey")
        for phase, took in phases.items():
            label = None if phase in colours else phase
            axis.barh(index, took, left=left, color=colours.setdefault(phase, PAINT[len(colours)]), label=label)
            left += took
    axis.set_yticks(range(len(rows)), [f"{row['way']}, {row['weights']}" for row in rows], fontsize=7)
    axis.invert_yaxis()
    axis.set(xlabel="seconds")
    axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold", action="store_true", help="also with the weights out of the page cache")
    parser.add_argument("--model", type=Path, help="a checkpoint folder instead of the random one")
    parser.add_argument("--layers", type=int, help="of the random model's text part, instead of 20; 120 are 4.2 GB")
    parser.add_argument("--save", action="store_true", help="write JSON, table and picture into benchmarks/results/")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.model or Path(temporary) / "half-a-billion"
        if options.model is None:
            models.write_real_size(folder, options.layers)
        baked = Path(temporary) / "baked"
        shutil.copytree(folder, baked)
        bake(baked)
        rows = measure(folder, baked, device, options.rounds, is_cold=False)
        if options.cold:
            rows += measure(folder, baked, device, options.rounds, is_cold=True)
    print(table(rows))
    if options.save:
        command = f"python -m benchmarks.cold_start --rounds {options.rounds}" + (" --cold" if options.cold else "")
        save(f"cold-start-{device}", environment(command, device=device, rows=rows), table(rows))
        plot(f"cold-start-{device}", lambda axis: draw(rows, axis), width=9)


if __name__ == "__main__":
    main()
