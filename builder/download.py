"""Fetches a model's files into a folder while an image is built; needs nothing of the worker.

python -m builder.download --model-id Qwen/Qwen3-VL-8B-Instruct --revision main --out /models/Qwen3-VL-8B-Instruct

The folder appears when all of it is there. `source.json` in it says where the files came from and what they should be.
A token comes from a file (a build secret), never from an argument or a variable.
"""

import argparse
import importlib
import json
import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

# No code, no pickles. The worker's own download takes the same.
PATTERNS = ("*.json", "*.jinja", "*.safetensors", "*.txt")
TRIES = 5
PAUSE_S = 5.0
FAR_ERRORS = (HfHubHTTPError, HTTPError, OSError, ValueError)  # the last: no name of a model, no JSON


class DownloadError(Exception):
    """The model could not be fetched; the message says what and why."""


@dataclass(frozen=True)
class Expected:
    """What the source says of a file. sha256 is known of large files; git_sha1 (of git's blob) of the others."""

    size: int
    sha256: str | None = None
    git_sha1: str | None = None


@dataclass(frozen=True)
class Source:
    """Where a folder came from. revision: the commit."""

    source: str
    model: str
    revision: str
    licence: str | None = None
    files: dict[str, Expected] = field(default_factory=dict)


def fetch(
    model_id: str,
    revision: str,
    out: Path,
    *,
    source: str = "huggingface",
    token: str | None = None,
    endpoint: str | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> Source:
    """Fetch into `out`, which is whole or not there. An interrupted download resumes.

    Raises DownloadError.
    """
    if token is not None and not re.fullmatch(r"[!-~]+", token):
        raise DownloadError("the token is no single line of letters, digits and signs")
    staging = out.with_name(out.name + ".partial")
    staging.mkdir(parents=True, exist_ok=True)
    if source == "modelscope":
        found = _from_modelscope(model_id, revision, staging, token, endpoint)
    else:
        found = _from_huggingface(model_id, revision, staging, token, endpoint, pause)
    for name, expected in found.files.items():
        size = (staging / name).stat().st_size if (staging / name).is_file() else None
        if size != expected.size:
            raise DownloadError(f"{name} has {size} bytes, {model_id} says {expected.size}")
    for path in staging.iterdir():
        if path.name not in found.files:  # the client's own, and what an earlier download of something else has left
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (staging / "source.json").write_text(json.dumps(asdict(found), indent=2) + "\n", encoding="utf-8")
    if out.exists():
        shutil.rmtree(out)
    staging.rename(out)
    return found


def _from_huggingface(
    model_id: str,
    revision: str,
    staging: Path,
    token: str | None,
    endpoint: str | None,
    pause: Callable[[float], None],
) -> Source:
    try:
        info = HfApi(endpoint=endpoint, token=token or False).model_info(
            model_id, revision=revision, files_metadata=True
        )
    except GatedRepoError:
        raise DownloadError(f"{model_id} is gated: accept its terms and give a token of yours as a secret") from None
    except RevisionNotFoundError:
        raise DownloadError(f"{model_id} has no revision {revision}") from None
    except RepositoryNotFoundError:
        raise DownloadError(f"there is no {model_id}, or the token may not see it") from None
    except FAR_ERRORS as error:
        raise DownloadError(f"the hub does not tell about {model_id}: {_why(error)}") from None
    files = {
        entry.rfilename: Expected(
            entry.size or 0, entry.lfs.sha256 if entry.lfs else None, None if entry.lfs else entry.blob_id
        )
        for entry in info.siblings or []
    }
    wanted = {name for name in files if _is_wanted(name)}
    if not wanted:
        raise DownloadError(f"{model_id} has no file that a checkpoint is made of")
    licence = info.card_data.license if info.card_data else None
    found = Source("huggingface", model_id, str(info.sha), licence, {name: files[name] for name in sorted(wanted)})
    for left in range(TRIES - 1, -1, -1):
        try:
            snapshot_download(
                model_id,
                revision=found.revision,
                local_dir=staging,
                allow_patterns=sorted(wanted),
                token=token or False,
                endpoint=endpoint,
                max_workers=4,
            )
        except FAR_ERRORS as error:
            answer = getattr(error, "response", None)
            is_final = answer is not None and 400 <= answer.status_code < 500 and answer.status_code not in (408, 429)
            if is_final or not left:
                which = str(getattr(answer, "url", "")).rpartition("/")[2]
                reason = f"{which}: {_why(error)}" if which in wanted else _why(error)
                raise DownloadError(f"{model_id} could not be fetched whole: {reason}") from None
            print(f"{_why(error)}; going on, {left} tries left", file=sys.stderr)
            pause(PAUSE_S)
        else:
            return found
    raise AssertionError("the last try returns or raises")


def _from_modelscope(model_id: str, revision: str, staging: Path, token: str | None, endpoint: str | None) -> Source:
    """By the hub's own client, which is installed only where it is asked for.

    That hub names no commit for a branch: `revision` stays the name asked for, and the SHA-256 of every file, from
    the one listing that the download follows, says what was meant.
    """
    try:
        client = importlib.import_module("modelscope_hub")
    except ImportError:
        raise DownloadError("the source modelscope needs the package modelscope-hub") from None
    named = "master" if revision == "main" else revision
    try:
        hub = client.HubApi(endpoint=endpoint, token=token or "")
        hub = client.HubApi(endpoint=hub.resolve_endpoint_for_read(model_id), token=token or "")  # it has two sites
        licence = hub.get_repo(model_id, "model").license
        listed = hub.list_repo_files(model_id, "model", revision=named, recursive=False)
        files = {
            entry.path: Expected(entry.size, entry.sha256)
            for entry in listed
            if not entry.is_dir and _is_wanted(entry.path)
        }
        rows = [{"Path": name, "Size": entry.size, "Sha256": entry.sha256} for name, entry in sorted(files.items())]
        hub.download_repo(model_id, "model", revision=named, local_dir=staging, file_list=rows)
    except client.FileDownloadError as error:
        each = "; ".join(f"{name}: {_why(why)}" for name, why in sorted(error.failed_files.items()))
        raise DownloadError(f"{model_id} could not be fetched whole: {each}") from None
    except (client.HubError, OSError, ValueError) as error:
        raise DownloadError(f"{model_id} at {named} could not be fetched from ModelScope: {_why(error)}") from None
    if not files:
        raise DownloadError(f"{model_id} has no file that a checkpoint is made of")
    return Source("modelscope", model_id, named, licence, dict(sorted(files.items())))


def _is_wanted(name: str) -> bool:
    return "/" not in name and any(fnmatch(name, pattern) for pattern in PATTERNS)


def _why(error: Exception) -> str:
    """The error's first line, which has no header of the request in it."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m builder.download", description=__doc__.splitlines()[0])
    parser.add_argument("--model-id", required=True)
    parser.add_argument("--revision", default="main", help="branch, tag or commit")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--source", choices=("huggingface", "modelscope"), default="huggingface")
    parser.add_argument("--token-file", type=Path, help="file with an access token; none where it is missing or empty")
    parser.add_argument("--endpoint", help="address of the hub, where it is another")
    options = parser.parse_args()
    token = None
    if options.token_file is not None and options.token_file.is_file():
        token = options.token_file.read_text(encoding="utf-8", errors="replace").strip() or None
    try:
        found = fetch(
            options.model_id,
            options.revision,
            options.out,
            source=options.source,
            token=token,
            endpoint=options.endpoint,
        )
    except (DownloadError, OSError) as error:
        sys.exit(f"builder.download: {error}")
    total = sum(entry.size for entry in found.files.values())
    print(f"{options.out}: {len(found.files)} files, {total / 2**30:.2f} GiB, revision {found.revision}")


if __name__ == "__main__":
    main()
