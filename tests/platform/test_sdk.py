"""What the worker does where the SDK stops: refused results, policies, progress."""

import asyncio
import json
import math
from typing import Any

import pytest
from aiohttp import ClientConnectionError, ClientError, ClientResponseError, RequestInfo
from multidict import CIMultiDict, CIMultiDictProxy
from runpod.serverless.modules import rp_http
from yarl import URL

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
    sdk.insist_on_delivery()
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
