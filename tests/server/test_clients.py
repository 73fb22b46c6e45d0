"""Official clients against the HTTP server as a process, with the tiny model behind it: what nobody here wrote."""

import asyncio
import base64
import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
import requests
from pydantic import BaseModel

from tests.server.servers import circle

pytestmark = [pytest.mark.network, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "tests" / "platform" / "js"
PICTURE = "data:image/jpeg;base64," + base64.b64encode(circle()).decode()
QUESTION = "What is in the picture?"
CONTENT: Any = [{"type": "image_url", "image_url": {"url": PICTURE}}, {"type": "text", "text": QUESTION}]
ASKED: Any = {"model": "tiny-qwen3-vl", "messages": [{"role": "user", "content": CONTENT}], "temperature": 0}
LONG: Any = {
    "model": "tiny-qwen3-vl",
    "messages": [{"role": "user", "content": "Hello!"}],
    "max_tokens": 3500,
    "extra_body": {"ignore_eos": True},
}


def is_idle(real: str) -> bool:
    text = requests.get(f"{real}/metrics", headers={"X-API-Key": "k1"}, timeout=10).text
    return "worker_answers_running 0.0" in text and "worker_requests_unfinished 0.0" in text


def until_idle(real: str) -> None:
    """Long answers that were left are over long before they would have ended."""
    end = time.monotonic() + 10
    while not is_idle(real):
        assert time.monotonic() < end
        time.sleep(0.02)


class Thing(BaseModel):
    """What the picture shows."""

    shape: Literal["circle", "square", "triangle", "star", "cross", "ring"]
    color: Literal["red", "orange", "yellow", "green", "blue", "purple", "black", "white"]


def test_the_python_client_gets_typed_answers_and_parsed_calls(real: str) -> None:
    with openai.OpenAI(api_key="k1", base_url=f"{real}/v1", max_retries=0) as client:
        expected = Thing(shape="circle", color="red")
        message = client.chat.completions.parse(**ASKED, response_format=Thing).choices[0].message
        assert message.parsed == expected
        with client.chat.completions.stream(**ASKED, response_format=Thing) as stream:
            assert [event.type for event in stream].count("content.done") == 1
            assert stream.get_final_completion().choices[0].message.parsed == expected
        tools: Any = [openai.pydantic_function_tool(Thing, name="note")]
        choice: Any = {"type": "function", "function": {"name": "note"}}
        choices = client.chat.completions.parse(**ASKED, tools=tools, tool_choice=choice).choices
        [call] = choices[0].message.tool_calls or []
        assert call.function.parsed_arguments == expected
        assert (choices[0].finish_reason, choices[0].message.content) == ("tool_calls", None)
        with client.chat.completions.stream(**ASKED, tools=tools, tool_choice=choice) as stream:
            for _ in stream:
                pass
            [streamed] = stream.get_final_completion().choices[0].message.tool_calls or []
        assert streamed.function.parsed_arguments == expected
        turns: Any = [*ASKED["messages"], choices[0].message]
        turns.append({"role": "tool", "tool_call_id": call.id, "content": CONTENT[:1]})
        last = client.chat.completions.create(**{**ASKED, "messages": turns}, tools=tools, max_tokens=40)
        assert last.choices[0].message.content


def test_the_asynchronous_python_client(real: str) -> None:
    async def run() -> None:
        async with openai.AsyncOpenAI(api_key="k1", base_url=f"{real}/v1", max_retries=0) as client:
            replies = await asyncio.gather(*(client.chat.completions.create(**ASKED) for _ in range(8)))
            assert {reply.choices[0].message.content for reply in replies} == {replies[0].choices[0].message.content}
            assert "red circle" in (replies[0].choices[0].message.content or "")
            stream = await client.chat.completions.create(**ASKED, stream=True, stream_options={"include_usage": True})
            chunks = [chunk async for chunk in stream]
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            assert text == replies[0].choices[0].message.content
            used, before = chunks[-1].usage, replies[0].usage
            assert used is not None and before is not None
            assert (used.prompt_tokens, used.completion_tokens) == (before.prompt_tokens, before.completion_tokens)
            with pytest.raises(openai.BadRequestError) as refused:
                await client.chat.completions.create(**{**ASKED, "max_tokens": -1})
            assert refused.value.param == "max_tokens"
            task = asyncio.create_task(client.chat.completions.create(**LONG))
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(run())
    until_idle(real)


def test_the_synchronous_python_client_leaves_a_stream(real: str) -> None:
    with openai.OpenAI(api_key="k1", base_url=f"{real}/v1", max_retries=0) as client:
        with client.chat.completions.create(**LONG, stream=True) as stream:
            assert next(iter(stream)).choices[0].delta.role == "assistant"
        until_idle(real)
        with client.chat.completions.stream(**ASKED) as helped:
            final = helped.get_final_completion()
        assert "red circle" in (final.choices[0].message.content or "")
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.1).chat.completions.create(**LONG)
    until_idle(real)


