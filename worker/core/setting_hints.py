"""What to say of an environment variable that is wrong: what its value must be, or which name was perhaps meant."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import get_args

from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from worker.core.expectations import expected

_MAX_SHOWN_CHARS = 80
_ALIKE = 0.87  # from 0 to 1: MAX_NUM_SEQ and MAX_NUM_SEQS are, HOSTNAME and HOST are not

# Variables of other servers for these models that mean nothing here, and what does.
ELSEWHERE: Mapping[str, str] = {
    **dict.fromkeys(("MODEL", "MODEL_REPO"), "MODEL_ID names the model"),
    **dict.fromkeys(("TOKENIZER", "TOKENIZER_NAME"), "the checkpoint's own tokenizer is used"),
    **dict.fromkeys(
        ("OPENAI_SERVED_MODEL_NAME_OVERRIDE", "SERVED_MODEL_NAME"), "MODEL_NAME sets the name in responses"
    ),
    "MAX_TOKENS": "MAX_TOKENS_DEFAULT sets it for requests that do not",
    "HUGGING_FACE_HUB_TOKEN": "HF_TOKEN is the token",
    "HUGGINGFACE_HUB_CACHE": "HF_HUB_CACHE or HUB_CACHE is the folder",
    "BASE_PATH": "HUB_CACHE sets where models are downloaded to",
    "DOWNLOAD_DIR": "HUB_CACHE sets where models are downloaded to",
    "MAX_CONCURRENCY": "CONCURRENCY sets how many jobs are taken at once",
    "GPU_MEMORY_UTILIZATION": "KV_CACHE_MIB sets the KV cache size, by default what is left after the weights",
    **dict.fromkeys(("TENSOR_PARALLEL_SIZE", "PIPELINE_PARALLEL_SIZE"), "there is no tensor or pipeline parallelism"),
    "LIMIT_MM_PER_PROMPT": "MAX_IMAGES and MAX_VIDEOS set the limits",
    "ALLOWED_LOCAL_MEDIA_PATH": "ALLOWED_MEDIA_PATHS sets the folders",
    "ALLOWED_MEDIA_DOMAINS": "MEDIA_ALLOWED_DOMAINS sets the domains",
    "ENABLE_PREFIX_CACHING": "the prefix cache is on by default, PREFIX_CACHE_MIB sets its size",
    "TRUST_REMOTE_CODE": "code that comes with a checkpoint is never run",
    **dict.fromkeys(
        ("DEFAULT_BATCH_SIZE", "DEFAULT_MIN_BATCH_SIZE", "DEFAULT_BATCH_SIZE_GROWTH_FACTOR"),
        "STREAM_INTERVAL_MS sets how often chunks are sent",
    ),
    "ENABLE_LOG_REQUESTS": "LOG_PROMPTS=1 logs the text of requests",
    "ENFORCE_EAGER": "CUDA_GRAPHS=0 turns CUDA graphs off",
    **dict.fromkeys(("ENABLE_LORA", "SPECULATIVE_CONFIG"), "it is not supported"),
    **dict.fromkeys(
        ("TOOL_CALL_PARSER", "REASONING_PARSER", "ENABLE_AUTO_TOOL_CHOICE"),
        "tool calls and thinking are parsed for every model",
    ),
}


@dataclass(frozen=True)
class Expected:
    """What the value of a setting must be, for one whose pattern says it to programs alone. Stands in `Annotated`."""

    text: str


def wrong_value(name: str, field: FieldInfo, value: str, error: ErrorDetails) -> str:
    """One sentence about a variable's value. A value that may be a secret is not shown."""
    is_plain = len(value) <= _MAX_SHOWN_CHARS and value.isprintable() and "@" not in value
    shown = f' "{value}"' if field.repr and is_plain else ""
    wanted = next(_marked(field.metadata, field.annotation), None) or _wanted(error)
    return f"invalid value{shown} for {name}" + (f": it must be {wanted}" if wanted else "")


def _wanted(error: ErrorDetails) -> str | None:
    """A variable is a text: yes and no are numbers in it."""
    return "1 or 0" if error["type"] == "bool_parsing" else expected(error["type"], error.get("ctx", {}))


def _marked(marks: Iterable[object], annotation: object) -> Iterator[str]:
    yield from (mark.text for mark in marks if isinstance(mark, Expected))
    for part in get_args(annotation):
        yield from _marked(getattr(part, "__metadata__", ()), None)


def unknown(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """A sentence for each name that looks like a slip of a known one, or has another name here."""
    known = frozenset(known)
    beginnings = {name[:3] for name in known}
    said = []
    for name in sorted(set(names) - known):
        if name in ELSEWHERE:
            said.append(f"the environment variable {name} has no effect: {ELSEWHERE[name]}")
        elif name[:3] in beginnings and (found := difflib.get_close_matches(name, known, n=1, cutoff=_ALIKE)):
            said.append(f"the environment variable {name} is unknown, did you mean {found[0]}?")
    return said
