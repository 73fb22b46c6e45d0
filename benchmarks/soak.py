"""Many jobs through the real SDK and a stand-in for the platform, in trouble: every job accounted for.

python -m benchmarks.soak [--jobs 10000] [--attacks | --largest] [--save]

Mixed work (words, pictures, streams, bad input, cancels at random times) while 2 % of the worker's calls fail by 500,
502 or a dropped connection, and the worker is stopped by SIGTERM and started again twice. Then, without trouble: what
a job costs beside an empty handler, and what streaming costs the engine.

`--attacks`: a tenth of the jobs are made to hurt the others (benchmarks/attacks.py), beside the same jobs without them.
`--largest`: 48 jobs of the largest pictures at once, and the memory that they take.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks import attacks
from benchmarks.platform_jobs import PICTURE, body, running, through
from benchmarks.report import environment, save
from tests.platform.stand_in import FINAL, Job, Platform

TROUBLE = 0.02
WINDOW = 64  # jobs that are unfinished at once
KINDS = {"words": 40, "stream": 25, "picture": 15, "bad input": 10, "cancelled": 10}

EMPTY_HANDLER = """
import runpod
from runpod.serverless.modules.rp_logger import RunPodLogger

async def handler(job):
    yield {"text": "x"}

RunPodLogger().set_level("INFO")
runpod.serverless.start(
    {"handler": handler, "return_aggregate_stream": True, "concurrency_modifier": lambda _: 48}
)
"""
OUR_HANDLER_WITH_A_MODEL_THAT_TAKES_NO_TIME = """
import handler
from worker.core.contract import Done, Piece, Usage
from worker.engine.engine import Engine

async def generate(self, request, media, deadline=None, *more):
    yield Piece(text="x")
    yield Done(reasons=("stop",), usage=Usage(prompt_tokens=1, completion_tokens=1, image_tokens=1))

