"""CPU time of a job while the prefix cache fills: what the last jobs cost beside the first.

python -m benchmarks.growth [--jobs 1200] [--rounds 3] [--other FOLDER] [--save]

The tiny model answers questions about pictures that all differ, eight at a time, eight tokens each, with a prefix cache
that holds them all, and, as the baseline, with none. The figures are milliseconds of CPU a job in each quarter, medians
of the rounds.
`--other` measures another checkout in the same run, as `git worktree add FOLDER COMMIT` makes one.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.report import environment, save
from worker.core.contract import ChatRequest, Done, Inline, Media, Message, Text
from worker.core.opened import Picture
from worker.core.sampling import Sampling
from worker.core.settings import load as settings
from worker.engine.engine import Engine, continuous_engine
from worker.models.loading import load

ROOT = Path(__file__).parents[1]
AT_ONCE, TOKENS, QUARTERS = 8, 8, 4
WAYS = {"prefix cache": "4096", "no prefix cache": "0"}


async def answered(engine: Engine, number: int) -> int:
    """Cached tokens of one job, whose picture and question no other has."""
    pixels = np.random.default_rng(number).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    parts = (Media(kind="image", source=Inline(data=""), where=""), Text(text=f"Is this picture number {number}?"))
    sampling = Sampling(max_tokens=TOKENS, temperature=0, ignore_eos=True)
    request = ChatRequest(messages=(Message(role="user", parts=parts),), sampling=sampling)
    events = [event async for event in engine.generate(request, (Picture(pixels),))]
    assert isinstance(events[-1], Done)
    return events[-1].usage.cached_tokens


async def quarters(engine: Engine, jobs: int) -> list[float]:
    """Milliseconds of CPU a job, of each quarter of the jobs."""
    took, turns = [], asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with turns:
            await answered(engine, number)

    await asyncio.gather(*(one(jobs + number) for number in range(3 * AT_ONCE)))  # what a first use makes
    for quarter in range(QUARTERS):
        began = time.process_time()
        await asyncio.gather(*(one(number) for number in range(quarter * jobs // 4, (quarter + 1) * jobs // 4)))
        took.append((time.process_time() - began) * 1000 / (jobs // 4))
    return took


def measured(jobs: int) -> dict[str, list[float]]:
    torch.set_num_threads(1)
    found = {}
    for way, mib in WAYS.items():
        chosen = settings({"DEVICE": "cpu", "DTYPE": "float32", "PREFIX_CACHE_MIB": mib, "MAX_NUM_SEQS": "16"})
        engine = continuous_engine(load(chosen), chosen)
        engine.start()
        try:
            found[way] = asyncio.run(quarters(engine, jobs))
        finally:
            engine.close()
    return found


def of_checkout(folder: Path, jobs: int) -> dict[str, list[float]]:
    """The same, by the worker of another folder."""
    command = ["env", f"PYTHONPATH={folder}", sys.executable, "-P", str(Path(__file__)), "--alone", "--jobs", str(jobs)]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, check=True)
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def medians(rounds: list[list[float]]) -> list[float]:
    """Of each quarter."""
    return [statistics.median(quarter) for quarter in zip(*rounds, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--other", type=Path, help="a checkout that is measured, too")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(measured(options.jobs)))
        return
    folders = {"this worker": ROOT} | ({} if options.other is None else {"the other checkout": options.other})
    rounds = [
        {name: of_checkout(folder, options.jobs) for name, folder in folders.items()} for _ in range(options.rounds)
    ]
    rows = {name: {way: medians([each[name][way] for each in rounds]) for way in WAYS} for name in folders}
    lines = ["| | CPU a job, ms: first quarter | second | third | last | last to first |", "|---|---|---|---|---|---|"]
    for name, ways in rows.items():
        for way, took in ways.items():
            figures = " | ".join(f"{each:.1f}" for each in took)
            lines.append(f"| {name}, {way} | {figures} | {took[-1] / took[0]:.2f}x |")
    table = "\n".join(lines) + "\n"
    print(table)
    if options.save:
        command = f"python -m benchmarks.growth --jobs {options.jobs} --rounds {options.rounds}"
        save("growth-cpu", environment(command, jobs=options.jobs, quarters=rows, rounds=rounds), table)


if __name__ == "__main__":
    main()
