"""Tokens a second and seconds to the first token over HTTP, beside vLLM's build for CPUs and transformers' `generate`.

make peers  (once: vLLM in an environment of its own, 3.5 GB)
python -m benchmarks.peers [--jobs 1,4,8,16] [--rounds 3] [--dtype bfloat16] [--eager] [--other FOLDER] [--save]

A Qwen3-VL of 256 million random parameters is asked, by so many clients at once, about a picture of 256 x 192 that
nobody has sent before, for 64 streamed tokens. All servers run all the time, each on all cores, and are asked in turns,
two seconds apart; the figures are medians of the rounds, with the least and the most. `generate` answers one request
after the other. `--eager` starts vLLM without its compiler. `--other` adds the worker of another checkout, as `git
worktree add FOLDER COMMIT` makes one. Start: from the process's first moment to the first token of one request, weights
in the page cache. Memory: what the processes of a server share out among them (PSS), half a minute after all is over.
"""

import argparse
import asyncio
import base64
import contextlib
import io
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image

from benchmarks import models
from benchmarks.http import free_port
from benchmarks.report import environment, plot, save
from worker.core.safe_json import JsonObject

ROOT = Path(__file__).parents[1]
PEERS = ROOT / ".venv-peers" / "bin" / "python"
TOKENS = 64
GENERATE, MOST_ALONE = "`generate`", 4  # jobs; it answers them one after the other, at the same rate
PAUSE_S = 2.0  # behind a burst: a server's threads may spin for a second after it
REST_S = 35  # a little longer than it takes this worker to give memory back
READY_S = 600
VLLM = {
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, range(os.cpu_count() or 1))),
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONPATH": str(ROOT / "benchmarks" / "vllm_cpu"),
}
NOT_GIVEN = ("PYTHONPATH", "OMP_NUM_THREADS", "GOMP_SPINCOUNT", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
VLLM_OPTIONS = ("--max-model-len", "4096", "--max-num-seqs", "32", "--skip-mm-profiling", "--limit-mm-per-prompt")
VLLM_LIMITS = '{"image": {"count": 4, "width": 512, "height": 512}, "video": 0}'


@dataclass
class Peer:
    """A server that runs: its address, its first process, and seconds from that one's first moment to a token."""

    name: str
    address: str
    process: "subprocess.Popen[bytes]"
    start_s: float = 0.0
    rates: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    firsts: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))

    @property
    def memory_mib(self) -> float:
        """Of its processes."""
        return sum(_pss(pid) for pid in _family(self.process.pid)) / 1024


