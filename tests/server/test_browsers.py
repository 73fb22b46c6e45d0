"""What pages in a user's browser can do with a server: rules, and a hostile page in a real browser."""

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from starlette.datastructures import Headers

from tests.fakes import FakeEngine
from tests.server.servers import served
from worker.core.errors import WorkerError
from worker.core.settings import load
from worker.server.browsers import FORM_TYPES, JSON_TYPES, BrowserRules

if TYPE_CHECKING:
    from selenium import webdriver

BODY = json.dumps({"messages": [{"role": "user", "content": "x"}]})


def code_of(headers: dict[str, str], *, has_keys: bool = False, is_open: bool = False, **values: str) -> str | None:
    rules = BrowserRules(load(values), has_keys=has_keys)
    try:
        rules.check(Headers({"host": "localhost:8000"} | headers), is_open=is_open)
    except WorkerError as error:
        return error.code
    return None


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        *((host, True) for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000", "192.168.1.7")),
        *((host, True) for host in ("a.localhost:9", "box", "box:8000")),
        *((host, False) for host in ("attacker.test", "localhost.attacker.test:8000", "127.0.0.1.nip.io", "")),
        *(
            (host, False)
            for host in (
                "localhost@attacker.test",
                "[::1",
                "0x7f.1",
                "127.1",
                "notlocalhost",
                "a:b:c",
                "evil.test[::1]",
                "[::1]evil.test",
            )
        ),
    ],
)
def test_a_name_that_was_pointed_at_this_machine_is_none_of_the_servers(host: str, is_ours: bool) -> None:
    assert code_of({"host": host}, HOST="box") == (None if is_ours else "HOST_FORBIDDEN")
    assert code_of({"host": host}, has_keys=True) is None
    assert code_of({"host": host}, ALLOWED_HOSTS="*") is None


def test_hosts_may_be_named() -> None:
    for has_keys in (False, True):
        named = partial(code_of, has_keys=has_keys, ALLOWED_HOSTS="gpu.example.org, *.api.example.org")
        assert named({"host": "gpu.example.org:80"}) is None
        assert named({"host": "x1.api.example.org"}) is None
        assert named({"host": "evil-api.example.org"}) == "HOST_FORBIDDEN"


@pytest.mark.parametrize(
    ("headers", "is_refused"),
    [
        ({}, False),
        ({"origin": "http://localhost:8000"}, False),
        ({"origin": "http://localhost:8001"}, True),
        ({"origin": "https://attacker.test"}, True),
        ({"origin": "null"}, True),
        ({"origin": ""}, True),
        ({"origin": "http://"}, True),
        ({"origin": "http://["}, True),
        ({"origin": "http://a]b"}, True),
        ({"origin": "http://localhost:8000.attacker.test"}, True),
        ({"sec-fetch-site": "same-origin"}, False),
        ({"sec-fetch-site": "none"}, False),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, True),
        ({"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"}, True),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, True),
    ],
)
def test_a_page_of_another_origin_may_not_ask_a_server_without_a_key(headers: dict[str, str], is_refused: bool) -> None:
    assert code_of(headers) == ("ORIGIN_FORBIDDEN" if is_refused else None)
    assert code_of(headers, has_keys=True) is None
    assert code_of(headers, CORS_ORIGINS="*") is None


