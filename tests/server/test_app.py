"""The HTTP server with real clients on the loopback: requests of all formats, keys, limits, hang-ups."""

import asyncio
import base64
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import requests
from PIL import Image

from tests.fakes import FakeEngine, FakeOpener, encoded
from tests.server import strangers
from tests.server.servers import circle, served
from worker.core.contract import Piece, Text, Upload
from worker.core.errors import InternalError, MediaUnsupportedType, QueueFull, SettingError, WorkerError
from worker.core.settings import load
from worker.server import keys
from worker.server.__main__ import refuse_open_server

pytestmark = pytest.mark.network
PNG = encoded(Image.new("RGB", (8, 8), "red"))


def messages(*content: Any) -> str:
    return json.dumps([{"role": "user", "content": list(content) or "Who are you?"}])


def test_chat_vl_with_an_uploaded_file() -> None:
    opener = FakeOpener()
    with served(FakeEngine(), opener) as address:
        answer = requests.post(
            f"{address}/chat-vl",
            data={
                "messages": messages({"type": "image"}, {"type": "text", "text": "What is it?"}),
                "max_new_tokens": "9",
            },
            files={"file": ("x.png", PNG, "image/png")},
            timeout=10,
        )
    assert answer.status_code == 200
    assert answer.json() == {
        "response": "A cat.",
        "usage": {"prompt_tokens": 20, "completion_tokens": 3, "total_tokens": 23},
    }
    assert [one.source for one in opener.opened] == [Upload(data=PNG)]


def test_chat_vl_streams_text_and_nothing_else() -> None:
    with served(FakeEngine(pieces=["你", "好", "!"])) as address:
        answer = requests.post(f"{address}/chat-vl", data={"messages": messages(), "stream": "true"}, timeout=10)
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.content.decode() == "你好!"


@pytest.mark.parametrize(
    ("data", "files", "said"),
    [
        ({"messages": "{"}, None, "is not valid JSON"),
        ({"messages": messages({"type": "image"})}, None, "no file was uploaded"),
        ({}, None, "messages"),
        ({"messages": messages(), "temperature": "1"}, None, "unknown field"),
        ({"messages": messages(), "max_new_tokens": "many"}, None, "max_new_tokens"),
    ],
)
def test_chat_vl_refuses_with_400(data: dict[str, str], files: Any, said: str) -> None:
    with served(FakeEngine()) as address:
        answer = requests.post(f"{address}/chat-vl", data=data, files=files, timeout=10)
    assert answer.status_code == 400
    assert said in answer.json()["detail"]


def test_a_file_of_another_kind_is_400_and_recognize_names_what_was_received() -> None:
    opener = FakeOpener(MediaUnsupportedType(where="image"))
    file = {"image": ("x.txt", b"hello", "text/plain")}
    with served(FakeEngine(), opener) as address:
        answer = requests.post(f"{address}/v1/image/recognize", data={"prompt": "x"}, files=file, timeout=10)
        chat = requests.post(
            f"{address}/chat-vl", data={"messages": messages({"type": "image"})}, files={"file": b"x"}, timeout=10
        )
    assert (answer.status_code, chat.status_code) == (400, 400)
    assert "expected an image, received text/plain" in answer.json()["detail"]


def test_recognize() -> None:
    with served(FakeEngine()) as address:
        answer = requests.post(
            f"{address}/v1/image/recognize",
            data={"prompt": "x"},
            files={"image": ("x.png", PNG, "image/png")},
            timeout=10,
        )
    assert answer.json() == {"status": "success", "result": "A cat."}


def test_generate_and_the_flat_form_of_chat_completions() -> None:
    body = {"messages": [{"role": "user", "content": "x"}]}
    with served(FakeEngine()) as address:
        assert requests.post(f"{address}/generate", json=body, timeout=10).json() == {"response": "A cat."}
        answer = requests.post(f"{address}/v1/chat/completions", json=body, timeout=10).json()
    assert answer["response"] == "A cat."
    assert answer["model"] == "tiny-qwen3-vl"
    assert answer["usage"]["total_tokens"] == 23


