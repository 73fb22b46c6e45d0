"""The HTTP server under load: many clients, some of which hang up, beside one client at a time, the engine alone, and
the same application on uvicorn's own connections.

python -m benchmarks.http [--clients 64] [--seconds 60] [--other FOLDER] [--save]

The tiny model behind the server as a process, on one thread of torch; the clients are another process, on the same
machine. Every client asks about a picture again and again, half of the times for a stream, and leaves a tenth of its
answers before they end. The engine alone answers the same questions, as many at once, without HTTP. Both servers run
all the time and are asked in turns, a quarter of the seconds each. `--other` takes the server of another checkout, as
`git worktree add FOLDER COMMIT` makes one, in the place of uvicorn's connections.
"""

import argparse
import asyncio
import base64
import io
import itertools
import json
import multiprocessing
import random
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import torch
import uvicorn
from PIL import Image, ImageDraw

from benchmarks.report import environment, save
from worker.core.contract import ChatRequest
from worker.core.media_protocol import with_opened
from worker.core.safe_json import JsonObject
from worker.core.settings import load as load_settings
from worker.dialects import openai_chat
from worker.engine.engine import continuous_engine
from worker.media.fetch import Fetcher
from worker.media.opener import Opener
from worker.models.loading import load
from worker.prompt.size_policy import SmartResizePolicy
from worker.server.app import admission_of, create
from worker.startup.build import start

ROUTE = "/v1/chat/completions"
ROOT = Path(__file__).parents[1]
ENVIRONMENT = {"DEVICE": "cpu", "MAX_NUM_SEQS": "16"}
NUM_PICTURES = 32
LEAVING = 0.1  # of the answers
LEAVES_AFTER_S = 0.05
TURNS = ("ours", "uvicorn", "uvicorn", "ours")  # whatever the machine does meanwhile, it does to both


@dataclass
class Load:
    """What some clients saw. seconds: of each whole answer; wall: from the first question to the last answer."""

    seconds: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    wall: float = 0.0

    @property
    def rate(self) -> float:
        return len(self.seconds) / self.wall

    def add(self, other: "Load") -> None:
        """Another turn of the same."""
        self.seconds += other.seconds
        self.outcomes += other.outcomes
        self.wall += other.wall

    def row(self, name: str) -> str:
        p50, p95, p99 = (statistics.quantiles(self.seconds, n=100)[at - 1] for at in (50, 95, 99))
        said = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.outcomes.items()))
        return f"| {name} | {self.rate:.1f} | {p50:.3f} | {p95:.3f} | {p99:.3f} | {said} |"


def bodies() -> list[JsonObject]:
    """Questions about pictures that differ."""
    rng = random.Random(1)
    made = []
    for _ in range(NUM_PICTURES):
        picture = Image.new("RGB", (320, 240), "white")
        x, y = rng.randrange(200), rng.randrange(140)
        ImageDraw.Draw(picture).ellipse((x, y, x + 90, y + 90), fill=rng.choice(("red", "blue", "green", "orange")))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG")
        url = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": "What is in the picture?"},
        ]
        made.append({"messages": [{"role": "user", "content": content}], "temperature": 0})
    return made


async def under(num_clients: int, seconds: float, ask: Callable[[int, random.Random], Awaitable[str]]) -> Load:
    """Clients that ask again and again; `ask` says how it ended."""
    seen, end, count = Load(), time.perf_counter() + seconds, itertools.count()

    async def client(number: int) -> None:
        rng = random.Random(number)
        while time.perf_counter() < end:
            began = time.perf_counter()
            outcome = await ask(next(count), rng)
            seen.outcomes[outcome] += 1
            if outcome == "answered":
                seen.seconds.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(num_clients)))
    seen.wall = time.perf_counter() - began
    return seen


def parsed(body: JsonObject) -> ChatRequest:
    request = openai_chat.DIALECT.parse(body)
    assert isinstance(request, ChatRequest)
    return request


async def by_engine(num_clients: int, seconds: float) -> Load:
    """The same questions without HTTP."""
    chosen = load_settings(ENVIRONMENT)
    model = load(chosen)
    engine, size_policy = (
        continuous_engine(model, chosen),
        SmartResizePolicy(model.spec.preprocessor, chosen, model.spec.max_model_len),
    )
    opener = Opener(chosen, Fetcher(chosen), size_policy)
    asked = [parsed(body) for body in bodies()]
    engine.start()

    async def ask(index: int, _: random.Random) -> str:
        request = asked[index % len(asked)]
        request, media = with_opened(request, await opener.open(request.media))
        async with aclosing(engine.generate(request, media)) as events:
            async for _event in events:
                pass
        return "answered"

    try:
        return await under(num_clients, seconds, ask)
    finally:
        engine.close()
        opener.close()


async def through_server(address: str, num_clients: int, seconds: float, leaving: float) -> Load:
    """Clients of the HTTP server; each keeps its connection, as the official clients do."""
    asked = bodies()
    limits = httpx.Limits(max_connections=num_clients, max_keepalive_connections=num_clients)
    async with httpx.AsyncClient(base_url=address, timeout=60, limits=limits) as http:

        async def ask(index: int, rng: random.Random) -> str:
            body = {**asked[index % len(asked)], "stream": rng.random() < 0.5}
            has_left = rng.random() < leaving
            try:
                async with asyncio.timeout(LEAVES_AFTER_S if has_left else None):
                    async with http.stream("POST", ROUTE, json=body) as answer:
                        text = (await answer.aread()).decode()
            except TimeoutError:
                return "left"
            if answer.status_code != 200:
                return f"status {answer.status_code}"
            is_whole = text.endswith("data: [DONE]\n\n") if body["stream"] else "usage" in json.loads(text)
            return "answered" if is_whole else "cut"

        return await under(num_clients, seconds, ask)


