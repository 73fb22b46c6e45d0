"""What every benchmark writes beside its figures, and where: `benchmarks/results/<date>-<name>`."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
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


def in_turns(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median of the milliseconds that each way takes; the first time does not count."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            took[name].append((time.perf_counter() - began) * 1000)
    return {name: statistics.median(each[1:]) for name, each in took.items()}


def table_of(title: str, rows: Mapping[Any, Mapping[str, float]], unit: str = "ms", digits: int = 2) -> str:
    """A row for each key, with the figure of each way."""
    names = list(next(iter(rows.values())))
    lines = [f"| {title} | " + " | ".join(f"{name}, {unit}" for name in names) + " |", "|---" * (len(names) + 1) + "|"]
    for key, took in rows.items():
        lines.append(f"| {key} | " + " | ".join(f"{each:.{digits}f}" for each in took.values()) + " |")
    return "\n".join(lines) + "\n"
