"""The table of dependencies in docs/architecture.md: where each is used, why it was chosen, and what it costs.

python -m builder.dependencies

Imports are timed in processes of their own, the median of three, with what they import themselves; sizes are of the
package's own files.
"""

import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from worker.core.units import MIB

ROOT = Path(__file__).parents[1]
TRIES = 3


@dataclass(frozen=True)
class Dependency:
    """A package of requirements.txt. module: what is imported; at_start: whether a start of `handler.py` does, with the
    worker's own model code."""

    package: str
    module: str
    where: str
    why: str
    at_start: bool


DEPENDENCIES = (
    Dependency("runpod", "runpod", "`handler.py`, `platform/sdk.py`", "RunPod's SDK: takes jobs, sends results", True),
    Dependency("torch", "torch", "`prompt` to `engine`", "tensors, attention, CUDA graphs", True),
    Dependency(
        "transformers", "transformers", "`models/hf`",
        "the reference in tests, and the code of families without native code", False,
    ),
    Dependency("accelerate", "accelerate", "through transformers", "puts weights on one or several devices", False),
    Dependency("tokenizers", "tokenizers", "`checkpoint/tokenizer.py`", "splits text into words; decodes", True),
    Dependency("jinja2", "jinja2", "`checkpoint/chat_template.py`", "chat templates, sandboxed", True),
    Dependency(
        "llguidance", "llguidance", "`engine/grammar.py`",
        "compiles schemas and grammars to masks over the next token, in milliseconds, and refuses what it does not "
        "support; has no dependencies", False,
    ),
    Dependency("numpy", "numpy", "`media`, `prompt`", "pixels between decoders and torch", True),
    Dependency("pillow", "PIL.Image", "`media`", "decodes images; has limits and lazy loading", True),
    Dependency("av", "av", "`media`", "FFmpeg without its command line: exact packets, frames and times", True),
    Dependency(
        "pi-heif", "pi_heif", "`media/heif.py`",
        "HEIC photos through libheif and libde265 (LGPL), 1.5 MB. Used instead of `pillow-heif`, whose wheel carries "
        "x265 (GPL)", False,
    ),
    Dependency(
        "aiohttp", "aiohttp", "`media/fetch.py`, `platform/sdk.py`",
        "fetches URLs through sockets that we make and check; the SDK uses it too. Used instead of `requests`, which "
        "blocks a thread per URL and connects by name", True,
    ),
    Dependency("brotli", "brotli", "`media/content_encoding.py`", "bodies that a server sends as `br`", True),
    Dependency(
        "backports.zstd", "backports.zstd", "`media/content_encoding.py`",
        "bodies that a server sends as `zstd`; Python has it from 3.14 on", True,
    ),
    Dependency("aiodns", "aiodns", "through aiohttp", "name lookups without threads, with a time limit", True),
    Dependency("yarl", "yarl", "`media/guard.py`", "parses URLs as aiohttp will", True),
    Dependency("pydantic", "pydantic", "`core`, `dialects`", "validates requests and settings; parses JSON", True),
    Dependency("fastapi", "fastapi", "`server`", "routes and OpenAPI; RunPod's SDK requires it anyway", False),
    Dependency("uvicorn", "uvicorn", "`server`", "start, signals and shutdown of the HTTP server", False),
    Dependency("httptools", "httptools", "`server/request_parser.py`", "llhttp, Node's HTTP parser", False),
    Dependency("python-multipart", "python_multipart", "through Starlette", "forms with files", False),
    Dependency("python-dotenv", "dotenv", "`core/settings.py`", "reads `.env`", True),
    Dependency("prometheus-client", "prometheus_client", "`metrics.py`", "metrics", True),
    Dependency("redis", "redis", "`history/redis.py`", "bot conversations that several workers share", False),
)  # fmt: skip
BESIDE = (
    ("qwen-vl-utils", "`tests/parity`", "the reference for images and videos, in an environment of its own"),
    ("requests", "through runpod", "the SDK's own calls; the worker fetches with aiohttp"),
)


def required() -> set[str]:
    """The packages of requirements.txt."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return {re.split(r"[=<>;]", line)[0].strip() for line in lines if line and not line.startswith(("#", "-"))}


def import_seconds(module: str) -> float:
    """To import it, beyond a bare interpreter."""

    def took(code: str) -> float:
        seconds = []
        for _ in range(TRIES):
            began = time.perf_counter()
            subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=ROOT)
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds)

    return max(0.0, took(f"import {module}") - took("pass"))


def size_mib(package: str) -> float:
    """Of its own files."""
    files = metadata.files(package) or []
    return sum(path.stat().st_size for file in files if (path := Path(str(file.locate()))).is_file()) / MIB


def table() -> str:
    """All of them, as Markdown."""
    rows = ["| package | used in | why | imported at start | import, s | disk, MiB |", "|---|---|---|---|---|---|"]
    for item in DEPENDENCIES:
        seconds, mib = import_seconds(item.module), size_mib(item.package)
        at_start = "yes" if item.at_start else "no"
        rows.append(f"| {item.package} | {item.where} | {item.why} | {at_start} | {seconds:.2f} | {mib:.1f} |")
    rows += [f"| {package} | {where} | {why} | | | |" for package, where, why in BESIDE]
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(table(), end="")
