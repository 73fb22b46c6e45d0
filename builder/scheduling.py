"""Encoding a film without leaving a real-time thread behind."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def same_scheduling() -> Iterator[None]:
    """The thread's scheduling policy is afterwards what it was. SVT-AV1, run by root, makes the thread that encodes a
    real-time one (SCHED_FIFO 99) and leaves it so; what that thread starts later would inherit it."""
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        if os.sched_getscheduler(0) != policy:
            os.sched_setscheduler(0, policy, parameters)
