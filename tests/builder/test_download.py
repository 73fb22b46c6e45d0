"""The build's download, by the real client of the hub, from a hub on the loopback: whole or a clear failure."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from builder import download
from builder.bake import bake
from builder.download import DownloadError, Source, fetch
from builder.verify import verify
from tests.builder.hub import COMMIT, Hub, ModelScopeHub
from worker.checkpoint import locate
from worker.checkpoint.weights import headers, mapped
from worker.core.errors import ModelError
from worker.core.settings import EMBEDDED_MODEL, Settings
from worker.models.native.layers import Tensors

pytestmark = pytest.mark.network
MODEL = "tiny/tiny-qwen3-vl"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with Hub(EMBEDDED_MODEL) as started:
        yield started


@pytest.fixture
def scope(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelScopeHub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("modelscope_hub._download.DOWNLOAD_INTEGRITY_RETRY_BACKOFF", 0)
    with ModelScopeHub(EMBEDDED_MODEL) as started:
        yield started


def fetched(hub: Hub, out: Path, revision: str = "main", token: str | None = None) -> Source:
    source = "modelscope" if isinstance(hub, ModelScopeHub) else "huggingface"
    return fetch(MODEL, revision, out, source=source, endpoint=hub.url, token=token, pause=lambda _: None)


def test_what_is_needed_comes_whole_and_nothing_else(hub: Hub, tmp_path: Path) -> None:
    found = fetched(hub, tmp_path / "model")
    assert found.revision == COMMIT
    assert found.licence == "apache-2.0"
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {path.name for path in EMBEDDED_MODEL.iterdir()} | {"source.json"}
    assert verify(tmp_path / "model")["model.safetensors"] == found.files["model.safetensors"].sha256
    assert hub.calls["weights.bin"] == 0


def test_a_token_goes_to_the_hub_and_into_no_file(hub: Hub, tmp_path: Path) -> None:
    fetched(hub, tmp_path / "model", token="hf_secret_of_mine")
    assert hub.tokens == {"Bearer hf_secret_of_mine"}
    assert not any(b"hf_secret" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_an_interrupted_download_resumes(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 2**20)
    hub.trouble["model.safetensors"] = "dropped"
    fetched(hub, tmp_path / "model")
    assert any(one.startswith("model.safetensors bytes=") for one in hub.ranges)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == hub.files["model.safetensors"]


FAULTS: dict[str, tuple[str, dict[str, str], str, str]] = {
    "a wrong revision": ("hub", {}, "no-such", "no revision no-such"),
    "a missing shard": ("hub", {"model.safetensors": "missing"}, "main", r"whole: model\.safetensors: "),
    "a truncated file": ("hub", {"model.safetensors": "truncated"}, "main", "model.safetensors|whole"),
    "no leave to see it": ("hub", {"model": "401"}, "main", "token"),
    "terms not accepted": ("hub", {"model": "gated"}, "main", "gated"),
    "ModelScope, a wrong revision": (
        "scope",
        {},
        "v9",
        f"{MODEL} at v9 could not be fetched from ModelScope: .*not found",
    ),
    "ModelScope, a missing shard": (
        "scope",
        {"model.safetensors": "missing"},
        "main",
        "whole: model.safetensors: NotExistError",
    ),
    "ModelScope, a truncated file": (
        "scope",
        {"model.safetensors": "truncated"},
        "main",
        "whole: model.safetensors: FileSizeMismatchError",
    ),
    "ModelScope, a changed byte": (
        "scope",
        {"config.json": "changed"},
        "main",
        "whole: config.json: FileIntegrityError",
    ),
    "ModelScope, no leave to see it": ("scope", {"model": "401"}, "main", "ModelScope: AuthenticationError: .*token"),
}


@pytest.mark.parametrize(("source", "trouble", "revision", "told"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_is_told_and_leaves_nothing_half_made(
    request: pytest.FixtureRequest, tmp_path: Path, source: str, trouble: dict[str, str], revision: str, told: str
) -> None:
    asked: Hub = request.getfixturevalue(source)
    asked.trouble.update(trouble)
    with pytest.raises(DownloadError, match=told):
        fetched(asked, tmp_path / "model", revision)
    assert not (tmp_path / "model").exists()


def test_what_another_download_left_is_not_shipped(hub: Hub, tmp_path: Path) -> None:
    left = tmp_path / "model.partial"
    (left / "onnx").mkdir(parents=True)
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "onnx/model.onnx"):
        (left / name).write_text("{}")
    found = fetched(hub, tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} == {*found.files, "source.json"}


@pytest.mark.parametrize("token", ["hf_secret\nanother", "hf_secret\u00e9", "hf secret"])
def test_a_token_that_is_none_is_refused_and_not_repeated(hub: Hub, tmp_path: Path, token: str) -> None:
    with pytest.raises(DownloadError, match="the token is no single line") as told:
        fetched(hub, tmp_path / "model", token=token)
    assert "secret" not in str(told.value)
    assert not hub.tokens


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"--model-id": "https://hub/a/b"}, "the hub does not tell about https://hub/a/b: HFValidationError"),
        ({"--out": "/proc/nowhere/model"}, "No such file or directory"),
    ],
)
def test_what_cannot_be_is_one_line_of_the_command(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, str], told: str
) -> None:
    given = {"--model-id": MODEL, "--out": str(tmp_path / "model"), "--endpoint": hub.url, **changed}
    monkeypatch.setattr("sys.argv", ["builder.download", *(word for pair in given.items() for word in pair)])
    with pytest.raises(SystemExit, match=f"^builder.download: .*{told}"):
        download.main()


def test_another_model_is_not_there(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="no other/model"):
        fetch("other/model", "main", tmp_path / "model", endpoint=hub.url, pause=lambda _: None)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_changed_byte_is_found_before_anything_is_baked(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.trouble[name] = "changed"
    fetched(hub, tmp_path / "model")
    with pytest.raises(ModelError, match=f"{name}"):
        bake(tmp_path / "model")
    assert not (tmp_path / "model" / locate.MANIFEST).exists()


def test_the_command_ends_with_one_line_and_no_traceback(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["builder.download", "--model-id", MODEL, "--out", str(tmp_path / "model"), "--revision", "gone"]
    monkeypatch.setattr("sys.argv", [*arguments, "--endpoint", hub.url])
    with pytest.raises(SystemExit, match=r"^builder.download: tiny/tiny-qwen3-vl has no revision gone$"):
        download.main()


def test_both_downloads_take_the_same_files() -> None:
    assert download.PATTERNS == locate.PATTERNS


@pytest.fixture
def baked(tmp_path: Path) -> Path:
    shutil.copytree(EMBEDDED_MODEL, tmp_path / "models" / "tiny")
    bake(tmp_path / "models" / "tiny")
    return tmp_path / "models" / "tiny"


def test_the_manifest_says_what_was_baked(hub: Hub, tmp_path: Path) -> None:
    fetched(hub, tmp_path / "model")
    manifest = bake(tmp_path / "model")
    assert manifest == json.loads((tmp_path / "model" / locate.MANIFEST).read_text())
    assert manifest["model"] == MODEL
    assert manifest["revision"] == COMMIT
    assert manifest["licence"] == "apache-2.0"
    assert dict(manifest["versions"])["torch"].startswith("2.13")  # type: ignore[call-overload]


def test_tensors_that_are_one_projection_lie_behind_each_other_and_are_the_same(baked: Path) -> None:
    file = baked / "model.safetensors"
    ours, theirs = load_file(file), load_file(EMBEDDED_MODEL / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    by_name = {one.name: one for one in headers(file)}
    for names, tensors in ((("q", "k", "v"), "self_attn"), (("gate", "up"), "mlp")):
        parts = [by_name[f"model.language_model.layers.2.{tensors}.{name}_proj.weight"] for name in names]
        assert all(one.end == other.begin for one, other in pairwise(parts))
    read = Tensors(mapped(list(headers(file)), torch.device("cpu"), torch.float16)[1])
    rows = [by_name[f"model.language_model.layers.2.mlp.{name}_proj.weight"].shape[0] for name in ("gate", "up")]
    joined = read.joined("model.language_model.layers.2.mlp.", ("gate_proj", "up_proj"), ".weight", rows, 256)
    with file.open("rb") as whole:
        assert joined.untyped_storage().nbytes() == len(whole.read())  # the file's own pages
    expected = [theirs[f"model.language_model.layers.2.mlp.{name}_proj.weight"] for name in ("gate", "up")]
    assert torch.equal(joined, torch.cat(expected))


def damaged(folder: Path, name: str, change: Callable[[bytes], bytes]) -> Path:
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    return folder


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """The tiny model as a folder of no known source."""
    return Path(shutil.copytree(EMBEDDED_MODEL, tmp_path / "plain"))


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "video_preprocessor_config.json",
    ],
)
def test_a_truncated_file_of_no_known_source_is_named(plain: Path, name: str) -> None:
    with pytest.raises(ModelError, match=name):
        verify(damaged(plain, name, lambda data: data[: len(data) // 2]))


DAMAGES: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "a tensor by another name": (
        "model.safetensors",
        lambda data: data.replace(b"layers.0.mlp.up_proj", b"layers.0.mlp.UP_proj"),
        r"model\.safetensors: the tensor .*layers\.0\.mlp\.up_proj\.weight is missing",
    ),
    "no size of patches": (
        "preprocessor_config.json",
        lambda data: data.replace(b'"patch_size": 16', b'"patch_size": [16, 14]'),
        r"\[16, 14\] in the config or preprocessor files must be one number",
    ),
    "a template of other letters": ("chat_template.jinja", lambda data: data + b"\xff", "chat_template.jinja"),
    "no end": ("generation_config.json", lambda _: b"{}", "has no eos_token_id: check generation_config"),
}


@pytest.mark.parametrize(("name", "change", "told"), DAMAGES.values(), ids=DAMAGES.keys())
def test_what_could_not_be_served_is_not_baked(
    plain: Path, name: str, change: Callable[[bytes], bytes], told: str
) -> None:
    if "eos" in told:
        tokens = json.loads((plain / "tokenizer_config.json").read_text())
        (plain / "tokenizer_config.json").write_text(json.dumps({**tokens, "eos_token": None}))
        config = json.loads((plain / "config.json").read_text())
        for part in (config, config["text_config"]):
            part.pop("eos_token_id", None)
        (plain / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=told):
        verify(damaged(plain, name, change))


def test_what_is_baked_again_comes_from_where_it_came_from(hub: Hub, tmp_path: Path) -> None:
    fetched(hub, tmp_path / "model")
    first = bake(tmp_path / "model")
    (tmp_path / "model" / "model.partial").write_bytes(b"of a run without room")
    assert bake(tmp_path / "model") == first
    assert not (tmp_path / "model" / "model.partial").exists()
    with pytest.raises(ModelError, match=r"differs from what was baked \(SHA-256\)"):
        bake(damaged(tmp_path / "model", "model.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1])))


def test_baking_twice_makes_the_same_bytes(baked: Path, tmp_path: Path) -> None:
    shutil.copytree(EMBEDDED_MODEL, tmp_path / "again" / "tiny")
    bake(tmp_path / "again" / "tiny")
    for path in baked.iterdir():
        other = tmp_path / "again" / "tiny" / path.name
        assert path.read_bytes() == other.read_bytes()
        assert path.stat().st_mtime == other.stat().st_mtime == 0


def settings_for(baked: Path, **more: bool) -> Settings:
    return Settings(baked_models=baked.parent, device="cpu", **more)


def test_a_baked_model_is_found_and_checked(baked: Path) -> None:
    assert locate.find(settings_for(baked)).folder == baked
    assert locate.find(settings_for(baked, check_hashes=True)).folder == baked


def test_a_truncated_file_is_refused_at_every_start(baked: Path) -> None:
    data = (baked / "model.safetensors").read_bytes()
    (baked / "model.safetensors").write_bytes(data[:-1])
    with pytest.raises(
        ModelError, match=r"model\.safetensors has .* bytes instead of the .* baked: build the image again"
    ):
        locate.find(settings_for(baked))


def test_a_changed_byte_is_refused_at_a_start_with_hashes(baked: Path) -> None:
    data = bytearray((baked / "model.safetensors").read_bytes())
    data[-7] ^= 1
    (baked / "model.safetensors").write_bytes(data)
    locate.find(settings_for(baked))
    with pytest.raises(ModelError, match=r"differs from what was baked \(SHA-256\)"):
        locate.find(settings_for(baked, check_hashes=True))


def test_modelscope_gives_the_same_by_its_own_client(scope: ModelScopeHub, tmp_path: Path) -> None:
    found = fetched(scope, tmp_path / "model", token="ms_secret_of_mine")
    assert (found.source, found.revision, found.licence) == ("modelscope", "master", "apache-2.0")
    assert {path.name for path in (tmp_path / "model").iterdir()} == {*found.files, "source.json"}
    assert set(found.files) == {path.name for path in EMBEDDED_MODEL.iterdir()}
    verified = verify(tmp_path / "model")
    assert all(verified[name] == expected.sha256 for name, expected in found.files.items())
    assert bake(tmp_path / "model")["source"] == "modelscope"
    assert scope.calls["weights.bin"] == 0
    assert scope.tokens == {"Bearer ms_secret_of_mine"}
    assert not any(b"ms_secret" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_an_interrupted_download_from_modelscope_resumes(scope: ModelScopeHub, tmp_path: Path) -> None:
    scope.trouble["model.safetensors"] = "dropped"
    fetched(scope, tmp_path / "model")
    assert any(one.startswith("model.safetensors bytes=") for one in scope.ranges)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == scope.files["model.safetensors"]


def test_modelscope_without_its_client_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope_hub", None)
    with pytest.raises(DownloadError, match="needs the package modelscope-hub"):
        fetch(MODEL, "main", tmp_path / "model", source="modelscope")
