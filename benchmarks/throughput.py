"""Tokens a second: one-at-a-time `generate`, the library's bare batched forward, and this engine, in one run.

python -m benchmarks.throughput [--threads 2] [--rounds 3] [--jobs 1,4,8,16,32] [--save]

Random weights of 256 million parameters, float32 on the CPU. Three kinds of work: decode-heavy (short
questions, 48 tokens each), mixed lengths (questions of 20 to 400 tokens, 8 to 64 tokens back), image-heavy (a
picture of 256 tokens, 12 tokens back). The engine runs by the worker's own model code and by the library's. Every
round measures everything once; the figures are medians of the rounds. A second table counts, with torch's profiler, the
operations of a layer in a decode step that compute something.
"""

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from transformers.cache_utils import DynamicCache

from benchmarks import models
from benchmarks.report import environment, plot, save
from builder.tiny_model.evaluate import generate_ids
from worker.core.contract import ChatRequest, Done, Inline, Media, Message, Text
from worker.core.deadline import Deadline
from worker.core.engine_protocol import Engine
from worker.core.opened import Opened, Picture
from worker.core.safe_json import JsonObject
from worker.core.sampling import Sampling
from worker.core.settings import load as settings
from worker.engine.engine import continuous_engine
from worker.models.hf.runner import module_of
from worker.models.kv_cache import KVCache
from worker.models.loading import LoadedModel, load
from worker.models.runner import prefilled
from worker.prompt.builder import PromptBuilder

KINDS = ("decode-heavy", "mixed lengths", "image-heavy")
NUM_ALONE = 4  # jobs that one-at-a-time `generate` is measured with; its rate does not depend on their number


@dataclass(frozen=True)
class Job:
    """A request, its opened media, and how many tokens come back."""

    request: ChatRequest
    media: tuple[Opened, ...]
    tokens: int


@dataclass(frozen=True)
class Rate:
    """Tokens of answers a second of the clock, and seconds of CPU spent."""

    tokens_per_second: float
    cpu_seconds: float


def jobs(kind: str, count: int) -> list[Job]:
    """`count` jobs of one kind, the same at every call; no two begin alike."""
    rng = random.Random(kind)
    made = []
    for index in range(count):
        media: tuple[Opened, ...] = ()
        words, tokens = 8, 48
        if kind == "mixed lengths":
            words, tokens = rng.randint(5, 130), rng.choice((8, 16, 32, 64))
        elif kind == "image-heavy":
            pixels = np.random.default_rng(index).integers(0, 255, (512, 512, 3), dtype=np.uint8)
            media, tokens = (Picture(pixels),), 12
        question = f"{index} " + " ".join(rng.choice(("how", "many", "red", "objects", "are")) for _ in range(words))
        parts = tuple(Media(kind="image", source=Inline(data=""), where="") for _ in media)
        message = Message(role="user", parts=(*parts, Text(text=question)))
        sampling = Sampling(max_tokens=tokens, temperature=0, ignore_eos=True, stop=())
        made.append(Job(ChatRequest(messages=(message,), sampling=sampling), media, tokens))
    return made


def timed(work: Callable[[], int]) -> Rate:
    """Run `work`, which gives the number of tokens that it made."""
    begin, cpu = time.perf_counter(), time.process_time()
    tokens = work()
    return Rate(tokens / (time.perf_counter() - begin), time.process_time() - cpu)


def one_at_a_time(model: LoadedModel, work: list[Job]) -> Rate:
    builder = PromptBuilder(model.spec, settings({}))
    prompts = [builder.build(job.request, job.media) for job in work]

    def run() -> int:
        for prompt, job in zip(prompts, work, strict=True):
            generate_ids(model, prompt, job.tokens, min_new_tokens=job.tokens)
        return sum(job.tokens for job in work)

    return timed(run)