def pinged(address: str, seconds: float) -> list[float]:
    """Milliseconds that `/ping` took, again and again."""
    taken, end = [], time.perf_counter() + seconds
    with httpx.Client(base_url=address) as http:
        while time.perf_counter() < end:
            began = time.perf_counter()
            http.get("/ping").raise_for_status()
            taken.append((time.perf_counter() - began) * 1000)
            time.sleep(0.05)
    return taken


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def metric(address: str, name: str) -> float:
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])


@contextmanager
def serving(front: str, folder: Path = ROOT) -> Iterator[str]:
    """The address of the worker of a checkout behind its own connections (`ours`) or uvicorn's."""
    port = free_port()
    variables = {**ENVIRONMENT, "LOG_LEVEL": "WARNING", "OMP_NUM_THREADS": "1", "PORT": str(port)}
    module = ["worker.server"] if front == "ours" else ["benchmarks.http", "--on-uvicorn"]
    command = ["env", *(f"{name}={value}" for name, value in variables.items()), sys.executable, "-m", *module]
    address = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, cwd=folder) as server:
        try:
            while not _is_ready(address):
                time.sleep(0.1)
            yield address
        finally:
            server.terminate()


def serve_on_uvicorn() -> None:
    """The same application without our connections: uvicorn reads and bounds what comes."""
    chosen = load_settings().model_copy(update={"media_isolate": "process"})  # as the command has it
    app = create(chosen, lambda: start(chosen), admission_of(chosen, chosen.max_connections))
    uvicorn.run(app, port=chosen.port, access_log=False, log_config=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--other", type=Path, help="a checkout whose server takes the place of uvicorn's connections")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--on-uvicorn", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.on_uvicorn:
        serve_on_uvicorn()
        return
    torch.set_num_threads(1)
    short = arguments.seconds / 4
    engine = asyncio.run(by_engine(arguments.clients, short))
    singles, loads = {front: Load() for front in TURNS}, {front: Load() for front in TURNS}
    pings: dict[str, list[float]] = {front: [] for front in TURNS}
    beside = serving("uvicorn") if arguments.other is None else serving("ours", arguments.other)
    theirs = "uvicorn's own connections" if arguments.other is None else "the other checkout"
    with serving("ours") as address, beside as other:
        places = {"ours": address, "uvicorn": other}
        before = 0.0  # of memory, once it has answered a client
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as apart:
            for front in TURNS:
                singles[front].add(asyncio.run(through_server(places[front], 1, short / 4, leaving=0.0)))
                before = before or metric(address, "process_resident_memory_bytes")
                pinging = apart.submit(pinged, places[front], short)
                loads[front].add(asyncio.run(through_server(places[front], arguments.clients, short, LEAVING)))
                pings[front] += pinging.result()
        time.sleep(1)
        left_over = metric(address, "worker_requests_unfinished")
        grown = metric(address, "process_resident_memory_bytes") - before
    rows = ["| | answers per second | p50 s | p95 s | p99 s | ended |", "|---|---|---|---|---|---|"]
    for front, name in (("ours", "through the HTTP server"), ("uvicorn", f"the same on {theirs}")):
        rows += [singles[front].row(f"one client, {name}"), loads[front].row(f"{arguments.clients} clients, {name}")]
    rows.append(engine.row(f"{arguments.clients} at once, engine alone"))
    share = loads["ours"].rate / engine.rate
    waits = [statistics.quantiles(pings[front], n=100)[at - 1] for front in ("ours", "uvicorn") for at in (50, 99)]
    table = "\n".join(rows) + (
        f"\n\n{arguments.clients} clients get {loads['ours'].rate / singles['ours'].rate:.2f}x the answers a second of "
        f"one, and {loads['ours'].rate / loads['uvicorn'].rate:.2f}x those on {theirs}. The "
        f"engine's share is {share:.0%}: answers a second through the HTTP server, over those of the engine alone. "
        f"Unfinished a second after the last client left: {left_over:.0f}. Memory of the worker grew by "
        f"{grown / 2**20:.0f} MiB. `/ping` meanwhile took {waits[0]:.1f} ms (p50) and {waits[1]:.1f} ms (p99), on "
        f"{theirs} {waits[2]:.1f} and {waits[3]:.1f} ms.\n"
    )
    print(table)
    if arguments.save:
        flags = f"--clients {arguments.clients} --seconds {arguments.seconds:g}"
        facts = environment(f"python -m benchmarks.http {flags}", threads=1, engine_share=share)
        measured = {
            "one": singles["ours"],
            "many": loads["ours"],
            "many_on_uvicorn": loads["uvicorn"],
            "engine": engine,
        }
        facts["loads"] = {
            name: {
                "rate": load.rate,
                "outcomes": dict(load.outcomes),
                "seconds": sorted(load.seconds)[:: 1 + len(load.seconds) // 200],
            }
            for name, load in measured.items()
        }
        save("http-cpu", facts, table)


def _is_ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/ping").status_code == 200
    except httpx.HTTPError:
        return False


if __name__ == "__main__":
    main()
