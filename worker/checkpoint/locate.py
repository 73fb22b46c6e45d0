"""Where the checkpoint is: the folder given, the image, the platform's model cache, the hub's cache, or a download.

The caches have the hub's own layout: `models--<org>--<name>/refs/<revision>` holds a commit, `snapshots/<commit>/` its
files.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from worker.core.errors import ModelError
from worker.core.safe_json import JsonObject
from worker.core.settings import EMBEDDED_MODEL, Settings

log = logging.getLogger(__name__)
# What a complete checkpoint has: one file of each, or one of the sets that stand for it in older or newer checkpoints.
NEEDED = {
    "config.json": (),
    "tokenizer.json": (("vocab.json", "merges.txt"),),
}
PUBLISHED = {**NEEDED, "tokenizer_config.json": (), "preprocessor_config.json": (("processor_config.json",),)}
READERS = 4  # files that are fetched at a time
_AT_ONCE = 2**30
TINY = "tiny-qwen3-vl"  # the name of the demonstration model in the package
MANIFEST = "baked.json"  # what `builder.bake` writes
PATTERNS = ("*.json", "*.jinja", "*.safetensors", "*.txt")  # what is downloaded of a repository: no code, no pickles


# Weights of other kinds, by their files.
_OTHER_WEIGHTS = {
    "*.gguf": "is for llama.cpp: use the model's safetensors",
    "pytorch_model*.bin": "is a pickle, which can run code: save the model with safe_serialization=True",
    "*.pt": "is a pickle, which can run code: save the model as safetensors",
    "model-*.safetensors": "is one of several shards, which need model.safetensors.index.json: fetch it too",
}
_COMMIT = re.compile("[0-9a-f]{40}")
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENOENT)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint folder. name: as answers call it. origin: a word for the log."""

    folder: Path
    name: str
    origin: str


def find(settings: Settings) -> Checkpoint:
    """The first place that has the model that the settings name. Raises ModelError."""
    found = _find(settings)
    check_manifest(found.folder, with_hashes=settings.check_hashes)
    if found.folder.resolve() == EMBEDDED_MODEL:  # it is never taken for another model
        return replace(found, name=TINY)
    return replace(found, name=settings.model_name or found.name)


def _find(settings: Settings) -> Checkpoint:
    if settings.model_path is not None:
        return _complete(settings.model_path, settings.model_path.resolve().name, "MODEL_PATH")
    model_id = settings.model_id
    if model_id == TINY:
        return _complete(EMBEDDED_MODEL, TINY, "the package")
    baked = _baked(settings.baked_models, model_id, settings.model_revision)
    if baked is not None:
        return _complete(*baked, "the image")
    if model_id is None:
        _check_demonstration(settings)
        return _complete(EMBEDDED_MODEL, TINY, "the package")
    name = model_id.rpartition("/")[2]
    for root, origin in ((settings.platform_cache, "RunPod's model cache"), (settings.hub_cache, "the hub's cache")):
        folder = snapshot(root, model_id, settings.model_revision)
        # An interrupted download resumes.
        if folder is not None and not (settings.allow_download and missing_file(folder, PUBLISHED)):
            return _complete(folder, name, origin)
    if not settings.allow_download:
        raise ModelError(
            f"{model_id} was found neither in the image ({settings.baked_models}), nor in RunPod's model cache "
            f"({settings.platform_cache}), nor in the hub's cache ({settings.hub_cache}). Set ALLOW_DOWNLOAD=1 to "
            f"download it at the start, build the image with --build-arg MODEL_ID={model_id}, or set MODEL_PATH"
        )
    return _complete(_download(model_id, settings), name, "a download")


def _check_demonstration(settings: Settings) -> None:
    """The tiny model answers for nobody who meant another. Raises ModelError."""
    name = settings.model_name
    if name is not None and "/" in name:
        raise ModelError(f"MODEL_NAME only sets the name in responses. To choose the model, set MODEL_ID={name}")
    if settings.is_deployed:
        raise ModelError(
            "no model is configured. Set MODEL_ID, for example MODEL_ID=Qwen/Qwen3-VL-8B-Instruct, or build the image "
            f"with --build-arg MODEL_ID=…; MODEL_ID={TINY} serves the demonstration model"
        )
    log.warning(
        "no model is configured: serving the demonstration model %s, which only knows simple shapes; set MODEL_ID", TINY
    )


