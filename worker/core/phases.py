"""What the log says of a request: seconds of its phases, and its words where the operator wants them."""

import time
from collections.abc import Callable

from worker.core.contract import ChatRequest, Text


class Phases:
    """Seconds of a request's phases, one after the other."""

    def __init__(self, timer: Callable[[], float] = time.monotonic) -> None:
        self.seconds: dict[str, float] = {}
        self._timer = timer
        self._since = timer()

    def end(self, phase: str) -> None:
        """The phase that began when the one before it ended is over."""
        now = self._timer()
        self.seconds[phase] = round(now - self._since, 3)
        self._since = now

    def note(self, phase: str, seconds: float | None) -> None:
        """A phase that was measured elsewhere."""
        if seconds is not None:
            self.seconds[phase] = round(seconds, 3)


def legible(request: ChatRequest) -> list[str]:
    """The words of a request, with `[image]` and `[video]` in the places of the media."""
    return [
        f"{message.role}: "
        + " ".join(part.text if isinstance(part, Text) else f"[{part.kind}]" for part in message.parts)
        for message in request.messages
    ]