def bot(kind: str, content: str = "Look", picture: bytes = PNG, **more: Any) -> dict[str, Any]:
    """A message in the manner of the chat bot's clients."""
    image = {"data": base64.b64encode(picture).decode(), "format": "png"}
    body = {"type": kind, "user_id": "7", "user_nickname": "Ann", "content": content, "images": [image], **more}
    return {**body, "timestamp": 1.5} | (
        {"group_id": "5", "group_name": "G", "user_card": ""} if kind == "group" else {}
    )


def test_the_bot() -> None:
    engine = FakeEngine()
    with served(engine) as address:
        group = requests.post(f"{address}/api/chat/group", json=bot("group"), timeout=10)
        private = requests.post(f"{address}/api/chat/private", json=bot("private"), timeout=10)
        again = requests.post(f"{address}/api/chat/private", json=bot("private"), timeout=10)
        refused = requests.post(f"{address}/api/chat/private", json=bot("group"), timeout=10)
    assert group.json() == {"status": "success", "should_reply": True, "reply": "A cat."}
    assert private.json() == again.json() == {"status": "success", "reply": "A cat."}
    assert [len(request.messages) for request in engine.asked] == [1, 1, 3]
    assert (refused.status_code, refused.json()["status"], refused.json()["code"]) == (400, "error", "INPUT_INVALID")


def test_the_openai_client() -> None:
    asked: Any = [{"role": "user", "content": "x"}]
    with served(FakeEngine(), API_KEY="k1") as address:
        with openai.OpenAI(api_key="k1", base_url=f"{address}/v1", max_retries=0) as client:
            reply = client.chat.completions.create(model="tiny-qwen3-vl", messages=asked)
            assert reply.choices[0].message.content == "A cat."
            parts = list(client.chat.completions.create(model="tiny-qwen3-vl", messages=asked, stream=True))
            assert "".join(part.choices[0].delta.content or "" for part in parts) == "A cat."
            assert parts[-1].choices[0].finish_reason == "stop"
            assert [model.id for model in client.models.list()] == ["tiny-qwen3-vl"]
            with pytest.raises(openai.NotFoundError) as missing:
                client.chat.completions.create(model="gpt-4", messages=asked)
            assert missing.value.code == "model_not_found"
            with pytest.raises(openai.BadRequestError) as refused:
                client.chat.completions.create(model="tiny-qwen3-vl", messages=asked, max_tokens=0)
            assert refused.value.param == "max_tokens"
        with (
            openai.OpenAI(api_key="wrong", base_url=f"{address}/v1", max_retries=0) as stranger,
            pytest.raises(openai.AuthenticationError),
        ):
            stranger.models.list()


@pytest.mark.parametrize(("error", "status", "retry_after"), [(QueueFull(), 429, "5"), (InternalError(), 500, None)])
def test_a_failure_has_its_status(error: WorkerError, status: int, retry_after: str | None) -> None:
    with served(FakeEngine(pieces=[], error=error)) as address:
        answer = requests.post(f"{address}/generate", json={"messages": [{"role": "user", "content": "x"}]}, timeout=10)
    assert answer.status_code == status
    assert answer.json()["code"] == error.code
    assert answer.headers.get("retry-after") == retry_after


@pytest.mark.parametrize(
    "path", ["/generate", "/chat-vl", "/v1/chat/completions", "/v1/models", "/openapi.json", "/health", "/metrics"]
)
@pytest.mark.parametrize("headers", [{}, {"X-API-Key": "wrong"}, {"Authorization": "Basic azE="}])
def test_without_the_key_there_is_nothing(path: str, headers: dict[str, str]) -> None:
    with served(FakeEngine(), QPIKEY="k1", API_KEY="k2, k3") as address:
        assert requests.get(f"{address}{path}", headers=headers, timeout=10).status_code == 401
        assert requests.get(f"{address}/", timeout=10).status_code == 200
        for given in ({"X-API-Key": "k1"}, {"Authorization": "Bearer k3"}):
            assert requests.get(f"{address}/v1/models", headers=given, timeout=10).status_code == 200


