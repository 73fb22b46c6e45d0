"""Settings are read once, frozen, and documented."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from worker.core import settings

DOC = Path(__file__).parents[2] / "docs" / "settings.md"


def test_the_document_shows_the_table() -> None:
    assert settings.table() in DOC.read_text(encoding="utf-8")


def test_an_empty_variable_is_unset() -> None:
    assert settings.load({"DEVICE": "", "MAX_QUEUE": ""}) == settings.load({})


def test_values_are_parsed() -> None:
    loaded = settings.load({"MAX_QUEUE": "7", "MEDIA_ALLOW_LOOPBACK": "1", "MODEL_PATH": "/models/x"})
    assert (loaded.max_queue, loaded.media_allow_loopback, loaded.model_path) == (7, True, Path("/models/x"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_QUEUE", "many"),
        ("MAX_QUEUE", "0"),
        ("DEVICE", "tpu"),
        ("DTYPE", "int8"),
        ("READ_TIMEOUT_S", "nan"),
        ("READ_TIMEOUT_S", "-1"),
        ("LOG_LEVEL", "LOUD"),
    ],
)
def test_an_invalid_value_stops_the_start_and_names_the_variable(name: str, value: str) -> None:
    with pytest.raises(settings.SettingError, match=name):
        settings.load({name: value})


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        settings.load({}).max_queue = 3  # type: ignore[misc]


def test_domains_are_split() -> None:
    assert settings.load({"MEDIA_ALLOWED_DOMAINS": " Example.org, cdn.test ,"}).allowed_domains == (
        "example.org",
        "cdn.test",
    )


def test_the_platform_is_told_by_its_webhook() -> None:
    assert settings.load({"RUNPOD_WEBHOOK_GET_JOB": "http://x"}).is_on_platform
    assert not settings.load({}).is_on_platform


def test_a_file_of_settings_stands_behind_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("QPIKEY=from-file\nPORT=1234\nHOST=\n", encoding="utf-8")
    monkeypatch.setenv("PORT", "5678")
    monkeypatch.setenv("MAX_QUEUE", "3")
    read = settings.load_with_file({"MAX_QUEUE": "4"}, tmp_path / ".env")
    assert (read.keys, read.port, read.host, read.max_queue) == (("from-file",), 5678, "127.0.0.1", 4)
