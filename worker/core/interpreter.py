"""The interpreter's lock, for a thread that gives it up often and must soon have it back."""

import ctypes
import sys

# After which a thread that computes in Python gives way. Python's own 5 ms would pass at each of torch's calls.
SWITCH_S = 2e-5
_PR_SET_TIMERSLACK = 29  # of Linux: how much later than asked a thread may be woken, 50 µs unless told otherwise


def wait_little_for_the_lock() -> None:
    """Have this thread wait no longer for the interpreter's lock than need be. The interval is the process's."""
    sys.setswitchinterval(min(SWITCH_S, sys.getswitchinterval()))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
