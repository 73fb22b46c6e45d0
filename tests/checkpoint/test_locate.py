"""Where a model is looked for, in which order, and what is said where it is incomplete."""

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import errors

from worker.checkpoint import locate
from worker.checkpoint.locate import find
from worker.core.errors import ModelError
from worker.core.settings import EMBEDDED_MODEL, load

MODEL = "Qwen/Qwen3-VL-2B-Instruct"
CACHED = "models--qwen--qwen3-vl-2b-instruct"  # the platform's folders need not have the hub's case


def written(folder: Path, *shards: str) -> Path:
    """A folder with the names of a checkpoint's files."""
    folder.mkdir(parents=True)
    for name in (*locate.NEEDED, *(shards or ("model.safetensors",))):
        (folder / name).write_text("{}")
    if shards:
        index = {"weight_map": dict(enumerate(shards))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    """Settings whose places are empty folders of the test's own."""
    return {
        "MODEL_ID": MODEL,
        "BAKED_MODELS": str(tmp_path / "image"),
        "PLATFORM_CACHE": str(tmp_path / "platform"),
        "HUB_CACHE": str(tmp_path / "hub"),
    }


def test_each_place_takes_precedence_over_the_next(places: dict[str, str], tmp_path: Path) -> None:
    hub = written(tmp_path / "hub" / CACHED / "snapshots" / "aaa")
    assert find(load(places)).folder == hub
    platform = written(tmp_path / "platform" / CACHED / "snapshots" / "bbb")
    assert find(load(places)).folder == platform
    image = written(tmp_path / "image" / "Qwen3-VL-2B-Instruct")
    assert find(load(places)).folder == image
    given = written(tmp_path / "given")
    assert find(load({**places, "MODEL_PATH": str(given)})).folder == given


def test_without_a_name_it_is_the_images_only_model_or_the_embedded_one(places: dict[str, str], tmp_path: Path) -> None:
    del places["MODEL_ID"]
    found = find(load(places))
    assert (found.folder, found.name) == (EMBEDDED_MODEL, "tiny-qwen3-vl")
    one = written(tmp_path / "image" / "One")
    assert find(load(places)).folder == one
    written(tmp_path / "image" / "Two")
    with pytest.raises(ModelError, match="set MODEL_ID to one of One, Two"):
        find(load(places))


def test_the_reference_says_which_snapshot(places: dict[str, str], tmp_path: Path) -> None:
    model = tmp_path / "hub" / CACHED
    old, new = (written(model / "snapshots" / name) for name in ("old", "new"))
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("old\n")
    (model / "refs" / "v2").write_text("new")
    assert find(load(places)).folder == old
    assert find(load({**places, "MODEL_REVISION": "v2"})).folder == new
    assert find(load({**places, "MODEL_REVISION": "new"})).folder == new
    with pytest.raises(ModelError, match="was found neither in the image"):
        find(load({**places, "MODEL_REVISION": "v3"}))


def test_an_incomplete_folder_is_refused_with_the_files_name(places: dict[str, str], tmp_path: Path) -> None:
    folder = written(tmp_path / "image" / "Qwen3-VL-2B-Instruct", "model-1.safetensors", "model-2.safetensors")
    assert find(load(places)).folder == folder
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(ModelError, match=r"incomplete checkpoint, model-2\.safetensors is missing"):
        find(load(places))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"incomplete checkpoint, tokenizer\.json is missing"):
        find(load(places))


