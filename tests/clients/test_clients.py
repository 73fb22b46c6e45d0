"""Client libraries that nobody here wrote, against the HTTP server as a process: `make clients`.

They are told the address, a key and the model's name, and get typed answers, calls of tools and agents' loops.
"""

import base64
import io
import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from builder.tiny_model.scenes import Background, Scene, Thing, draw
from tests.clients import with_other_apis, with_python
from tests.server.servers import process

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
GREY = Background((200, 200, 205), (190, 190, 190), 0.5, 0, 0.0)
NUMBER_AT = (0.3, 0.3)
# What a number is read with; the others ask for a red circle.
WITH_TOOLS = (
    *("openai tools", "LangChain bind_tools", "openai-agents over litellm, a tool that returns an image"),
    *("openai runTools", "AI SDK tools", "openai responses tools", "anthropic tools"),
    *("openai-agents Responses, a tool that returns an image", "AI SDK responses tools"),
    *("AI SDK responses tools, streamed", "AI SDK anthropic tools, streamed"),
)
I_AM = "I am a tiny vision model. I know simple shapes, colors and numbers."
# What is said in words.
IN_WORDS = {
    "litellm over Anthropic's API": "A red circle at the center.",
    "litellm fallback": "from the larger one",
    "LlamaIndex complete": [I_AM, I_AM],
    "LlamaIndex chat": "A red circle at the center.",
}
IN_JAVASCRIPT = (
    *("openai parse", "openai runTools", "AI SDK generateObject", "AI SDK tools", "AI SDK responses generateObject"),
    *("AI SDK responses tools", "AI SDK responses tools, streamed", "AI SDK anthropic tools, streamed"),
)
IN_PYTHON = (*with_python.CLIENTS, *with_other_apis.CLIENTS, *with_other_apis.OPENAI2)
ALL = [*(("Python", name) for name in IN_PYTHON), *(("JavaScript", name) for name in IN_JAVASCRIPT)]


def data_uri(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def drawn(*things: Thing, number: str | None = None) -> str:
    scene = Scene(GREY, things, number, "black", NUMBER_AT, 0.14)
    return data_uri(draw(scene, 224, 224, random.Random(1)))


CIRCLE = drawn(Thing("red", "circle", 0.5, 0.5, 0.2, 0.2))
NUMBER = drawn(number="42")


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    with process(API_KEY="k1") as address:
        yield f"{address}/v1"


def said(kind: str, name: str, base_url: str) -> Any:
    """What a library's client printed."""
    environment = ".venv-clients-openai2" if name in with_other_apis.OPENAI2 else ".venv-clients"
    script = "with_python.py" if name in with_python.CLIENTS else "with_other_apis.py"
    python = str(ROOT / environment / "bin" / "python")
    command = [python, script] if kind == "Python" else ["node", "js/clients.mjs"]
    done = subprocess.run(
        [*command, name, base_url, CIRCLE, NUMBER],
        cwd=HERE,
        env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},  # it asks the network otherwise
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("kind", "name"), [one for one in ALL if one[1] in IN_WORDS])
def test_what_is_said_is_true(kind: str, name: str, base_url: str) -> None:
    assert said(kind, name, base_url) == IN_WORDS[name]


@pytest.mark.parametrize(("kind", "name"), [one for one in ALL if one[1] not in (*WITH_TOOLS, *IN_WORDS)])
def test_an_answer_becomes_an_object_that_is_true(kind: str, name: str, base_url: str) -> None:
    assert said(kind, name, base_url) == {"shape": "circle", "color": "red"}


@pytest.mark.parametrize(("kind", "name"), [one for one in ALL if one[1] in WITH_TOOLS])
def test_a_tool_is_called_and_its_result_answered(kind: str, name: str, base_url: str) -> None:
    found = said(kind, name, base_url)
    left, top, right, bottom = found["box"]
    assert left < 1000 * NUMBER_AT[0] < right
    assert top < 1000 * NUMBER_AT[1] < bottom
    assert found["answer"]


def test_the_document_lists_every_client() -> None:
    page = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
    for kind, name in ALL:
        assert f"| {kind} | {name} |" in page, name