def _baked(root: Path, model_id: str | None, revision: str | None) -> tuple[Path, str] | None:
    """The folder in the image that holds this model, or the only one where none is named. One whose manifest names
    another model, or another commit than `revision`, is not it."""
    if not root.is_dir():
        return None
    folders = sorted(path for path in root.iterdir() if (path / "config.json").is_file())
    if model_id is not None:
        wanted = model_id.rpartition("/")[2].lower()
        folders = [path for path in folders if path.name.lower() == wanted and _may_be(path, model_id, revision)]
    if len(folders) > 1:
        raise ModelError(f"{root} has {len(folders)} models: set MODEL_ID to one of {_listed(folders)}")
    return (folders[0], folders[0].name) if folders else None


def _listed(folders: Sequence[Path]) -> str:
    return ", ".join(str(read_json(path / MANIFEST).get("model") or path.name) for path in folders)


def _may_be(folder: Path, model_id: str, revision: str | None) -> bool:
    manifest = read_json(folder / MANIFEST)
    model, commit = str(manifest.get("model") or ""), str(manifest.get("revision") or "")
    is_other = "/" in model and model.lower() != model_id.lower()
    return not is_other and not (_COMMIT.fullmatch(commit) and _COMMIT.fullmatch(revision or "") and commit != revision)


def snapshot(root: Path, model_id: str, revision: str | None) -> Path | None:
    """The model's files in a cache of the hub's layout, whatever the case of its name; None where it is not there.

    revision: a branch, a tag or a commit; None is `main`, or the newest snapshot where there is no such reference.
    """
    wanted = "models--" + model_id.replace("/", "--").lower()
    found = [path for path in root.iterdir() if path.name.lower() == wanted] if root.is_dir() else []
    if not found:
        return None
    model = found[0]
    reference = model / "refs" / (revision or "main")
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    if commit is not None:
        folder = model / "snapshots" / commit
        return folder if folder.is_dir() else None
    folders = [path for path in (model / "snapshots").glob("*") if path.is_dir()]
    return max(folders, key=lambda path: path.stat().st_mtime, default=None)


def missing_file(folder: Path, needed: Mapping[str, Sequence[Sequence[str]]] = NEEDED) -> str | None:
    """The name of a file that a complete checkpoint has and this folder lacks."""
    for name, others in needed.items():
        if not any(all((folder / part).is_file() for part in together) for together in ((name,), *others)):
            return name
    return next((shard for shard in shards(folder) if not (folder / shard).is_file()), None)


def read_ahead(folder: Path) -> None:
    """Have the weights fetched from the disk, by threads in the kernel, a second before torch can ask for them."""

    def fetch(names: list[str]) -> None:
        for name in names:
            with contextlib.suppress(OSError), (folder / name).open("rb") as file, open(os.devnull, "wb") as nowhere:
                at = 0
                while sent := os.sendfile(nowhere.fileno(), file.fileno(), at, _AT_ONCE):
                    at += sent

    names = shards(folder)
    for first in range(min(READERS, len(names))):
        threading.Thread(target=fetch, args=(names[first::READERS],), name="read-ahead", daemon=True).start()


def shards(folder: Path) -> list[str]:
    """The names of the files that hold a checkpoint's weights: one takes precedence over an index of several, as it
    does in the library. Raises ModelError."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return ["model.safetensors"]
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(file, str) for file in where.values()):
        raise ModelError(f"{index} has no valid weight_map: download it again")
    is_one = (folder / "model.safetensors").is_file()
    return ["model.safetensors"] if is_one else sorted(set(where.values()))


def read_json(path: Path) -> JsonObject:
    """A JSON file's object, empty where there is no such file. Raises ModelError, which names the file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # of its characters too
        content = None
    if not isinstance(content, dict):
        raise ModelError(f"{path} is not valid JSON: download it again")
    return content


