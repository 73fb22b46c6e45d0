"""Every command of the quickstart and of the README's ways to call it, as typed."""

import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from tests.platform.workers import until

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
SERVER = "http://127.0.0.1:8000"

pytestmark = pytest.mark.network


def command(beginning: str) -> str:
    """The page's one command that begins so."""
    [found] = [block for block in BLOCKS if block.startswith(beginning)]
    return found


def shell(text: str, port: int = 8000) -> str:
    """What a command prints, with the servers of the page on a port of the test's own."""
    variables = {**os.environ, "DEVICE": "cpu"}
    text = text.replace(SERVER, f"http://127.0.0.1:{port}")
    done = subprocess.run(
        ["bash", "-c", text], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def running(text: str, port: int) -> Iterator[None]:
    """A server of the page, until the block ends."""
    variables = {**os.environ, "DEVICE": "cpu", "PORT": str(port)}
    arguments = [*text.split(), *([] if "worker.server" in text else ["--rp_api_port", str(port)])]
    with subprocess.Popen(
        arguments, cwd=ROOT, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            until(lambda: _is_up(port))
            yield
        finally:
            process.terminate()


def _is_up(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/ping", timeout=5).status_code in (200, 404)
    except requests.ConnectionError:
        return False


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


def test_the_first_answer() -> None:
    assert "An orange circle at the top right" in shell(command("make run"))


def test_a_question_and_a_picture_from_the_disk() -> None:
    asked, with_picture = [block for block in BLOCKS if "--test_input" in block]
    assert "I am a tiny vision model" in shell(asked)
    assert '"text": "2"' in shell(with_picture)


def test_the_http_server(free_port: int) -> None:
    with running(command(".venv/bin/python -m worker.server"), free_port):
        answer = json.loads(shell(command("curl -s http://127.0.0.1:8000/v1/chat"), free_port))
        assert requests.get(f"http://127.0.0.1:{free_port}/playground", timeout=5).status_code == 200
    assert answer["choices"][0]["message"]["content"].startswith("I can describe pictures")


def test_the_job_api_and_how_its_trial_server_shows_a_failure(free_port: int) -> None:
    with running(command(".venv/bin/python handler.py --rp_serve_api"), free_port):
        ask = command("curl -s http://127.0.0.1:8000/runsync")
        answer = json.loads(shell(ask, free_port))
        failed = json.loads(shell(ask.replace('"prompt"', '"promt"'), free_port))
    assert answer["output"][0]["text"].startswith("I am a tiny vision model")
    assert failed["status"] == "COMPLETED"
    assert json.loads(failed["output"][0]["error"])["message"] == "promt: unknown field: did you mean prompt?"


def test_the_readmes_ways_to_call_it_are_those_of_the_pages() -> None:
    ways = README[README.index("<!-- begin calls -->") : README.index("<!-- end calls -->")]
    assert '.venv/bin/python handler.py --test_input \'{"input": {"prompt": "Who are you?"}}\'' in ways
    assert ".venv/bin/python -m worker.server\n" in ways
    deploy = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    url = 'curl -s "https://api.runpod.ai/v2/$ENDPOINT_ID/runsync"'
    assert url in ways
    assert url in deploy