@torch.inference_mode()
def bound(model: LoadedModel, work: list[Job]) -> Rate:
    """The bare forward over as many rows as there are jobs, all of one length, nothing chosen and nothing decoded
    to text: what no loop on this forward can pass. Only for work without pictures and of one length."""
    builder = PromptBuilder(model.spec, settings({}))
    prompts = [builder.build(job.request, job.media) for job in work]
    length = min(len(prompt.ids) for prompt in prompts)
    ids = torch.tensor([prompt.ids[:length] for prompt in prompts])
    text, head = module_of(model.runner).model.language_model, module_of(model.runner).lm_head
    steps = work[0].tokens

    def run() -> int:
        cache = DynamicCache(config=module_of(model.runner).config.get_text_config())
        tokens = head(text(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]).argmax(-1)
        for _ in range(steps - 1):
            hidden = text(input_ids=tokens[:, None], past_key_values=cache, use_cache=True).last_hidden_state
            tokens = head(hidden[:, -1]).argmax(-1)
        return steps * len(work)

    return timed(run)


async def all_at_once(served: Engine, work: list[Job]) -> int:
    """The tokens of all answers."""

    async def answer(job: Job) -> int:
        async for event in served.generate(job.request, job.media, Deadline(), lambda _: None):
            if isinstance(event, Done):
                return event.usage.completion_tokens
        raise AssertionError("no end")

    return sum(await asyncio.gather(*(answer(job) for job in work)))


def engine(model: LoadedModel, work: list[Job]) -> Rate:
    served = continuous_engine(model, settings({"DEVICE": "cpu", "MAX_NUM_SEQS": str(len(work))}))
    served.start()
    try:
        return timed(lambda: asyncio.run(all_at_once(served, work)))
    finally:
        served.close()


KERNELS = ("aten::", "mkldnn::")  # whose operations compute
VIEWS = {  # what only says how memory is seen
    *("view", "reshape", "transpose", "t", "expand", "slice", "select", "unsqueeze", "squeeze", "as_strided"),
    *("chunk", "split", "narrow", "detach", "alias", "empty", "empty_like", "empty_strided", "unflatten", "flatten"),
    *("resolve_conj", "resolve_neg", "result_type", "_unsafe_view", "split_with_sizes", "numpy_T", "unbind"),
    *("permute", "lift_fresh", "to", "type_as", "_reshape_alias", "resize_", "detach_"),
}


def decoding(model: LoadedModel, rows: int, steps: int) -> KVCache:
    """So many rows of decode-heavy work behind their prompts, with room for so many steps."""
    builder, slots = PromptBuilder(model.spec, settings({})), model.runner.kv_cache(2**30)
    for job in jobs("decode-heavy", rows):
        prompt = builder.build(job.request, job.media)
        cache, _ = prefilled(model.runner, prompt, slots)
        slots.join(cache, len(prompt.ids), len(prompt.ids) + steps)
    return slots


def layer_operations(model: LoadedModel, rows: int) -> list[str]:
    """What a layer computes in a decode step of so many rows, in order, from one attention to the next: the names of
    operations that do not consist of others which compute."""
    runner, slots = model.runner, decoding(model, rows, 8)
    for _ in range(2):  # the first makes what later ones have
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            runner.decode([5] * rows, [40] * rows, slots)
    leaves = [event for event in seen.events() if event.name.startswith(KERNELS) and not _computing(event)]
    leaves.sort(key=lambda event: event.time_range.start)
    names = [_name(event) for event in leaves]
    names = [name for name in names if name not in VIEWS]
    attentions = [index for index, name in enumerate(names) if "scaled_dot_product" in name]
    layer = names[attentions[1] : attentions[2]]
    assert all(names[a:b] == layer for a, b in pairwise(attentions)), "all layers compute the same"
    return layer


def operations_table(native: LoadedModel, library: LoadedModel, counts: Sequence[int]) -> str:
    lines = [
        "| rows in a step | operations in a layer, native | on transformers | share |",
        "|---|---|---|---|",
    ]
    for rows in counts:
        ours, other = (len(layer_operations(model, rows)) for model in (native, library))
        lines.append(f"| {rows} | {ours} | {other} | {ours / other:.0%} |")
    for model in (native, library):
        layer = Counter(layer_operations(model, counts[-1]))
        shown = ", ".join(f"{count} {name}" for name, count in layer.most_common())
        lines += ["", f"A layer with {counts[-1]} rows, {model.code}: {shown}."]
    return "\n".join(lines) + "\n"


def _name(event: Any) -> str:
    return str(event.name).rpartition("::")[2]


