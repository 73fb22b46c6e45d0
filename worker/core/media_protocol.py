"""What turns references to pictures and videos into pixels, and the sizes at which a model sees them."""

from collections.abc import Sequence
from typing import Protocol

from worker.core.contract import RGB, Controls, Media, Opened


class MediaOpener(Protocol):
    """Opens the media of a request."""

    async def open(self, items: Sequence[Media]) -> tuple[tuple[Opened, ...], ...]:
        """For each reference what it became, in order: one picture or clip, or several, as a document its pages. Raises
        MediaError with the reference's place."""
        ...

    async def read(self, items: Sequence[Media]) -> tuple[bytes, ...]:
        """The files of pictures, in order, not yet opened. Raises MediaError with the reference's place."""
        ...


class SizePolicy(Protocol):
    """Says at what size a model sees pictures and the frames of a video, before they are decoded."""

    @property
    def max_tokens(self) -> int:
        """The most tokens of all media of a request."""
        ...

    def picture(self, height: int, width: int, controls: Controls) -> tuple[int, int, int]:
        """Height and width at which a picture is seen, and its tokens. Raises MediaParamInvalid."""
        ...

    def clip_tokens(self, height: int, width: int, num_frames: int, controls: Controls) -> int:
        """Tokens of a video of `num_frames` frames. Raises MediaParamInvalid."""
        ...

    def shrink(self, rgb: RGB, num_frames: int, controls: Controls) -> RGB:
        """One of `num_frames` frames, (height, width, 3), at the model's size. Raises MediaParamInvalid."""
        ...