def test_nothing_is_downloaded_unless_it_is_allowed(
    places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def download(model_id: str, **options: Any) -> str:
        asked.append((model_id, options["revision"], options["allow_patterns"]))
        return str(written(tmp_path / "fetched"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(ModelError, match="ALLOW_DOWNLOAD=1"):
        find(load(places))
    assert not asked
    found = find(load({**places, "ALLOW_DOWNLOAD": "1", "MODEL_REVISION": "v1"}))
    assert (found.folder, found.name) == (tmp_path / "fetched", "Qwen3-VL-2B-Instruct")
    assert asked == [(MODEL, "v1", list(locate.PATTERNS))]
    assert not {"*.py", "*.bin", "*"} & set(locate.PATTERNS)


def test_an_interrupted_download_resumes(
    places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = written(tmp_path / "hub" / CACHED / "snapshots" / "aaa")
    (half / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"incomplete checkpoint, tokenizer\.json is missing"):
        find(load(places))

    def download(*_: object, **__: object) -> str:
        (half / "tokenizer.json").write_text("{}")
        return str(half)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert find(load({**places, "ALLOW_DOWNLOAD": "1"})).origin == "a download"


@pytest.mark.parametrize(
    ("model", "revision", "wanted", "is_it"),
    [
        (MODEL, "a" * 40, "a" * 40, True),
        (MODEL.lower(), "a" * 40, "main", True),
        (MODEL, "a" * 40, "b" * 40, False),
        (MODEL, "master", "b" * 40, True),
        ("Other/Qwen3-VL-2B-Instruct", "a" * 40, "a" * 40, False),
        ("Qwen3-VL-2B-Instruct", None, "b" * 40, True),
    ],
)
def test_the_image_has_a_model_if_its_manifest_does_not_name_another(
    places: dict[str, str], tmp_path: Path, model: str, revision: str | None, wanted: str, is_it: bool
) -> None:
    folder = written(tmp_path / "image" / "Qwen3-VL-2B-Instruct")
    (folder / locate.MANIFEST).write_text(json.dumps({"model": model, "revision": revision, "files": {}}))
    if is_it:
        assert find(load({**places, "MODEL_REVISION": wanted})).folder == folder
    else:
        with pytest.raises(ModelError, match="was found neither in the image"):
            find(load({**places, "MODEL_REVISION": wanted}))


@pytest.mark.parametrize("variable", ["RUNPOD_WEBHOOK_GET_JOB", "RUNPOD_ENDPOINT_ID"])
def test_a_deployed_worker_serves_the_demonstration_model_by_its_name_alone(
    places: dict[str, str], variable: str
) -> None:
    del places["MODEL_ID"]
    with pytest.raises(ModelError, match=r"no model is configured\. Set MODEL_ID"):
        find(load({**places, variable: "x"}))
    assert find(load({**places, variable: "x", "MODEL_ID": locate.TINY})).folder == EMBEDDED_MODEL


def test_the_demonstration_model_is_never_called_by_another_name(places: dict[str, str], tmp_path: Path) -> None:
    del places["MODEL_ID"]
    with pytest.raises(ModelError, match=f"To choose the model, set MODEL_ID={MODEL}"):
        find(load({**places, "MODEL_NAME": MODEL}))
    for named in ({}, {"MODEL_ID": locate.TINY}, {"MODEL_PATH": str(EMBEDDED_MODEL)}):
        assert find(load({**places, **named, "MODEL_NAME": "mine"})).name == locate.TINY
    folder = written(tmp_path / "given")
    assert find(load({**places, "MODEL_PATH": str(folder), "MODEL_NAME": "mine"})).name == "mine"


def test_a_hubs_name_in_the_place_of_a_folder_is_recognized(places: dict[str, str]) -> None:
    with pytest.raises(ModelError, match=f"does not exist. To serve a model by its name, set MODEL_ID={MODEL}"):
        find(load({**places, "MODEL_PATH": MODEL}))


def _refused(kind: type[errors.HfHubHTTPError], status: int) -> Exception:
    """As `snapshot_download` raises it where the cache has nothing."""
    answer = httpx2.Response(status, request=httpx2.Request("GET", "https://hub.test/"))
    return _hidden(kind("x", response=answer))


def _hidden(cause: Exception) -> Exception:
    error = errors.LocalEntryNotFoundError("nothing in the cache")
    error.__cause__ = cause
    return error


GATED, MISSING = errors.GatedRepoError, errors.RepositoryNotFoundError


@pytest.mark.parametrize(
    ("error", "token", "told"),
    [
        (_refused(GATED, 403), "", r"it is gated\. Accept its terms at .*, and set HF_TOKEN"),
        (_refused(GATED, 403), "t", r"it is gated.*check that HF_TOKEN is of an account that has"),
        (_refused(MISSING, 401), "", r"does not exist on the hub, or is private.*spelling"),
        (_refused(errors.RevisionNotFoundError, 404), "", r"it has no revision v9\. Check MODEL_REVISION"),
        (_refused(errors.HfHubHTTPError, 401), "t", r"refused access \(status 401\)\. Check that HF_TOKEN is valid"),
        (_refused(errors.HfHubHTTPError, 403), "", r"refused access \(status 403\)\. Set HF_TOKEN"),
        (_refused(errors.HfHubHTTPError, 429), "", r"status 429\. Try again later, or set HF_TOKEN"),
        (_refused(errors.HfHubHTTPError, 503), "", r"the hub answered with status 503\. Try again later"),
        (_hidden(httpx2.ConnectError("x")), "", r"could not be reached \(ConnectError\)\. Check the network"),
        (_hidden(errors.OfflineModeIsEnabled("x")), "", r"HF_HUB_OFFLINE is set\. Unset it"),
        (errors.LocalEntryNotFoundError("x"), "", r"the hub could not be reached"),
        (httpx2.RemoteProtocolError("x"), "", r"the connection to the hub broke off\. Start again"),
        (json.JSONDecodeError("x", "y", 0), "", r"answer could not be read\. Check HF_ENDPOINT"),
        (TypeError("x"), "", r"answer could not be read"),
        (errors.HFValidationError("x"), "", r"MODEL_ID is not a valid name"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_failed_downloads_are_told_apart(
    places: dict[str, str], monkeypatch: pytest.MonkeyPatch, error: Exception, token: str, told: str
) -> None:
    def fail(*_: object, **options: object) -> None:
        assert options["token"] == (token or None)
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ModelError, match=told):
        find(load({**places, "ALLOW_DOWNLOAD": "1", "MODEL_REVISION": "v9", "HF_TOKEN": token}))


@pytest.mark.parametrize("name", ["baked.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("content", ['{"files": {', "[]", "\udcff", '{"files": [1], "weight_map": {"a": ["b"]}}'])
def test_a_damaged_list_of_files_is_named(places: dict[str, str], tmp_path: Path, name: str, content: str) -> None:
    folder = written(tmp_path / "image" / "Qwen3-VL-2B-Instruct")
    (folder / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ModelError, match=name):
        find(load(places))


@pytest.mark.parametrize("model_id", ["../x", "a/b/c", "a", "/etc/passwd", "a/..%2f"])
def test_a_name_cannot_be_a_path(model_id: str) -> None:
    with pytest.raises(Exception, match="MODEL_ID"):
        load({"MODEL_ID": model_id})


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_takes_nothing_is_told_with_the_remedy(
    places: dict[str, str], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ModelError, match="HUB_CACHE must be a writable folder"):
        find(load({**places, "ALLOW_DOWNLOAD": "1"}))


def test_weights_are_fetched_ahead_to_their_last_byte_and_what_is_missing_is_left_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"model-{index}.safetensors" for index in range(6)]
    folder = written(tmp_path / "model", *names)
    for size, name in enumerate(names):
        (folder / name).write_bytes(bytes(size * 1000))
    (folder / names[1]).unlink()
    read: list[int] = []

    def send(nowhere: int, file: int, at: int, most: int, send: Any = os.sendfile) -> int:
        read.append(send(nowhere, file, at, most))
        return read[-1]

    monkeypatch.setattr(os, "sendfile", send)
    monkeypatch.setattr(locate, "_AT_ONCE", 700)
    locate.read_ahead(folder)
    for thread in threading.enumerate():
        if thread.name == "read-ahead":
            thread.join()
    assert sum(read) == 2000 + 3000 + 4000 + 5000