def _computing(event: Any) -> bool:
    """Whether it consists of operations that compute."""
    return any(
        child.name.startswith(KERNELS) and (_name(child) not in VIEWS or _computing(child))
        for child in event.cpu_children
    )


def measure(native: LoadedModel, model: LoadedModel, counts: list[int], rounds: int) -> list[dict[str, object]]:
    """A row for each kind of work and number of jobs, medians over the rounds."""
    seen: dict[tuple[str, int, str], list[Rate]] = {}
    for round_ in range(rounds):
        for kind in KINDS:
            print(f"round {round_ + 1}: {kind}", flush=True)
            alone = one_at_a_time(model, jobs(kind, NUM_ALONE))
            for count in counts:
                seen.setdefault((kind, count, "generate"), []).append(alone)
                if kind == "decode-heavy":
                    seen.setdefault((kind, count, "bound"), []).append(bound(model, jobs(kind, count)))
                seen.setdefault((kind, count, "engine"), []).append(engine(native, jobs(kind, count)))
                seen.setdefault((kind, count, "library"), []).append(engine(model, jobs(kind, count)))
    rows = []
    for kind in KINDS:
        for count in counts:
            row: dict[str, object] = {"work": kind, "jobs": count}
            for who in ("generate", "bound", "library", "engine"):
                rates = seen.get((kind, count, who))
                if rates:
                    row[who] = round(statistics.median(rate.tokens_per_second for rate in rates), 1)
                    row[f"{who}_cpu_s"] = round(statistics.median(rate.cpu_seconds for rate in rates), 1)
            rows.append(row)
    return rows


def table(rows: list[dict[str, object]]) -> str:
    lines = [
        "| work | requests | `generate` one at a time, tokens/s | library's forward over all rows, tokens/s "
        "| engine on transformers, tokens/s | engine, tokens/s | vs. `generate` | vs. forward "
        "| vs. engine on transformers |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        names = ("generate", "bound", "library", "engine")
        generate, most, library, ours = (float(str(row.get(who, "nan"))) for who in names)
        share = f"{ours / most:.0%}" if most == most else ""
        shown = f"{most}" if most == most else ""
        lines.append(
            f"| {row['work']} | {row['jobs']} | {generate} | {shown} | {library} | {ours} "
            f"| {ours / generate:.1f}x | {share} | {ours / library:.2f}x |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", default="1,4,8,16,32")
    parser.add_argument("--save", action="store_true", help="write JSON and the table into benchmarks/results/")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        parameters = models.write(Path(folder) / "model")
        path = {"DEVICE": "cpu", "MODEL_PATH": str(Path(folder) / "model")}
        native, model = (load(settings({**path, "MODEL_CODE": code})) for code in ("native", "transformers"))
        rows = measure(native, model, [int(count) for count in options.jobs.split(",")], options.rounds)
        steps = operations_table(native, model, (1, 4, 16))
    shown = table(rows) + "\n" + steps
    print(shown)
    if options.save:
        command = f"python -m benchmarks.throughput --threads {options.threads} --rounds {options.rounds}"
        about = environment(command, threads=options.threads, parameters=parameters, rows=rows, operations=steps)
        save("throughput-cpu", about, shown)
        plot("throughput-cpu", lambda axes: draw(rows, axes), columns=len(KINDS))


LINES = (
    ("generate", "one at a time"),
    ("bound", "bare forward"),
    ("library", "engine on transformers"),
    ("engine", "engine"),
)


def draw(rows: list[JsonObject], axes: Any) -> None:
    """Tokens a second over jobs, a picture for each kind of work."""
    for kind, axis in zip(KINDS, axes, strict=True):
        mine = [row for row in rows if row["work"] == kind]
        for who, label in LINES:
            if who in mine[0]:
                axis.plot([row["jobs"] for row in mine], [row[who] for row in mine], marker="o", label=label)
        axis.set(title=kind, xlabel="jobs at once", ylabel="tokens/s", ylim=(0, None), xscale="log")
        axis.set_xticks([row["jobs"] for row in mine], [row["jobs"] for row in mine])
        axis.legend()


if __name__ == "__main__":
    main()
