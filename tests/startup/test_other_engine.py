"""A second engine is one class: this one, of thirty lines, stands behind the real HTTP server and the real handler."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import pytest
import requests

from tests.server.servers import served
from worker.core.contract import ChatRequest, Done, Event, Piece, Text, Usage
from worker.core.deadline import Deadline
from worker.core.engine_protocol import EngineInfo, EngineState, EngineStats, TokenCounts
from worker.core.opened import Clip, Opened
from worker.core.settings import EMBEDDED_MODEL, Settings, load
from worker.startup.build import ModelHandle, Serving, assemble
from worker.startup.engines import LoadedEngine

pytestmark = pytest.mark.network


class Echo:
    """Says what it was told, word by word, and how many files it was shown."""

    info = EngineInfo(model="echo", code="echo", max_model_len=1000)
    state: EngineState = "ready"

    def stats(self) -> EngineStats:
        return EngineStats(num_running=3)

    async def count_tokens(self, request: ChatRequest, media: Sequence[Opened]) -> TokenCounts:
        words = [part.text for message in request.messages for part in message.parts if isinstance(part, Text)]
        return TokenCounts(len(" ".join(words).split()))

    async def generate(
        self, request: ChatRequest, media: Sequence[Opened], deadline: Deadline, *_: Any
    ) -> AsyncGenerator[Event, None]:
        tokens = (await self.count_tokens(request, media)).prompt_tokens
        for part in request.messages[-1].parts:
            if isinstance(part, Text):
                yield Piece(text=part.text)
        files = [file for opened in media if opened.source is not None for file in opened.source.files]
        yield Piece(text=f" {sum(map(len, files))} bytes")
        yield Done(reasons=("stop",), usage=Usage(prompt_tokens=tokens, completion_tokens=1))

    def on_death(self, callback: Callable[[], None]) -> None:
        pass

    def close(self) -> None:
        self.state = "closed"


class AsLarge:
    """Sees everything at its own size."""

    max_tokens = 100

    def picture(self, height: int, width: int, controls: object) -> tuple[int, int, int]:
        return height, width, 1

    def clip(self, height: int, width: int, *_: object) -> tuple[int, int, int]:
        return height, width, 1

    def max_pixels(self, _: object) -> int:
        return 1000

    def resized(self, rgb: Any, *_: object) -> Any:
        return rgb


QUESTION = json.loads((EMBEDDED_MODEL.parents[1] / "test_input.json").read_text(encoding="utf-8"))["input"]
NUM_BYTES = len(QUESTION["image"].partition(",")[2]) * 3 // 4


def serving(settings: Settings) -> Serving:
    return assemble(LoadedEngine(Echo(), AsLarge(), reads_files=True), settings)


def test_behind_the_http_server() -> None:
    made = serving(load({}))
    engine, opener = made.engine, made.opener
    with served(engine, opener) as address:
        content = [{"type": "text", "text": "Hello there"}, {"type": "image", "image": QUESTION["image"]}]
        body = {"messages": [{"role": "user", "content": content}]}
        said = requests.post(f"{address}/generate", json=body, timeout=10).json()["response"]
        health = requests.get(f"{address}/health", timeout=10).json()
        models = requests.get(f"{address}/v1/models", timeout=10).json()
    assert said.startswith("Hello there ") and abs(int(said.split()[2]) - NUM_BYTES) <= 2
    assert (health["model"], health["status"]) == ("echo", "healthy")
    assert models["data"][0]["id"] == "echo"
    assert "worker_answers_running 3.0" in made.service.metrics.text().decode()
    made.close()


def test_behind_the_handler() -> None:
    import handler

    settings = load({"STREAM_INTERVAL_MS": "0"})
    model = ModelHandle(lambda: serving(settings))
    job = {"id": "1", "input": {"prompt": "Hello", "stream": True}}

    async def run() -> list[Any]:
        chunks = [chunk async for chunk in handler.Handler(model, settings).stream(job)]
        await model.close()
        return chunks

    *pieces, end = asyncio.run(run())
    assert [piece["text"] for piece in pieces] == ["Hello", " 0 bytes"]
    assert (end["model"], end["model_code"], end["finish_reason"]) == ("echo", "echo", "stop")
    assert model.state == "dead"


def test_a_clip_without_a_source_is_as_large_as_its_frames() -> None:
    import numpy as np

    assert Clip((np.zeros((4, 6, 3), np.uint8),), 1.0).size == (4, 6)
