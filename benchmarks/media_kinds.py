"""What the less usual kinds of pictures and videos cost beside the plain one of the same content: color profiles, HEIC,
HDR, videos that are decoded once before they are seen.

python -m benchmarks.media_kinds [--rounds 5]

Milliseconds of one thread from the file to pixels (pictures of 12 MP for a model that sees 1280 tokens; of videos ten
frames), medians, the plain kind and the other by turns. And what importing costs where a kind needs more modules.
"""

import argparse
import io
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from PIL import Image, ImageCms

from benchmarks.media import photo
from builder.scheduling import same_scheduling
from tests.media import film_kinds, picture_kinds
from tests.media.films import frame
from worker.core.settings import Settings
from worker.media import tone_map, video
from worker.media.picture import decode, read_header
from worker.media.sniff import sniff

SETTINGS = Settings(max_frames=10)
WANTED = 992, 1312  # of a picture, upright
NUM_FRAMES = 10
HLG = 18
Work = Callable[[], object]


@dataclass(frozen=True)
class Pair:
    """A kind beside the plain one."""

    plain: str
    other: str
    run_plain: Work
    run_other: Work


def _picture(data: bytes) -> Work:
    return lambda: decode(read_header(data, SETTINGS), WANTED)


def _saved(image: Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def picture_pairs() -> list[Pair]:
    plain = photo(4032, 3024, 90)
    image = Image.open(io.BytesIO(plain))
    image.load()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    wide = picture_kinds.screen_profile((0.6809, 0.3190), (0.2816, 0.6748), (0.1523, 0.0640), 2.2)
    jpeg, png = "JPEG of 12 MP", "PNG of 12 MP"
    of_png = _picture(_saved(image, "PNG", compress_level=1))
    deep = picture_kinds.deep_png(np.asarray(image).astype(np.uint16) << 8, 2, bytes(6))
    in_srgb, in_p3 = (_saved(image, "JPEG", quality=90, icc_profile=profile) for profile in (srgb, wide))
    masked = picture_kinds.bmp_with_masks(np.asarray(image), 16, (0xF800, 0x7E0, 0x1F))
    return [
        Pair(jpeg, "with a profile that is sRGB", _picture(plain), _picture(in_srgb)),
        Pair(jpeg, "in Display P3", _picture(plain), _picture(in_p3)),
        Pair(jpeg, "without its end marker", _picture(plain), _picture(plain[:-2])),
        Pair(jpeg, "as HEIC", _picture(plain), _picture(picture_kinds.heic(image))),
        Pair(jpeg, "as JPEG 2000", _picture(plain), _picture(_saved(image, "JPEG2000", quality_layers=[20]))),
        Pair(png, "in Display P3", of_png, _picture(_saved(image, "PNG", compress_level=1, icc_profile=wide))),
        Pair(png, "of 16 bits, one transparent color", of_png, _picture(deep)),
        Pair(png, "as BMP behind masks", of_png, _picture(masked)),
    ]  # fmt: skip


def _film(form: str, size: tuple[int, int] = (1280, 720), trc: int = 1, **options: str) -> bytes:
    out = io.BytesIO()
    with same_scheduling(), av.open(out, "w", format=form) as container:
        is_deep = trc == HLG
        stream: Any = container.add_stream("libx265" if is_deep else "libx264", rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p10le" if is_deep else "yuv420p"
        stream.codec_context.color_trc = trc
        for number in range(120):
            shown = av.VideoFrame.from_ndarray(frame(number, *size), format="rgb24")
            container.mux(stream.encode(shown))
        container.mux(stream.encode(None))
    return out.getvalue()


def _video(data: bytes) -> Work:
    form = sniff(data).video
    assert form is not None

    def run() -> object:
        packets = video.read_packets(data, form, SETTINGS)
        if packets.is_unclear:
            packets = video.examine(data, form, packets, SETTINGS)
        clip = video.decode(data, form, packets, _spread(packets), SETTINGS, _smaller)
        if clip.source is not None and clip.source.frames_lost and not packets.is_examined:
            packets = video.examine(data, form, packets, SETTINGS)
            clip = video.decode(data, form, packets, _spread(packets), SETTINGS, _smaller)
        return clip

    return run


def _spread(packets: video.Packets) -> Sequence[int]:
    return [int(at) for at in np.linspace(0, len(packets.times) - 1, NUM_FRAMES).round()]


def _smaller(rgb: np.ndarray, _: int) -> np.ndarray:
    return rgb[::8, ::8].copy()


def video_pairs() -> list[Pair]:
    base = _film("mp4", bf="2", g="30", preset="veryfast")
    avi = _film("avi", bf="2", g="30", preset="veryfast")
    plain = "4 s of 720p, H.264 in MP4"
    pairs = [
        Pair(plain, "in AVI (decoded once before)", _video(base), _video(avi)),
        Pair(plain, "with a bad packet (decoded once before)", _video(base), _video(film_kinds.with_noise(base, 60))),
        Pair(plain, "mirrored", _video(base), _video(film_kinds.with_matrix(base, 2))),
    ]
    for name, size in (("1080p", (1920, 1080)), ("4K", (3840, 2160))):
        run = _video(_film("mp4", size, HLG, **{"x265-params": "log-level=none", "preset": "ultrafast"}))
        pairs.append(Pair(f"4 s of {name}, HEVC of ten bits", "HDR (HLG)", _unmapped(run), run))
    return pairs


def _unmapped(run: Work) -> Work:
    """The same video, its colors left alone."""

    def plain() -> object:
        curves = dict(tone_map.CURVES)
        tone_map.CURVES.clear()
        try:
            return run()
        finally:
            tone_map.CURVES.update(curves)

    return plain


def measured(pair: Pair, rounds: int) -> str:
    seconds: dict[str, list[float]] = {"plain": [], "other": []}
    for _ in range(rounds + 1):
        for name, run in (("plain", pair.run_plain), ("other", pair.run_other)):
            began = time.thread_time()
            run()
            seconds[name].append(time.thread_time() - began)
    plain, other = (statistics.median(times[1:]) * 1000 for times in seconds.values())
    return f"| {pair.plain} | {plain:.0f} | {pair.other} | {other:.0f} | {other - plain:+.0f} |"


def import_ms(module: str) -> float:
    """Beyond Pillow and NumPy."""
    code = f"import time, PIL.Image, numpy; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    return 1000 * statistics.median(
        float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
        for _ in range(3)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print("| plain | ms | the other | ms | difference, ms |\n|---|---|---|---|---|")
    for pair in (*picture_pairs(), *video_pairs()):
        print(measured(pair, options.rounds), flush=True)
    print("\n| module | for | import, ms |\n|---|---|---|")
    for module, purpose in (("_pi_heif", "the first HEIC"), ("PIL.ImageCms", "the first color profile")):
        print(f"| {module} | {purpose} | {import_ms(module):.0f} |")


if __name__ == "__main__":
    main()
