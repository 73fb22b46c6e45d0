"""Python code in a process of its own: what it imports, and the threads that it begins, are nobody else's."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def printed(code: str, *arguments: str, variables: tuple[str, ...] = ()) -> str:
    """What the code prints; its errors where it fails. variables: more of the environment, NAME=value."""
    command = ["env", "DEVICE=cpu", *variables, sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
