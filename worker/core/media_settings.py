"""Settings of images and videos: limits, fetching and decoding."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from worker.core.setting_hints import Expected
from worker.core.setting_types import Count, Group, Positive, Seconds
from worker.core.units import MIB


class MediaSettings(Group):
    """Limits on the number and size of images and videos. A request can lower the token limits, never raise them."""

    heading = "Images and videos"

    max_images: Positive = Field(16, description="Max images in a request")
    max_videos: Positive = Field(2, description="Max videos in a request")
    max_image_tokens: Positive = Field(
        1280, description="Max tokens of an image; larger images are resized. Raise it for documents and small text"
    )
    max_video_tokens: Positive = Field(
        16_384, description="Max tokens of a video, at most half of the context length; larger videos are resized"
    )
    max_media_tokens: Positive | None = Field(
        None,
        description="Max tokens of all media of a request, checked before decoding; unset: the context length",
    )
    max_frames: Positive = Field(
        256, le=768, description="Max number of frames sampled from a video, or given as a frame list"
    )
    max_video_fps: Annotated[float, Field(gt=0, le=240)] = Field(
        8.0, description="Max frames per second that a request can ask to sample from a video"
    )
    max_video_s: Seconds = Field(600.0, description="Max duration of a video")
    max_image_pixels: Positive = Field(50_000_000, description="Max pixels of an image before resizing")
    max_image_side: Positive = Field(
        16_384, description="Max length of an image's longer side before resizing, in pixels"
    )
    max_video_frame_pixels: Positive = Field(4096 * 2160, description="Max pixels of a video's frames")
    max_video_side: Positive = Field(4096, description="Max longer side of a video's frames, in pixels")
    max_video_packets: Positive = Field(36_000, description="Max frames in a video, sampled or not")
    max_image_bytes: Positive = Field(20 * MIB, description="Max size of an image file")
    max_video_bytes: Positive = Field(128 * MIB, description="Max size of a video file")
    max_job_bytes: Positive = Field(192 * MIB, description="Max size of all media files of a request")
    max_job_pixels: Positive = Field(400_000_000, description="Max pixels of all media of a request before resizing")


class FetchSettings(Group):
    """Fetching URLs, and which ones are allowed."""

    heading = "Fetching media"

    media_allowed_domains: Annotated[
        str,
        StringConstraints(pattern=r"^[^/:@?#]*$"),
        Expected("a list of domains such as example.org,cdn.example.net, without https:// or a port"),
    ] = Field(
        "", description="Comma-separated domains (with their subdomains) that may be fetched; empty: any public one"
    )
    allowed_media_paths: str = Field(
        "", description="Colon-separated folders from which requests may read files as `file:///…`; empty: none"
    )
    media_allow_loopback: bool = Field(
        False, description="Allow URLs of this machine, on any port: for tests and local use only"
    )
    max_fetches: Positive = Field(16, description="Max concurrent downloads, of all requests")
    max_redirects: Count = Field(3, description="Max redirects followed; each target is checked again")
    connect_timeout_s: Seconds = Field(5.0, description="Max seconds to resolve a name, and to connect")
    read_timeout_s: Seconds = Field(10.0, description="Max seconds between two reads while downloading")
    image_timeout_s: Seconds = Field(20.0, description="Max seconds to fetch an image in total")
    video_timeout_s: Seconds = Field(90.0, description="Max seconds to fetch a video in total")


class DecodeSettings(Group):
    """Decoding files, and the memory for it."""

    heading = "Decoding media"

    media_isolate: Literal["auto", "thread", "process"] = Field(
        "auto",
        description="`process`: decode in child processes with limited memory, so that a codec crash or timeout only "
        "fails one request. `auto`: `process` on RunPod and in the HTTP server, `thread` elsewhere",
    )
    decode_memory_bytes: Positive = Field(
        2048 * MIB,
        description="Memory for media of all requests: a quarter for files, half for decoders, a quarter for decoded "
        "pixels at the size that the model sees, or, for `annotate` and `crops`, at up to 16 million each",
    )
    video_pixel_aspect: Literal["display", "coded"] = Field(
        "display",
        description="How videos whose pixels are not square are seen. `display`: in the shape in which players show "
        "them; `coded`: as stored, as qwen-vl-utils and transformers do",
    )
    decode_timeout_s: Seconds = Field(10.0, description="Max seconds to decode an image")
    video_decode_timeout_s: Seconds = Field(60.0, description="Max seconds to decode a video")