def test_the_client_for_javascript(real: str) -> None:
    node = shutil.which("node")
    if node is None or not (SCRIPTS / "node_modules" / "openai").is_dir():
        pytest.skip("node or the client is not installed: npm ci in tests/platform/js")
    script = [node, SCRIPTS / "openai.mjs", f"{real}/v1", "k1", PICTURE]
    done = subprocess.run(script, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    text = said["plain"]["choices"][0]["message"]["content"]
    assert "red circle" in text
    assert said["helper"] == text
    assert "".join(piece["delta"].get("content", "") for piece in said["pieces"]) == text
    assert said["pieces"][0]["delta"]["role"] == "assistant"
    assert said["pieces"][-1]["finish_reason"] == "stop"
    assert said["usage"]["prompt_tokens_details"]["image_tokens"] > 0
    assert said["errors"] == {
        "model": {"kind": "NotFoundError", "status": 404, "code": "model_not_found", "param": "model"},
        "param": {"kind": "BadRequestError", "status": 400, "code": "INPUT_INVALID", "param": "max_tokens"},
        "functions": {"kind": "BadRequestError", "status": 400, "code": "INPUT_INVALID", "param": "functions"},
        "key": {"kind": "AuthenticationError"},
    }
    assert (said["heard"], said["cut"]) == (2, "APIUserAbortError")
    until_idle(real)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Who are you?"}]}),
        ("/v1/completions", {"prompt": "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n"}),
        ("/v1/responses", {"input": "Who are you?"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "Who are you?"}]}),
    ],
)
def test_curl_of_http_1_0_reads_every_format(real: str, path: str, body: dict[str, Any], *, stream: bool) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    sent = json.dumps({**body, "temperature": 0, "max_tokens": 64, "stream": stream})
    head = [curl, "--silent", "--fail-with-body", "--max-time", "30", "--http1.0", "-H", "X-API-Key: k1"]
    told = subprocess.run(
        [*head, "-H", "content-type: application/json", "-d", sent, f"{real}{path}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "vision model" in "".join(re.findall(r'"(?:text|content|delta)": ?"([^"]*)"', told))


def test_curl_sends_a_form(real: str, tmp_path: Path) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    (tmp_path / "circle.jpg").write_bytes(circle())
    messages = json.dumps([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}])
    head = [curl, "--silent", "--fail-with-body", "--max-time", "30", "-H", "X-API-Key: k1"]
    form = ["-F", f"messages={messages}", "-F", f"file=@{tmp_path}/circle.jpg"]
    for more in ([], ["-F", "stream=true"]):
        done = subprocess.run([*head, *form, *more, f"{real}/chat-vl"], capture_output=True, text=True, check=True)
        assert "red circle" in done.stdout
        assert done.stdout.startswith("{") == (not more)
    asked = ["-F", f"prompt={QUESTION}", "-F", f"image=@{tmp_path}/circle.jpg;type=image/jpeg"]
    done = subprocess.run([*head, *asked, f"{real}/v1/image/recognize"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["status"] == "success"
