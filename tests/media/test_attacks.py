"""The table of attacks, run in a process of its own: codes, seconds, memory, and nobody inside reached."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.media.attacks import ATTACKS, NUM_FAILURES
from tests.slowness import slowness

pytestmark = [pytest.mark.network, pytest.mark.slow]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.media.attacks", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    read: dict[str, Any] = json.loads(done.stdout)
    return read


@pytest.mark.parametrize("index", range(len(ATTACKS)), ids=[f"{each.group}: {each.name}" for each in ATTACKS])
def test_it_is_answered_within_its_caps_and_reaches_nobody(found: dict[str, Any], index: int) -> None:
    row = found["rows"][index]
    assert row["code"] in row["wanted"].split(" | ")
    assert row["cpu_s"] <= row["cpu_cap_s"] * slowness()
    assert row["mib"] <= row["mib_cap"]
    assert row["reached"] == 0


def test_the_server_inside_counts_who_comes(found: dict[str, Any]) -> None:
    """The control of the zeros above."""
    assert found["control"] == 1


def test_a_thousand_failures_leave_nothing(found: dict[str, Any]) -> None:
    before, after = found["failures"]["before"], found["failures"]["after"]
    assert NUM_FAILURES == 1000
    assert after["files and sockets"] <= before["files and sockets"] + 2  # the servers' last connections
    assert after["threads"] == before["threads"]
    assert after["tasks"] <= before["tasks"] + 2
    assert after["MiB"] <= before["MiB"] + 16
