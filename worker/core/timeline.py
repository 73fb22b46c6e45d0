"""Where the seconds of a start went, from the process's first moment to its first answer."""

import time
from pathlib import Path

# Phases that are no part of the start: waiting for somebody to ask, and answering.
AFTER_START = ("wait_for_request", "first_token", "rest_of_first_answer")


class Timeline:
    """Phases one after the other, and what ran beside them. Seconds."""

    def __init__(self) -> None:
        self._began = _process_began()
        self._last = self._began
        self._phases: dict[str, float] = {}
        self._beside: dict[str, float] = {}

    def end(self, phase: str, at: float | None = None) -> None:
        """The phase that began when the one before it ended is over, now or since `at` (on the clock of
        `time.monotonic`). Ended again, it is as long as both times."""
        now = time.monotonic() if at is None else max(at, self._last)
        self._phases[phase] = round(self._phases.get(phase, 0.0) + now - self._last, 3)
        self._last = now

    def ran_beside(self, phase: str, seconds: float) -> None:
        """Something that no phase had to wait for, or only its end."""
        self._beside[phase] = round(seconds, 3)

    @property
    def start_s(self) -> float:
        """From the process's first moment until it could answer."""
        return round(sum(seconds for phase, seconds in self._phases.items() if phase not in AFTER_START), 3)

    @property
    def report(self) -> dict[str, float]:
        """Each phase, `total` up to the last one's end, and what ran in parallel to them as `overlapped_…`."""
        beside = {f"overlapped_{phase}": seconds for phase, seconds in self._beside.items()}
        return {**self._phases, "total": round(self._last - self._began, 3), **beside}


def _process_began() -> float:
    """On the clock of `time.monotonic()`. Linux counts it in hundredths of a second."""
    now = time.monotonic()
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        uptime = float(Path("/proc/uptime").read_text(encoding="utf-8").split()[0])
    except OSError:
        return now
    ticks_per_second = 100  # in every process's own view, whatever the kernel's is
    return min(now, now - (uptime - int(fields[19]) / ticks_per_second))
