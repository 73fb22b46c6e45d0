"""The platform's job API where its SDK leaves something to the worker: stops, results that are refused, progress.

Written against runpod 1.12; `insist_on_delivery` and `finish_late_jobs` use parts of the SDK that are not
public, which is why requirements.txt names the exact version.
"""

import asyncio
import json
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import ClientError, ClientResponseError
from runpod.http_client import AsyncClientSession
from runpod.serverless.modules import rp_http, rp_job, rp_scale
from runpod.serverless.modules.worker_state import JobsProgress

from worker.core.deadline import Deadline
from worker.core.errors import DeadlineExceeded, InputInvalid, ResultTooLarge
from worker.core.safe_json import JsonObject

log = logging.getLogger(__name__)
DEADLINE_MARGIN_S = 2.0  # before the platform's own limit, to deliver what there is
PAUSES_S = (5.0, 15.0, 30.0, 60.0)  # between our own tries to deliver a result
CHUNK_PAUSES_S = (2.0,)  # and a chunk: the result has its text too
TRY_S = 90.0  # for one try; the SDK's own limit is ten minutes
CHUNK_TRY_S = 20.0
TOO_MANY = (408, 425, 429)
TOO_LARGE = (400, 413)
CHUNK_GRACE_S = 1.0  # after a job's time, for its last chunk; less than the margin above
MAX_TIMEOUT_MS = 604_800_000  # a week, the longest that the platform lets a job run
MAX_UPDATES = 8
GOODBYE_S = 1.0  # for an update under way when the job ends


def max_seconds(job: JsonObject) -> float:
    """How long the job may take by its own policy, less a margin; infinity where it has none. Raises InputInvalid."""
    policy = job.get("policy")
    limit = policy.get("executionTimeout") if isinstance(policy, dict) else None
    if isinstance(limit, bool) or not isinstance(limit, int | float):
        return math.inf
    if not abs(limit) <= MAX_TIMEOUT_MS:  # NaN is neither
        raise InputInvalid(
            where="policy.executionTimeout", detail=f"must be a number of milliseconds, at most {MAX_TIMEOUT_MS}"
        )
    return max(limit / 1000 - DEADLINE_MARGIN_S, 1.0) if limit > 0 else math.inf


def ask_to_stop() -> None:
    """Make the SDK take no more jobs and return from `start` when the running ones have ended."""
    os.kill(os.getpid(), signal.SIGTERM)


def on_stop(act: Callable[[], object]) -> None:
    """Have `act` called on the SDK's loop after its own handler of the signals that end a worker. Before `start`."""
    sdk = rp_scale.JobScaler.handle_shutdown

    def handle(scaler: Any, number: int, frame: Any) -> None:
        sdk(scaler, number, frame)
        try:
            asyncio.get_running_loop().call_soon_threadsafe(act)
        except RuntimeError:  # no loop runs yet, or none any more
            act()

    rp_scale.JobScaler.handle_shutdown = handle


def take_each_job_once() -> None:
    """A job that is handed over again while it is here runs once. Before `start`."""
    sdk = rp_scale.get_job

    async def get_job(session: Any, num_jobs: int = 1) -> list[JsonObject] | None:
        jobs = await sdk(session, num_jobs)
        here = {job.id for job in JobsProgress()}
        fresh: list[JsonObject] = []
        for job in jobs or ():
            if job["id"] in here:
                log.warning("handed over again while it is here: it runs once", extra={"request": job["id"]})
                continue
            here.add(job["id"])
            fresh.append(job)
        return fresh or None

    rp_scale.get_job = get_job


def finish_late_jobs(options: JsonObject, seconds: float) -> None:
    """Do what the platform handed over to the poll that was open at the stop: the SDK takes it and forgets it."""
    late = [dict(vars(job)) for job in JobsProgress()]
    if not late:
        return
    log.info("finishing %d jobs that came with the stop", len(late))

    async def finish() -> None:
        async with AsyncClientSession() as session, asyncio.timeout(seconds):
            jobs = (rp_job.handle_job(session, options, job) for job in late)
            for error in await asyncio.gather(*jobs, return_exceptions=True):
                if isinstance(error, BaseException):
                    log.error("a job that came with the stop was not finished", exc_info=error)

    try:
        asyncio.run(finish())
    except TimeoutError:
        log.error("jobs that came with the stop were not finished within %s s", seconds)


class _NoAnswerError(ClientError):
    """The platform took a call and never answered."""


