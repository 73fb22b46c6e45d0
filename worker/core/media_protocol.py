"""What turns references to pictures and videos into pixels, and the sizes at which a model sees them."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from worker.core.contract import ChatRequest, Controls, Done, Kind, Media, Text
from worker.core.opened import RGB, Opened, Picture
from worker.core.outcome import Outcome, Outputs


class MediaRoom(Protocol):
    """Memory that a request holds for its media."""

    def settle(self, opened: Sequence[Opened]) -> None:
        """This is all: hold no more than it takes."""
        ...


class MediaOpener(Protocol):
    """Opens the media of a request."""

    def room(self, items: Sequence[Media], more_images: int = 0) -> AbstractAsyncContextManager[MediaRoom]:
        """The memory for what the media become, held as long as any of it is alive: enter it before `open`, once for a
        request, and leave it when the request ends. more_images: that are opened beside `items`."""
        ...

    async def open(self, items: Sequence[Media]) -> tuple[tuple[Opened, ...], ...]:
        """For each reference what it became, in order: one picture or clip, or several, as a document its pages. Raises
        MediaError with the reference's place."""
        ...

    async def drawn(self, media: Sequence[Opened], outputs: Outputs, done: Done, max_bytes: int) -> tuple[Outcome, ...]:
        """The outcomes of a request's answers with the pictures that it wants back: together at most `max_bytes` in
        base64. Raises ResultTooLarge."""
        ...

    async def read(self, items: Sequence[Media]) -> tuple[bytes, ...]:
        """The files of pictures, in order, not yet opened. Raises MediaError with the reference's place."""
        ...


class SizePolicy(Protocol):
    """Says at what size a model sees pictures and the frames of a video, before they are decoded."""

    @property
    def max_tokens(self) -> int:
        """The max tokens of all media of a request."""
        ...

    def picture(self, height: int, width: int, controls: Controls) -> tuple[int, int, int]:
        """Height and width at which a picture is seen, and its tokens. Raises MediaParamInvalid."""
        ...

    def clip(self, height: int, width: int, num_frames: int, controls: Controls) -> tuple[int, int, int]:
        """Height and width at which a frame of a video of `num_frames` frames is seen, and the video's tokens. Raises
        MediaParamInvalid."""
        ...

    def max_pixels(self, kind: Kind) -> int:
        """Of a picture, or of all frames of a video, at the model's size."""
        ...

    def resized(self, rgb: RGB, height: int, width: int) -> RGB:
        """The pixels, (height, width, 3), at another size. Safe to call from many threads."""
        ...


def with_opened(request: ChatRequest, opened: tuple[tuple[Opened, ...], ...]) -> tuple[ChatRequest, tuple[Opened, ...]]:
    """The request with one part for each picture and clip that its media became, and those in the same order. A
    reference that became several, as a document its pages, is as many parts."""
    if all(len(parts) == 1 for parts in opened):
        return request, tuple(parts[0] for parts in opened)
    left = iter(opened)
    messages = tuple(
        message.model_copy(
            update={"parts": tuple(part for original in message.parts for part in _parts_of(original, left))}
        )
        for message in request.messages
    )
    return request.model_copy(update={"messages": messages}), tuple(part for parts in opened for part in parts)


def _parts_of(part: Text | Media, left: Iterator[tuple[Opened, ...]]) -> list[Text | Media]:
    if isinstance(part, Text):
        return [part]
    became = next(left)
    kinds: list[Kind] = ["image" if isinstance(opened, Picture) else "video" for opened in became]
    places = [part.where] if len(became) == 1 else [f"{part.where}.pages[{index}]" for index in range(len(became))]
    return [part.model_copy(update={"kind": kind, "where": at}) for kind, at in zip(kinds, places, strict=True)]
