"""What every benchmark writes beside its figures, and where: `benchmarks/results/<date>-<name>`."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib.figure

from worker.core.safe_json import JsonObject

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "runpod")


def environment(command: str, **more: object) -> dict[str, object]:
    """Date, hardware, versions, and the command to run again."""
    return {
        "date": date.today().isoformat(),
        "command": command,
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        **more,
    }


def save(name: str, facts: JsonObject, table: str) -> None:
    """The figures as JSON and the table as Markdown; a run on the same day takes the place of the one before."""
    path = RESULTS / f"{date.today().isoformat()}-{name}"
    path.with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(table.rstrip() + "\n", encoding="utf-8")


def in_a_process(module: str, *arguments: object) -> Any:
    """What a benchmark's own module prints last, as JSON, in a process of its own."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(said.splitlines()[-1])


def plot(name: str, draw: Callable[[Any], None], columns: int = 1, width: float = 5) -> None:
    """A picture beside them, of `columns` pictures, each `width` inches wide; `draw` gets the axes."""
    figure = matplotlib.figure.Figure(figsize=(width * columns, 4), layout="constrained")
    draw(figure.subplots(1, columns))
    figure.savefig(RESULTS / f"{date.today().isoformat()}-{name}.png", dpi=110)
