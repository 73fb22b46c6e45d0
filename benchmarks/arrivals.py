"""Waiting times under load: jobs that arrive by chance, served by this engine and one at a time by `generate`.

python -m benchmarks.arrivals [--threads 2] [--jobs 16] [--save]

Random weights of 256 million parameters, float32 on the CPU. Arrivals are a Poisson process, the same for both;
a load of 1 is as many jobs a second as `generate` can answer. A second table: how long the tokens of a running answer
pause while a prompt of 4,000 tokens is computed, in chunks and in one piece. A third: how late the event loop is for
a timer while the engine works, and while nothing does.
"""

import argparse
import asyncio
import queue
import random
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import models
from benchmarks.report import environment, save
from benchmarks.throughput import Job, jobs, one_at_a_time
from worker.core.contract import ChatRequest, Message, Piece, Text
from worker.core.safe_json import JsonObject
from worker.core.sampling import Sampling
from worker.core.settings import load as settings
from worker.engine.engine import continuous_engine
from worker.models.hf.runner import module_of
from worker.models.loading import LoadedModel, load
from worker.models.pixel_values import pixel_values
from worker.prompt.builder import PromptBuilder
from worker.prompt.patches import grids

LOADS = (0.5, 1.0, 2.0)
CHUNKS = (128, 512, 1024, 8192)


@dataclass
class Times:
    """Seconds of one job: when it came, and when each token (or piece) of its answer did."""

    came: float
    tokens: list[float] = field(default_factory=list)

    @property
    def first(self) -> float:
        return self.tokens[0] - self.came

    @property
    def gaps(self) -> list[float]:
        return [b - a for a, b in zip(self.tokens, self.tokens[1:], strict=False)]


async def with_engine(model: LoadedModel, work: list[Job], delays: list[float]) -> list[Times]:
    served = continuous_engine(model, settings({"DEVICE": "cpu", "STREAM_INTERVAL_MS": "0"}))
    served.start()
    begin = time.perf_counter()

    async def answer(job: Job, delay: float) -> Times:
        await asyncio.sleep(max(0.0, begin + delay - time.perf_counter()))
        times = Times(begin + delay)
        async for event in served.generate(job.request, job.media):
            if isinstance(event, Piece):
                times.tokens += [time.perf_counter()] * len(event.logprobs)
        return times

    try:
        return await asyncio.gather(*(answer(*pair) for pair in zip(work, delays, strict=True)))
    finally:
        served.close()


class _Clock:
    """What `generate` calls for each token."""

    def __init__(self, times: Times) -> None:
        self._times, self._is_prompt = times, True

    def put(self, _: Any) -> None:
        if not self._is_prompt:
            self._times.tokens.append(time.perf_counter())
        self._is_prompt = False

    def end(self) -> None:
        pass


def with_generate(model: LoadedModel, work: list[Job], delays: list[float]) -> list[Times]:
    """First come, first served, by transformers' `generate`."""
    builder = PromptBuilder(model.spec, settings({}))
    prompts = [builder.build(job.request, job.media) for job in work]
    arrivals: queue.SimpleQueue[int] = queue.SimpleQueue()
    begin = time.perf_counter()

    def arrive() -> None:
        for index, delay in enumerate(delays):
            time.sleep(max(0.0, begin + delay - time.perf_counter()))
            arrivals.put(index)

    threading.Thread(target=arrive, daemon=True).start()
    seen = [Times(begin + delay) for delay in delays]
    for _ in work:
        index = arrivals.get()
        prompt, job = prompts[index], work[index]
        ids = torch.tensor([prompt.ids])
        visual = {}
        if prompt.images:
            visual = {
                "pixel_values": pixel_values(prompt.images, model.spec.preprocessor, model.device, model.dtype),
                "image_grid_thw": grids(prompt.images),
                "mm_token_type_ids": (ids == module_of(model.runner).config.image_token_id).int(),
            }
        with torch.inference_mode():
            module_of(model.runner).generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=job.tokens,
                min_new_tokens=job.tokens,
                do_sample=False,
                streamer=_Clock(seen[index]),
                **visual,
            )
    return seen


def shares(values: list[float]) -> list[int]:
    """p50, p95, p99 in milliseconds."""
    return [round(1000 * float(np.percentile(values, share))) for share in (50, 95, 99)]


