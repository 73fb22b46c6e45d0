"""Bounds on processor time that hold on slow machines and busy ones, too."""

import time

FIXED_WORK_S = 0.05  # on the machine that the bounds were chosen on


def slowness() -> float:
    """How many times longer this machine needs just now for a piece of plain Python; at least one."""
    began, total = time.thread_time(), 0
    for number in range(1_000_000):
        total += number
    return max(1.0, (time.thread_time() - began) / FIXED_WORK_S)
