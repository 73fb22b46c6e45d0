"""The benchmark of a GPU runs, part by part, with a tiny shape on the CPU: its minutes on a card are few."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = "bandwidth", "right", "steps", "sampling", "prefill", "tower", "capture"


def test_all_parts_of_the_model_run_and_are_written(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--trial", "--parts", ",".join(PARTS), "--out", tmp_path / "gpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert set(facts) == {"environment", *PARTS}
    assert [name for name in PARTS if "failed" in facts[name]] == []
    shown = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert all(f"## {name}" in shown for name in PARTS)
    said = {str(row[0]): row[1] for row in facts["right"]["rows"]}
    assert sum(value is True for value in said.values()) == 15
    assert said["demonstration model: tokens as on the CPU"] == "the same"