def under_load(native: LoadedModel, library: LoadedModel, count: int) -> list[JsonObject]:
    work = []
    for job in jobs("mixed lengths", count):
        sampling = job.request.sampling.model_copy(update={"logprobs": 0})
        request = job.request.model_copy(update={"sampling": sampling, "stream": True})
        work.append(Job(request, job.media, job.tokens))
    alone = one_at_a_time(library, work[:6])
    jobs_per_second = alone.tokens_per_second / (sum(job.tokens for job in work[:6]) / 6)
    rows = []
    for share in LOADS:
        rng = random.Random(1)
        delays, at = [], 0.0
        for _ in work:
            delays.append(at)
            at += rng.expovariate(jobs_per_second * share)
        for who, seen in (
            ("generate", with_generate(library, work, delays)),
            ("engine", asyncio.run(with_engine(native, work, delays))),
        ):
            gaps = [gap for times in seen for gap in times.gaps]
            print(f"load {share}: {who}", flush=True)
            rows.append(
                {"load": share, "who": who, "first_ms": shares([t.first for t in seen]), "token_ms": shares(gaps)}
            )
    return rows


def stall(model: LoadedModel, chunk: int) -> tuple[float, float]:
    """Seconds: the longest pause of a running answer while 4,000 tokens are computed, and its usual one."""
    served = continuous_engine(
        model, settings({"DEVICE": "cpu", "PREFILL_CHUNK": str(chunk), "STREAM_INTERVAL_MS": "0"})
    )
    served.start()

    def request(text: str, tokens: int) -> ChatRequest:
        sampling = Sampling(max_tokens=tokens, temperature=0, ignore_eos=True, logprobs=0, stop=())
        return ChatRequest(messages=(Message(role="user", parts=(Text(text=text),)),), sampling=sampling, stream=True)

    async def run() -> tuple[float, float]:
        times, is_over = Times(0.0), asyncio.Event()

        async def running() -> None:
            async for event in served.generate(request("Count.", 4000), ()):
                if isinstance(event, Piece):
                    times.tokens += [time.perf_counter()] * len(event.logprobs)
                if is_over.is_set():
                    return

        task = asyncio.create_task(running())
        while len(times.tokens) < 10:
            await asyncio.sleep(0.01)
        usual = float(np.median(times.gaps))
        num_before = len(times.tokens) - 1
        async for _ in served.generate(request("how many red objects " * 950, 1), ()):
            pass
        is_over.set()
        await task
        return max(times.gaps[num_before:]), usual

    try:
        return asyncio.run(run())
    finally:
        served.close()


async def ticks(is_over: Callable[[], bool]) -> list[float]:
    """Seconds by which the loop was late for timers of 5 ms, until it is over."""
    late = []
    while not is_over():
        due = time.perf_counter() + 0.005
        await asyncio.sleep(0.005)
        late.append(time.perf_counter() - due)
    return late


def lateness(model: LoadedModel, count: int) -> list[tuple[str, list[int]]]:
    """Milliseconds, p50, p95, p99 and the most: with nothing to do, and with `count` jobs decoded and streamed."""

    async def busy() -> list[float]:
        work = [
            Job(job.request.model_copy(update={"stream": True}), job.media, job.tokens)
            for job in jobs("decode-heavy", count)
        ]
        answers = asyncio.create_task(with_engine(model, work, [0.0] * count))
        late = await ticks(answers.done)
        await answers
        return late

    async def idle() -> list[float]:
        end = time.perf_counter() + 3
        return await ticks(lambda: time.perf_counter() > end)

    rows = (("nothing runs", asyncio.run(idle())), (f"{count} jobs are streamed", asyncio.run(busy())))
    return [(name, [*shares(late), round(1000 * max(late))]) for name, late in rows]


def tables(about: Any) -> str:
    lines = [
        "| load | | first token, ms: p50 | p95 | p99 | between tokens, ms: p50 | p95 | p99 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in about["under_load"]:
        cells = [row["load"], row["who"], *row["first_ms"], *row["token_ms"]]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    lines += ["", "| `PREFILL_CHUNK` | longest pause of a running answer, ms | median, ms |", "|---|---|---|"]
    lines += [f"| {chunk} | {1000 * longest:.0f} | {1000 * usual:.0f} |" for chunk, longest, usual in about["stalls"]]
    lines += ["", "| while | the event loop is late by, ms: p50 | p95 | p99 | max |", "|---|---|---|---|---|"]
    lines += [f"| {name} | " + " | ".join(str(cell) for cell in late) + " |" for name, late in about["lateness"]]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=16)
    parser.add_argument("--save", action="store_true", help="write JSON and the tables into benchmarks/results/")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        parameters = models.write(Path(folder) / "model")
        path = {"DEVICE": "cpu", "MODEL_PATH": str(Path(folder) / "model")}
        native, library = (load(settings({**path, "MODEL_CODE": code})) for code in ("native", "transformers"))
        about = environment(
            f"python -m benchmarks.arrivals --threads {options.threads} --jobs {options.jobs}",
            threads=options.threads,
            parameters=parameters,
            stalls=[(chunk, *stall(native, chunk)) for chunk in CHUNKS],
            under_load=under_load(native, library, options.jobs),
            lateness=lateness(native, options.jobs),
        )
    print(tables(about))
    if options.save:
        save("arrivals-cpu", about, tables(about))


if __name__ == "__main__":
    main()
