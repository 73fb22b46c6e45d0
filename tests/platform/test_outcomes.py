"""The real SDK as a process against the stand-in: each job ends in one answer, one coded error, or a cancel."""

import json
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
import runpod

from tests.platform.stand_in import KEY, Platform
from tests.platform.workers import PATIENCE_S, ROOT, ended, until, worker

QUESTION = {"prompt": "Who are you?"}
LONG = {"prompt": "Who are you?", "ignore_eos": True, "max_tokens": 3500, "stream": True}

pytestmark = [pytest.mark.network, pytest.mark.filterwarnings("ignore::ResourceWarning")]


@pytest.fixture
def endpoint(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> runpod.Endpoint:
    monkeypatch.setattr(runpod, "api_key", KEY)
    monkeypatch.setattr(runpod, "endpoint_url_base", platform.address)
    return runpod.Endpoint("ep")


WHO = [{"role": "user", "content": "Who are you?"}]
BY_HAND = "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n"


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
        assert [model.id for model in client.models.list()] == ["tiny-qwen3-vl"]
        parts = client.chat.completions.create(model="tiny-qwen3-vl", messages=messages, stream=True)
        assert "vision model" in "".join(part.choices[0].delta.content or "" for part in parts if part.choices)


VLLM_JOBS: list[tuple[dict[str, Any], str]] = [
    ({"messages": WHO, "sampling_params": {"temperature": 0, "max_tokens": 64}}, "message"),
    ({"prompt": "Who are you?", "apply_chat_template": True, "sampling_params": {"temperature": 0}}, "message"),
    ({"prompt": BY_HAND, "sampling_params": {"temperature": 0, "max_tokens": 64}}, "text"),
    ({"route": "/v1/chat/completions", "method": "POST", "body": {"messages": WHO, "temperature": 0}}, "message"),
    ({"route": "/v1/completions", "body": {"prompt": BY_HAND, "temperature": 0, "max_tokens": 64}}, "text"),
    ({"openai_route": "/v1/chat/completions", "openai_input": {"messages": WHO, "temperature": 0}}, "message"),
    ({"model": "tiny-qwen3-vl", "messages": WHO, "max_completion_tokens": 64, "temperature": 0}, "message"),
]


@pytest.mark.parametrize(("job", "field"), VLLM_JOBS)
def test_the_documented_calls_of_worker_vllm_are_answered(endpoint: Any, job: dict[str, Any], field: str) -> None:
    [told] = endpoint.run_sync(job, timeout=30)
    [choice] = told["choices"]
    words = choice["text"] if field == "text" else choice["message"]["content"]
    assert words == "I am a tiny vision model. I know simple shapes, colors and numbers."
    assert choice.get("tokens", [words]) == [words]
    assert told["usage"]["total_tokens"] == told["usage"]["prompt_tokens"] + told["usage"]["completion_tokens"]


def test_a_stream_of_worker_vllm_is_openais_events_as_text(endpoint: Any) -> None:
    job = endpoint.run({"messages": WHO, "sampling_params": {"temperature": 0}, "stream": True})
    events = "".join(job.stream()).split("\n\n")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events if event.startswith("data: {")]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks).startswith("I am a tiny")
    assert events[-2:] == ["data: [DONE]", ""]


def test_models_are_listed_as_a_job(endpoint: Any) -> None:
    for job in ({"openai_route": "/v1/models"}, {"route": "/v1/models", "method": "GET"}):
        [told] = endpoint.run_sync(job, timeout=30)
        assert [model["id"] for model in told["data"]] == ["tiny-qwen3-vl"]


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


def test_without_our_care_the_job_of_the_open_poll_would_be_lost() -> None:
    """The control of the test above."""
    with Platform(hold_s=3.0) as platform, worker(platform, "-c", _WITHOUT_SALVAGE) as process:
        until(lambda: platform.calls["job-take-batch"] > 0)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        late = platform.submit(QUESTION)
        assert process.wait(30) == 0
        assert late.status == "IN_PROGRESS"


def test_a_stop_gives_running_jobs_a_limited_time() -> None:
    with Platform() as platform, worker(platform, DRAIN_S="0.5") as process:
        until(lambda: platform.calls["job-take-batch"] > 0)
        running = [platform.submit(LONG), platform.submit({**LONG, "stream": False})]
        until(lambda: running[0].chunks)
        process.send_signal(signal.SIGTERM)
        assert {ended(job).status for job in running} == {"COMPLETED"}
        assert {job.output[-1]["finish_reason"] for job in running} == {"time"}
        assert {0 < job.output[-1]["usage"]["completion_tokens"] < 3500 for job in running} == {True}
        assert process.wait(30) == 0


