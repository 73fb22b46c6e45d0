"""The log: one line an event on standard error, as JSON on the platform and as text for people.

Facts of an event are given as `extra={…}`; `request` is its request's id. Content never comes here, but for
`messages` with LOG_PROMPTS.
"""

import json
import logging
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

from worker.core.safe_json import JsonObject

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


def set_up(level: str, *, as_json: bool) -> None:
    """Send every logger's events to standard error. Other libraries are heard from
    WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(AsJson() if as_json else AsText())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    quiet = max(logging.WARNING, logging.getLevelNamesMapping()[level])
    for name in ("uvicorn", "httpx", "httpx2", "huggingface_hub"):
        logging.getLogger(name).setLevel(quiet)


def _facts(record: logging.LogRecord) -> JsonObject:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def _flat(facts: JsonObject, before: str = "") -> Iterator[tuple[str, object]]:
    """`usage.prompt_tokens` and its value for what lies inside of another."""
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + name, ",".join(map(str, value)) if isinstance(value, list) else value


class AsJson(logging.Formatter):
    """One JSON object a line, with the platform's own names for the id, the message and the level."""

    def format(self, record: logging.LogRecord) -> str:
        facts = _facts(record)
        event: JsonObject = {"requestId": facts.pop("request")} if "request" in facts else {}
        event |= {
            "message": record.getMessage(),
            "level": record.levelname,
            "logger": record.name,
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            **facts,
        }
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return json.dumps(event, ensure_ascii=False, default=str)


class AsText(logging.Formatter):
    """The same for a person."""

    def format(self, record: logging.LogRecord) -> str:
        facts = "".join(f" {name}={value}" for name, value in _flat(_facts(record)))
        record.message = record.getMessage()
        text = f"{record.levelname} {record.name}: {record.message}{facts}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text