@pytest.mark.parametrize("keys", ["k1", "k1,k2"])
def test_each_of_several_keys_is_a_caller_of_its_own(keys: str) -> None:
    """Their prefixes and their bots' conversations are apart; a single key is nobody to be kept from."""
    engine = FakeEngine()
    message = {"type": "private", "user_id": "7", "content": "x"}
    with served(engine, API_KEY=keys, QPIKEY="k1") as address:
        for key in (*keys.split(","), "k1"):
            headers = {"X-API-Key": key}
            body = {"messages": [{"role": "user", "content": "x"}]}
            assert requests.post(f"{address}/generate", json=body, headers=headers, timeout=10).status_code == 200
            assert requests.post(f"{address}/api/chat/private", json=message, headers=headers, timeout=10).ok
    callers = [request.caller for request in engine.asked[::2]]
    asked = [len(request.messages) for request in engine.asked[1::2]]
    if keys == "k1":
        assert (callers, asked) == (["", ""], [1, 3])
    else:
        assert callers[0] == callers[2] != callers[1]
        assert all("k" not in caller and len(caller) == 32 for caller in callers)
        assert asked == [1, 1, 3]


def test_a_body_that_is_too_large_or_no_json_is_refused() -> None:
    json_type = {"Content-Type": "application/json"}
    with served(FakeEngine(), MAX_BODY_BYTES="1000") as address:

        def post(data: Any) -> requests.Response:
            return requests.post(f"{address}/generate", data=data, headers=json_type, timeout=10)

        large, chunked = post(b"x" * 2000), post(b"x" * 100 for _ in range(50))
        broken, listed = post(b"{"), post(b"[]")
    assert [one.status_code for one in (large, chunked, broken, listed)] == [413, 413, 400, 400]
    assert {one.json()["code"] for one in (broken, listed)} == {"INPUT_NOT_OBJECT"}


def test_bodies_in_json_have_a_smaller_limit_than_files() -> None:
    with served(FakeEngine(), MAX_JSON_BYTES="1000") as address:
        body = {"messages": [{"role": "user", "content": "x" * 2000}]}
        refused = requests.post(f"{address}/generate", json=body, timeout=10)
        file = {"image": ("x.png", PNG + bytes(2000), "image/png")}
        taken = requests.post(f"{address}/v1/image/recognize", data={"prompt": "x"}, files=file, timeout=10)
    assert (refused.status_code, refused.json()["code"], taken.status_code) == (413, "BODY_TOO_LARGE", 200)


def test_a_body_that_does_not_come_is_given_up() -> None:
    with (
        served(FakeEngine(), BODY_TIMEOUT_S="0.05") as address,
        socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as slow,
    ):
        slow.sendall(strangers.TAKEN + b"Content-Length: 100\r\n\r\n{")
        slow.settimeout(10)
        assert b" 408 " in slow.recv(4096)


def test_a_body_that_trickles_is_given_up() -> None:
    with (
        served(FakeEngine(), BODY_TIMEOUT_S="5", BODY_WHOLE_S="0.2") as address,
        socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as slow,
    ):
        slow.sendall(strangers.TAKEN + b"Content-Length: 100000\r\n\r\n{")
        slow.settimeout(0.02)
        end, answer = time.monotonic() + 10, b""
        while not answer and time.monotonic() < end:
            slow.sendall(b" ")
            with contextlib.suppress(TimeoutError):
                answer = slow.recv(4096)
    assert b" 408 " in answer


def test_a_file_of_megabytes_is_taken_without_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no file can be written: a read-only image."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    for name in ("TemporaryFile", "NamedTemporaryFile", "mkstemp", "mkdtemp", "gettempdir"):
        monkeypatch.setattr(tempfile, name, refuse)
    opener = FakeOpener()
    large = {"file": ("x.png", PNG + bytes(30 * 2**20), "image/png")}
    with served(FakeEngine(), opener) as address:
        data = {"messages": messages({"type": "image"})}
        answer = requests.post(f"{address}/chat-vl", data=data, files=large, timeout=10)
        twice = requests.post(f"{address}/chat-vl", files=[*large.items(), *large.items()], timeout=10)
    assert (answer.status_code, twice.status_code) == (200, 400)
    assert opener.opened[0].source == Upload(data=PNG + bytes(30 * 2**20))


