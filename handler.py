"""The platform's door: settings, engine, runpod.serverless.start.

On the platform every job's `input` goes through `Service.answer` and each output is one stream chunk; the job's
result is their list: for a plain request, `[reply]`. A failed job ends with `{"error": "<JSON text>"}`.

Locally, `python handler.py` answers `test_input.json`, `--test_input '{"input": {…}}'` the JSON given, and
`--rp_serve_api` serves HTTP for trials. See docs/api.md.
"""

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import runpod
from runpod.http_client import AsyncClientSession
from runpod.serverless.modules import rp_job
from runpod.serverless.modules.rp_logger import RunPodLogger
from runpod.serverless.modules.worker_state import JobsProgress

from worker import settings as worker_settings
from worker.engine.engine import Engine
from worker.engine.loading import ModelError, load
from worker.errors import ResultTooLarge
from worker.media.fetch import Fetcher
from worker.media.opener import Opener
from worker.safe_json import safe
from worker.serve import Service
from worker.settings import SettingError, Settings

log = logging.getLogger("handler")


class Handler:
    """The two shapes of one handler: the SDK does not iterate generators in its local mode."""

    def __init__(self, service: Service, settings: Settings) -> None:
        self._service = service
        self._settings = settings

    async def stream(self, job: dict[str, Any]) -> AsyncGenerator[Any, None]:
        """One safe JSON value for each chunk; what the platform would refuse for its size ends as a coded error."""
        num_bytes = 0
        async with aclosing(self._service.answer(job.get("input"), str(job["id"]))) as outputs:
            async for output in outputs:
                value = safe(output)
                size = len(json.dumps(value))
                is_later_chunk, num_bytes = num_bytes > 0, num_bytes + size
                is_too_large = num_bytes > self._settings.max_result_bytes
                if is_too_large or (is_later_chunk and size > self._settings.max_chunk_bytes):
                    log.warning("job %s: its answer is too large for the platform", job["id"])
                    yield {"error": ResultTooLarge().as_json()}
                    return
                yield value

    async def drain(self, job: dict[str, Any]) -> Any:
        """The reply, the list of chunks, or the error alone; printed as JSON for the person who waits."""
        outputs = [output async for output in self.stream(job)]
        failures = [output for output in outputs if isinstance(output, dict) and "error" in output]
        result = failures[0] if failures else outputs[0] if len(outputs) == 1 else outputs
        print(json.dumps(result, ensure_ascii=False, indent=2), flush=True)
        return result


def main() -> None:
    """Load, warm up, serve until told to stop. Ends with status 1 and one line when it cannot start."""
    try:
        settings = worker_settings.load()
        _set_up_logs(settings)
        if settings.is_on_platform:
            signal.signal(signal.SIGTERM, _leave_quietly)  # until the SDK puts its own handler there
        engine = Engine(load(settings), settings, on_death=_ask_to_stop)
    except (SettingError, ModelError) as error:
        sys.exit(f"worker-qwen-vl cannot start: {error}")
    opener = Opener(settings, Fetcher(settings))
    options = start_options(Handler(Service(engine, opener), settings), settings, sys.argv)
    engine.start()
    try:
        runpod.serverless.start(options)
        if settings.is_on_platform:
            _finish_late_jobs(options, settings.late_jobs_s)
    finally:
        engine.close()
        opener.close()
    if engine.is_dead:
        sys.exit("worker-qwen-vl: the engine has ended, this worker must be replaced")


def _leave_quietly(*_: object) -> None:
    """Told to stop while loading: no job was taken, nothing is lost."""
    os._exit(143)


def _ask_to_stop() -> None:
    """Make the SDK take no more jobs and return from `start` when the running ones have ended."""
    os.kill(os.getpid(), signal.SIGTERM)


def _finish_late_jobs(options: dict[str, Any], seconds: float) -> None:
    """Do what the platform handed over to the poll that was open at the stop: the SDK takes it and forgets it."""
    late = [{"id": job.id, "input": job.input} for job in JobsProgress()]
    if not late:
        return
    log.info("finishing %d jobs that came with the stop", len(late))

    async def finish() -> None:
        async with AsyncClientSession() as session, asyncio.timeout(seconds):
            await asyncio.gather(*(rp_job.handle_job(session, options, job) for job in late))

    try:
        asyncio.run(finish())
    except TimeoutError:
        log.error("jobs that came with the stop were not finished within %s s", seconds)


def _set_up_logs(settings: Settings) -> None:
    """Our lines go to standard error. The SDK's own default level would log every job's input and every chunk."""
    logging.basicConfig(
        level=settings.log_level, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s", force=True
    )
    RunPodLogger().set_level(settings.runpod_log_level)


def start_options(handler: Handler, settings: Settings, arguments: list[str]) -> dict[str, Any]:
    """What the SDK is told. The concurrency never changes: a change would stop new jobs until all have ended."""
    serves_jobs = settings.is_on_platform or "--rp_serve_api" in arguments
    return {
        "handler": handler.stream if serves_jobs else handler.drain,
        "return_aggregate_stream": True,
        "concurrency_modifier": lambda _: settings.concurrency,
    }


if __name__ == "__main__":
    main()