Engine.generate = generate
handler.main()
"""


@dataclass
class Life:
    """One process: memory and open files when it had done a few jobs, and at its end."""

    jobs: int
    memory_mib: tuple[float, float]
    files: tuple[int, int]
    exit_status: int


@dataclass
class Outcome:
    """How the jobs of a soak ended."""

    seconds: float
    ended: dict[str, dict[str, int]] = field(default_factory=dict)  # kind of job -> how it ended -> how many
    lives: list[Life] = field(default_factory=list)

    @property
    def num_bad(self) -> int:
        """Jobs that were lost, hung, or ended in another way than they should."""
        return sum(many for ended in self.ended.values() for how, many in ended.items() if how in ("hung", "wrong"))


def ended_how(kind: str, job: Job) -> str:
    """A word for the end of a job: `answered`, `coded error`, `cancelled`; `hung` and `wrong` must not be."""
    match job.status:
        case status if status not in FINAL:
            return "hung"
        case "CANCELLED":
            return "cancelled" if kind == "cancelled" else "wrong"
        case "FAILED":
            return "coded error" if _code(job) else "wrong"
    if kind == "cancelled":
        return "answered"
    text = "".join(part["text"] for part in job.output)
    expected = "circle" if kind == "picture" else "vision model"
    return "answered" if kind != "bad input" and expected in text and "usage" in job.output[-1] else "wrong"


def _code(job: Job) -> str | None:
    try:
        error = json.loads(job.error)
    except (TypeError, ValueError):
        return None
    return error.get("code") if isinstance(error, dict) else None


def soak(num_jobs: int, num_stops: int = 2, seed: int = 1) -> Outcome:
    """Run `num_jobs` of mixed work in trouble, with the worker stopped and started `num_stops` times on the way."""
    rng = random.Random(seed)
    jobs: list[tuple[str, Job]] = []
    to_cancel: list[tuple[float, Job]] = []
    lives: list[Life] = []
    began = time.monotonic()
    with Platform(hold_s=1.0) as platform:
        platform.trouble = TROUBLE
        for end in [num_jobs * (life_number + 1) // (num_stops + 1) for life_number in range(num_stops + 1)]:
            first = len(jobs)
            with running(platform) as worker:
                early: tuple[float, int] | None = None
                while len(jobs) < end or (
                    end == num_jobs and any(job.status not in FINAL for _, job in jobs[-WINDOW:])
                ):
                    unfinished = sum(job.status not in FINAL for _, job in jobs[-4 * WINDOW :])
                    for _ in range(min(WINDOW - unfinished, end - len(jobs))):
                        kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
                        jobs.append((kind, platform.submit(body(kind, rng))))
                        if kind == "cancelled":
                            to_cancel.append((time.monotonic() + rng.random(), jobs[-1][1]))
                    for due in [one for one in to_cancel if one[0] <= time.monotonic()]:
                        platform.cancel(due[1])
                        to_cancel.remove(due)
                    if early is None and len(jobs) - first >= (end - first) // 4:
                        early = worker.memory_mib, worker.num_files
                    time.sleep(0.02)
                late = worker.memory_mib, worker.num_files
                early = early or late
                life = Life(len(jobs) - first, (early[0], late[0]), (early[1], late[1]), worker.stop())
            lives.append(life)
        for _, job in to_cancel:
            platform.cancel(job)
    ended: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for kind, job in jobs:
        ended[kind][ended_how(kind, job)] += 1
    return Outcome(time.monotonic() - began, {kind: dict(counts) for kind, counts in ended.items()}, lives)


@dataclass
class Cost:
    """What a job takes from the poll that brings it to its result: milliseconds, and CPU of the process."""

    p50: float
    p95: float
    p99: float
    cpu: float


def cost(num_jobs: int, body: Any, *command: str) -> Cost:
    """Eight jobs at a time, nobody in trouble."""
    with Platform(hold_s=1.0) as platform, running(platform, *command) as worker:
        jobs = through(platform, [body] * 64, 8)  # the first ones pay for what is made once
        before = worker.cpu_seconds
        jobs = through(platform, [body] * num_jobs, 8)
        cpu = (worker.cpu_seconds - before) / num_jobs * 1000
    taken = [(job.ended_at - job.taken_at) * 1000 for job in jobs]
    p = statistics.quantiles(taken, n=100)
    return Cost(p[49], p[94], p[98], cpu)


def streaming_cost(rounds: int = 5) -> tuple[float, float]:
    """Tokens a second of 16 answers at once, plain and streamed: medians of rounds in turn, in one process."""
    long = {"prompt": "Who are you?", "ignore_eos": True, "max_tokens": 300, "temperature": 0}
    rates: dict[bool, list[float]] = {False: [], True: []}
    with Platform(hold_s=1.0) as platform, running(platform):
        for _ in range(rounds + 1):
            for stream, measured in rates.items():
                began = time.monotonic()
                jobs = through(platform, [{**long, "stream": stream}] * 16, 16)
                measured.append(16 * 300 / (max(job.ended_at for job in jobs) - began))
    return statistics.median(rates[False][1:]), statistics.median(rates[True][1:])


def table(num_jobs: int, outcome: Outcome) -> str:
    """How every kind of job ended, and what each process used."""
    hows = sorted({how for ended in outcome.ended.values() for how in ended} | {"hung", "wrong"})
    num_stops = len(outcome.lives) - 1
    lines = [
        f"{num_jobs} jobs in {outcome.seconds:.0f} s, {TROUBLE:.0%} of the worker's calls failing, {num_stops} stops:",
        "",
        f"| kind of job | {' | '.join(hows)} |",
        "|---" * (len(hows) + 1) + "|",
    ]
    for kind, ended in outcome.ended.items():
        lines.append(f"| {kind} | " + " | ".join(str(ended.get(how, 0)) for how in hows) + " |")
    lines += ["", "| process | jobs | memory, MiB | open files | exit |", "|---|---|---|---|---|"]
    for index, life in enumerate(outcome.lives, 1):
        memory = f"{life.memory_mib[0]:.0f} to {life.memory_mib[1]:.0f}"
        lines.append(f"| {index} | {life.jobs} | {memory} | {life.files[0]} to {life.files[1]} | {life.exit_status} |")
    return "\n".join(lines) + "\n"


def costs_table(costs: dict[str, Cost]) -> str:
    lines = ["| time per job with a model that takes none | p50, ms | p95 | p99 | CPU, ms |", "|---|---|---|---|---|"]
    lines += [f"| {name} | {c.p50:.1f} | {c.p95:.1f} | {c.p99:.1f} | {c.cpu:.2f} |" for name, c in costs.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--attacks", action="store_true", help="a tenth of the jobs are attacks on the others")
    parser.add_argument("--largest", action="store_true", help="48 jobs of the largest pictures at once: the memory")
    parser.add_argument("--save", action="store_true", help="write JSON and the tables into benchmarks/results/")
    options = parser.parse_args()
    if options.largest:
        attacks.report_largest()
        return
    if options.attacks:
        attacks.report(options.jobs, is_saved=options.save)
        return
    outcome = soak(options.jobs)
    print(table(options.jobs, outcome), flush=True)
    ours = ("-c", OUR_HANDLER_WITH_A_MODEL_THAT_TAKES_NO_TIME)
    costs = {
        "an empty handler": cost(1000, {"prompt": "x"}, "-c", EMPTY_HANDLER),
        "ours, words": cost(1000, {"prompt": "x"}, *ours),
        "ours, a picture": cost(1000, {"prompt": "x", "image": PICTURE}, *ours),
    }
    print(costs_table(costs), flush=True)
    plain, streamed = streaming_cost()
    said = f"16 answers at once: {plain:.0f} tokens/s plain, {streamed:.0f} streamed ({streamed / plain - 1:+.1%}).\n"
    print(said)
    if options.save:
        facts = environment(
            f"python -m benchmarks.soak --jobs {options.jobs}",
            soak=asdict(outcome),
            costs={name: asdict(one) for name, one in costs.items()},
            tokens_per_second={"plain": plain, "streamed": streamed},
        )
        save("soak-cpu", facts, "\n".join((table(options.jobs, outcome), costs_table(costs), said)))
    if outcome.num_bad:
        sys.exit(f"{outcome.num_bad} jobs were lost, hung or wrong")


if __name__ == "__main__":
    main()
