"""At what size a model of a known family sees pictures and videos; see `core.media_protocol.SizePolicy`."""

import sys

from worker.checkpoint.preprocessor import PreprocessorConfig
from worker.core.contract import Controls, Kind
from worker.core.opened import RGB
from worker.core.settings import Settings
from worker.prompt.patches import resized
from worker.prompt.sizes import Size, image_size, video_size, video_tokens


class SmartResizePolicy:
    """The sizes that the families' processors choose: known from headers, before anything is decoded."""

    def __init__(self, preprocessor: PreprocessorConfig, settings: Settings, max_model_len: int | None = None) -> None:
        self._preprocessor = preprocessor
        self.max_tokens = min(settings.max_media_tokens or sys.maxsize, max_model_len or sys.maxsize)
        self._max_image_tokens = settings.max_image_tokens
        self._max_tokens = video_tokens(settings, max_model_len)

    def picture(self, height: int, width: int, controls: Controls) -> tuple[int, int, int]:
        """Height and width at which a picture is seen, and its tokens. Raises MediaParamInvalid."""
        size = image_size(height, width, self._preprocessor, self._max_image_tokens, controls)
        return size.height, size.width, size.height * size.width // self._preprocessor.factor**2

    def clip(self, height: int, width: int, num_frames: int, controls: Controls) -> tuple[int, int, int]:
        """Height and width at which a frame of a video of `num_frames` frames is seen, and the video's tokens. Raises
        MediaParamInvalid."""
        count = num_frames + -num_frames % self._preprocessor.temporal
        size = video_size(count, height, width, self._preprocessor, self._max_tokens, controls)
        tokens = count // self._preprocessor.temporal * size.height * size.width // self._preprocessor.factor**2
        return size.height, size.width, tokens

    def max_pixels(self, kind: Kind) -> int:
        """Of a picture, or of all frames of a video, at the model's size."""
        token = self._preprocessor.factor**2
        if kind == "image":
            return min(self._preprocessor.image_max_pixels, self._max_image_tokens * token)
        most = self._max_tokens * token * self._preprocessor.temporal
        return most if self._preprocessor.is_video_per_frame else min(self._preprocessor.video_max_pixels, most)

    def resized(self, rgb: RGB, height: int, width: int) -> RGB:
        """The pixels, (height, width, 3), at another size."""
        pixels: RGB = resized(rgb, Size(height, width)).permute(1, 2, 0).contiguous().numpy()
        return pixels
