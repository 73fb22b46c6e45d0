"""Every example of the page about what an answer carries gives the answer that the page shows."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from builder.answers import PAGE, PICTURES, Example, answered, examples, legible, shapes, with_media
from tests.answering import as_openai
from tests.fakes import encoded
from worker.core.outcome import Outputs
from worker.core.settings import load
from worker.core.tasks import TASKS
from worker.dialects.output_fields import OutputFields
from worker.service import Service
from worker.startup.build import start

TEXT = PAGE.read_text(encoding="utf-8")
EXAMPLES = list(examples(TEXT))
MEASURED = ("timing", "cost", "media", "confidence", "annotated", "crops")  # in figures that depend on the machine


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    settings = {"DEVICE": "cpu", "MODEL_ID": "tiny-qwen3-vl", "MEDIA_ISOLATE": "thread", "STREAM_INTERVAL_MS": "0"}
    serving = start(load({**settings, "GPU_USD_PER_SECOND": "0.00031"}))
    answered(serving.service, {"prompt": "Who are you?"})
    yield serving.service
    serving.close_opener()
    serving.engine.close()


def names_in(value: Any) -> Any:
    """What is the same on every machine: names and types, but of what took no millisecond or was known already."""
    if isinstance(value, dict):
        return {name: names_in(inner) for name, inner in value.items() if name != "cached" and not name.endswith("_s")}
    return [names_in(inner) for inner in value] if isinstance(value, list) else type(value).__name__


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"{sorted(example.job)}")
def test_an_example_is_answered_as_the_page_shows(service: Service, example: Example) -> None:
    reply = answered(service, example.job)
    assert "error" not in reply
    assert example.shown is not None
    assert tuple(example.shown) == example.fields
    for name, shown in example.shown.items():
        if name in MEASURED:
            assert names_in(legible(reply[name])) == names_in(shown), name
        else:
            assert legible(reply[name]) == shown, name


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"{sorted(example.job)}")
def test_it_is_the_same_streamed(service: Service, example: Example) -> None:
    async def run() -> list[Any]:
        body = {**with_media(example.job), "stream": True}
        return [output async for output in service.answer(body, "streamed")]

    *chunks, last = asyncio.run(run())
    assert example.shown is not None
    for name in set(example.shown) - set(MEASURED) - {"text"}:
        assert last[name] == example.shown[name]
    if "text" in example.shown:
        assert "".join(chunk["text"] for chunk in chunks) == example.shown["text"]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"{sorted(example.job)}")
def test_it_is_the_same_in_openais_form(service: Service, example: Example) -> None:
    if "video" in example.job:
        pytest.skip("OpenAI's form has no list of frames; tests/dialects has videos in it")
    job = {name: value for name, value in with_media(example.job).items() if name != "json_schema"}
    bare = json.loads(json.dumps(job).replace("data:image/jpeg;base64,", ""))

    async def run() -> list[Any]:
        return [output async for output in service.answer(as_openai(bare), "openai")]

    [reply] = asyncio.run(run())
    assert example.shown is not None
    choice = reply["choices"][0]
    for name in set(example.shown) - set(MEASURED) - {"text"}:
        assert choice.get(f"worker_{name}", choice[name]) == example.shown[name]


def test_the_page_names_every_field_task_and_picture() -> None:
    for name in (*OutputFields.model_fields, *(name for name in Outputs.model_fields if name != "task"), *TASKS):
        assert f"`{name}`" in TEXT, name
    assert "max_gpu_seconds" in TEXT
    assert len(EXAMPLES) > 9
    for picture in ("answers_shapes.jpg", "answers_annotated.jpg"):
        assert (PICTURES / picture).exists()
        assert f"pictures/{picture}" in TEXT


def test_the_pages_picture_is_the_one_that_is_asked_about() -> None:
    assert encoded(shapes(), "JPEG", quality=92) == (PICTURES / "answers_shapes.jpg").read_bytes()
