"""A stand-in for the platform's job API on the loopback, written from its contract: a test double, never a product.

The worker's side (take, batch take, stop channel, chunks, results, ping) and the clients' (run, runsync, status,
stream, cancel, health, purge-queue, the OpenAI route), with faults to order.
"""

import asyncio
import contextlib
import json
import random
import threading
import time
import uuid
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

KEY = "rpa_test"
FINAL = ("COMPLETED", "FAILED", "CANCELLED")
DROPPED = 0  # in the place of a status: the connection is closed without an answer
ACTS_TWICE = ("job-done", "job-stream")  # routes whose answer may be lost after they did their work


@dataclass
class Job:
    """A job as the platform keeps it."""

    id: str
    input: Any
    status: str = "IN_QUEUE"
    output: Any = None
    error: Any = None
    chunks: list[Any] = field(default_factory=list)
    num_read: int = 0
    num_results: int = 0
    progress: list[Any] = field(default_factory=list)
    policy: dict[str, Any] | None = None
    taken_at: float = 0.0
    ended_at: float = 0.0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def shown(self) -> dict[str, Any]:
        shown: dict[str, Any] = {"id": self.id, "status": self.status}
        if self.output is not None:
            shown["output"] = self.output
        if self.error is not None:
            shown["error"] = self.error
        return shown


