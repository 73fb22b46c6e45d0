"""RunPod's entry point: settings, engine, runpod.serverless.start.

On the platform every job's `input` goes through `Service.answer` and each output is one stream chunk; the job's
result is their list: for a plain request, `[reply]`. A failed job ends with `{"error": "<JSON text>"}`.

Locally, `python handler.py` answers `test_input.json`, `--test_input '{"input": {…}}'` the JSON given, and
`--rp_serve_api` serves HTTP for trials. See docs/api.md.
"""

import sys

from worker.startup import arguments

if __name__ == "__main__":
    arguments.check(sys.argv[1:])

from worker.startup import boot


def _import_rest() -> None:
    """What the first question to the model does not need."""
    import runpod  # noqa: F401

    import worker.platform.sdk  # noqa: F401


# What begins here runs beside the imports below.
BOOT = boot.begin(_import_rest) if __name__ == "__main__" else None

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

import runpod
from runpod.serverless.modules.rp_logger import RunPodLogger

from worker.core import settings as worker_settings
from worker.core.engine_protocol import EngineInfo
from worker.core.errors import StartError, WorkerError
from worker.core.safe_json import Json, JsonObject
from worker.core.settings import Settings
from worker.platform import sdk
from worker.service import Service, refusal
from worker.startup.build import ModelHandle, OnFailure, Serving, start, why
from worker.startup.engines import LoadedEngine

log = logging.getLogger("handler")
LATE_JOBS_GRACE_S = 10.0  # to deliver what the late jobs' own limit has ended
FITNESS_PICTURE = (  # a red circle on white
    "iVBORw0KGgoAAAANSUhEUgAAAGAAAABgAQMAAADYVuV7AAAABlBMVEX////cHh7/Hx2WAAAA2UlEQVR42t2TsQ3CQAxF3zkI6GAD"
    "MgIbEDa/ERghI6SMUBRT+CdRuAIoKMDF6X/Z/rZ1NvyjnYYFJ/c8k4N7D2AAZ9gCVAAtpJTDkwAapezc3Tvl7NFjwBFgI1JPsjbl"
    "JklH9ZQxKUMDpiagnlGYhWgUMNWEfRl2DLQpPfWMnj0rohnTi7DFqmkcSPnNnC+Savmn6wcCGsFfhLWBxtLTBRpKTx+oBwNtYVeG"
    "jYFaMPAgWZvYxDjYtDuu3lp1g6EWBpFeNTHgDnATcVi+jIv7WNxCeSWr+/ltewC5YDYKf2Xi7gAAAABJRU5ErkJggg=="
)


class Handler:
    """The shapes of one handler: the SDK does not iterate generators in its local mode."""

    def __init__(self, model: ModelHandle, settings: Settings) -> None:
        self._model = model
        self._settings = settings
        self.deliveries = sdk.Deliveries()

    async def on_platform(self, job: JsonObject) -> AsyncGenerator[Json, None]:
        """`stream` with what a job of the platform has besides: its policy, progress, the worker's stop."""
        progress = sdk.Progress(job, self._settings.progress_after_s)
        task = asyncio.current_task()
        assert task is not None
        # A job cancelled in the middle of a chunk's delivery never comes back into this generator.
        task.add_done_callback(lambda _: progress.forget())
        with self.deliveries.until(str(job["id"]), time.monotonic() + self._max_seconds(job)):
            async with aclosing(self.stream(job, progress)) as values:
                async for value in values:
                    await progress.end()
                    yield value

    async def stream(
        self, job: JsonObject, on_phase: Callable[[str], None] = lambda _: None
    ) -> AsyncGenerator[Json, None]:
        """One safe JSON value for each chunk."""
        body = job.get("input")
        try:
            max_seconds = sdk.max_seconds(job)
            service = (await self._model.serving()).service
        except WorkerError as error:
            for chunk in refusal(body, error):
                yield chunk
            return
        answer = service.answer(body, str(job["id"]), max_seconds, on_phase, is_bounded=True)
        async with aclosing(answer) as values:
            async for value in values:
                yield value

    def _max_seconds(self, job: JsonObject) -> float:
        """Of the job, whatever its body says."""
        try:
            return min(self._settings.max_job_s, sdk.max_seconds(job))
        except WorkerError:
            return self._settings.max_job_s

    async def drain(self, job: JsonObject) -> Json:
        """The reply, the list of chunks, or the error alone; printed as JSON for the person who waits."""
        outputs = [output async for output in self.stream(job)]
        failures = [output for output in outputs if isinstance(output, dict) and "error" in output]
        result: Json = failures[0] if failures else outputs[0] if len(outputs) == 1 else outputs
        print(json.dumps(result, ensure_ascii=False, indent=2), flush=True)
        return result


