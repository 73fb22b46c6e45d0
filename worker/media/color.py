"""Color profiles: pixels to sRGB by LittleCMS, as browsers do. A profile that changes nothing is left out."""

import io
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from PIL import Image

MAX_PROFILE_BYTES = 4 * 2**20
MAX_TAGS = 100
_TAGS_AT, _TAG_BYTES = 128, 12
Verdict = Literal["none", "converts", "unusable"]
_SPACES = {"RGB": "RGB", "CMYK": "CMYK", "L": "GRAY", "LAB": "Lab"}  # Pillow's modes, and ICC's names
_SAME_LEVELS = 2  # out of 255: what a profile may change for its colors to count as sRGB's
_STEPS = 9


@dataclass(frozen=True)
class Profile:
    """An ICC profile for pixels of a mode (RGB, CMYK, L) that are not sRGB's."""

    data: bytes
    mode: str

    def converted(self, image: Image.Image) -> Image.Image:
        """The picture in sRGB. `image` is of the profile's mode."""
        from PIL import ImageCms  # few pictures need it

        shown = ImageCms.applyTransform(image, _transform(self.data, self.mode))
        assert shown is not None
        return shown


def base_mode(mode: str) -> str:
    """The mode in which a profile applies to a picture of this one, without its transparency."""
    return "CMYK" if mode == "CMYK" else "L" if mode in ("L", "LA", "La", "1") or mode.startswith("I") else "RGB"


def judged(data: bytes, mode: str) -> Verdict:
    """Whether a profile changes the pixels of a picture of this mode."""
    if not data or mode in ("F", "1"):  # of which white stays white, and black black
        return "none"
    return "unusable" if len(data) > MAX_PROFILE_BYTES or _is_costly(data) else _judged(data, base_mode(mode))


def _is_costly(data: bytes) -> bool:
    """Whether it has a chain of elements of any length (`mpet`), as which LittleCMS would compute every color; browsers
    do not read those either."""
    count = int.from_bytes(data[_TAGS_AT : _TAGS_AT + 4], "big")
    if count > MAX_TAGS:
        return True
    entries = range(_TAGS_AT + 4, _TAGS_AT + 4 + count * _TAG_BYTES, _TAG_BYTES)
    places = (int.from_bytes(data[entry + 4 : entry + 8], "big") for entry in entries)
    return any(data[place : place + 4] == b"mpet" for place in places)


@lru_cache(maxsize=32)
def _judged(data: bytes, mode: str) -> Verdict:
    from PIL import ImageCms

    samples = _samples(mode)
    try:
        changed = ImageCms.applyTransform(samples, _transform(data, mode))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return "unusable"
    if mode == "CMYK" or changed is None:
        return "converts"
    difference = np.asarray(changed, np.int16) - np.asarray(samples.convert("RGB"), np.int16)
    return "none" if np.abs(difference).max() <= _SAME_LEVELS else "converts"


@lru_cache(maxsize=4)
def _transform(data: bytes, mode: str) -> Any:
    """Raises PyCMSError, OSError, ValueError, TypeError."""
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
    if profile.profile.xcolor_space.strip() != _SPACES[mode]:
        raise ValueError("a profile for other pixels")
    intent = ImageCms.Intent.PERCEPTUAL
    return ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB", renderingIntent=intent)


def _samples(mode: str) -> Image.Image:
    """A picture with colors from all over the space."""
    steps = np.linspace(0, 255, _STEPS).round().astype(np.uint8)
    if mode == "L":
        return Image.fromarray(steps[None, :])
    if mode == "CMYK":
        return Image.new("CMYK", (2, 2))
    red, green, blue = np.meshgrid(steps, steps, steps)
    return Image.fromarray(np.stack([red, green, blue], axis=-1).reshape(_STEPS, -1, 3))
