"""What is fuzzed: a stranger's bytes, opened as a picture and as a video. Anything but a MediaError is a fault."""

import contextlib
import logging

import av.logging

from worker.core.contract import Controls
from worker.core.errors import MediaError
from worker.core.opened import RGB
from worker.core.settings import Settings
from worker.media import animation, frames, picture, video
from worker.media.sniff import sniff

SETTINGS = Settings(
    max_image_pixels=1_000_000,
    max_image_side=4096,
    max_video_frame_pixels=400_000,
    max_video_side=2048,
    max_video_packets=300,
    max_frames=8,
    decode_timeout_s=5.0,
    video_decode_timeout_s=5.0,
)
av.logging.set_level(None)
logging.getLogger("libav").setLevel(logging.CRITICAL)


def open_anything(data: bytes) -> None:
    """Raises what a caller must never see."""
    with contextlib.suppress(MediaError):
        header = picture.read_header(data, SETTINGS)
        pixels = picture.decode(header)
        assert pixels.shape == (header.height, header.width, 3), (pixels.shape, header.height, header.width)
    with contextlib.suppress(MediaError):
        _open_video(data)


def _open_video(data: bytes) -> None:
    found = sniff(data)
    limits = frames.Limits(SETTINGS.max_video_fps, SETTINGS.max_frames)
    if found.video is not None:
        packets = video.read_packets(data, found.video, SETTINGS)
        if packets.is_unclear:
            packets = video.examine(data, found.video, packets, SETTINGS)
        chosen = frames.choose(packets.times, Controls(), limits)
        clip = video.decode(data, found.video, packets, chosen, SETTINGS, _as_it_is)
    elif found.picture in animation.MOVING:
        times = animation.read_times(data, found, SETTINGS)
        chosen = frames.choose(times.times, Controls(), limits)
        clip = animation.decode(data, found, times, chosen, SETTINGS, _as_it_is)
    else:
        return
    assert 1 <= len(clip.frames) <= SETTINGS.max_frames
    assert clip.times is not None and len(clip.times) == len(clip.frames)
    assert list(clip.times) == sorted(clip.times)


def _as_it_is(rgb: RGB, num_frames: int) -> RGB:
    assert rgb.ndim == 3 and rgb.shape[2] == 3 and num_frames % 2 == 0
    return rgb
