"""Answers of the HTTP server: made in a task of their own, sent as they come, stopped when the client hangs up."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from worker.core.errors import WorkerError
from worker.core.safe_json import Json, JsonObject
from worker.service import Service


class Outputs:
    """A request's outputs: they go on while the client is slow, and end when it goes. failure: why there are no more,
    told before the last words."""

    def __init__(
        self,
        service: Service,
        job_input: JsonObject,
        request_id: str,
        caller: str,
        on_tokens: Callable[[int], None],
    ) -> None:
        self.failure: WorkerError | None = None
        self._queue: asyncio.Queue[Json] = asyncio.Queue()  # None is the end
        answers = service.answer(job_input, request_id, on_failure=self._fail, caller=caller, on_tokens=on_tokens)
        self._task = asyncio.create_task(self._make(answers))

    async def _make(self, answers: AsyncGenerator[Json, None]) -> None:
        try:
            async with aclosing(answers):
                async for output in answers:
                    self._queue.put_nowait(output)
        finally:
            self._queue.put_nowait(None)

    def _fail(self, error: WorkerError) -> None:
        self.failure = error

    async def next(self) -> Json:
        """None is the end."""
        return await self._queue.get()

    def stop(self) -> None:
        self._task.cancel()


class Streamed(Response):
    """Outputs as they come; a client that hangs up stops them. One that does not read is hung up by the connection."""

    def __init__(self, first: str, outputs: Outputs, media_type: str) -> None:
        self.status_code = 200
        self.media_type = media_type
        self.background = None
        self._first, self._outputs = first, outputs
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self._send(send))
        try:
            await until_gone(receive, sending)
        finally:
            sending.cancel()
            self._outputs.stop()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        output: Json = self._first
        while output is not None:
            if isinstance(output, str):
                await send({"type": "http.response.body", "body": output.encode(), "more_body": True})
            output = await self._outputs.next()
        await send({"type": "http.response.body", "body": b""})


async def until_gone(receive: Receive, working: asyncio.Task[Any]) -> bool:
    """Wait for the work or for the client to hang up, whichever comes first; whether the work was done."""
    gone = asyncio.create_task(_hang_up(receive))
    try:
        done, _ = await asyncio.wait({gone, working}, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if not task.cancelled():
                task.result()
        return working in done
    finally:
        gone.cancel()


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
