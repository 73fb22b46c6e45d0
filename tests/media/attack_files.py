"""Pictures and videos of the table of attacks, each made when it is sent."""

import io
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import av
import numpy as np
from PIL import Image

from tests.fakes import encoded
from tests.media import index_attacks, picture_kinds
from tests.media.films import film
from tests.media.index_attacks import small_avif_of
from tests.media.test_picture import jpeg_with_scans, png
from tests.media.test_video import rotated


@dataclass(frozen=True)
class Sent:
    """A file: the code of its refusal or "seen", and its caps in seconds and MiB."""

    make: Callable[[], bytes]
    code: str = "seen"
    cpu_s: float = 3.0
    mib: int = 64
    controls: dict[str, Any] = field(default_factory=dict)


def _detailed(width: int = 320, height: int = 240) -> Image.Image:
    return Image.effect_noise((width, height), 90).convert("RGB")


PNG = encoded(Image.linear_gradient("L").resize((90, 60)).convert("RGB"))


def _of(mode: str, form: str = "PNG", size: tuple[int, int] = (64, 48), **options: Any) -> Callable[[], bytes]:
    return lambda: encoded(Image.new(mode, size), form, **options)


def _turned(orientation: int) -> Callable[[], bytes]:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return lambda: encoded(_detailed(), "JPEG", exif=exif)


def _zeros(width: int, height: int) -> bytes:
    """A whole PNG of one bit a pixel, all black: many pixels in a few KiB."""
    row = bytes(1 + (width + 7) // 8)
    packer = zlib.compressobj(9)
    body = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return png(width, height, body, bits=1, colours=0)


def _palette() -> bytes:
    image = Image.new("P", (32, 32), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    return encoded(image, "PNG", transparency=1)


def _deep() -> bytes:
    return encoded(Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16))


def _moving(form: str) -> Callable[[], bytes]:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue", "green")]
    return lambda: encoded(frames[0], form, save_all=True, append_images=frames[1:], duration=100)


def growing() -> bytes:
    """A GIF of 24x16 whose third frame says that it is 18,460 x 41,136 pixels."""
    data = bytearray(_moving("GIF")())
    at = [index for index in range(len(data)) if data[index] == 0x2C][-1]
    data[at + 5 : at + 9] = struct.pack("<HH", 18_460, 41_136)
    return bytes(data)


def _flipped(make: Callable[[], bytes], seed: int) -> Callable[[], bytes]:
    def flip() -> bytes:
        chance = random.Random(seed)
        data = bytearray(make())
        for _ in range(20):
            data[chance.randrange(16, len(data))] ^= 1 << chance.randrange(8)
        return bytes(data)

    return flip


_UNSUPPORTED, _CORRUPT = "MEDIA_UNSUPPORTED_TYPE", "MEDIA_CORRUPT"
_SIDES, _LARGE, _LONG = "MEDIA_DIMENSIONS", "MEDIA_TOO_LARGE", "MEDIA_VIDEO_TOO_LONG"
_ANY = f"seen | {_LARGE} | {_CORRUPT} | {_SIDES} | {_UNSUPPORTED} | {_LONG} | MEDIA_VIDEO_NO_FRAMES"

PICTURES: dict[str, Sent] = {
    "1x1": Sent(_of("RGB", size=(1, 1))),
    "1x300": Sent(_of("RGB", size=(1, 300)), _SIDES),
    "200 to 1": Sent(_of("RGB", size=(400, 2))),
    "201 to 1": Sent(_of("RGB", size=(402, 2)), _SIDES),
    "16,385 a side": Sent(lambda: png(16_385, 100), _SIDES),
    "51 million pixels": Sent(lambda: _zeros(10_200, 5_000), _SIDES),
    "169 million pixels in 20 KiB": Sent(lambda: _zeros(13_000, 13_000), _SIDES),
    "49 million pixels": Sent(lambda: _zeros(7_000, 7_000), mib=600),
    "310 scans": Sent(lambda: jpeg_with_scans(310), _LARGE),
    "20,000 chunks": Sent(lambda: PNG[:8] + b"\0\0\0\0aaAa\0\0\0\0" * 20_000, _LARGE),
    "JPEG, cut": Sent(lambda: encoded(_detailed(), "JPEG")[:9000], _CORRUPT),
    "PNG, cut": Sent(lambda: PNG[:-30], _CORRUPT),
    "WebP, cut": Sent(lambda: encoded(_detailed(), "WEBP")[:5000], _CORRUPT),
    "wrong checksum": Sent(lambda: PNG.replace(b"IDAT", b"IDAT\0", 1), _CORRUPT),
    "palette and transparency": Sent(_palette),
    "LA": Sent(_of("LA")),
    "RGBA": Sent(_of("RGBA")),
    "16 bits": Sent(_deep),
    "CMYK": Sent(_of("CMYK", "JPEG")),
    **{f"EXIF {turn}": Sent(_turned(turn)) for turn in range(1, 9)},
    "MPO": Sent(_of("RGB", "MPO")),
    "AVIF": Sent(_of("RGB", "AVIF")),
    "AVIF of 8000x8000 that says 64x64": Sent(lambda: small_avif_of(8000), _CORRUPT),
    "HEIC without pictures": Sent(lambda: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64), _CORRUPT),
    "SVG": Sent(
        lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>", _UNSUPPORTED
    ),
    "EPS": Sent(lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) (r) file", _UNSUPPORTED),
    "PDF": Sent(lambda: b"%PDF-1.7\n", _UNSUPPORTED),
    "TIFF of one huge tile": Sent(lambda: picture_kinds.tiled_tiff(64, 16384), _LARGE),
    "JPEG 2000 of precincts of one pixel": Sent(
        lambda: picture_kinds.j2k(2000, 2000, bytes([1, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0])), _LARGE
    ),
    "HEIC of pictures made of pictures": Sent(picture_kinds.nested_heic, _LARGE),
    "HEIC": Sent(lambda: picture_kinds.heic(picture_kinds.four_colors())),
    "700 color profiles that inflate": Sent(
        lambda: picture_kinds.png_with(*[picture_kinds.profile_chunk(bytes(5 * 2**20))] * 700)
    ),
    "3,000 texts that inflate": Sent(
        lambda: picture_kinds.png_with(*[picture_kinds.text_chunk(b"a", bytes(2**20))] * 3000)
    ),
    "TIFF": Sent(_of("RGB", "TIFF")),
    "GIF and a script": Sent(lambda: encoded(Image.new("RGB", (6, 6)), "GIF") + b"<?php system('id'); ?>%PDF-1.4"),
    **{f"animated {form}": Sent(_moving(form)) for form in ("GIF", "WEBP", "PNG")},
    **{f"flipped bits {seed}": Sent(_flipped(lambda: encoded(_detailed(), "JPEG"), seed), _ANY) for seed in range(4)},
}


