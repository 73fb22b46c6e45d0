"""The process's settings: every environment variable and limit, read once and frozen; the only reader of os.environ.

`python -m worker.core.settings` prints the tables that docs/settings.md shows.
"""

import logging
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from dotenv import dotenv_values
from pydantic import ValidationError

from worker.core import setting_hints
from worker.core.errors import SettingError
from worker.core.media_settings import DecodeSettings, FetchSettings, MediaSettings
from worker.core.server_settings import BotSettings, ServerLimits, ServerSettings
from worker.core.setting_groups import EngineSettings, JobSettings, LogSettings, ModelSettings, PlatformSettings
from worker.core.setting_types import Group
from worker.core.units import MIB

__all__ = [
    "EMBEDDED_MODEL",
    "MIB",
    "Settings",
    "current",
    "listed",
    "load",
    "load_with_file",
    "stay_offline",
    "table",
    "warn_of_doubtful",
]

log = logging.getLogger(__name__)
EMBEDDED_MODEL = Path(__file__).resolve().parents[1] / "tiny_model"


class Settings(
    ModelSettings,
    EngineSettings,
    JobSettings,
    LogSettings,
    MediaSettings,
    FetchSettings,
    DecodeSettings,
    ServerSettings,
    ServerLimits,
    BotSettings,
    PlatformSettings,
):
    """One value for each variable; the variable's name is the field's in capitals."""

    @property
    def is_on_platform(self) -> bool:
        return self.runpod_webhook_get_job is not None

    @property
    def is_deployed(self) -> bool:
        """Whether this is a worker of the platform, with a queue or behind its load balancer."""
        return self.is_on_platform or self.runpod_endpoint_id is not None

    @property
    def logs_json(self) -> bool:
        return self.log_format == "json" or (self.log_format == "auto" and self.is_deployed)

    @property
    def isolates_media(self) -> bool:
        """Whether pictures and videos are decoded in child processes."""
        return self.media_isolate == "process" or (self.media_isolate == "auto" and self.is_on_platform)

    @property
    def keys(self) -> tuple[str, ...]:
        return listed(f"{self.api_key},{self.qpikey}")

    @property
    def media_roots(self) -> tuple[Path, ...]:
        """The folders of `allowed_media_paths`, without links."""
        return tuple(Path(folder).resolve() for folder in self.allowed_media_paths.split(":") if folder.strip())

    @property
    def allowed_domains(self) -> tuple[str, ...]:
        return listed(self.media_allowed_domains.lower())


def listed(text: str) -> tuple[str, ...]:
    """What stands between commas."""
    return tuple(item.strip() for item in text.split(",") if item.strip())


def load(environment: Mapping[str, str] | None = None) -> Settings:
    """Settings from the process's environment, or from the one given. An empty variable counts as unset."""
    source = os.environ if environment is None else environment
    values = {name: source[name.upper()] for name in Settings.model_fields if source.get(name.upper())}
    if "hub_cache" not in values and (folder := _hub_cache(source)):
        values["hub_cache"] = folder
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = str(first["loc"][0])
        field = Settings.model_fields[name]
        raise SettingError(setting_hints.wrong_value(name.upper(), field, values[name], first)) from None


def _hub_cache(source: Mapping[str, str]) -> str:
    """Where the hub's own variables put its cache; empty where they are not set."""
    home = source.get("HF_HOME")
    return source.get("HF_HUB_CACHE") or (f"{home}/hub" if home else "")


@cache
def current() -> Settings:
    """The process's own settings: its environment and its file of settings, read once. Raises SettingError."""
    return load_with_file({})


def warn_of_doubtful(environment: Mapping[str, str] | None = None) -> None:
    """A line in the log for each variable that has no effect and looks as if it should."""
    names = {**_lines(), **os.environ} if environment is None else environment
    for warning in setting_hints.unknown(names, (name.upper() for name in Settings.model_fields)):
        log.warning(warning)


def load_with_file(overrides: Mapping[str, str]) -> Settings:
    """What is given takes precedence over the process's environment, and that over the lines of a file: `.env`, or the
    one that ENV_FILE names. Raises SettingError."""
    return load({**_lines(), **os.environ, **overrides})


def _lines() -> dict[str, str]:
    file = os.environ.get("ENV_FILE", ".env")
    try:
        lines = dotenv_values(file) if file else {}
    except (OSError, UnicodeDecodeError):
        raise SettingError(f"{file} is not a text file in UTF-8 that can be read") from None
    return {name: value for name, value in lines.items() if value}


def stay_offline(settings: Settings) -> None:
    """Have the hub's libraries, where something imports them later, ask nobody, unless a download is allowed."""
    if not settings.allow_download:
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            os.environ.setdefault(name, "1")


def table() -> str:
    """All settings as the Markdown tables of docs/settings.md, one for each group."""
    return "\n".join(_group_table(group) for group in Settings.__bases__ if issubclass(group, Group))


def _group_table(group: type[Group]) -> str:
    rows = [f"## {group.heading}", "", group.__doc__ or "", "", "| variable | default | meaning |", "|---|---|---|"]
    for name, field in group.model_fields.items():
        default = "" if field.default in (None, "") else f"`{_shown(field.default)}`"
        rows.append(f"| `{name.upper()}` | {default} | {field.description} |")
    return "\n".join(rows) + "\n"


def _shown(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    print(table(), end="")
