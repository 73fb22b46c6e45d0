"""The threads that torch computes with on a CPU, which are OpenMP's.

Every thread that computes has a team of its own, and keeps it. Once all teams together have more threads than there are
cores, OpenMP's threads sleep while they wait for work, and each of a step's 140 parallel operations begins by waking
one: a step takes 1.25 to 1.3 times as long (docs/log.md). So on a CPU the engine's thread alone keeps a team.
`startup.preload` says for how long threads spin before they sleep.
"""

import contextlib
import ctypes

import torch

_SOFT = 1  # omp_pause_soft: what was set stays


def end_team() -> None:
    """The threads that this thread has computed with end; it gets others when it computes again. Does nothing where
    torch's OpenMP has no such call."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).omp_pause_resource_all(_SOFT)


def compute_alone() -> None:
    """From now on this thread computes without others. Does nothing where torch has another OpenMP."""
    torch.get_num_threads()  # at its first use torch sets what all threads begin with, which is not to come later
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).omp_set_num_threads(1)
