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
    monkeypatch.setenv("ENV_FILE", str(tmp_path / ".env"))
    monkeypatch.setenv("PORT", "5678")
    monkeypatch.setenv("MAX_QUEUE", "3")
    read = settings.load_with_file({"MAX_QUEUE": "4"})
    assert (read.keys, read.port, read.host, read.max_queue) == (("from-file",), 5678, "127.0.0.1", 4)


def test_a_file_of_settings_that_is_no_text_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_bytes(b"PORT=\xff\n")
    monkeypatch.setenv("ENV_FILE", str(tmp_path / ".env"))
    with pytest.raises(settings.SettingError, match=r"\.env is not a text file in UTF-8"):
        settings.load_with_file({})


def test_slips_in_the_file_are_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".env").write_text("MAX_IMAGE_TOKEN=5\n", encoding="utf-8")
    monkeypatch.setenv("ENV_FILE", str(tmp_path / ".env"))
    settings.warn_of_doubtful()
    assert "MAX_IMAGE_TOKEN is unknown, did you mean MAX_IMAGE_TOKENS?" in caplog.text


def test_a_token_is_stripped_and_never_shown() -> None:
    assert settings.load({"HF_TOKEN": " hf_secret\n"}).hf_token == "hf_secret"
    with pytest.raises(settings.SettingError) as failed:
        settings.load({"HF_TOKEN": "hf_secret two"})
    assert "hf_secret" not in str(failed.value)
    with pytest.raises(settings.SettingError) as failed:
        settings.load({"MODEL_ID": "https://u:hf_secret@hub.test/a/b"})
    assert "hf_secret" not in str(failed.value)
