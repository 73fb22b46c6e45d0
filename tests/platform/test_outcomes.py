"""The real SDK as a process against the stand-in: each job ends in one answer, one coded error, or a cancel."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import runpod

from tests.platform.stand_in import FINAL, KEY, Job, Platform

ROOT = Path(__file__).parents[2]
QUESTION = {"prompt": "Who are you?"}
LONG = {"prompt": "Who are you?", "ignore_eos": True, "max_tokens": 3500, "stream": True}
PATIENCE_S = 60

pytestmark = [pytest.mark.network, pytest.mark.filterwarnings("ignore::ResourceWarning")]


def until(is_so: Callable[[], Any], seconds: float = PATIENCE_S) -> Any:
    """What `is_so` gives as soon as it is true."""
    end = time.monotonic() + seconds
    while not (found := is_so()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)
    return found


def ended(job: Job) -> Job:
    until(lambda: job.status in FINAL)
    return job


@contextmanager
def worker(platform: Platform, *command: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """The worker as the platform starts it."""
    process = subprocess.Popen(
        [sys.executable, *(command or ("handler.py",))],
        cwd=ROOT,
        env={**os.environ, "DEVICE": "cpu", "OMP_NUM_THREADS": "1", **platform.environment(), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with Platform() as platform, worker(platform):
        until(lambda: platform.calls["job-take-batch"] > 0)
        yield platform


@pytest.fixture
def endpoint(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> runpod.Endpoint:
    monkeypatch.setattr(runpod, "api_key", KEY)
    monkeypatch.setattr(runpod, "endpoint_url_base", platform.address)
    return runpod.Endpoint("ep")


def test_a_plain_job_through_the_client_of_the_platform(endpoint: Any) -> None:
    [reply] = endpoint.run_sync(QUESTION, timeout=PATIENCE_S)
    assert "vision model" in reply["text"]
    assert reply["usage"]["completion_tokens"] > 3


def test_a_stream_through_the_client_of_the_platform(endpoint: Any) -> None:
    *pieces, end = endpoint.run({**QUESTION, "stream": True}).stream()
    assert "vision model" in "".join(piece["text"] for piece in pieces)
    assert end["finish_reason"] == "stop"


@pytest.mark.parametrize("given", [None, "text", {"prompt": 5}, {"prompt": "x", "image": "%%"}])
@pytest.mark.parametrize("stream", [False, True])
def test_bad_input_is_a_failed_job_with_a_code(platform: Platform, given: Any, stream: bool) -> None:
    if isinstance(given, dict):
        given = {**given, "stream": stream}
    job = ended(platform.submit(given))
    assert job.status == "FAILED"
    assert json.loads(job.error)["code"] in ("INPUT_NOT_OBJECT", "INPUT_INVALID", "MEDIA_BASE64_INVALID")
    if isinstance(given, dict) and stream:
        assert job.chunks[-1]["output"]["type"] == "failed"


def test_many_jobs_at_once_each_get_one_result(platform: Platform) -> None:
    jobs = [platform.submit(QUESTION if index % 2 else {**QUESTION, "stream": True}) for index in range(40)]
    assert {ended(job).status for job in jobs} == {"COMPLETED"}
    assert {job.num_results for job in jobs} == {1}


def test_the_openai_client_on_the_openai_route(platform: Platform) -> None:
    with openai.OpenAI(api_key=KEY, base_url=f"{platform.address}/ep/openai/v1", max_retries=0) as client:
        messages: Any = [{"role": "user", "content": "Who are you?"}]
        reply = client.chat.completions.create(model="tiny-qwen3-vl", messages=messages)
        assert "vision model" in (reply.choices[0].message.content or "")
        parts = client.chat.completions.create(model="tiny-qwen3-vl", messages=messages, stream=True)
        assert "vision model" in "".join(part.choices[0].delta.content or "" for part in parts if part.choices)


def test_a_stream_is_sent_in_few_chunks(platform: Platform) -> None:
    job = ended(platform.submit({**LONG, "max_tokens": 1000}))
    assert job.status == "COMPLETED"
    usage = job.output[-1]["usage"]
    assert usage["completion_tokens"] == 1000
    assert 2 <= len(job.chunks) < 400


def test_a_job_cancelled_during_delivery_stops_and_others_go_on(platform: Platform, endpoint: Any) -> None:
    """The SDK cancels the task inside the chunk's POST, where the handler's generator never comes back."""
    platform.chunk_delay_s = 0.5
    jobs = [platform.submit(LONG) for _ in range(16)]  # as many as there are rows
    until(lambda: all(job.chunks for job in jobs))
    for job in jobs:
        runpod.endpoint.runner.Job("ep", job.id, endpoint.rp_client).cancel()
    platform.chunk_delay_s = 0.0
    assert ended(platform.submit(QUESTION)).status == "COMPLETED"
    assert {job.status for job in jobs} == {"CANCELLED"}
    assert {job.num_results for job in jobs} == {0}


def test_a_refused_result_is_posted_again(platform: Platform) -> None:
    platform.faults["job-done"].append(500)
    job = ended(platform.submit(QUESTION))
    assert job.status == "COMPLETED"


def test_a_stop_finishes_what_runs_and_what_the_open_poll_brings() -> None:
    with Platform(hold_s=3.0) as platform, worker(platform) as process:
        until(lambda: platform.calls["job-take-batch"] > 0)
        running = platform.submit({**LONG, "max_tokens": 400})
        until(lambda: running.chunks and platform.calls["job-take-batch"] > 1)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        late = platform.submit(QUESTION)
        assert (ended(running).status, ended(late).status) == ("COMPLETED", "COMPLETED")
        assert process.wait(30) == 0


def test_a_stop_while_loading_ends_at_once_and_takes_nothing() -> None:
    with Platform() as platform, worker(platform, "-c", _STOPPED_WHILE_LOADING) as process:
        assert process.wait(60) == 143
        assert platform.calls["job-take"] + platform.calls["job-take-batch"] == 0


_STOPPED_WHILE_LOADING = """
import os, signal, handler

def load(settings):
    os.kill(os.getpid(), signal.SIGTERM)
    raise AssertionError("still here")

handler.load = load
handler.main()
"""

_BROKEN_DEVICE = """
import torch, handler
from worker.engine.runner import Runner

def decode(*_):
    raise torch.AcceleratorError("the device is gone")

Runner.decode = decode
handler.main()
"""


def test_a_broken_device_answers_everybody_and_ends_the_worker() -> None:
    with Platform() as platform, worker(platform, "-c", _BROKEN_DEVICE) as process:
        jobs = [platform.submit(QUESTION) for _ in range(5)]
        assert {ended(job).status for job in jobs} == {"FAILED"}
        assert {json.loads(job.error)["code"] for job in jobs} == {"ENGINE_STOPPED"}
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 1
        assert output.count("this worker must be replaced") == 1


def test_a_bounded_pool_of_clients_gets_all_answers(platform: Platform, endpoint: Any) -> None:
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: endpoint.run_sync(QUESTION, timeout=PATIENCE_S), range(24)))
    assert all("vision model" in reply[0]["text"] for reply in replies)