@pytest.mark.parametrize("charset", ["undefined", "hex", "punycode", "utf-16", "no-such"])
def test_a_form_is_utf_8_whatever_it_says_of_itself(charset: str) -> None:
    said = '[{"role": "user", "content": "Größe?"}]'
    body = f'--b\r\nContent-Disposition: form-data; name="messages"\r\n\r\n{said}\r\n--b--\r\n'.encode()
    engine = FakeEngine()
    with served(engine) as address:
        kind = {"Content-Type": f"multipart/form-data; boundary=b; charset={charset}"}
        assert requests.post(f"{address}/chat-vl", data=body, headers=kind, timeout=10).status_code == 200
        for odd in ('multipart/form-data; boundary="a\\"b"', "multipart/form-data", "multipart/form-data; boundary="):
            refused = requests.post(f"{address}/chat-vl", data=body, headers={"Content-Type": odd}, timeout=10)
            assert (refused.status_code, refused.json()["code"]) == (400, "INPUT_INVALID")
    part = engine.asked[0].messages[0].parts[0]
    assert isinstance(part, Text)
    assert part.text == "Größe?"


def test_a_client_that_leaves_in_the_middle_of_its_upload_is_one_quiet_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    head = (
        b"POST /chat-vl HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n"
        b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
        b'Content-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    )
    with served(FakeEngine()) as address:
        for _ in range(3):
            with strangers.connected(int(address.rpartition(":")[2])) as leaving:
                leaving.sendall(head + bytes(2**20))
        assert strangers.seconds_until(lambda: caplog.messages.count("POST /chat-vl") == 3, 10) is not None
    about = [
        record for record in caplog.records if record.name.startswith(("worker.server", "uvicorn.error", "asyncio"))
    ]
    assert {record.levelname for record in about if "/chat-vl" in record.getMessage()} == {"DEBUG"}
    assert not [record for record in about if record.exc_info or record.levelname in ("WARNING", "ERROR")]


def test_a_path_cannot_forge_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="worker.server.middleware")
    with served(FakeEngine()) as address:
        requests.get(f"{address}/x%0aINFO forged", timeout=10)
    assert [line for line in caplog.messages if "forged" in line] == ["GET /x%0AINFO%20forged"]


@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions", "/chat-vl"])
def test_another_method_is_told_which_one_the_route_takes(path: str) -> None:
    with served(FakeEngine()) as address:
        for method in ("GET", "HEAD", "PUT", "DELETE", "OPTIONS"):
            answer = requests.request(method, f"{address}{path}", timeout=10)
            assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        told = requests.get(f"{address}{path}", timeout=10).json()
        assert told.get("error", told)["code"] == "METHOD_NOT_ALLOWED"
        there, missing = requests.head(f"{address}/ping", timeout=10), requests.get(f"{address}/none", timeout=10)
        assert (there.status_code, missing.status_code) == (200, 404)


def test_a_field_without_a_name_is_no_field() -> None:
    with served(FakeEngine()) as address:
        body = {"messages": [{"role": "user", "content": "x"}], "": 1}
        assert requests.post(f"{address}/generate", json=body, timeout=10).status_code == 400


class Endless(FakeEngine):
    """Says a word every few milliseconds until it is closed."""

    async def generate(self, *_: Any) -> Any:
        try:
            while True:
                yield Piece(text="word ")
                await asyncio.sleep(0.005)
        finally:
            self.num_closed += 1


