"""Every example of the page about structured output, tools and thinking, as a job with the demonstration model."""

import asyncio
import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from PIL import Image, ImageDraw

from tests.fakes import encoded
from worker.core.settings import load
from worker.service import Service
from worker.startup.build import start

PAGE = (Path(__file__).parents[2] / "docs" / "structured.md").read_text(encoding="utf-8")
EXAMPLES = [json.loads(block)["input"] for block in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)]
URL = "https://example.org/shapes.png"


def picture() -> str:
    image = Image.new("RGB", (200, 200), "lightgrey")
    ImageDraw.Draw(image).ellipse((60, 60, 140, 140), fill=(215, 25, 30))
    return "data:image/png;base64," + base64.b64encode(encoded(image)).decode()


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    settings = {"DEVICE": "cpu", "MODEL_ID": "tiny-qwen3-vl", "MEDIA_ISOLATE": "thread", "STREAM_INTERVAL_MS": "0"}
    serving = start(load(settings))
    yield serving.service
    serving.close_opener()
    serving.engine.close()


def answered(service: Service, job: dict[str, Any]) -> list[Any]:
    body = json.loads(json.dumps(job).replace(URL, picture()))

    async def run() -> list[Any]:
        return [output async for output in service.answer(body, "job-1")]

    return asyncio.run(run())


def test_the_page_has_its_examples() -> None:
    asked = {name for example in EXAMPLES for name in example}
    assert {"json_schema", "choice", "regex", "grammar", "tools", "tool_choice", "thinking_budget"} <= asked


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: ", ".join(sorted(example)))
def test_an_example_is_answered_in_its_form_plain_and_streamed(service: Service, example: dict[str, Any]) -> None:
    [reply] = answered(service, {**example, "temperature": 0})
    assert "error" not in reply, reply
    text = reply["text"]
    if "json_schema" in example:
        assert jsonschema_rs.validator_for(example["json_schema"]).is_valid(json.loads(text))
    if "choice" in example:
        assert text in example["choice"]
    if "regex" in example:
        assert re.fullmatch(example["regex"], text)
    if "grammar" in example:
        assert re.fullmatch("(red|blue|green) (circle|square|star)", text)
    if "tool_choice" in example:
        [call] = reply["tool_calls"]
        parameters = example["tools"][0]["function"]["parameters"]
        assert jsonschema_rs.validator_for(parameters).is_valid(json.loads(call["function"]["arguments"]))
        assert reply["finish_reason"] == "tool_calls"
    if example.get("enable_thinking"):
        assert reply["reasoning"]
        assert reply["usage"]["reasoning_tokens"] > 0
    *pieces, end = answered(service, {**example, "temperature": 0, "stream": True})
    for field in ("text", "reasoning"):
        assert "".join(piece.get(field, "") for piece in pieces) == reply.get(field, "")
    assert [call for piece in pieces for call in piece.get("tool_calls", [])] == reply.get("tool_calls", [])
    assert end["finish_reason"] == reply["finish_reason"]