class Deliveries:
    """Until when the chunks of each running job may be delivered: a channel that takes them and never answers must not
    outlive the job. The result has their text too."""

    def __init__(self) -> None:
        self._deadlines: dict[str, Deadline] = {}
        self._stop_at = math.inf

    @contextmanager
    def until(self, job_id: str, at: float) -> Iterator[None]:
        """The job is to end by `at`, in seconds of `time.monotonic()`, and its last chunk a moment later."""
        deadline = self._deadlines[job_id] = Deadline(min(at, self._stop_at) + CHUNK_GRACE_S)
        try:
            yield
        finally:
            if self._deadlines.get(job_id) is deadline:
                del self._deadlines[job_id]

    def stop_by(self, at: float) -> None:
        """All jobs are to end by then. Call it on the loop that delivers."""
        self._stop_at = at
        for deadline in self._deadlines.values():
            deadline.bring_forward(at + CHUNK_GRACE_S)

    async def bounded(self, url: str, sending: Coroutine[Any, Any, None]) -> None:
        """Send a chunk, if there is time. Raises ClientError where there is none; once it was over, it stays over."""
        deadline = self._deadlines.get(url.split("?")[0].rpartition("/")[2]) or Deadline()
        try:
            if deadline.has_passed:
                raise ClientError("no time is left for chunks")
            async with deadline.watch():
                await sending
        except DeadlineExceeded:
            raise ClientError("no time is left for chunks") from None
        except _NoAnswerError:
            deadline.bring_forward(time.monotonic())
            raise
        finally:
            sending.close()


def insist_on_delivery(deliveries: Deliveries) -> None:
    """Results that the platform refuses are tried again where the SDK gives up; too large ones become a coded error.
    Chunks are delivered while there is time."""
    sdk = rp_http._transmit

    async def transmit(session: Any, url: str, data: str) -> None:
        is_result = url.startswith(_results())
        if is_result:
            await insist(session, url, data, is_result=True)
        else:
            await deliveries.bounded(url, insist(session, url, data, is_result=False))

    async def insist(session: Any, url: str, data: str, *, is_result: bool) -> None:
        pauses = iter(PAUSES_S if is_result else CHUNK_PAUSES_S)
        while True:
            try:
                async with asyncio.timeout(TRY_S if is_result else CHUNK_TRY_S):
                    await sdk(session, url, data)
                return
            except (ClientError, TimeoutError) as error:
                status = error.status if isinstance(error, ClientResponseError) else None
                shrunk = _shrunk(data) if status in TOO_LARGE and is_result else None
                pause = next(pauses, None)
                if shrunk is not None:
                    log.warning("a result of %d characters was refused with %s", len(data), status)
                    data = shrunk
                elif pause is None or not _is_worth_a_try(status):
                    # The SDK goes on after this error and after no other.
                    raise error if isinstance(error, ClientError) else _NoAnswerError("no answer in time") from None
                else:
                    log.warning("a delivery was not taken (%s); again in %s s", status or type(error).__name__, pause)
                    await asyncio.sleep(pause)

    rp_http._transmit = transmit


def _results() -> str:
    """How the addresses of results begin."""
    return str(rp_http.JOB_DONE_URL.split("$ID")[0])


def _is_worth_a_try(status: int | None) -> bool:
    return status is None or status >= 500 or status in TOO_MANY


def _shrunk(data: str) -> str | None:
    """The coded error that takes the place of a refused result; None where there is nothing to shrink."""
    result = json.loads(data)
    return json.dumps({"error": ResultTooLarge().as_json()}) if "output" in result and "status" not in result else None


class Progress:
    """Tells the platform the phases of a slow job, a few at most, and none after its result."""

    def __init__(self, job: JsonObject, after_s: float) -> None:
        self._job = job
        self._phase = "waiting"
        self._told: str | None = None
        self._num_left = MAX_UPDATES
        self._slow_at = time.monotonic() + after_s
        self._timer = asyncio.get_running_loop().call_later(after_s, self._send)
        self.sending: asyncio.Task[None] | None = None

    def __call__(self, phase: str) -> None:
        """The job has come to another phase."""
        self._phase = phase
        if time.monotonic() >= self._slow_at:
            self._send()

    async def end(self) -> None:
        """The result comes next: whatever is under way arrives before it or not at all."""
        self._num_left = 0
        self._timer.cancel()
        if self.sending is not None:
            await asyncio.wait({self.sending}, timeout=GOODBYE_S)
            self.sending.cancel()

    def forget(self) -> None:
        """The job has gone: nothing more is told."""
        self._num_left = 0
        self._timer.cancel()
        if self.sending is not None:
            self.sending.cancel()

    def _send(self) -> None:
        is_free = self.sending is None or self.sending.done()
        if self._num_left > 0 and is_free and self._phase != self._told:
            self._num_left -= 1
            self._told = self._phase
            self.sending = asyncio.create_task(self._post(self._phase))

    async def _post(self, phase: str) -> None:
        async with AsyncClientSession() as session:
            await rp_http.send_result(session, {"status": "IN_PROGRESS", "output": {"phase": phase}}, self._job)