def listen_and_leave(address: str, body: dict[str, Any]) -> None:
    """Hear a little of a stream, or wait a little for an answer that never comes, and hang up."""
    if body["stream"]:
        with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=10) as answer:
            assert next(answer.iter_text())
    else:
        with pytest.raises(requests.ReadTimeout):
            requests.post(f"{address}/v1/chat/completions", json=body, timeout=0.3)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_ends_its_answer(stream: bool) -> None:
    engine = Endless()
    with served(engine) as address:
        listen_and_leave(address, {"messages": [{"role": "user", "content": "x"}], "stream": stream})
        end = time.monotonic() + 10
        while not engine.num_closed and time.monotonic() < end:
            time.sleep(0.01)
        assert engine.num_closed == 1


def test_a_client_that_does_not_read_ends_its_answer() -> None:
    class Flood(Endless):
        async def generate(self, *_: Any) -> Any:
            try:
                while True:
                    yield Piece(text="word " * 20_000)
                    await asyncio.sleep(0)
            finally:
                self.num_closed += 1

    engine = Flood()
    body = json.dumps({"messages": [{"role": "user", "content": "x"}], "stream": True}).encode()
    with served(engine, SEND_TIMEOUT_S="0.1") as address:
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as deaf:
            head = strangers.REFUSED + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
            deaf.sendall(head + body)
            end = time.monotonic() + 10
            while not engine.num_closed and time.monotonic() < end:
                time.sleep(0.01)
        assert engine.num_closed == 1
        assert requests.get(f"{address}/ping", timeout=10).status_code == 200


def test_more_requests_than_the_door_takes_are_sent_away() -> None:
    engine = Endless()
    body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
    with served(engine, MAX_REQUESTS="1") as address:
        with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=10) as running:
            heard = running.iter_text()  # without a name it would be closed at once, and the connection with it
            assert next(heard)
            refused = requests.post(f"{address}/v1/chat/completions", json=body, timeout=10)
            health = requests.get(f"{address}/health", timeout=10)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
        assert refused.json()["error"]["code"] == "QUEUE_FULL"
        assert health.status_code == 200


def test_bodies_that_drip_keep_no_request_from_running() -> None:
    """Also of the same key: an upload has no slot of a request, and the oldest makes room for the next."""
    body = {"messages": [{"role": "user", "content": "x"}]}
    with served(FakeEngine(), API_KEY="k1", MAX_REQUESTS="2", MAX_CONNECTIONS="64") as address:
        port = int(address.rpartition(":")[2])

        def post() -> requests.Response:
            return requests.post(f"{address}/generate", json=body, headers={"X-API-Key": "k1"}, timeout=10)

        with strangers.held(port, 10, strangers.TAKEN + b"Content-Length: 100\r\n\r\n{"):
            assert post().status_code == 200
        with strangers.held(port, 24, strangers.TAKEN + b"Content-Length: 100\r\n\r\n{") as dripping:
            assert strangers.seconds_until(lambda: post().status_code == 429, 10) is not None
            assert "24 uploads are in progress" in post().json()["detail"]
            assert strangers.seconds_until(lambda: post().status_code == 200, 10) is not None
            assert strangers.seconds_until(lambda: strangers.num_open(dripping) < 24, 10) is not None


def test_a_key_has_its_share_of_running_requests() -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
    url = "/v1/chat/completions"
    with served(Endless(), API_KEY="k1,k2", MAX_REQUESTS="8", MAX_REQUESTS_PER_KEY="1") as address:

        def post(key: str) -> Any:
            return httpx.stream("POST", f"{address}{url}", json=body, headers={"X-API-Key": key}, timeout=10)

        with post("k1") as running:
            heard = running.iter_text()
            assert next(heard)
            with post("k1") as refused, post("k2") as other:
                assert (refused.status_code, other.status_code) == (429, 200)
                assert "limit 1 for this key (MAX_REQUESTS_PER_KEY)" in refused.read().decode()


