"""The platform's door: settings, engine, runpod.serverless.start.

On the platform every job's `input` goes through `Service.answer` and each output is one stream chunk; the job's
result is their list: for a plain request, `[reply]`. A failed job ends with `{"error": "<JSON text>"}`.

Locally, `python handler.py` answers `test_input.json`, `--test_input '{"input": {…}}'` the JSON given, and
`--rp_serve_api` serves HTTP for trials. See docs/api.md.
"""

import json
import logging
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import runpod
from runpod.serverless.modules.rp_logger import RunPodLogger

from worker import settings as worker_settings
from worker.engine.engine import Engine
from worker.engine.loading import ModelError, load
from worker.media.fetch import Fetcher
from worker.media.opener import Opener
from worker.safe_json import safe
from worker.serve import Service
from worker.settings import SettingError, Settings


class Handler:
    """The two shapes of one handler: the SDK does not iterate generators in its local mode."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def stream(self, job: dict[str, Any]) -> AsyncGenerator[Any, None]:
        """One safe JSON value for each chunk."""
        async with aclosing(self._service.answer(job.get("input"), str(job["id"]))) as outputs:
            async for output in outputs:
                yield safe(output)

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
        engine = Engine(load(settings), settings)
    except (SettingError, ModelError) as error:
        sys.exit(f"worker-qwen-vl cannot start: {error}")
    opener = Opener(settings, Fetcher(settings))
    engine.start()
    try:
        runpod.serverless.start(start_options(Handler(Service(engine, opener)), settings, sys.argv))
    finally:
        engine.close()
        opener.close()


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