def _family(pid: int) -> list[int]:
    """A process and those that it has started."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    threads = Path(f"/proc/{pid}/task")
    found = [pid]
    with contextlib.suppress(OSError):
        for thread in threads.iterdir() if children.exists() else ():
            for child in (thread / "children").read_text(encoding="ascii").split():
                found += _family(int(child))
    return found


def _pss(pid: int) -> int:
    with contextlib.suppress(OSError):
        found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii"), re.MULTILINE)
        return int(found[1]) if found else 0
    return 0


def body(rng: random.Random) -> JsonObject:
    """A question about a picture of noise that nobody has seen."""
    pixels = np.random.default_rng(rng.getrandbits(32)).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((256, 192)).save(buffer, "JPEG")
    url = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": f"{rng.getrandbits(20)}: what is in the picture?"},
    ]
    return {
        "model": "model",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def answered(http: httpx.AsyncClient, asked: JsonObject) -> tuple[float, int]:
    """Seconds to the first text, and how many tokens came."""
    began, first, tokens = time.perf_counter(), 0.0, 0
    async with http.stream("POST", "/v1/chat/completions", json=asked) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if not first and any(choice["delta"].get("content") for choice in event.get("choices", ())):
                first = time.perf_counter() - began
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    return first, tokens


async def burst(peer: Peer, asked: Sequence[JsonObject]) -> tuple[float, float]:
    """Tokens a second of so many jobs at once, and the median of their seconds to the first token."""
    async with httpx.AsyncClient(base_url=peer.address, timeout=READY_S) as http:
        began = time.perf_counter()
        results = await asyncio.gather(*(answered(http, one) for one in asked))
        seconds = time.perf_counter() - began
    assert all(tokens == TOKENS for _, tokens in results), f"{peer.name} gave {sorted(t for _, t in results)} tokens"
    return TOKENS * len(asked) / seconds, statistics.median(first for first, _ in results)


def commands(options: argparse.Namespace, model: Path) -> dict[str, tuple[list[str], dict[str, str], Path]]:
    """For each server: its command, its environment, and the folder that it is started in; PORT stands for its port."""
    ours = {
        "MODEL_PATH": str(model),
        "DEVICE": "cpu",
        "DTYPE": options.dtype,
        "LOG_LEVEL": "WARNING",
        "MAX_NUM_SEQS": "32",
    }
    worker = [sys.executable, "-m", "worker.server", "--host", "127.0.0.1", "--port", "PORT"]
    wanted = {"this worker": (worker, ours, ROOT)}
    if options.other is not None:
        wanted["the other checkout"] = (worker, ours, options.other)
    vllm = [
        str(PEERS),
        "-m",
        "vllm.entrypoints.cli.main",
        "serve",
        str(model),
        "--port",
        "PORT",
    ]
    vllm += [
        "--served-model-name",
        "model",
        "--host",
        "127.0.0.1",
        "--dtype",
        options.vllm_dtype or options.dtype,
        *VLLM_OPTIONS,
        VLLM_LIMITS,
    ]
    wanted["vLLM"] = ([*vllm, *(["--enforce-eager"] if options.eager else [])], VLLM, ROOT)
    generate = [sys.executable, "-m", "benchmarks.peers_generate", str(model), options.dtype, "PORT"]
    wanted[GENERATE] = (generate, {}, ROOT)
    return {name: wanted[name] for name in wanted if name not in options.without}


@contextlib.contextmanager
def serving(name: str, command: list[str], variables: dict[str, str], folder: Path) -> Iterator[Peer]:
    """The server, once it has answered a request."""
    port = free_port()
    command = [part.replace("PORT", str(port)) for part in command]
    unset = [part for variable in NOT_GIVEN for part in ("-u", variable)]
    command = ["env", *unset, *(f"{key}={value}" for key, value in variables.items()), *command]
    began = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
        peer = Peer(name, f"http://127.0.0.1:{port}", process)
        try:
            while True:
                asked_at = time.perf_counter()
                try:
                    _, first = asyncio.run(burst(peer, [body(random.Random(name))]))
                    break
                except httpx.HTTPError:
                    if process.poll() is not None or time.perf_counter() - began > READY_S:
                        log.seek(0)
                        raise RuntimeError(f"{name} did not start:\n{log.read().decode()[-3000:]}") from None
                    time.sleep(0.05)
            peer.start_s = asked_at + first - began
            print(f"{name}: {peer.start_s:.1f} s to the first token", file=sys.stderr, flush=True)
            yield peer
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(20)
                os.killpg(process.pid, signal.SIGKILL)


def measure(peers: Sequence[Peer], jobs: Sequence[int], rounds: int) -> None:
    """Every peer is asked the same, another one first in each round; a burst before all rounds is not counted."""
    for turn in range(rounds + 1):
        for count in jobs if turn else jobs[-1:]:
            rng = random.Random(turn * 1000 + count)
            asked = [body(rng) for _ in range(count)]
            for peer in [*peers[turn % len(peers) :], *peers[: turn % len(peers)]]:
                if peer.name == GENERATE and count > MOST_ALONE:
                    continue
                rate, first = asyncio.run(burst(peer, asked))
                time.sleep(PAUSE_S)
                if turn:
                    peer.rates[count].append(rate)
                    peer.firsts[count].append(first)
                print(f"{count} jobs, {peer.name}: {rate:.1f} tokens/s, {first:.2f} s", file=sys.stderr, flush=True)


def _spread(values: Sequence[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def table(peers: Sequence[Peer], jobs: Sequence[int]) -> str:
    base = next((peer for peer in peers if peer.name == "vLLM"), peers[0])
    lines = [f"| jobs | | tokens/s | vs. {base.name} | first token, s |", "|---|---|---|---|---|"]
    for count in jobs:
        for peer in (peer for peer in peers if peer.rates[count]):
            share = statistics.median(peer.rates[count]) / statistics.median(base.rates[count])
            rate, first = _spread(peer.rates[count], 1), _spread(peer.firsts[count], 2)
            lines.append(f"| {count} | {peer.name} | {rate} | {share:.2f}x | {first} |")
    lines += ["", "| | start to the first token, s | memory, MiB |", "|---|---|---|"]
    lines += [f"| {peer.name} | {peer.start_s:.1f} | {peer.memory_mib:.0f} |" for peer in peers]
    return "\n".join(lines) + "\n"


def draw(peers: Sequence[Peer], jobs: Sequence[int], axes: Any) -> None:
    for peer in peers:
        measured = [count for count in jobs if peer.rates[count]]
        for axis, seen in zip(axes, (peer.rates, peer.firsts), strict=True):
            middle = [statistics.median(seen[count]) for count in measured]
            ends = [
                [at - min(seen[count]) for at, count in zip(middle, measured, strict=True)],
                [max(seen[count]) - at for at, count in zip(middle, measured, strict=True)],
            ]
            axis.errorbar(measured, middle, yerr=ends, marker="o", capsize=3, label=peer.name)
    axes[0].set(xlabel="jobs at once", ylabel="tokens per second", ylim=(0, None))
    axes[1].set(xlabel="jobs at once", ylabel="seconds to the first token", ylim=(0, None))
    axes[0].legend()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", default="1,4,8,16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16", help="of this worker and of `generate`; the checkpoint is bf16")
    parser.add_argument("--vllm-dtype", help="of vLLM, where it is another one")
    parser.add_argument("--eager", action="store_true", help="vLLM with --enforce-eager: starts sooner, runs slower")
    parser.add_argument("--other", type=Path, help="a checkout whose worker is measured, too")
    parser.add_argument("--without", nargs="*", default=[], help="names of servers that are left out")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    if not PEERS.exists() and "vLLM" not in options.without:
        sys.exit("vLLM is not there: run `make peers` (3.5 GB), or use --without vLLM")
    jobs = [int(count) for count in options.jobs.split(",")]
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        model = Path(temporary) / "model"
        models.write(model, torch.bfloat16)
        peers = [stack.enter_context(serving(name, *parts)) for name, parts in commands(options, model).items()]
        measure(peers, jobs, options.rounds)
        time.sleep(REST_S)
        text = table(peers, jobs)
        print(text)
        if options.save:
            flags = f"--jobs {options.jobs} --rounds {options.rounds} --dtype {options.dtype}"
            flags += (" --eager" if options.eager else "") + (" --other FOLDER" if options.other else "")
            facts = environment(f"python -m benchmarks.peers {flags}", dtype=options.dtype)
            facts["peers"] = {
                peer.name: {
                    "rates": peer.rates,
                    "first_token_s": peer.firsts,
                    "start_s": peer.start_s,
                    "memory_mib": peer.memory_mib,
                }
                for peer in peers
            }
            save(f"peers-cpu-{options.dtype}", facts, text)
            plot(f"peers-cpu-{options.dtype}", lambda axes: draw(peers, jobs, axes), columns=2)


if __name__ == "__main__":
    main()