def test_the_bytes_of_all_bodies_are_bounded() -> None:
    body = {"messages": [{"role": "user", "content": "x" * 1000}]}
    with served(FakeEngine(), MAX_BODIES_BYTES="2000") as address:
        sent = strangers.REFUSED + b"Content-Type: application/json\r\nContent-Length: 1900\r\n\r\n" + bytes(1800)
        with strangers.held(int(address.rpartition(":")[2]), 1, sent):
            post = lambda: requests.post(f"{address}/generate", json=body, timeout=10).status_code  # noqa: E731
            assert strangers.seconds_until(lambda: post() == 429, 10) is not None
        assert strangers.seconds_until(lambda: post() == 200, 10) is not None


def test_a_key_that_has_used_its_tokens_waits_and_another_does_not() -> None:
    body = {"messages": [{"role": "user", "content": "x"}]}
    with served(FakeEngine(), API_KEY="k1,k2", TOKENS_PER_MINUTE="40") as address:

        def post(key: str) -> requests.Response:
            return requests.post(f"{address}/v1/chat/completions", json=body, headers={"X-API-Key": key}, timeout=10)

        assert [post("k1").status_code for _ in range(3)] == [200, 200, 429]  # 23 tokens each
        refused = post("k1")
        assert refused.json()["error"]["code"] == "RATE_LIMITED"
        assert 1 <= int(refused.headers["retry-after"]) <= 12
        assert post("k2").status_code == 200
        models = requests.get(f"{address}/v1/models", headers={"X-API-Key": "k1"}, timeout=10)
        assert models.status_code == 200


def test_tokens_of_an_answer_that_is_left_count() -> None:
    class Leaves(Endless):
        async def generate(self, request: Any, media: Any, deadline: Any, on_usage: Any) -> Any:
            try:
                async for piece in super().generate():
                    yield piece
            finally:
                on_usage(self.usage)

    body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
    with served(Leaves(), TOKENS_PER_MINUTE="20") as address:
        listen_and_leave(address, body)
        post = lambda: requests.post(f"{address}/generate", json={**body, "stream": 1}, timeout=10).status_code  # noqa: E731
        assert strangers.seconds_until(lambda: post() == 429, 10) is not None
        metrics = requests.get(f"{address}/metrics", timeout=10).text
    assert 'worker_tokens_total{kind="completion"} 3.0' in metrics


def test_keys_of_a_file_change_while_it_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "LOOK_S", 0.0)
    file = tmp_path / "keys"
    file.write_text("# ours\nold ann\n")
    with served(FakeEngine(), API_KEY_FILE=str(file)) as address:

        def status(key: str) -> int:
            return requests.get(f"{address}/v1/models", headers={"X-API-Key": key}, timeout=10).status_code

        assert (status("old"), status("new")) == (200, 401)
        file.write_text("old ann\nnew ann\n")
        assert (status("old"), status("new")) == (200, 200)
        file.write_text("new ann\n")
        assert (status("old"), status("new")) == (401, 200)
        file.unlink()
        assert (status("old"), status("new"), status("")) == (401, 200, 401)  # never open


def test_an_address_with_too_many_wrong_keys_is_looked_at_no_more() -> None:
    with served(FakeEngine(), API_KEY="k1,k2", MAX_WRONG_KEYS="3") as address:

        def get(**headers: str) -> requests.Response:
            return requests.get(f"{address}/v1/models", headers=headers, timeout=10)

        right, wrong = {"X-API-Key": "k1"}, {"X-API-Key": "wrong"}
        assert get(**right).status_code == 200
        refused = [get(**wrong) for _ in range(4)]
        assert [answer.status_code for answer in refused] == [401, 401, 401, 429]
        assert refused[0].headers["www-authenticate"] == "Bearer"
        assert refused[3].json()["error"]["code"] == "TOO_MANY_WRONG_KEYS"
        assert 1 <= int(refused[3].headers["retry-after"]) <= 60
        assert get(**right).status_code == 200  # this address has used it before
        assert get(**{"X-API-Key": "k2"}).status_code == 200  # and an address of this machine may be a proxy's
        assert requests.get(f"{address}/ping", timeout=10).status_code == 200
        metrics = get(**right).url.replace("/v1/models", "/metrics")
        text = requests.get(metrics, headers=right, timeout=10).text
    assert 'worker_http_refusals_total{code="KEY_INVALID"} 3.0' in text
    assert 'worker_http_refusals_total{code="TOO_MANY_WRONG_KEYS"} 1.0' in text


