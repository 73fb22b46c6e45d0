"""Pictures and videos once they are decoded: upright pixels that know their source. Knows no network and no model."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from worker.core.contract import NO_CONTROLS, Controls
from worker.core.media_warnings import MediaWarning

RGB = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Source:
    """A file before anything is made of it. height, width: upright, in pixels. orientation: EXIF's number of how its
    pixels are stored (1: upright). files: its bytes as they came, for an engine that reads files itself. type:
    detected, as `image/png`; num_bytes: of the file, or of all frames; fetch_s, decode_s: seconds until they had been
    read, and from there on. warnings: what its report says; frames_lost, is_truncated: of a video, what damage took."""

    height: int
    width: int
    orientation: int = 1
    files: tuple[bytes, ...] = field(default=(), repr=False)
    type: str = ""
    num_bytes: int = 0
    fetch_s: float = 0.0
    decode_s: float = 0.0
    warnings: tuple[MediaWarning, ...] = ()
    frames_lost: int = 0
    is_truncated: bool = False


@dataclass(frozen=True)
class Picture:
    """An opened picture, upright. rgb: (height, width, 3); smaller than its source where it was decoded at a part of
    the sides."""

    rgb: RGB
    controls: Controls = NO_CONTROLS
    source: Source | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the source."""
        return _source_size(self.source, self.rgb)


@dataclass(frozen=True)
class Clip:
    """An opened video: frames of one size, (height, width, 3) each. times: seconds at which they are shown; without
    them, `fps` a second (None: the checkpoint's rate). is_sized: they have the size at which the model sees them."""

    frames: tuple[RGB, ...]
    fps: float | None
    times: tuple[float, ...] | None = None
    controls: Controls = NO_CONTROLS
    is_sized: bool = False
    source: Source | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the source."""
        return _source_size(self.source, self.frames[0])


def _source_size(source: Source | None, rgb: RGB) -> tuple[int, int]:
    return (rgb.shape[0], rgb.shape[1]) if source is None else (source.height, source.width)


Opened = Picture | Clip
