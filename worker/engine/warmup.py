"""A picture and a video answered before the first request, so that it finds everything as the second does."""

import contextlib
import queue

import numpy as np

from worker.core.contract import ChatRequest, Done, Event, Kind, Media, Message, Text, Url
from worker.core.errors import WorkerError
from worker.core.opened import RGB, Clip, Opened, Picture
from worker.core.sampling import Sampling
from worker.engine.engine import Engine
from worker.models.openmp import end_team

SIDE = 128  # of the picture, in pixels: what is made at the first use is made for small ones too
NUM_FRAMES = 4
_SAMPLING = Sampling(temperature=0.0, max_tokens=2, ignore_eos=True)


class WarmUp:
    """A question about both (or about a picture), on its way from here on. ends: the engine is for this alone, and is
    closed with its answer. Raises WorkerError where it cannot be."""

    def __init__(self, engine: Engine, *, with_video: bool = True, ends: bool = False) -> None:
        shown: list[tuple[Kind, Opened]] = [("image", Picture(_stripes(SIDE)))]
        if with_video:
            shown.append(("video", Clip((_stripes(SIDE // 2),) * NUM_FRAMES, 2.0)))
        self._ending = engine if ends else None
        self._events: queue.SimpleQueue[Event | WorkerError] = queue.SimpleQueue()
        media = [Media(kind=kind, source=Url(url="memory:"), where="warm-up") for kind, _ in shown]
        request = ChatRequest(messages=(Message(role="user", parts=(*media, Text(text="?"))),), sampling=_SAMPLING)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self.close)
            prompt = engine.builder.build(request, [opened for _, opened in shown])
            end_team()  # this thread computes no more
            engine.submit(prompt, _SAMPLING, self._events.put)
            on_failure.pop_all()

    def wait(self) -> None:
        """Until it is answered. Raises WorkerError."""
        try:
            while not isinstance(event := self._events.get(), Done):
                if isinstance(event, WorkerError):
                    raise event
        finally:
            self.close()

    def close(self) -> None:
        """Nobody waits for the answer."""
        engine, self._ending = self._ending, None
        if engine is not None:
            engine.close()


def _stripes(side: int) -> RGB:
    return np.arange(side * side * 3, dtype=np.uint8).reshape(side, side, 3)