def test_a_job_ends_before_the_limit_of_its_policy(platform: Platform) -> None:
    job = ended(platform.submit(LONG, {"executionTimeout": 3000}))
    assert job.status == "COMPLETED"
    assert job.output[-1]["finish_reason"] == "time"
    assert job.ended_at - job.taken_at < 3


def test_a_stream_channel_that_never_answers_holds_no_job_past_its_limit(platform: Platform) -> None:
    platform.chunk_delay_s = 3600.0
    try:
        job = ended(platform.submit({**LONG, "max_tokens": 50}, {"executionTimeout": 4000}))
    finally:
        platform.chunk_delay_s = 0.0
    assert job.status == "COMPLETED"
    assert job.ended_at - job.taken_at < 4
    assert job.output[-1]["usage"]["completion_tokens"] == 50


def test_a_stream_channel_that_never_answers_holds_no_worker_past_its_stop() -> None:
    with Platform() as platform, worker(platform, DRAIN_S="0.5") as process:
        platform.chunk_delay_s = 3600.0
        until(lambda: platform.calls["job-take-batch"] > 0)
        job = platform.submit({**LONG, "max_tokens": 50})
        until(lambda: job.chunks)
        process.send_signal(signal.SIGTERM)
        assert ended(job).status == "COMPLETED"
        assert process.wait(30) == 0


def test_a_job_that_is_handed_over_again_while_it_runs_runs_once(platform: Platform) -> None:
    job = platform.submit({**LONG, "max_tokens": 1500})
    until(lambda: job.chunks)
    polls = platform.calls["job-take-batch"]
    platform.hand_over_again(job)
    platform.hand_over_again(job)
    until(lambda: platform.calls["job-take-batch"] > polls + 1)
    assert ended(job).status == "COMPLETED"
    assert ended(platform.submit(QUESTION)).status == "COMPLETED"
    assert job.num_results == 1


def test_a_limit_beyond_all_numbers_is_a_coded_error(platform: Platform) -> None:
    job = ended(platform.submit(QUESTION, {"executionTimeout": 10**400}))
    assert (job.status, json.loads(job.error)["code"]) == ("FAILED", "INPUT_INVALID")


def test_a_job_ends_at_its_own_limit_with_what_it_has(platform: Platform) -> None:
    job = ended(platform.submit({**LONG, "stream": False, "max_seconds": 0.5}))
    assert (job.status, job.output[0]["finish_reason"]) == ("COMPLETED", "time")
    assert job.output[0]["text"]


def test_a_result_that_the_platform_finds_too_large_becomes_a_coded_error(platform: Platform) -> None:
    platform.max_result_bytes = 200
    job = ended(platform.submit(QUESTION))
    platform.max_result_bytes = 20 * 2**20
    assert job.status == "FAILED"
    assert json.loads(job.error)["code"] == "RESULT_TOO_LARGE"


def test_a_worker_that_cannot_see_takes_no_job_and_says_why() -> None:
    with Platform() as platform, worker(platform, "-c", _BLIND) as process:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "does not answer a question about a picture" in output
        assert platform.calls["job-take"] + platform.calls["job-take-batch"] == 0


def test_the_log_has_one_json_line_a_job_and_none_of_its_words() -> None:
    with Platform() as platform, worker(platform, PROGRESS_AFTER_S="0.001") as process:
        secret = {"prompt": "Who are you, Rumpelstiltskin?"}
        job, bad = ended(platform.submit(secret)), ended(platform.submit({**secret, "max_tokens": 0}))
        assert (job.status, bad.status) == ("COMPLETED", "FAILED")
        process.terminate()
        output, _ = process.communicate(timeout=60)
    events = [json.loads(line) for line in output.splitlines() if line.startswith('{"requestId"')]
    said = {event["requestId"]: event for event in events if event["message"].startswith(("answered", "failed: "))}
    assert said[job.id]["usage"]["completion_tokens"] > 3
    failed = said[bad.id]
    assert (failed["level"], failed["code"], failed["where"]) == ("WARNING", "INPUT_INVALID", "max_tokens")
    assert "max_tokens: must be at least 1" in failed["message"]
    assert "Rumpelstiltskin" not in output
    assert "vision model" not in output
    assert job.progress == [{"phase": "reading the prompt"}]


def test_with_lazy_load_the_first_job_brings_the_model() -> None:
    with Platform() as platform, worker(platform, LAZY_LOAD="1"):
        jobs = [platform.submit(QUESTION) for _ in range(3)]
        assert {ended(job).status for job in jobs} == {"COMPLETED"}


