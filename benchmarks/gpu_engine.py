"""The parts of `benchmarks.gpu` about the whole engine: tokens a second, tokens as on the CPU, a start, `generate`."""

import json
import queue
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from benchmarks.gpu_bench import Bench, table
from benchmarks.gpu_model import config, loaded, prompt
from worker.core.contract import Done, Event, Piece
from worker.core.errors import WorkerError
from worker.core.safe_json import JsonObject
from worker.core.sampling import Sampling
from worker.core.settings import EMBEDDED_MODEL
from worker.core.settings import load as settings
from worker.engine.engine import continuous_engine

SMALL_FILES = ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "chat_template.jinja")


def tiny_tokens(bench: Bench) -> str:
    """Greedy, bfloat16, on both; by one process each, as a user has it."""
    said = []
    for device in ("cuda" if bench.is_gpu else "cpu", "cpu"):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.gpu_tiny", device], capture_output=True, text=True, timeout=120
        )
        if done.returncode:
            return f"failed on {device}: {done.stderr.strip().splitlines()[-1:]}"
        said.append(done.stdout.strip().splitlines()[-1])
    return "the same" if said[0] == said[1] else f"{said[0]} on the card, {said[1]} on the CPU"


def _served(
    bench: Bench, jobs: int, rows: int, mixed: bool, more: dict[str, Any], beside: Callable[[], object] | None = None
) -> tuple[float, float, float]:
    """Tokens a second of so many jobs at once, and the median and 95th percentile of milliseconds between tokens of an
    answer. mixed: prompts of 64 to 2,048 tokens, answers of 16 to 256; else 512 and 128. beside: done over and over on
    another thread."""
    rng = random.Random(4)
    room = "24000" if bench.is_gpu else "64"
    made = settings({"MAX_NUM_SEQS": str(rows), "MAX_QUEUE": "4000", "PREFIX_CACHE_MIB": "0", "KV_CACHE_MIB": room})
    served = continuous_engine(loaded(bench.model.runner, bench.device), made)
    while served.parts.batch.rest():  # all that is recorded while nobody waits, before its own thread does
        pass
    served.start()
    ends: queue.SimpleQueue[Event | WorkerError] = queue.SimpleQueue()
    gaps: list[float] = []
    prompts = []
    for seed in range(jobs):
        length = rng.choice((64, 128, 512, 2048)) if mixed else 512
        prompts.append((prompt(bench.amount(length), seed), bench.amount(rng.choice((16, 64, 256)) if mixed else 128)))
    is_over = threading.Event()

    def busy() -> None:
        while not is_over.is_set():
            assert beside is not None
            beside()

    thread = threading.Thread(target=busy)
    try:
        if beside is not None:
            thread.start()
        begin, total = time.perf_counter(), 0
        for built, tokens in prompts:
            last = [0.0]

            def emit(event: Event | WorkerError, last: list[float] = last) -> None:
                now = time.perf_counter()
                if isinstance(event, Piece):
                    if last[0]:
                        gaps.append((now - last[0]) * 1e3)
                    last[0] = now
                if isinstance(event, Done | WorkerError):
                    ends.put(event)

            asked = Sampling(max_tokens=tokens, ignore_eos=True, stop=(), seed=7, **more)
            served.submit(built, asked, emit)
            total += tokens
        for _ in range(jobs):
            end = ends.get(timeout=300)
            if isinstance(end, WorkerError):
                raise end
        seconds = time.perf_counter() - begin
    finally:
        is_over.set()
        if thread.is_alive():
            thread.join()
        served.close()
    gaps.sort()
    return total / seconds, gaps[len(gaps) // 2] if gaps else 0.0, gaps[int(len(gaps) * 0.95)] if gaps else 0.0


def engine(bench: Bench) -> JsonObject:
    """The whole engine, prefill and first recordings among it."""
    cards = {"temperature": 0.7, "top_p": 0.8, "top_k": 20}
    greedy = {"temperature": 0.0}
    rows: list[list[object]] = []
    _served(bench, 2, 2, False, greedy)  # libraries choose their kernels
    for name, jobs, rows_at_once, mixed, more in (
        ("1 job, greedy", 1, 16, False, greedy),
        ("4 jobs, greedy", 4, 16, False, greedy),
        ("16 jobs, greedy", 16, 16, False, greedy),
        ("64 jobs, greedy", 64, 64, False, greedy),
        ("64 jobs, the card's sampling", 64, 64, False, cards),
        ("64 jobs, presence 1.5", 64, 64, False, cards | {"presence_penalty": 1.5}),
        ("64 jobs, repetition 1.05", 64, 64, False, cards | {"repetition_penalty": 1.05}),
        ("64 jobs of mixed lengths", 64, 64, True, greedy),
        ("256 jobs of mixed lengths", 256, 64, True, greedy),
    ):
        rows.append([name, *_served(bench, bench.amount(jobs) if jobs > 64 else jobs, rows_at_once, mixed, more)])
    words = "a busy thread " * 400
    rows.append(
        ["1 job beside a thread that builds prompts", *_served(bench, 1, 16, False, greedy, lambda: words.split())]
    )
    shown_rows = table("what | tokens/s | between tokens, ms | 95th percentile", rows)
    return {"rows": rows, "shown": shown_rows}


def start(bench: Bench) -> JsonObject:
    """A process from its first moment to the first token of a first answer, the weights in the page cache: loading and
    the engine alone, without the platform's SDK."""
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        tensors = {name: tensor.cpu() for name, tensor in bench.model.tensors.items()}
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        size = (path / "model.safetensors").stat().st_size
        known = json.loads((EMBEDDED_MODEL / "config.json").read_text(encoding="utf-8"))
        tokens = {name: value for name, value in known.items() if name.endswith("token_id")}
        (path / "config.json").write_text(json.dumps(config(bench.shape) | tokens), encoding="utf-8")
        bench.forget_model()
        for file in SMALL_FILES:
            if (EMBEDDED_MODEL / file).exists():
                (path / file).write_bytes((EMBEDDED_MODEL / file).read_bytes())
        for index in range(3):
            command = [sys.executable, "-m", "benchmarks.gpu_start", folder, "cuda" if bench.is_gpu else "cpu"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=240)
            if done.returncode:
                raise RuntimeError(done.stderr[-400:])
            phases = json.loads(done.stdout.splitlines()[-1])
            rows.append([index + 1, size / 2**30, *phases.values()])
    head = "start | GiB | imports, s | model, s | engine and prompt, s | first token, s"
    return {"rows": rows, "shown": table(head, rows)}


def generate(bench: Bench) -> JsonObject:
    """The library's `generate`, for one prompt of 512 tokens after the other: 128 tokens each."""
    bench.forget_model()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with bench.device:
            read = AutoConfig.for_model(**config(bench.shape))
            module = AutoModelForImageTextToText.from_config(read, dtype=torch.bfloat16).eval()
    finally:
        torch.set_default_dtype(before)
    ids = torch.tensor([prompt(bench.amount(512), 1).ids], device=bench.device)
    tokens = bench.amount(128)
    more = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}

    def work() -> object:
        return module.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=torch.zeros_like(ids), **more
        )

    took = bench.ms(work, 2, 1)
    rows: list[list[object]] = [["one after the other", tokens / took * 1e3, took / tokens]]
    return {"rows": rows, "shown": table("generate | tokens/s | ms a token", rows)}