def test_the_address_is_the_proxys_word_where_the_proxy_is_trusted() -> None:
    for trusted, expected in (("", [401, 429]), ("127.0.0.1", [401, 401])):
        with served(FakeEngine(), API_KEY="k1", MAX_WRONG_KEYS="1", TRUSTED_PROXIES=trusted) as address:
            said = [
                requests.get(f"{address}/v1/models", headers={"X-API-Key": "no", "X-Forwarded-For": client}, timeout=10)
                for client in ("192.0.2.1", "192.0.2.2")
            ]
        assert [answer.status_code for answer in said] == expected


def test_ping_and_health_while_the_model_comes_and_when_the_engine_has_died() -> None:
    let_go = threading.Event()
    engine = FakeEngine()
    with served(engine, begin=lambda: let_go.wait(20) and None) as address:
        assert requests.get(f"{address}/ping", timeout=10).status_code == 204
        assert requests.get(f"{address}/health", timeout=10).json()["status"] == "loading"
        let_go.set()
        body = {"messages": [{"role": "user", "content": "x"}]}
        assert requests.post(f"{address}/generate", json=body, timeout=10).status_code == 200  # it waited for the model
        assert requests.get(f"{address}/ping", timeout=10).status_code == 200
        health = requests.get(f"{address}/health", timeout=10).json()
        assert (health["status"], health["model_loaded"], health["device"]) == ("healthy", True, "cpu")
        engine.state = "dead"
        assert requests.get(f"{address}/ping", timeout=10).status_code == 503


def test_the_process_of_a_server_without_its_model_ends_with_status_1() -> None:
    variables = {**os.environ, "MODEL_PATH": "/no/such/folder", "PORT": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "worker.server"], env=variables, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "worker-qwen-vl cannot start: MODEL_PATH: /no/such/folder does not exist" in done.stderr


def test_the_model_is_loaded_at_the_first_request_where_that_is_wanted() -> None:
    began: list[bool] = []
    with served(FakeEngine(), begin=lambda: began.append(True), LAZY_LOAD="1") as address:
        assert requests.get(f"{address}/ping", timeout=10).status_code == 204
        assert not began
        requests.post(f"{address}/generate", json={"messages": [{"role": "user", "content": "x"}]}, timeout=10)
    assert began == [True]


def test_ids_go_in_and_out() -> None:
    with served(FakeEngine()) as address:
        known = requests.get(f"{address}/", headers={"X-Request-Id": "abc-1"}, timeout=10)
        odd = requests.get(f"{address}/", headers={"X-Request-Id": "a b"}, timeout=10)
    assert known.headers["x-request-id"] == "abc-1"
    assert len(odd.headers["x-request-id"]) == 32


def test_the_schema_names_every_body() -> None:
    with served(FakeEngine()) as address:
        schema = requests.get(f"{address}/openapi.json", timeout=10).json()
    text = json.dumps(schema)
    for name in ("ChatVLForm", "RecognizeForm", "GenerateBody", "OpenAIBody"):
        assert name in schema["components"]["schemas"]
    for reference in {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}:
        assert reference in schema["components"]["schemas"]


@pytest.mark.parametrize(
    ("settings", "is_refused"),
    [
        ({}, False),
        ({"HOST": "localhost"}, False),
        ({"HOST": "::1"}, False),
        ({"HOST": "0.0.0.0"}, True),
        ({"HOST": "0.0.0.0", "API_KEY": " , "}, True),
        ({"HOST": "0.0.0.0", "API_KEY": "k"}, False),
        ({"HOST": "0.0.0.0", "AUTH": "off"}, False),
    ],
)
def test_a_door_without_a_key_opens_on_this_machine_alone(settings: dict[str, str], is_refused: bool) -> None:
    if is_refused:
        with pytest.raises(SettingError, match="API_KEY"):
            refuse_open_server(load(settings))
    else:
        refuse_open_server(load(settings))