def test_a_lazy_model_that_cannot_be_loaded_fails_its_jobs_and_ends_the_worker() -> None:
    with Platform() as platform, worker(platform, LAZY_LOAD="1", MODEL_PATH="/no/such/folder") as process:
        job = ended(platform.submit(QUESTION))
        assert json.loads(job.error)["code"] == "ENGINE_STOPPED"
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 1
        assert output.strip().splitlines()[-1].startswith("worker-qwen-vl cannot start: MODEL_PATH")


def test_a_stop_while_loading_ends_at_once_and_takes_nothing() -> None:
    with Platform() as platform, worker(platform, "-c", _STOPPED_WHILE_LOADING) as process:
        assert process.wait(60) == 143
        assert platform.calls["job-take"] + platform.calls["job-take-batch"] == 0


_STOPPED_WHILE_LOADING = """
import os, signal, handler

def start(settings, **_):
    os.kill(os.getpid(), signal.SIGTERM)
    raise AssertionError("still here")

handler.start = start
handler.main()
"""

_BROKEN_DEVICE = """
import torch, handler
from worker.models.native.runner import NativeRunner as Runner

def decode(*_):
    raise torch.AcceleratorError("the device is gone")

def start(*given, _start=handler.start, **more):
    serving = _start(*given, **more)
    Runner.decode = decode
    return serving

handler.start = start
handler.fitness_check = lambda service: lambda: None
handler.main()
"""

_HUNG_DEVICE = _BROKEN_DEVICE.replace(
    'raise torch.AcceleratorError("the device is gone")', "import time; time.sleep(600)"
)

_WITHOUT_SALVAGE = """
import handler

handler.sdk.finish_late_jobs = lambda *_: None
handler.main()
"""

_BLIND = """
import handler
from worker.models.native.runner import NativeRunner as Runner

def features(*_):
    raise ValueError("a secret of the library")

def start(*given, _start=handler.start, **more):
    serving = _start(*given, **more)
    Runner.features = features
    return serving

handler.start = start
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


def test_a_device_that_hangs_answers_everybody_and_ends_the_worker() -> None:
    with Platform() as platform, worker(platform, "-c", _HUNG_DEVICE, ENGINE_STUCK_S="2") as process:
        jobs = [platform.submit(QUESTION) for _ in range(3)]
        assert {ended(job).status for job in jobs} == {"FAILED"}
        assert {json.loads(job.error)["code"] for job in jobs} == {"ENGINE_STOPPED"}
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "has not come back for 2 s" in output
        assert output.count("this worker must be replaced") == 1


def test_after_a_freeze_running_jobs_go_on_and_chance_is_fresh() -> None:
    """As a worker that the platform stops and resumes: polls are dead, time has passed, nothing else has changed."""
    chance = {**QUESTION, "temperature": 5, "max_tokens": 20, "ignore_eos": True}
    with Platform() as platform, worker(platform, ENGINE_STUCK_S="2") as process:
        long = platform.submit({**LONG, "max_tokens": 1500})
        until(lambda: long.chunks)
        process.send_signal(signal.SIGSTOP)
        frozen_at = time.monotonic()
        until(lambda: time.monotonic() > frozen_at + 3)  # longer than a device may hang, and than a poll is held
        queued = [platform.submit(chance) for _ in range(3)]
        process.send_signal(signal.SIGCONT)
        assert ended(long).status == "COMPLETED"
        assert long.output[-1]["finish_reason"] == "length"
        texts = [ended(job).output[0]["text"] for job in queued]
        assert len(set(texts)) == len(texts)
        assert process.poll() is None


JS = ROOT / "tests" / "platform" / "js"


@pytest.mark.skipif(
    shutil.which("node") is None or not (JS / "node_modules").exists(), reason="Node.js with its packages is not here"
)
def test_every_call_of_the_javascript_client(platform: Platform) -> None:
    command = ["node", "client.mjs", platform.address]
    result = subprocess.run(command, cwd=JS, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    said = json.loads(result.stdout)
    assert "vision model" in said["sync"]["output"][0]["text"]
    assert "vision model" in said["status"]["output"][0]["text"]
    assert "vision model" in "".join(piece["text"] for piece in said["pieces"])
    assert said["pieces"][-1]["finish_reason"] == "stop"
    assert said["cancelled"]["status"] == "CANCELLED"
    assert json.loads(said["failed"]["error"])["code"] == "INPUT_INVALID"
    assert said["health"]["jobs"]["inQueue"] == 0


def test_a_bounded_pool_of_clients_gets_all_answers(platform: Platform, endpoint: Any) -> None:
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: endpoint.run_sync(QUESTION, timeout=PATIENCE_S), range(24)))
    assert all("vision model" in reply[0]["text"] for reply in replies)
