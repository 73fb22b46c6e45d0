"""What is said of an environment variable that is wrong."""

import logging

import pytest

from worker.core import settings


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("DEVICE", "gpu", 'invalid value "gpu" for DEVICE: it must be auto, cpu, cuda, or one GPU as cuda:0'),
        ("MODEL_ID", "Qwen3-VL-8B-Instruct", "it must be organization/name as on the Hugging Face Hub"),
        ("MAX_NUM_SEQS", "abc", "it must be a whole number"),
        ("MAX_NUM_SEQS", "0", "it must be above 0"),
        ("PORT", "99999", "it must be at most 65535"),
        ("DTYPE", "int8", "it must be one of 'auto', 'float32', 'bfloat16' or 'float16'"),
        (
            "QUANTIZATION",
            "awq",
            "it must be none, 8bit or 4bit; checkpoints that are quantized already need no setting",
        ),
        ("ALLOW_DOWNLOAD", "perhaps", "it must be 1 or 0"),
        ("MEDIA_ALLOWED_DOMAINS", "https://example.org/", "it must be a list of domains such as"),
        ("HISTORY_URL", "mysql://user:secret@x", "invalid value for HISTORY_URL: it must be memory://"),
    ],
)
def test_it_is_said_what_the_value_must_be(name: str, value: str, told: str) -> None:
    with pytest.raises(settings.SettingError) as failed:
        settings.load({name: value})
    assert told in str(failed.value)
    assert "secret" not in str(failed.value)
    assert "pattern" not in str(failed.value)


@pytest.mark.parametrize(
    ("variable", "told"),
    [
        ("MAX_NUM_SEQ", "did you mean MAX_NUM_SEQS?"),
        ("MODELPATH", "did you mean MODEL_PATH?"),
        ("GPU_MEMORY_UTILIZATION", "has no effect: KV_CACHE_MIB sets the KV cache size"),
        ("MODEL", "has no effect: MODEL_ID names the model"),
        ("HOSTNAME", ""),
        ("PATH", ""),
        ("MAX_NUM_SEQS", ""),
    ],
)
def test_a_name_that_was_perhaps_meant_is_told(variable: str, told: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    settings.warn_of_doubtful({variable: "1"})
    assert (told in caplog.text) if told else not caplog.text


def test_what_others_call_a_dtype_or_a_level_is_understood() -> None:
    read = settings.load({"DTYPE": "half", "LOG_LEVEL": "debug"})
    assert (read.dtype, read.log_level) == ("float16", "DEBUG")


def test_the_hubs_own_variables_say_where_its_cache_is() -> None:
    assert str(settings.load({"HF_HOME": "/data/hf"}).hub_cache) == "/data/hf/hub"
    assert str(settings.load({"HF_HOME": "/data/hf", "HF_HUB_CACHE": "/other"}).hub_cache) == "/other"
    assert str(settings.load({"HF_HOME": "/data/hf", "HUB_CACHE": "/mine"}).hub_cache) == "/mine"


def test_a_deployed_worker_logs_json_unless_told_otherwise() -> None:
    assert settings.load({"RUNPOD_ENDPOINT_ID": "x"}).logs_json
    assert not settings.load({}).logs_json
    assert settings.load({"LOG_FORMAT": "json"}).logs_json