def check_manifest(folder: Path, *, with_hashes: bool) -> None:
    """That the files are those that were baked: their sizes, and their hashes where asked. Raises ModelError."""
    files = read_json(folder / MANIFEST).get("files", {})
    if not isinstance(files, dict):
        raise ModelError(f"{folder / MANIFEST} is not valid: build the image again")
    for name, expected in files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != expected["size"]:
            raise ModelError(f"{path} has {size} bytes instead of the {expected['size']} baked: build the image again")
        if with_hashes and sha256(path) != expected["sha256"]:
            raise ModelError(f"{path} differs from what was baked (SHA-256): build the image again")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _complete(folder: Path, name: str, origin: str) -> Checkpoint:
    """Raises ModelError."""
    if not folder.is_dir():
        is_name = not folder.is_absolute() and len(folder.parts) == 2
        hint = f". To serve a model by its name, set MODEL_ID={folder}" if is_name else ""
        raise ModelError(f"{origin}: {folder} {'is not a folder' if folder.exists() else 'does not exist'}{hint}")
    lacking = missing_file(folder)
    if lacking is not None:
        raise ModelError(f"{origin}: incomplete checkpoint, {lacking} is missing from {folder}{_instead(folder)}")
    return Checkpoint(folder, name, origin)


def _instead(folder: Path) -> str:
    """What a folder that is not a complete checkpoint is, where that can be seen."""
    if (folder / "adapter_config.json").is_file():
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path") or "its base model"
        return f". It is an adapter of {base}: merge it first (`merge_and_unload`)"
    for pattern, what in _OTHER_WEIGHTS.items():
        found = next(iter(sorted(folder.glob(pattern))), None)
        if found is not None:
            return f". {found.name} {what}"
    return ""


def _download(model_id: str, settings: Settings) -> Path:
    log.info("downloading %s to %s", model_id, settings.hub_cache)
    # It takes a quarter of a second to import, and a worker that is paid for by it has its model.
    import huggingface_hub as hub
    from httpx2 import HTTPError

    try:
        folder = hub.snapshot_download(
            model_id,
            revision=settings.model_revision,
            cache_dir=settings.hub_cache,
            token=settings.hf_token,
            endpoint=settings.hf_endpoint,
            allow_patterns=list(PATTERNS),
        )
    except (HTTPError, OSError, ValueError, TypeError, KeyError) as error:  # the last three: no JSON, or another form
        raise ModelError(f"{model_id} could not be downloaded: {_why_not(error, model_id, settings)}") from None
    return Path(folder)


def _why_not(error: Exception, model_id: str, settings: Settings) -> str:
    """Why a download failed, and what to do about it."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # why nothing could be asked, which the library hides behind its empty cache
    token = "check that HF_TOKEN may read it" if settings.hf_token else "if it is private, set HF_TOKEN"
    match error:
        case errors.GatedRepoError():
            what = "check that HF_TOKEN is of an account that has" if settings.hf_token else "set HF_TOKEN"
            return f"it is gated. Accept its terms at https://huggingface.co/{model_id}, and {what}"
        case errors.RevisionNotFoundError():
            return f"it has no revision {settings.model_revision or 'main'}. Check MODEL_REVISION"
        case errors.RepositoryNotFoundError():
            return f"the model does not exist on the hub, or is private. Check the spelling of MODEL_ID; {token}"
        case errors.HfHubHTTPError():
            return _answered(error.response.status_code, settings)
        case errors.HFValidationError():
            return "MODEL_ID is not a valid name of a model"
        case errors.OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE is set. Unset it"
        case ValueError() | TypeError() | KeyError():
            return "the hub's answer could not be read. Check HF_ENDPOINT"
        case OSError() if error.errno in _DISK_ERRORS and not isinstance(error, errors.LocalEntryNotFoundError):
            remedy = "HUB_CACHE must be a writable folder with enough space for the model"
            return f"writing to {settings.hub_cache} failed ({error.strerror}). {remedy}"
    kind = type(error).__name__
    if kind in ("RemoteProtocolError", "ReadError", "ReadTimeout"):
        return "the connection to the hub broke off. Start again: it resumes where it stopped"
    return f"the hub could not be reached ({kind}). Check the network, and HF_ENDPOINT if a mirror is used"


def _answered(status: int, settings: Settings) -> str:
    """What an error of the hub's means."""
    if status in (401, 403):
        remedy = "Check that HF_TOKEN is valid and may read the model" if settings.hf_token else "Set HF_TOKEN"
        return f"the hub refused access (status {status}). {remedy}"
    remedy = "Try again later, or set HF_TOKEN" if status == 429 else "Try again later"
    return f"the hub answered with status {status}. {remedy}"