def main() -> None:
    """Load, warm up, serve until told to stop. Ends with status 1 and one line when it cannot start."""
    try:
        settings = worker_settings.current()
        # The SDK's own default would log every job's input and every chunk.
        RunPodLogger().set_level(settings.runpod_log_level)
        model = ModelHandle(lambda: _load(settings), on_failure=_on_failure(settings))
        serving = None if settings.lazy_load else model.load()
    except StartError as error:
        sys.exit(f"worker-qwen-vl cannot start: {error}")
    handler = Handler(model, settings)
    options = start_options(handler, settings, sys.argv, serving)
    boot.settle()
    try:
        if settings.is_on_platform:
            _join_platform(model, handler.deliveries, serving, settings)
        runpod.serverless.start(options)
        if settings.is_on_platform:
            late_by = time.monotonic() + settings.late_jobs_s
            model.stop_by(late_by)
            handler.deliveries.stop_by(late_by)
            sdk.finish_late_jobs(options, settings.late_jobs_s + LATE_JOBS_GRACE_S)
    finally:
        model.close_now()
    if model.failure is not None:
        sys.exit(f"worker-qwen-vl cannot start: {why(model.failure)}")
    state = None if model.serving_now is None else model.serving_now.engine.state
    if state in ("dead", "stuck"):
        print("worker-qwen-vl: the engine has stopped, this worker must be replaced", file=sys.stderr, flush=True)
        boot.leave(1, at_once=state == "stuck")


def _load(settings: Settings) -> Serving:
    """What was begun before the imports above, or all of it now. Raises ModelError."""
    begun = BOOT or boot.begin()
    assert begun.loaded is None or isinstance(begun.loaded, LoadedEngine)
    return start(settings, on_death=sdk.ask_to_stop, timeline=begun.timeline, loaded=begun.loaded)


def _on_failure(settings: Settings) -> OnFailure:
    return lambda _: sdk.ask_to_stop() if settings.is_on_platform else None


def _join_platform(model: ModelHandle, deliveries: sdk.Deliveries, serving: Serving | None, settings: Settings) -> None:
    """What the platform's SDK is told before it starts."""

    def stop() -> None:
        at = time.monotonic() + settings.drain_s
        model.stop_by(at)
        deliveries.stop_by(at)

    sdk.on_stop(stop)  # the SDK gives running jobs all the time there is
    sdk.take_each_job_once()
    sdk.insist_on_delivery(deliveries)
    if serving is not None and serving.checking is not None:
        runpod.serverless.register_fitness_check(fitness_check(serving.checking))


def fitness_check(service: Service) -> Callable[[], Coroutine[Any, Any, None]]:
    """A real picture through the real model before the first job is taken."""

    async def a_picture_is_answered() -> None:
        question = {"prompt": "What is in the picture?", "image": FITNESS_PICTURE, "max_tokens": 8, "temperature": 0}
        async with aclosing(service.answer(question, "fitness")) as outputs:
            [reply] = [output async for output in outputs]
        if not isinstance(reply, dict) or "error" in reply or not reply["usage"]["image_tokens"]:
            raise RuntimeError("the model does not answer a question about a picture")

    return a_picture_is_answered


def start_options(
    handler: Handler, settings: Settings, command_line: list[str], serving: Serving | None = None
) -> JsonObject:
    """What the SDK is told. The concurrency never changes: a change would stop new jobs until all have ended. serving:
    None where the model is loaded later."""
    known = EngineInfo if serving is None else serving.engine.info
    concurrency = settings.concurrency or known.concurrency
    if settings.is_on_platform:
        shape: Any = handler.on_platform
    else:
        shape = handler.stream if "--rp_serve_api" in command_line else handler.drain
    return {
        "handler": shape,
        "return_aggregate_stream": True,
        "concurrency_modifier": lambda _: concurrency,
    }


if __name__ == "__main__":
    main()
