"""A HEIC photo for Pillow, decoded by libheif when its pixels are wanted: upright, as libheif turns it itself.

libheif's own reading of metadata is left alone (pi-heif 1.4.0 crashes on an item type that is no UTF-8): pixels, sides
and the color profile are all that is asked for.
"""

from typing import Any

import _pi_heif  # type: ignore[import-not-found]
from PIL import Image

from worker.core.errors import MediaCorrupt

NUM_THREADS = 1
# By position, in this order.
_OPTIONS = {
    "to_eight_bits": True, "to_bgr": False, "without_stride": True, "to_sixteen_bits": True, "decoder": "",
    "without_limits": False,
}  # fmt: skip


class Photo(Image.Image):
    """The file's primary picture. Raises what libheif's binding does: OSError, ValueError, SyntaxError, RuntimeError,
    EOFError."""

    format = "HEIF"

    def __init__(self, data: bytes) -> None:
        super().__init__()
        loaded = _pi_heif.load_file(data, NUM_THREADS, *_OPTIONS.values())
        images = [image for image in loaded if image is not None]
        if not images:
            raise MediaCorrupt()
        self._coded: Any = next((image for image in images if image.primary), images[0])
        self._size, self._mode = self._coded.size_mode
        profile = self._coded.color_profile
        if profile and profile["type"] in ("rICC", "prof"):
            self.info["icc_profile"] = profile["data"]

    def load(self) -> Any:
        """Decode it, once."""
        if self._coded is not None:
            coded, self._coded = self._coded, None
            data = coded.data
            self._size, _ = coded.size_mode
            self.im = Image.frombytes(self._mode, self._size, data, "raw", self._mode, coded.stride).im
        return super().load()
