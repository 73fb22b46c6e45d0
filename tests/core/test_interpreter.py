"""A thread that waits little for the interpreter's lock."""

import sys
import threading
from pathlib import Path

import pytest

from worker.core.interpreter import SWITCH_S, wait_little_for_the_lock


def test_others_give_way_sooner_and_the_thread_is_woken_on_time() -> None:
    before, slack = sys.getswitchinterval(), [""]

    def run() -> None:
        wait_little_for_the_lock()
        if sys.platform == "linux":
            slack[0] = Path(f"/proc/{threading.get_native_id()}/timerslack_ns").read_text(encoding="ascii").strip()

    try:
        sys.setswitchinterval(0.005)
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        assert sys.getswitchinterval() == pytest.approx(SWITCH_S)
        sys.setswitchinterval(1e-6)
        wait_little_for_the_lock()
        assert sys.getswitchinterval() == pytest.approx(1e-6)  # who has set less keeps it
    finally:
        sys.setswitchinterval(before)
    assert slack[0] in ("1", "")
