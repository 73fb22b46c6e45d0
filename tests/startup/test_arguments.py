"""The command line of `handler.py`: what is wrong is said before anything is loaded."""

import socket
from pathlib import Path

import pytest

from worker.startup import arguments


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--test_input", '{"input":'], "is not valid JSON"),
        (["--test_input", "{}"], 'must be a JSON object with the key "input"'),
        (["--test_input", "{" + "x" * 300], "is not valid JSON"),
        (["--test_input", "[1]"], 'must be a JSON object with the key "input"'),
    ],
)
def test_an_input_that_is_none_is_explained_with_an_example(given: list[str], told: str) -> None:
    with pytest.raises(SystemExit) as ended:
        arguments.check(given)
    assert told in str(ended.value)
    assert arguments.EXAMPLE in str(ended.value)


def test_a_file_is_not_taken_for_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}", encoding="utf-8")
    with pytest.raises(SystemExit, match="takes JSON, not a file"):
        arguments.check(["--test_input", str(tmp_path / "a.json")])


def test_an_unknown_option_ends_the_start(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments.check(["--test-input", '{"input": {}}'])
    assert "unrecognized arguments" in capsys.readouterr().err


@pytest.mark.parametrize("given", [[], ["--rp_serve_api", "--rp_api_port", "9"], ["--test_input", '{"input": {}}']])
def test_what_the_sdk_knows_passes(given: list[str]) -> None:
    arguments.check(given)


def test_a_port_in_use_is_said_before_the_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match=f"port {port} of 127.0.0.1 is in use"):
            arguments.check(["--rp_serve_api", "--rp_api_host", "127.0.0.1", "--rp_api_port", str(port)])
