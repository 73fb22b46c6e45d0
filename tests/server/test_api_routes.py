"""The routes of OpenAI's and Anthropic's APIs over HTTP: how addresses may be written, what errors tell clients."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import anthropic
import openai
import pytest
import requests
from aiohttp.abc import AbstractResolver, ResolveResult

from tests.fakes import FakeEngine
from tests.server.servers import served
from worker.core.errors import (
    InternalError,
    MediaFetchFailed,
    MediaFetchTimeout,
    MediaUnsupportedType,
    PromptTooLong,
    QueueFull,
    WorkerError,
)
from worker.core.media_protocol import MediaOpener
from worker.core.settings import Settings
from worker.media.fetch import Fetcher
from worker.media.opener import Opener
from worker.models.loading import LoadedModel
from worker.prompt.size_policy import SmartResizePolicy

pytestmark = pytest.mark.network
ASKED: Any = [{"role": "user", "content": "x"}]
BODIES: dict[str, Any] = {
    "/v1/chat/completions": {"messages": ASKED},
    "/v1/completions": {"prompt": "x"},
    "/v1/responses": {"input": "x"},
    "/v1/messages": {"max_tokens": 5, "messages": ASKED},
    "/v1/messages/count_tokens": {"messages": ASKED},
    "/tokenize": {"prompt": "x"},
}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("form", ["{}", "{}/", "/{}", "{}//"])
def test_an_address_may_have_slashes_too_many(path: str, form: str) -> None:
    with served(FakeEngine()) as address:
        answer = requests.post(address + form.format(path), json=BODIES[path], timeout=10, allow_redirects=False)
    assert answer.status_code == 200


@pytest.mark.parametrize("path", ["/", "//", "/v1/models/", "//v1/models"])
def test_slashes_open_no_door(path: str) -> None:
    with served(FakeEngine(), API_KEY="k1") as address:
        answer = requests.get(address + path, timeout=10)
    assert answer.status_code == (200 if path.strip("/") == "" else 401)


def test_a_question_mark_that_is_part_of_a_path_begins_no_query() -> None:
    with served(FakeEngine()) as address:
        assert requests.get(f"{address}/v1/models?x=1", timeout=10).status_code == 200
        assert requests.get(f"{address}/v1/models%3Fx=1", timeout=10).status_code == 404


def test_the_task_presets_are_listed() -> None:
    with served(FakeEngine()) as address:
        listed = requests.get(f"{address}/v1/tasks", timeout=10)
        one = requests.get(f"{address}/v1/tasks/detect", timeout=10)
        other = requests.get(f"{address}/v1/tasks/other", timeout=10)
    assert listed.status_code == one.status_code == 200
    assert one.json() in listed.json()["data"]
    assert (other.status_code, other.json()["code"]) == (404, "ROUTE_UNKNOWN")
    assert "caption" in other.json()["detail"]


@pytest.mark.parametrize("path", BODIES)
def test_ids_are_known_by_both_names_and_answers_have_them(path: str) -> None:
    with served(FakeEngine()) as address:
        answer = requests.post(address + path, json=BODIES[path], headers={"X-Request-Id": "abc-1"}, timeout=10)
    assert answer.headers["x-request-id"] == answer.headers["request-id"] == "abc-1"
    assert "abc-1" in answer.json().get("id", "abc-1")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/v1/embeddings", "embeddings are not served by this model"),
        ("/v1/audio/transcriptions", "audio is not served by this model"),
        ("/v1/responses/resp_1", "nothing is kept here"),
        ("/v1/files", "files are not kept here"),
        ("/v1/chat/complitions", "did you mean /v1/chat/completions?"),
        ("/v1/none", "GET / lists the routes"),
    ],
)
def test_below_v1_a_route_that_is_not_there_is_answered_in_openais_form(path: str, said: str) -> None:
    with served(FakeEngine()) as address:
        for answer in (requests.post(address + path, json={}, timeout=10), requests.get(address + path, timeout=10)):
            assert answer.status_code == 404
            assert said in answer.json()["error"]["message"]
            assert answer.json()["error"]["worker_code"] == "ROUTE_UNKNOWN"
        assert requests.head(address + path, timeout=10).status_code == 404


@pytest.mark.parametrize("path", BODIES)
def test_another_method_is_answered_in_the_routes_form(path: str) -> None:
    with served(FakeEngine()) as address:
        answer = requests.get(address + path, timeout=10)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.json()["error"]["code"] == "METHOD_NOT_ALLOWED"


@pytest.mark.parametrize(
    ("error", "status", "retries", "waits"),
    [
        (MediaFetchFailed(), 400, "false", False),
        (MediaUnsupportedType(), 400, "false", False),
        (MediaFetchFailed(retryable=True), 502, "true", True),
        (MediaFetchTimeout(), 504, "true", True),
        (QueueFull(), 429, "true", True),
        (InternalError(), 500, "true", False),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
def test_clients_are_told_whether_another_try_may_succeed(
    path: str, error: WorkerError, status: int, retries: str, waits: bool
) -> None:
    with served(FakeEngine(pieces=[], error=error)) as address:
        answer = requests.post(address + path, json=BODIES[path], timeout=10)
    assert answer.status_code == status
    assert answer.headers["x-should-retry"] == retries
    assert ("retry-after" in answer.headers) == waits


@pytest.mark.parametrize(
    ("path", "param"), [("/v1/chat/completions", "messages"), ("/v1/completions", "prompt"), ("/v1/responses", "input")]
)
def test_a_prompt_that_is_too_long_is_known_by_its_code(path: str, param: str) -> None:
    with served(FakeEngine(pieces=[], error=PromptTooLong())) as address:
        error = requests.post(address + path, json=BODIES[path], timeout=10).json()["error"]
        told = requests.post(f"{address}/v1/messages", json=BODIES["/v1/messages"], timeout=10).json()["error"]
    assert (error["code"], error["worker_code"]) == ("context_length_exceeded", "PROMPT_TOO_LONG")
    assert error["param"] == param
    assert told["type"] == "invalid_request_error"
    assert told["message"].startswith("prompt is too long: ")


class _Answers(BaseHTTPRequestHandler):
    """Answers with the status that the path names."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(int(self.path[1:4]))
        self.send_header("content-length", "4")
        self.end_headers()
        self.wfile.write(b"page")

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def site() -> Iterator[tuple[str, list[str]]]:
    handler = type("Answers", (_Answers,), {"asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", handler.asked  # type: ignore[attr-defined]
        server.shutdown()
        thread.join()


class NoNames(AbstractResolver):
    """Says of every name that there is none, as c-ares does."""

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        raise OSError(None, "Domain name not found") from Exception(4, "Domain name not found")

    async def close(self) -> None:
        pass


@contextmanager
def opener(model: LoadedModel) -> Iterator[MediaOpener]:
    settings = Settings(device="cpu", media_allow_loopback=True)
    policy = SmartResizePolicy(model.spec.preprocessor, settings, model.spec.max_model_len)
    made = Opener(settings, Fetcher(settings, NoNames), policy)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize(
    ("path", "status", "code", "tries"),
    [
        ("404.png", 400, "MEDIA_FETCH_FAILED", 1),
        ("403.png", 400, "MEDIA_FETCH_FAILED", 1),
        ("200.png", 400, "MEDIA_UNSUPPORTED_TYPE", 1),  # a page, no picture
        ("503.png", 502, "MEDIA_FETCH_FAILED", 2),
        (None, 400, "MEDIA_FETCH_FAILED", 0),  # no such host
    ],
)
def test_openais_client_asks_again_only_where_that_may_help(
    tiny: LoadedModel, path: str | None, status: int, code: str, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("openai._base_client.time.sleep", waits.append)
    with opener(tiny) as media, site() as (there, asked), served(FakeEngine(), media) as address:
        shown = f"{there}/{path}" if path else "http://no-such-host.test/x.png"
        body = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": shown}}]}]
        with (
            openai.OpenAI(api_key="k", base_url=f"{address}/v1", max_retries=1) as client,
            pytest.raises(openai.APIStatusError) as failed,
        ):
            client.with_options(timeout=30).chat.completions.create(model="tiny-qwen3-vl", messages=body)  # type: ignore[arg-type]
    assert failed.value.status_code == status
    assert failed.value.body["worker_code"] == code  # type: ignore[index,call-overload]
    assert len(asked) == tries
    assert waits == [5.0] * (tries - 1)  # what Retry-After says


def test_anthropics_client_is_answered_and_refused_in_its_own_terms() -> None:
    with (
        served(FakeEngine(), API_KEY="k1") as address,
        anthropic.Anthropic(api_key="k1", base_url=address, max_retries=0) as client,
    ):
        message = client.messages.create(model="tiny-qwen3-vl", max_tokens=5, messages=ASKED)
        assert [block.text for block in message.content if block.type == "text"] == ["A cat."]
        with client.messages.stream(model="tiny-qwen3-vl", max_tokens=5, messages=ASKED) as stream:
            assert stream.get_final_text() == "A cat."
        assert client.messages.count_tokens(model="tiny-qwen3-vl", messages=ASKED).input_tokens == 10
        with pytest.raises(anthropic.NotFoundError, match="write tiny-qwen3-vl") as missing:
            client.messages.create(model="claude", max_tokens=5, messages=ASKED)
        assert missing.value.request_id
        with (
            anthropic.Anthropic(api_key="wrong", base_url=address, max_retries=0) as stranger,
            pytest.raises(anthropic.AuthenticationError),
        ):
            stranger.messages.create(model="tiny-qwen3-vl", max_tokens=5, messages=ASKED)


def test_openais_client_reads_responses_and_completions() -> None:
    with served(FakeEngine()) as address, openai.OpenAI(api_key="k", base_url=f"{address}/v1", max_retries=0) as client:
        response = client.responses.create(model="tiny-qwen3-vl", input="x", store=True)
        assert response.output_text == "A cat."
        with client.responses.stream(model="tiny-qwen3-vl", input="x") as stream:
            assert stream.get_final_response().output_text == "A cat."
        assert client.completions.create(model="tiny-qwen3-vl", prompt="x").choices[0].text == "A cat."
        told = client.completions.create(model="tiny-qwen3-vl", prompt="x", stream=True)
        assert "".join(chunk.choices[0].text for chunk in told) == "A cat."
        with pytest.raises(openai.NotFoundError, match="embeddings are not served by this model"):
            client.embeddings.create(model="tiny-qwen3-vl", input="x")


def test_the_fields_of_an_object_have_an_order() -> None:
    with served(FakeEngine()) as address:
        told = [requests.post(f"{address}/v1/chat/completions", json={"messages": ASKED}, timeout=10) for _ in range(2)]
    first, second = (list(json.loads(answer.text)) for answer in told)
    assert first == second
    assert first[:6] == ["id", "object", "created", "model", "system_fingerprint", "choices"]


def test_a_resolver_that_fails_for_now_may_be_asked_again() -> None:
    class Silent(NoNames):
        async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
            raise OSError(None, "Timeout") from Exception(12, "Timeout while contacting DNS servers")

    for names, is_retryable in ((Silent, True), (NoNames, False)):
        with pytest.raises(MediaFetchFailed) as failed:
            asyncio.run(Fetcher(Settings(), names).fetch("http://a.test/x.png", 100, 5.0, lambda _: None))
        assert failed.value.is_retryable == is_retryable
