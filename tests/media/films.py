"""Video files made on the spot: every frame shows its own number in black and white stripes."""

import io
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np

from builder.scheduling import same_scheduling
from worker.core.contract import Controls
from worker.core.settings import Settings
from worker.media import frames

NUM_BITS = 10


def frame(number: int, width: int = 160, height: int = 96) -> np.ndarray:
    """The number's bits as vertical stripes in the upper two thirds; below, a ramp from dark to light."""
    bits = [255 if number >> bit & 1 else 0 for bit in range(NUM_BITS)]
    rgb = np.zeros((height, width, 3), np.uint8)
    for bit, value in enumerate(bits):
        rgb[: height * 2 // 3, bit * width // NUM_BITS : (bit + 1) * width // NUM_BITS] = value
    rgb[height * 2 // 3 :] = np.linspace(20, 235, width, dtype=np.uint8)[None, :, None]
    return rgb


def number_of(rgb: np.ndarray) -> int:
    """The number that a frame shows, whatever its size."""
    height, width = rgb.shape[:2]
    middles = [int((bit + 0.5) * width / NUM_BITS) for bit in range(NUM_BITS)]
    return sum((int(rgb[height // 3, at].mean()) > 127) << bit for bit, at in enumerate(middles))


def chosen(times: Sequence[float], controls: Controls, settings: Settings) -> list[int]:
    """The frames that a request with these controls sees."""
    return frames.choose(times, controls, frames.Limits(settings.max_video_fps, settings.max_frames))


_MADE: dict[str, bytes] = {}


def film(count: int = 60, **made: Any) -> bytes:
    """See `_film`; made once, as encoding takes most of a test's time."""
    key = f"{count} {made}"
    if key not in _MADE:
        _MADE[key] = _film(count, **made)
    return _MADE[key]


def _film(
    count: int,
    *,
    codec: str = "libx264",
    form: str = "mp4",
    fps: int = 30,
    size: tuple[int, int] = (160, 96),
    times: Sequence[float] | None = None,
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
) -> bytes:
    """A file of `count` numbered frames, at `fps` or at `times` in seconds."""
    out = io.BytesIO()
    with same_scheduling(), av.open(out, "w", format=form) as container:
        stream: Any = container.add_stream(codec, rate=fps, options=options or {})
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(count):
            shown = av.VideoFrame.from_ndarray(frame(number, *size), format="rgb24")
            if times is not None:
                shown.pts, shown.time_base = round(times[number] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(shown))
        container.mux(stream.encode(None))
    return out.getvalue()
