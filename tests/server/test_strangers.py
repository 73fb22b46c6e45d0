"""Attacks on the server as a process of 256 descriptors: what they cost it, while others are answered."""

import json
import signal
import tempfile
from collections.abc import Iterator

import pytest
import requests

from tests.server import strangers
from tests.server.servers import server_process
from tests.server.strangers import CHUNKED, MIB, TAKEN, Cost, Target
from tests.slowness import slowness

pytestmark = pytest.mark.network
NUM_DESCRIPTORS = 256
AT_ONCE = 1000


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    values = {"LAZY_LOAD": "1", "API_KEY": "k1,k2", "LOG_LEVEL": "DEBUG"}
    values |= dict.fromkeys(("HEAD_TIMEOUT_S", "IDLE_TIMEOUT_S", "BODY_TIMEOUT_S"), "2")
    with (
        tempfile.TemporaryFile() as log,
        server_process(values, log.fileno(), NUM_DESCRIPTORS) as (address, process),
    ):
        yield Target(address, process.pid)
        log.seek(0)
        written = log.read().decode()
        assert "Traceback" not in written
        assert "no connection can be taken" not in written


def check(cost: Cost, *, cpu_s: float, mib: float) -> None:
    """An honest client got each of its answers before it gave up; bounds of the server's own time and memory."""
    assert cost.longest_s is not None
    assert cost.cpu_s - 0.002 * len(cost.pings) < cpu_s * slowness()
    assert cost.mib < mib


@pytest.mark.parametrize("what", strangers.ENDLESS)
def test_what_has_no_end_costs_little(target: Target, what: str) -> None:
    beginning, endless = strangers.ENDLESS[what]
    with target.measured() as cost:
        taken, status = strangers.poured(target.port, beginning, endless, 64 * MIB, 10)
    assert taken < 32 * MIB
    assert status in (204, 400, 401, 431)
    # Requests are answered as long as the kernel has room for the answers: tens of thousands.
    check(cost, cpu_s=8.5 if what == "requests, answers unread" else 0.5, mib=32)


@pytest.mark.parametrize(
    ("what", "sent"),
    [
        ("silence", b""),
        ("half a head", b"GET / HTTP/1.1\r\nHost: local"),
        ("half a body without the key", strangers.REFUSED + b"Content-Length: 100\r\n\r\n{"),
        ("half a body", TAKEN + b"Content-Length: 100\r\n\r\n{"),
        ("half a body in chunks", TAKEN + CHUNKED + b"1\r\n{\r\n"),
        ("an answer that is not read", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 8),
    ],
)
def test_a_thousand_at_once_keep_nobody_out_and_are_gone_in_time(target: Target, what: str, sent: bytes) -> None:
    with target.measured() as cost, strangers.held(target.port, AT_ONCE, sent) as clients:
        assert len(clients) == AT_ONCE
        assert target.process.num_fds() < NUM_DESCRIPTORS
        other = {"X-API-Key": "k2"}
        assert requests.get(f"{target.address}/openapi.json", headers=other, timeout=10).status_code == 200
        assert strangers.seconds_until(lambda: strangers.num_open(clients) == 0, 20) is not None
    num_answered = AT_ONCE * sent.count(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    check(cost, cpu_s=2.0 + 0.0005 * num_answered, mib=64)
    assert strangers.seconds_until(lambda: target.process.num_fds() < 40, 10) is not None


JSON = {
    "wrong blocks": b'{"messages": [' + b'{"role": "user", "content": [{}]},' * 400_000 + b"{}]}",
    "empty lists": b"[" + b"[]," * 10_000_000 + b"[]]",
    "numbers": b"[" + b"1," * 15_000_000 + b"1]",
    "words": b'["", ' + b'"",' * 10_000_000 + b'""]',
    "words without commas": b'""' * 15_000_000,
    "escapes without an end": b'{"messages": "' + b'\\"' * 15_000_000,
    "an escape for every line": b'{"a":"' + b"," * 20_001 + b"\\n" * 15_000_000 + b'"}',
    "long numbers": b"[" + b",".join([b"9" * 4299] * 7000) + b"]",
    "nested": b"[" * 1_000_000,
    "nested a little": b'{"a":' * 900 + b"1" + b"}" * 900,
    "fields": b"{" + b",".join(b'"k%d":1' % number for number in range(1_000_000)) + b"}",
}


@pytest.mark.parametrize("what", JSON)
def test_json_of_megabytes_keeps_nobody_waiting(target: Target, what: str) -> None:
    headers = {"X-API-Key": "k1", "Content-Type": "application/json"}
    with target.measured() as cost:
        answer = requests.post(f"{target.address}/generate", data=JSON[what], headers=headers, timeout=20)
    assert answer.json()["code"] in ("BODY_TOO_LARGE", "INPUT_NOT_OBJECT")
    check(cost, cpu_s=2.0, mib=200)


def test_many_fields_of_a_form_keep_nobody_waiting(target: Target) -> None:
    headers = {"X-API-Key": "k1", "Content-Type": "application/x-www-form-urlencoded"}
    for body in (b"&" * 8 * MIB, b"a=1&" * MIB, b"prompt=" + b"%41" * 600_000, b"a" * 20 * MIB):
        with target.measured() as cost:
            answer = requests.post(f"{target.address}/v1/image/recognize", data=body, headers=headers, timeout=30)
        assert answer.json()["code"] == "INPUT_INVALID"
        check(cost, cpu_s=1.0, mib=200)


def test_a_form_of_megabytes_keeps_nobody_waiting(target: Target) -> None:
    """What looks like the boundary and is not, over and over."""
    headers = {"X-API-Key": "k1", "Content-Type": "multipart/form-data; boundary=boundary"}
    part = b'--boundary\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    for repeated in (b"\r\n--boundarx", b"\r", b"\r\n--"):
        body = part + repeated * (8 * MIB // len(repeated))
        with target.measured() as cost:
            answer = requests.post(f"{target.address}/chat-vl", data=body, headers=headers, timeout=30)
        assert answer.json()["code"] == "INPUT_INVALID"
        check(cost, cpu_s=8.0, mib=200)


def test_an_interrupt_from_the_keyboard_ends_it_in_peace() -> None:
    with tempfile.TemporaryFile() as log, server_process({"LAZY_LOAD": "1"}, log.fileno()) as (_, process):
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        log.seek(0)
        assert b"Traceback" not in log.read()


def test_wrong_keys_by_the_thousand(target: Target) -> None:
    with target.measured() as cost, requests.Session() as session:
        codes = [
            session.get(f"{target.address}/v1/models", headers={"X-API-Key": f"guess{number}"}, timeout=10).json()
            for number in range(1000)
        ]
    assert {json.dumps(code["error"]["code"]) for code in codes[:30]} == {'"KEY_INVALID"'}
    assert {json.dumps(code["error"]["code"]) for code in codes[30:]} == {'"TOO_MANY_WRONG_KEYS"'}
    check(cost, cpu_s=4.0, mib=32)
