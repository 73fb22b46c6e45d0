"""Requests for engine tests: what is asked, and what is shown, drawn from fixed seeds."""

import random
from dataclasses import dataclass

import numpy as np

from builder.tiny_model import scenes
from worker.core.contract import ChatRequest, Inline, Media, Message, Text
from worker.core.opened import Clip, Opened, Picture
from worker.core.sampling import Sampling


@dataclass(frozen=True)
class Shown:
    """A request and its opened media."""

    request: ChatRequest
    media: tuple[Opened, ...]


def picture(seed: int, width: int = 160, height: int = 128, num_things: int = 2) -> Picture:
    rng = random.Random(seed)
    scene = scenes.random_scene(rng, width / height, num_things)
    return Picture(np.array(scenes.draw(scene, width, height, rng)))


def clip(seed: int, num_frames: int = 4, fps: float | None = 2.0) -> Clip:
    rng = random.Random(seed)
    moving = scenes.random_clip(rng, 1.0, num_frames)
    return Clip(tuple(np.array(scenes.draw(frame, 128, 128, rng)) for frame in moving.frames), fps)


def ask(text: str, *media: Opened, **sampling: object) -> Shown:
    """A user's message: the media, then the text."""
    parts = tuple(
        Media(kind="image" if isinstance(one, Picture) else "video", source=Inline(data=""), where="test")
        for one in media
    )
    message = Message(role="user", parts=(*parts, Text(text=text)))
    request = ChatRequest(messages=(message,), sampling=Sampling.model_validate(sampling), stream=True)
    return Shown(request, media)


def varied() -> list[Shown]:
    """Text, one image, two images of different sizes, frames, image and frames, several turns."""
    turns = ChatRequest(
        messages=(
            Message(role="system", parts=(Text(text="Answer briefly."),)),
            Message(
                role="user", parts=(Media(kind="image", source=Inline(data=""), where="t"), Text(text="What is it?"))
            ),
            Message(role="assistant", parts=(Text(text="A picture."),)),
            Message(role="user", parts=(Text(text="How many objects are there?"),)),
        )
    )
    return [
        ask("Who are you?", max_tokens=24),
        ask("What is in the picture?", picture(1), max_tokens=24),
        ask("Compare.", picture(2), picture(3, 288, 96), max_tokens=24),
        ask("What moves, and where?", clip(4), max_tokens=24),
        ask("Describe both.", picture(5, 96, 200), clip(6, 6), max_tokens=24),
        Shown(turns, (picture(7),)),
        ask("图片里有什么？", picture(8, 400, 300), max_tokens=24),
        ask("Locate the red circle.", picture(9), max_tokens=48),
    ]