class Platform:
    """Start it with `with`; `hold_s` is how long a poll without a job is held. faults: for a route's name, the statuses
    that its next calls get instead of what they ask for. trouble: the share of all the worker's calls that fail, by
    500 or a dropped connection, before or after their work is done."""

    def __init__(self, hold_s: float = 0.5) -> None:
        self.hold_s = hold_s
        self.jobs: dict[str, Job] = {}
        self.faults: dict[str, deque[int]] = defaultdict(deque)
        self.calls: dict[str, int] = defaultdict(int)
        self.chunk_delay_s = 0.0
        self.max_result_bytes = 20 * 2**20
        self.trouble = 0.0
        self._rng = random.Random(1)
        self.port = 0
        self._queue: deque[Job] = deque()
        self._stops: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._something = asyncio.Event()
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> "Platform":
        self._thread.start()
        assert self._is_up.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.chunk_delay_s = 0.0
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/v2"

    def environment(self, worker: str = "w1") -> dict[str, str]:
        """What the platform gives to a worker."""
        base = f"{self.address}/ep"
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{base}/job-stream/$RUNPOD_POD_ID/$ID?gpu=none",
            "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID?gpu=none",
            "RUNPOD_PING_INTERVAL": "1000",
            "RUNPOD_AI_API_KEY": KEY,
            "RUNPOD_POD_ID": worker,
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
            "MODEL_ID": "tiny-qwen3-vl",  # what an operator sets
        }

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._start())
        self._is_up.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self._runner.cleanup())

    async def _start(self) -> None:
        app = web.Application(client_max_size=20 * 2**20)
        for method, path, act in (
            ("GET", "/job-take/{worker}", self._take),
            ("GET", "/job-take-batch/{worker}", self._take),
            ("GET", "/job-stop/{worker}", self._stop),
            ("POST", "/job-done/{worker}/{job}", self._done),
            ("POST", "/job-stream/{worker}/{job}", self._chunk),
            ("GET", "/ping/{worker}", self._ping),
            ("POST", "/run", self._run),
            ("POST", "/runsync", self._runsync),
            ("GET", "/status/{job}", self._status),
            ("POST", "/status/{job}", self._status),
            ("GET", "/status-sync/{job}", self._status_sync),
            ("GET", "/stream/{job}", self._stream),
            ("POST", "/stream/{job}", self._stream),
            ("POST", "/cancel/{job}", self._cancel),
            ("GET", "/health", self._health),
            ("POST", "/purge-queue", self._purge),
            ("POST", "/openai{route:/v1/.*}", self._openai),
            ("GET", "/openai{route:/v1/.*}", self._openai),
        ):
            app.router.add_route(method, "/v2/ep" + path, self._counted(path.split("/")[1].split("{")[0], act))
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]

    def _counted(self, name: str, act: Any) -> Any:
        async def counted(request: web.Request) -> web.StreamResponse:
            self.calls[name] += 1
            is_in_trouble = name.startswith("job-") and self._rng.random() < self.trouble
            fault = self._rng.choice((500, 502, DROPPED)) if is_in_trouble else None
            if self.faults[name]:
                fault = self.faults[name].popleft()
            elif fault is not None and name in ACTS_TWICE and self._rng.random() < 0.5:
                await act(request)
            if fault is not None:
                return _failed(request, fault)
            answer: web.StreamResponse = await act(request)
            return answer

        return counted

    def call_soon(self, act: Any, *arguments: Any) -> Any:
        """Run `act` on the stand-in's own thread and give its result."""

        async def run() -> Any:
            return act(*arguments)

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    async def _wait_for_something(self) -> None:
        self._something.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.hold_s):
                await self._something.wait()

    async def _take(self, request: web.Request) -> web.Response:
        if not self._queue:
            await self._wait_for_something()
        taken: list[dict[str, Any]] = []
        while self._queue and len(taken) < int(request.query.get("batch_size", "1")):
            job = self._queue.popleft()
            job.status, job.taken_at = "IN_PROGRESS", time.monotonic()
            taken.append({"id": job.id, "input": job.input, **({"policy": job.policy} if job.policy else {})})
        if not taken:
            return web.Response(status=204)
        return web.json_response(taken if "batch_size" in request.query else taken[0])

    async def _stop(self, request: web.Request) -> web.Response:
        if not self._stops:
            await self._wait_for_something()
        stops, self._stops = self._stops, []
        return web.json_response({"jobsToStop": stops}) if stops else web.Response(status=204)

    async def _done(self, request: web.Request) -> web.Response:
        job = self.jobs[request.match_info["job"]]
        text = await request.text()
        if len(text) > self.max_result_bytes:
            return web.Response(status=400)
        body = json.loads(text)
        if body.get("status") == "IN_PROGRESS":
            job.progress.append(body["output"])
            return web.json_response({})
        job.num_results += 1
        if job.status not in FINAL:
            job.output, job.error = body.get("output"), body.get("error")
            self._end(job, "FAILED" if "error" in body else "COMPLETED")
        return web.json_response({})

    def _end(self, job: Job, status: str) -> None:
        job.status, job.ended_at = status, time.monotonic()
        job.changed.set()

    async def _chunk(self, request: web.Request) -> web.Response:
        job = self.jobs[request.match_info["job"]]
        job.chunks.append(json.loads(await request.text()))
        job.changed.set()
        taken_at = time.monotonic()
        while (left := taken_at + self.chunk_delay_s - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 0.05))  # the delay may be changed meanwhile
        return web.json_response({})

    async def _ping(self, request: web.Request) -> web.Response:
        return web.json_response({})

    def _enqueue(self, given: Any, policy: dict[str, Any] | None = None) -> Job:
        job = Job(f"{uuid.uuid4()}-u1", given, policy=policy)
        self.jobs[job.id] = job
        self._queue.append(job)
        self._something.set()
        return job

    def submit(self, given: Any, policy: dict[str, Any] | None = None) -> Job:
        """Put a job into the queue, from another thread."""
        job: Job = self.call_soon(self._enqueue, given, policy)
        return job

    def hand_over_again(self, job: Job) -> None:
        """As the platform does where it believes the worker dead, from another thread."""

        def again() -> None:
            self._queue.append(job)
            self._something.set()

        self.call_soon(again)

    def cancel(self, job: Job) -> None:
        """As a client's cancel does, from another thread."""
        self.call_soon(self._cancelled, job)

    async def _run(self, request: web.Request) -> web.Response:
        body = await request.json()
        job = self._enqueue(body.get("input"), body.get("policy"))
        return web.json_response({"id": job.id, "status": "IN_QUEUE"})

    async def _finished(self, job: Job, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while job.status not in FINAL:
                    job.changed.clear()
                    await job.changed.wait()

    async def _runsync(self, request: web.Request) -> web.Response:
        job = self._enqueue((await request.json()).get("input"))
        await self._finished(job, float(request.query.get("wait", 90_000)) / 1000)
        return web.json_response(job.shown)

    async def _status(self, request: web.Request) -> web.Response:
        job = self.jobs.get(request.match_info["job"])
        return web.json_response(job.shown) if job else web.Response(status=404)

    async def _status_sync(self, request: web.Request) -> web.Response:
        job = self.jobs[request.match_info["job"]]
        await self._finished(job, float(request.query.get("wait", 90_000)) / 1000)
        return web.json_response(job.shown)

    async def _stream(self, request: web.Request) -> web.Response:
        job = self.jobs[request.match_info["job"]]
        fresh, job.num_read = job.chunks[job.num_read :], len(job.chunks)
        return web.json_response({"status": job.status, "stream": fresh})

    async def _cancel(self, request: web.Request) -> web.Response:
        job = self.jobs[request.match_info["job"]]
        self._cancelled(job)
        return web.json_response(job.shown)

    def _cancelled(self, job: Job) -> None:
        if job in self._queue:
            self._queue.remove(job)
        elif job.status == "IN_PROGRESS":
            self._stops.append(job.id)
        if job.status not in FINAL:
            self._end(job, "CANCELLED")
        self._something.set()

    async def _health(self, request: web.Request) -> web.Response:
        states = [job.status for job in self.jobs.values()]
        return web.json_response(
            {"jobs": {"inQueue": states.count("IN_QUEUE"), "inProgress": states.count("IN_PROGRESS")}}
        )

    async def _purge(self, request: web.Request) -> web.Response:
        removed = len(self._queue)
        while self._queue:
            self._end(self._queue.popleft(), "CANCELLED")
        return web.json_response({"removed": removed, "status": "completed"})

    async def _openai(self, request: web.Request) -> web.StreamResponse:
        """The whole answer at its end; the platform's own unwrapping of a list with one value."""
        given: dict[str, Any] = {"openai_route": request.match_info["route"]}
        if request.method == "POST":
            given["openai_input"] = await request.json()
        job = self._enqueue(given)
        await self._finished(job, 60)
        if job.status != "COMPLETED":
            return web.json_response(json.loads(job.error) if job.error else {}, status=400)
        if all(isinstance(part, str) for part in job.output):
            return web.Response(text="".join(job.output), content_type="text/event-stream")
        return web.json_response(job.output[0])


def _failed(request: web.Request, status: int) -> web.Response:
    if status == DROPPED and request.transport is not None:
        request.transport.close()
    return web.Response(status=status or 500)
