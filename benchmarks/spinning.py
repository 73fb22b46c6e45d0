"""For how long OpenMP's threads spin before they sleep: tokens a second alone and beside a busy process.

python -m benchmarks.spinning [--counts 100,3000,300000] [--rounds 2] [--save]

The server of `benchmarks.peers`, bfloat16, streamed over HTTP, with each value of GOMP_SPINCOUNT (300000 is libgomp's
default): one stream and sixteen while nothing else runs, one and eight beside a process that never waits. Medians of
the rounds; in each one all values take turns, each with a server of its own.
"""

import argparse
import asyncio
import contextlib
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import models, peers
from benchmarks.report import environment, save, table_of

WARM, ALONE, BESIDE = 16, (1, 16), (1, 8)


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """Beside a process that never waits, on any core."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def measured(model: Path, count: str) -> dict[str, float]:
    """Tokens a second, by how many streams there were and whether there was something beside them."""
    options = argparse.Namespace(dtype="bfloat16", vllm_dtype=None, eager=False, other=None, without=["vLLM"])
    command, variables, folder = peers.commands(options, model)["this worker"]
    rng, found = random.Random(), {}

    def rate(streams: int) -> float:
        return asyncio.run(peers.burst(peer, [peers.body(rng) for _ in range(streams)]))[0]

    with peers.serving("this worker", command, {**variables, "GOMP_SPINCOUNT": count}, folder) as peer:
        rate(WARM)
        time.sleep(peers.PAUSE_S)  # weights are packed
        for streams in ALONE:
            found[f"{streams} alone"] = rate(streams)
        with busy():
            for streams in BESIDE:
                found[f"{streams} beside a busy process"] = rate(streams)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", default="100,3000,300000")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--save", action="store_true", help="write JSON and the table into benchmarks/results/")
    options = parser.parse_args()
    counts = options.counts.split(",")
    rates: dict[str, dict[str, list[float]]] = {count: defaultdict(list) for count in counts}
    with tempfile.TemporaryDirectory() as temporary:
        models.write(Path(temporary) / "model", torch.bfloat16)
        for _ in range(options.rounds):
            for count in counts:
                for kind, rate in measured(Path(temporary) / "model", count).items():
                    rates[count][kind].append(rate)
    medians = {count: {kind: statistics.median(seen) for kind, seen in of.items()} for count, of in rates.items()}
    table = table_of("GOMP_SPINCOUNT", medians, "tokens/s", 1)
    print(table)
    if options.save:
        save("spinning-cpu", environment("python -m benchmarks.spinning", tokens_per_second=rates), table)


if __name__ == "__main__":
    main()