def test_a_link_may_lead_to_the_playground_and_a_named_origin_may_ask() -> None:
    assert code_of({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, is_open=True) is None
    assert code_of({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, is_open=True) == "ORIGIN_FORBIDDEN"
    assert code_of({"origin": "https://app.test"}, CORS_ORIGINS="https://app.test, https://b.test/") is None


@pytest.mark.parametrize(
    ("declared", "types", "is_taken"),
    [
        ("application/json", JSON_TYPES, True),
        ("Application/JSON; charset=utf-8", JSON_TYPES, True),
        ("application/vnd.api+json", JSON_TYPES, True),
        ("text/plain", JSON_TYPES, False),
        ("text/plain; application/json", JSON_TYPES, False),
        ("application/x-www-form-urlencoded", JSON_TYPES, False),
        ("", JSON_TYPES, False),
        ("multipart/form-data; boundary=b", FORM_TYPES, True),
        ("application/json", FORM_TYPES, False),
    ],
)
def test_without_a_key_a_body_is_of_a_type_that_pages_may_not_send(
    declared: str, types: tuple[str, ...], is_taken: bool
) -> None:
    headers = Headers({"content-type": declared, "content-length": "2"})
    for has_keys in (False, True):
        rules = BrowserRules(load({}), has_keys=has_keys)
        if is_taken or has_keys:
            rules.check_type(headers, types)
        else:
            with pytest.raises(WorkerError, match="Content-Type"):
                rules.check_type(headers, types)


@contextmanager
def page_elsewhere() -> Iterator[str]:
    """An empty page on another port: another origin."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<title>elsewhere</title>")

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


# What a page tries, and what it gets to see: the text of an answer, or that it may not.
ATTEMPTS = """
const [address, body, key, done] = arguments;
const form = new FormData();
form.append("messages", JSON.stringify(JSON.parse(body).messages));
const asked = (path, options) => fetch(address + path, options).then(
    async answer => answer.type === "opaque" ? "opaque" : `${answer.status} ${await answer.text()}`, () => "blocked");
const json = {"Content-Type": "application/json", ...key};
(async () => done({
    json: await asked("/generate", {method: "POST", headers: json, body}),
    plain: await asked("/generate", {method: "POST", headers: {"Content-Type": "text/plain"}, body}),
    unread: await asked("/generate", {method: "POST", mode: "no-cors", body}),
    form: await asked("/chat-vl", {method: "POST", body: form, headers: key}),
    read: await asked("/health", {headers: key}),
    image: await new Promise(tell => {
        const image = new Image();
        image.onload = image.onerror = () => tell("nothing");
        image.src = address + "/metrics";
    }),
    submitted: await new Promise(tell => {
        const frame = document.createElement("iframe"), sent = document.createElement("form");
        frame.name = "frame";
        Object.assign(sent, {method: "POST", action: address + "/chat-vl", target: "frame"});
        sent.enctype = "multipart/form-data";
        const field = document.createElement("input");
        Object.assign(field, {name: "messages", value: '[{"role":"user","content":"x"}]'});
        sent.append(field);
        document.body.append(frame, sent);
        frame.onload = () => tell("nothing");
        sent.submit();
    }),
}))();
"""


def attempted(browser: "webdriver.Chrome", page: str, address: str, key: dict[str, str]) -> dict[str, str]:
    browser.get(page)
    browser.set_script_timeout(20)
    seen = dict(browser.execute_async_script(ATTEMPTS, address, BODY, key))
    browser.get("about:blank")
    browser.get_log("browser")  # where other tests look for faults
    return seen


def test_a_page_of_another_port_gets_nothing_from_a_server_without_a_key(browser: "webdriver.Chrome") -> None:
    engine = FakeEngine()
    with served(engine) as address, page_elsewhere() as page:
        seen = attempted(browser, page, address, {})
        assert seen == {
            "json": "blocked",
            "plain": "blocked",
            "unread": "opaque",
            "form": "blocked",
            "read": "blocked",
            "image": "nothing",
            "submitted": "nothing",
        }
        assert engine.asked == []
        own = attempted(browser, f"{address}/", address, {})
        assert [own[name][:3] for name in ("json", "plain", "form", "read")] == ["200", "415", "200", "200"]
        assert len(engine.asked) == 3  # the form was sent by a script and by the browser itself


def test_a_page_of_another_port_may_use_a_server_with_a_key_as_cors_allows(browser: "webdriver.Chrome") -> None:
    engine = FakeEngine()
    with page_elsewhere() as page:
        with served(engine, API_KEY="k1") as address:
            without = attempted(browser, page, address, {})
            assert {without[name][:3] for name in ("json", "plain", "form", "read")} <= {"401", "blo"}
            assert engine.asked == []
            seen = attempted(browser, page, address, {"X-API-Key": "k1"})
            assert [seen[name][:3] for name in ("json", "form", "read")] == ["200", "200", "200"]
            assert json.loads(seen["json"][4:]) == {"response": "A cat."}
        with served(FakeEngine(), API_KEY="k1", CORS_ORIGINS="https://app.test") as address:
            seen = attempted(browser, page, address, {"X-API-Key": "k1"})
            assert {seen[name] for name in ("json", "form", "read")} == {"blocked"}
