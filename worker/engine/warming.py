"""A picture and a video answered before the first request, so that it finds everything as the second does."""

import queue

import numpy as np

from worker.contract import ChatRequest, Clip, Done, Event, Kind, Media, Message, Opened, Picture, Sampling, Text, Url
from worker.engine.engine import Engine
from worker.errors import WorkerError

SIDE = 128  # of the picture, in pixels: what is made at the first use is made for small ones too
NUM_FRAMES = 4
_SAMPLING = Sampling(temperature=0.0, max_tokens=2, ignore_eos=True)


def warm_up(engine: Engine, *, with_video: bool = True) -> None:
    """Returns when a question about both (or about a picture) is answered. Raises WorkerError where it cannot be."""
    noise = np.random.default_rng(0).integers
    picture = noise(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    frames = tuple(noise(0, 255, (NUM_FRAMES, SIDE // 2, SIDE // 2, 3), dtype=np.uint8))
    shown: list[tuple[Kind, Opened]] = [("image", Picture(picture))]
    if with_video:
        shown.append(("video", Clip(frames, 2.0)))
    ended: queue.SimpleQueue[Event | WorkerError] = queue.SimpleQueue()
    media = [Media(kind=kind, source=Url(url="memory:"), where="warm-up") for kind, _ in shown]
    request = ChatRequest(messages=(Message(role="user", parts=(*media, Text(text="?"))),), sampling=_SAMPLING)
    engine.submit(engine.builder.build(request, [opened for _, opened in shown]), _SAMPLING, ended.put)
    while True:
        event = ended.get()
        if isinstance(event, WorkerError):
            raise event
        if isinstance(event, Done):
            return
