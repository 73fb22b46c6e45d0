"""What the worker does where the SDK stops: refused results, policies, progress."""

import asyncio
import json
import math
import time
from typing import Any

import pytest
from aiohttp import ClientConnectionError, ClientError, ClientResponseError, RequestInfo
from multidict import CIMultiDict, CIMultiDictProxy
from runpod.serverless.modules import rp_http, rp_scale
from runpod.serverless.modules.worker_state import JobsProgress
from yarl import URL

from worker.core.errors import InputInvalid
from worker.platform import sdk

RESULTS = "http://platform.test/job-done/w/"
INFO = RequestInfo(URL("http://platform.test"), "POST", CIMultiDictProxy(CIMultiDict()), URL("http://platform.test"))


def refused(status: int) -> ClientResponseError:
    return ClientResponseError(INFO, (), status=status)


def delivered(monkeypatch: pytest.MonkeyPatch, failures: list[Exception], body: dict[str, Any], url: str) -> list[Any]:
    """The bodies that are sent when the SDK's tries fail so."""
    sent: list[Any] = []
    left = list(failures)

    async def transmit(session: Any, url: str, data: str) -> None:
        sent.append(json.loads(data))
        if left:
            raise left.pop(0)

    monkeypatch.setattr(rp_http, "_transmit", transmit)
    monkeypatch.setattr(rp_http, "JOB_DONE_URL", RESULTS + "$ID?gpu=none")
    monkeypatch.setattr(sdk, "PAUSES_S", (0, 0))
    sdk.insist_on_delivery(sdk.Deliveries())
    asyncio.run(rp_http._transmit(None, url, json.dumps(body)))
    return sent


ANSWER = {"output": [{"text": "x"}]}