def test_the_metrics_count_what_was_done() -> None:
    with served(FakeEngine()) as address:
        body = {"messages": [{"role": "user", "content": "x"}]}
        for given in (body, body, {**body, "max_tokens": 0}):
            requests.post(f"{address}/generate", json=given, timeout=10)
        text = requests.get(f"{address}/metrics", timeout=10).text
    assert 'worker_requests_total{code="ok",dialect="generate"} 2.0' in text
    assert 'worker_requests_total{code="INPUT_INVALID",dialect="generate"} 1.0' in text
    assert 'worker_tokens_total{kind="prompt"} 40.0' in text
    assert 'worker_phase_seconds_count{phase="answer"} 2.0' in text


KEY = {"X-API-Key": "k1"}


def test_every_services_client_reads_a_true_answer(real: str) -> None:
    question, file = "What is in the picture?", ("x.jpg", circle(), "image/jpeg")
    blocks = messages({"type": "image"}, {"type": "text", "text": question})
    data = {"messages": blocks, "stream": "true"}
    inline = "data:image/jpeg;base64," + base64.b64encode(circle()).decode()
    asked = [{"role": "user", "content": [{"type": "image", "image": inline}, {"type": "text", "text": question}]}]

    def post(path: str, **given: Any) -> requests.Response:
        return requests.post(f"{real}{path}", headers=KEY, timeout=30, **given)

    said = [
        post("/chat-vl", data=data, files={"file": file}).text,
        post("/v1/image/recognize", data={"prompt": question}, files={"image": file}).json()["result"],
        post("/generate", json={"messages": asked, "temperature": 0}).json()["response"],
    ]
    with openai.OpenAI(api_key="k1", base_url=f"{real}/v1", max_retries=0) as client:
        content: Any = [{"type": "image_url", "image_url": {"url": inline}}, {"type": "text", "text": question}]
        reply = client.chat.completions.create(
            model="tiny-qwen3-vl", messages=[{"role": "user", "content": content}], temperature=0
        )
        said.append(reply.choices[0].message.content or "")
    assert all("red circle" in text for text in said), said


def test_the_bot_sees_the_picture_of_an_earlier_message(real: str) -> None:
    def say(content: str, *pictures: bytes) -> dict[str, Any]:
        images = [{"data": base64.b64encode(one).decode(), "format": "jpeg"} for one in pictures]
        body = {"type": "private", "user_id": "e2e", "user_nickname": "Ann", "content": content, "images": images}
        answer = requests.post(
            f"{real}/api/chat/private", headers=KEY, json={**body, "timestamp": time.time()}, timeout=30
        )
        assert answer.json()["status"] == "success", answer.text
        return dict(answer.json())

    def image_tokens() -> float:
        text = requests.get(f"{real}/metrics", headers=KEY, timeout=10).text
        [line] = [one for one in text.splitlines() if one.startswith('worker_tokens_total{kind="image"}')]
        return float(line.split()[-1])

    assert "red circle" in say("What is in the picture?", circle())["reply"]
    before = image_tokens()
    say("How many objects are there?")
    assert image_tokens() > before


def test_a_photograph_of_8k_is_answered(real: str) -> None:
    photo = circle((7680, 4320))
    answer = requests.post(
        f"{real}/v1/image/recognize",
        headers=KEY,
        data={"prompt": "What is in the picture?"},
        files={"image": ("photo.jpg", photo, "image/jpeg")},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    assert "red circle" in answer.json()["result"]


def test_its_health_names_the_model_and_the_machine(real: str) -> None:
    health = requests.get(f"{real}/health", headers=KEY, timeout=10).json()
    assert (health["status"], health["model"], health["device"]) == ("healthy", "tiny-qwen3-vl", "cpu")
    assert health["supported_formats"] == ["image", "video"]
    assert health["gpu_memory"] == "N/A"
    assert "kv_cache_bytes" in requests.get(f"{real}/metrics", headers=KEY, timeout=10).text
