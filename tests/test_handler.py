"""The handler under the real SDK, as processes: local runs, exit statuses, the HTTP trial server."""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.fakes import FakeEngine, FakeOpener

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "DEVICE": "cpu", "OMP_NUM_THREADS": "1"}


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "handler.py", *arguments],
        cwd=ROOT,
        env={**ENVIRONMENT, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def printed(result: subprocess.CompletedProcess[str]) -> Any:
    """The JSON that the handler prints among the SDK's lines."""
    match = re.search(r"^(\{|\[)\n.*?^(\}|\])$", result.stdout, re.DOTALL | re.MULTILINE)
    assert match, result.stdout + result.stderr
    return json.loads(match.group())


def test_the_local_input_is_answered() -> None:
    result = run()
    assert result.returncode == 0, result.stderr
    answer = printed(result)
    assert answer["model"] == "tiny-qwen3-vl"
    assert answer["finish_reason"] == "stop"
    assert answer["usage"]["image_tokens"] > 0
    assert "no model is configured: serving the demonstration model tiny-qwen3-vl" in result.stderr
    assert "base64" not in result.stdout + result.stderr


def test_a_streamed_input_is_drained() -> None:
    result = run("--test_input", json.dumps({"input": {"prompt": "你是谁？", "stream": True}}))
    assert result.returncode == 0, result.stderr
    *pieces, end = printed(result)
    assert "".join(piece["text"] for piece in pieces)
    assert end["finish_reason"] == "stop"


def test_a_failed_input_ends_with_status_1_and_its_code() -> None:
    result = run("--test_input", json.dumps({"input": {"prompt": "x", "image": "%%%"}}))
    assert result.returncode == 1
    assert json.loads(printed(result)["error"])["code"] == "MEDIA_BASE64_INVALID"


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"MAX_QUEUE": "many"}, 'invalid value "many" for MAX_QUEUE: it must be a whole number'),
        ({"MODEL_PATH": "/nowhere"}, "MODEL_PATH: /nowhere does not exist"),
    ],
)
def test_a_start_that_cannot_succeed_says_why_in_one_line(variables: dict[str, str], words: str) -> None:
    result = run(**variables)
    assert result.returncode == 1
    assert words in result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture(scope="module")
def trial_server() -> Iterator[str]:
    """The SDK's HTTP server for trials with our handler behind it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "handler.py", "--rp_serve_api", "--rp_api_port", str(port)],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if "running on" in line:
                break
        assert process.poll() is None
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)
        process.stderr.close()


def post(url: str, body: object) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


@pytest.mark.network
def test_the_trial_server_answers(trial_server: str) -> None:
    answer = post(f"{trial_server}/runsync", {"input": {"prompt": "Who are you?"}})
    assert answer["status"] == "COMPLETED"
    [reply] = answer["output"]
    assert "vision model" in reply["text"]


@pytest.mark.network
def test_the_trial_server_goes_on_after_bad_input(trial_server: str) -> None:
    answer = post(f"{trial_server}/runsync", {"input": {"prompt": "x", "max_tokens": 0}})
    assert "INPUT_INVALID" in json.dumps(answer)
    assert "vision model" in json.dumps(post(f"{trial_server}/runsync", {"input": {"prompt": "Who are you?"}}))


def opened(service: Any) -> Any:
    """A handle whose model is there."""
    from worker.startup.build import ModelHandle

    handle = ModelHandle(lambda: cast(Any, SimpleNamespace(service=service)))
    handle.load()
    return handle


def test_the_options_are_what_the_platform_needs() -> None:
    import handler
    from worker.core.settings import load
    from worker.service import Service

    ours = handler.Handler(opened(Service(FakeEngine(), FakeOpener(), load({}))), load({}))
    local = handler.start_options(ours, load({}), ["handler.py"])
    assert asyncio.iscoroutinefunction(local["handler"])
    for settings, arguments in ((load({"RUNPOD_WEBHOOK_GET_JOB": "http://x"}), []), (load({}), ["--rp_serve_api"])):
        served = handler.start_options(ours, settings, arguments)
        assert not asyncio.iscoroutinefunction(served["handler"])
        assert served["return_aggregate_stream"] is True
        assert {served["concurrency_modifier"](count) for count in (0, 1, 99)} == {48}
    chosen = handler.start_options(ours, load({"CONCURRENCY": "7"}), [])
    assert chosen["concurrency_modifier"](0) == 7


def test_every_chunk_is_safe_json() -> None:
    import handler
    from worker.core.settings import load
    from worker.service import Service

    ours = handler.Handler(opened(Service(FakeEngine(pieces=["half \ud83d"]), FakeOpener(), load({}))), load({}))

    async def drain() -> list[Any]:
        return [chunk async for chunk in ours.stream({"id": "j", "input": {"prompt": "x"}})]

    [reply] = asyncio.run(drain())
    assert reply["text"] == "half \ufffd"


@pytest.mark.parametrize("job", [{"id": "j"}, {"id": "j", "input": None}, {"id": "j", "input": "text"}])
def test_a_job_without_an_object_as_input_is_refused(job: dict[str, Any]) -> None:
    import handler
    from worker.core.settings import load
    from worker.service import Service

    ours = handler.Handler(opened(Service(FakeEngine(), FakeOpener(), load({}))), load({}))

    async def drain() -> list[Any]:
        return [chunk async for chunk in ours.stream(job)]

    [refusal] = asyncio.run(drain())
    assert json.loads(refusal["error"])["code"] == "INPUT_NOT_OBJECT"


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_the_platform_would_refuse_is_a_coded_error(stream: bool) -> None:
    engine = FakeEngine(pieces=["x" * 400] * 10)
    *sent, last = bounded(engine, {"prompt": "x", "stream": stream})
    assert json.loads(last["error"])["code"] == "RESULT_TOO_LARGE"
    assert len(sent) == (5 if stream else 0)
    assert not stream or sent[-1]["detail"]["code"] == "RESULT_TOO_LARGE"
    assert engine.num_closed == 1


def test_an_openai_stream_that_is_too_large_ends_as_its_clients_expect() -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
    chunks = bounded(
        FakeEngine(pieces=["x" * 400] * 10), {"openai_route": "/v1/chat/completions", "openai_input": body}
    )
    assert all(isinstance(chunk, str) for chunk in chunks)
    assert "RESULT_TOO_LARGE" in chunks[-1]
    assert chunks[-1].endswith("data: [DONE]\n\n")


def bounded(engine: FakeEngine, given: dict[str, Any]) -> list[Any]:
    """What a job gives where the platform takes 2,000 bytes in all and 700 a chunk."""
    import handler
    from worker.core.settings import load
    from worker.service import Service

    limits = load({"MAX_RESULT_BYTES": "2000", "MAX_CHUNK_BYTES": "700", "STREAM_INTERVAL_MS": "0"})
    ours = handler.Handler(opened(Service(engine, FakeOpener(), limits)), limits)

    async def drain() -> list[Any]:
        return [chunk async for chunk in ours.stream({"id": "j", "input": given})]

    return asyncio.run(drain())
