"""The tiny model behind the whole path of a request, media and all, and pictures whose truth is known."""

import asyncio
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image

from builder.tiny_model import scenes
from tests.engine.serving import Serve
from worker.core.settings import Settings
from worker.media.fetch import Fetcher
from worker.media.opener import Opener
from worker.prompt.size_policy import SmartResizePolicy
from worker.service import Service

SETTINGS = Settings(device="cpu", dtype="float32", media_isolate="thread", stream_interval_ms=0)


@contextmanager
def answering(serve: Serve, **settings: Any) -> Iterator[Service]:
    """A service with an engine and an opener of its own."""
    chosen = SETTINGS.model_copy(update=settings)
    spec = serve.model.spec
    policy = SmartResizePolicy(spec.preprocessor, chosen, spec.max_model_len)
    opener = Opener(chosen, Fetcher(chosen), policy)
    try:
        yield Service(serve(chosen), opener, chosen)
    finally:
        opener.close()


def outputs_of(service: Service, *bodies: dict[str, Any]) -> list[list[Any]]:
    """What each of the requests, all at once, is answered."""

    async def one(number: int, body: dict[str, Any]) -> list[Any]:
        return [output async for output in service.answer(body, f"job-{number}")]

    async def run() -> list[list[Any]]:
        return list(await asyncio.gather(*(one(number, body) for number, body in enumerate(bodies))))

    return asyncio.run(run())


def reply_of(service: Service, **body: Any) -> dict[str, Any]:
    """The one reply to a native request, greedy."""
    [[reply]] = outputs_of(service, {"temperature": 0, **body})
    assert isinstance(reply, dict)
    return reply


def failure_of(service: Service, **body: Any) -> dict[str, Any]:
    """The error that ends a native request."""
    failure: dict[str, Any] = json.loads(reply_of(service, **body)["error"])
    return failure


def as_openai(body: dict[str, Any]) -> dict[str, Any]:
    """A native request with `prompt` and `image` as OpenAI's form has it."""
    rest = {name: value for name, value in body.items() if name not in ("prompt", "image", "images")}
    pictures = [body["image"]] if "image" in body else body.get("images", [])
    content = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}} for data in pictures]
    content += [{"type": "text", "text": body["prompt"]}] if "prompt" in body else []
    messages = [{"role": "user", "content": content}]
    return {"openai_route": "/v1/chat/completions", "openai_input": {"messages": messages, "temperature": 0, **rest}}


def chunks_of(outputs: list[Any]) -> list[dict[str, Any]]:
    """The objects of a stream of OpenAI's form."""
    lines = "".join(outputs).split("\n\n")
    return [json.loads(line.removeprefix("data: ")) for line in lines if line and line != "data: [DONE]"]


def scene_of(seed: int, aspect: float, num_things: int = 2) -> scenes.Scene:
    return scenes.random_scene(random.Random(seed), aspect, num_things)


def drawn(scene: scenes.Scene, width: int, height: int) -> Image.Image:
    return scenes.draw(scene, width, height, random.Random(0))


def true_box(thing: scenes.Thing, width: int, height: int) -> tuple[float, float, float, float]:
    """Of a thing in pixels of a picture of that size."""
    left, top, right, bottom = thing.box
    return left * width / 1000, top * height / 1000, right * width / 1000, bottom * height / 1000