@pytest.mark.parametrize("failure", [refused(429), refused(503), ClientConnectionError(), TimeoutError()])
def test_a_result_is_sent_again_where_the_sdk_gives_up(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    assert delivered(monkeypatch, [failure, failure], ANSWER, RESULTS + "j") == [ANSWER] * 3


@pytest.mark.parametrize("failure", [refused(503), TimeoutError()])
def test_it_gives_up_in_the_end_with_an_error_that_the_sdk_expects(
    monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    with pytest.raises(ClientError):
        delivered(monkeypatch, [failure] * 3, ANSWER, RESULTS + "j")


@pytest.mark.parametrize("status", [400, 413])
def test_a_result_that_is_too_large_is_sent_as_a_coded_error_once(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    first, second = delivered(monkeypatch, [refused(status)], ANSWER, RESULTS + "j")
    assert first == ANSWER
    assert json.loads(second["error"])["code"] == "RESULT_TOO_LARGE"
    with pytest.raises(ClientResponseError):
        delivered(monkeypatch, [refused(status)] * 2, ANSWER, RESULTS + "j")


@pytest.mark.parametrize(
    ("body", "url"),
    [
        ({"error": "x"}, RESULTS + "j"),
        ({"status": "IN_PROGRESS", "output": {"phase": "x"}}, RESULTS + "j"),
        ({"output": "x"}, "http://platform.test/job-stream/w/j"),
    ],
)
def test_an_error_an_update_and_a_chunk_never_become_a_failed_job(
    monkeypatch: pytest.MonkeyPatch, body: dict[str, Any], url: str
) -> None:
    with pytest.raises(ClientResponseError):
        delivered(monkeypatch, [refused(413)], body, url)


@pytest.mark.parametrize(
    ("job", "seconds"),
    [
        ({}, math.inf),
        ({"policy": None}, math.inf),
        ({"policy": {"ttl": 10_000}}, math.inf),
        ({"policy": {"executionTimeout": "soon"}}, math.inf),
        ({"policy": {"executionTimeout": True}}, math.inf),
        ({"policy": {"executionTimeout": -5}}, math.inf),
        ({"policy": {"executionTimeout": 60_000}}, 58),
        ({"policy": {"executionTimeout": 1000}}, 1),
    ],
)
def test_the_limit_of_a_policy(job: dict[str, Any], seconds: float) -> None:
    assert sdk.max_seconds(job) == seconds


@pytest.mark.parametrize("limit", [10**400, -(10**400), 1e300, math.nan, math.inf, 604_800_001])
def test_a_limit_that_is_no_time_is_a_coded_error(limit: float) -> None:
    with pytest.raises(InputInvalid, match=r"policy\.executionTimeout"):
        sdk.max_seconds({"policy": {"executionTimeout": limit}})


async def _never(*_: Any) -> None:
    await asyncio.Event().wait()


def test_a_chunk_channel_that_never_answers_ends_with_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rp_http, "_transmit", _never)
    monkeypatch.setattr(sdk, "CHUNK_GRACE_S", 0.0)
    deliveries = sdk.Deliveries()
    sdk.insist_on_delivery(deliveries)

    async def deliver(until: float, stop_at: float) -> None:
        with deliveries.until("j", until):
            asyncio.get_running_loop().call_soon(deliveries.stop_by, stop_at)
            await rp_http._transmit(None, "http://platform.test/job-stream/w/j?gpu=none&isStream=true", "{}")

    for until, stop_at in ((time.monotonic(), math.inf), (time.monotonic() + 3600, time.monotonic())):
        with pytest.raises(ClientError, match="no time is left"):
            asyncio.run(deliver(until, stop_at))


def test_after_a_chunk_without_an_answer_no_more_of_that_job_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []

    async def transmit(session: Any, url: str, data: str) -> None:
        sent.append(data)
        raise TimeoutError

    monkeypatch.setattr(rp_http, "_transmit", transmit)
    monkeypatch.setattr(sdk, "CHUNK_PAUSES_S", ())
    monkeypatch.setattr(sdk, "CHUNK_GRACE_S", 0.0)
    deliveries = sdk.Deliveries()
    sdk.insist_on_delivery(deliveries)

    async def deliver() -> None:
        with deliveries.until("j", time.monotonic() + 3600), deliveries.until("k", time.monotonic() + 3600):
            for job_id, data in (("j", "1"), ("j", "2"), ("k", "3")):
                with pytest.raises(ClientError):
                    await rp_http._transmit(None, f"http://platform.test/job-stream/w/{job_id}?gpu=none", data)

    asyncio.run(deliver())
    assert sent == ["1", "3"]


def test_a_job_that_is_handed_over_again_while_it_is_here_is_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[Any] = [[{"id": "a"}, {"id": "b"}, {"id": "a"}], [{"id": "b"}], None, [{"id": "c"}, {"id": "a"}]]

    async def get_job(session: Any, num_jobs: int = 1) -> Any:
        return batches.pop(0)

    monkeypatch.setattr(rp_scale, "get_job", get_job)
    sdk.take_each_job_once()
    here = JobsProgress()
    taken = []
    try:
        while batches:
            jobs = asyncio.run(rp_scale.get_job(None, 5)) or []
            taken += [job["id"] for job in jobs]
            for job in jobs:
                here.add(job["id"])
    finally:
        here.clear()
    assert taken == ["a", "b", "c"]


def told(monkeypatch: pytest.MonkeyPatch, after_s: float, phases: list[str]) -> list[str]:
    """What the platform hears of a job that goes through these phases and ends."""
    heard: list[str] = []

    async def send(session: Any, data: Any, job: Any) -> None:
        heard.append(data["output"]["phase"])

    monkeypatch.setattr(rp_http, "send_result", send)

    async def run() -> None:
        progress = sdk.Progress({"id": "j"}, after_s)
        for phase in phases:
            progress(phase)
            if progress.sending is not None:
                await progress.sending
        await progress.end()
        progress("too late")
        assert progress.sending is None or progress.sending.done()

    asyncio.run(run())
    return heard


def test_a_quick_job_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch, 3600, ["opening media", "reading the prompt"]) == []


def test_a_slow_job_tells_its_phases_and_nothing_after_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch, 0, ["opening media", "reading the prompt"]) == ["opening media", "reading the prompt"]


def test_updates_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(told(monkeypatch, 0, [str(number) for number in range(100)])) == sdk.MAX_UPDATES


def test_a_cancel_while_an_update_is_under_way_is_a_cancel(monkeypatch: pytest.MonkeyPatch) -> None:
    under_way: list[bool] = []

    async def send(session: Any, data: Any, job: Any) -> None:
        under_way.append(True)
        await asyncio.Event().wait()

    monkeypatch.setattr(rp_http, "send_result", send)

    async def job() -> None:
        progress = sdk.Progress({"id": "j"}, 0)
        progress("opening media")
        while not under_way:
            await asyncio.sleep(0)
        await progress.end()

    async def run() -> bool:
        task = asyncio.create_task(job())
        while not under_way:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        return task.cancelled()

    assert asyncio.run(run())