def sound() -> bytes:
    """An MP4 with a second of silence and nothing to see."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream: Any = container.add_stream("aac", rate=8000, layout="mono")
        for start in range(0, 8192, 1024):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.sample_rate, silence.pts = 8000, start
            container.mux(stream.encode(silence))
        container.mux(stream.encode(None))
    return out.getvalue()


class _Stream(io.BytesIO):
    """A file that cannot be rewound: a muxer that writes to it leaves lengths out."""

    def seekable(self) -> bool:
        return False

    seek = None  # type: ignore[assignment]
    tell = None  # type: ignore[assignment]


def _endless_webm() -> bytes:
    out = _Stream()
    with av.open(out, "w", format="webm") as container:
        stream: Any = container.add_stream("libvpx", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(20):
            container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(stream.encode(None))
    return out.getvalue()


def _huge() -> bytes:
    """One frame of 8192x8192."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=1, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 8192, 8192, "yuv420p"
        container.mux(stream.encode(av.VideoFrame(8192, 8192, "yuv420p")))
        container.mux(stream.encode(None))
    return out.getvalue()


def _lying(data: bytes) -> bytes:
    """A duration of weeks in the movie's header."""
    at = data.index(b"mvhd") + 4 + 4 + 8 + 4
    return data[:at] + (2**31 - 1).to_bytes(4, "big") + data[at + 4 :]


def _two_hours() -> bytes:
    return film(720, times=[index * 10.0 for index in range(720)], form="matroska", size=(32, 32))


_FAST_X265 = {"x265-params": "log-level=none", "preset": "ultrafast"}
FILMS: dict[str, Sent] = {
    "plain": Sent(lambda: film(20)),
    "ffconcat": Sent(lambda: b"ffconcat version 1.0\nfile /etc/passwd\n", _UNSUPPORTED),
    "m3u8": Sent(lambda: b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", _UNSUPPORTED),
    "mpd": Sent(lambda: b"<?xml version='1.0'?><MPD><BaseURL>file:///etc/passwd</BaseURL></MPD>", _UNSUPPORTED),
    "sdp": Sent(lambda: b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 9 RTP/AVP 96\n", _UNSUPPORTED),
    "rotated": Sent(lambda: rotated(film(20))),
    "varying rate": Sent(lambda: film(12, times=[0.03 * index**2 for index in range(12)], form="matroska")),
    "WebM without duration": Sent(_endless_webm),
    "one frame": Sent(lambda: film(1)),
    "three frames": Sent(lambda: film(3)),
    "240 a second": Sent(lambda: film(240, fps=240)),
    "8192x8192": Sent(_huge, _SIDES),
    "size changes": Sent(
        lambda: film(20, form="mpegts") + film(20, form="mpegts", size=(320, 192)), f"seen | {_SIDES}"
    ),
    "JPEG 2000 in QuickTime": Sent(lambda: film(4, codec="jpeg2000", form="mov", pixels="rgb24"), _UNSUPPORTED),
    "MJPEG in QuickTime": Sent(lambda: film(4, codec="mjpeg", form="mov", pixels="yuvj420p")),
    "cut in its index": Sent(lambda: film(20)[:-200], _CORRUPT),
    "without its index": Sent(lambda: film(20)[:600], _CORRUPT),
    "begins at 7 s": Sent(lambda: film(20, times=[7 + index / 10 for index in range(20)], form="matroska")),
    "a duration of weeks": Sent(lambda: _lying(film(20))),
    "two hours, tiny": Sent(_two_hours, _LONG),
    "37,000 frames": Sent(lambda: film(37_000, codec="mpeg4", form="avi", size=(16, 16), fps=240), _LONG),
    "HEVC of 10 bits": Sent(lambda: film(20, codec="libx265", pixels="yuv420p10le", options=_FAST_X265)),
    "start behind its end": Sent(lambda: film(20), "MEDIA_PARAM_INVALID", controls={"video_start": 99.0}),
    "end before its start": Sent(
        lambda: film(20), "MEDIA_PARAM_INVALID | MEDIA_VIDEO_NO_FRAMES", controls={"video_start": 0.4, "video_end": 0.1}
    ),
    **{f"flipped bits {seed}": Sent(_flipped(lambda: film(20), seed), _ANY) for seed in range(6)},
    **{
        f"{form}: {name}": Sent(make, code, mib=150)
        for form, files in (
            ("MP4", index_attacks.MP4),
            ("Matroska", index_attacks.MATROSKA),
            ("AVI", index_attacks.AVI),
        )
        for name, (make, code) in files.items()
    },
}
