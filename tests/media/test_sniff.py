"""Types by their names in HTTP."""

import io

import av
import numpy as np
import pytest
from PIL import Image

from worker.media.sniff import media_type


@pytest.mark.parametrize(
    ("form", "name"),
    [("PNG", "image/png"), ("JPEG", "image/jpeg"), ("WEBP", "image/webp"), ("GIF", "image/gif"), ("BMP", "image/bmp"),
     ("TIFF", "image/tiff"), ("ICO", "image/x-icon"), ("JPEG2000", "image/jp2"), ("AVIF", "image/avif")],
)  # fmt: skip
def test_pictures(form: str, name: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, form)
    assert media_type(buffer.getvalue()) == name


@pytest.mark.parametrize(
    ("form", "codec", "name"),
    [("mp4", "libx264", "video/mp4"), ("mov", "libx264", "video/quicktime"), ("webm", "libvpx-vp9", "video/webm"),
     ("matroska", "libx264", "video/x-matroska"), ("avi", "mpeg4", "video/x-msvideo"),
     ("mpegts", "libx264", "video/mp2t")],
)  # fmt: skip
def test_films(form: str, codec: str, name: str) -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", form) as container:
        stream = container.add_stream(codec, rate=5)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))))
        container.mux(stream.encode())
    assert media_type(buffer.getvalue()) == name


@pytest.mark.parametrize("data", [b"", b"text", b"%PDF-1.7", b"<svg"])
def test_what_is_neither_has_no_type(data: bytes) -> None:
    assert media_type(data) == ""
