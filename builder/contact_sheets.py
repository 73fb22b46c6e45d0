"""What the model gets of ten pictures and ten videos, beside what a browser and FFmpeg show of them, for docs/media.md.

python -m builder.contact_sheets

Needs chromium and chromedriver, and what requirements-dev.txt installs.
"""

import asyncio
import base64
import io
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from matplotlib import get_data_path
from PIL import ExifTags, Image, ImageDraw
from selenium import webdriver

from builder.scheduling import same_scheduling
from builder.screenshots import OPTIONS, PICTURES
from worker.checkpoint.family_rules import QWEN3_VL_PIXELS as RULES
from worker.core.contract import Controls, Media, Upload
from worker.core.opened import Clip, Picture
from worker.core.settings import load
from worker.media.fetch import Fetcher
from worker.media.opener import Opener
from worker.prompt.patches import Patches, of_frames, of_picture
from worker.prompt.size_policy import SmartResizePolicy
from worker.prompt.sizes import Size, video_size

SETTINGS = load({"MAX_IMAGE_TOKENS": "256", "MAX_VIDEO_TOKENS": "512"})
FRAMES = Controls(nframes=4)
SHOWN = 190  # pixels of a sheet's pictures
STYLE = (
    "body{font:13px sans-serif;margin:12px;width:1000px;background:#fff;display:grid;gap:14px;"
    "grid-template-columns:repeat(COLUMNS,1fr)} figure{margin:0} figcaption{margin-bottom:4px}"
    "figure{white-space:nowrap} img{border:1px solid #888;margin-right:3px;max-width:235px;object-fit:contain}"
)


def photo() -> Image.Image:
    """A photograph that matplotlib brings along."""
    return Image.open(Path(get_data_path()) / "sample_data" / "grace_hopper.jpg").convert("RGB")


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def pictures() -> Iterator[tuple[str, bytes]]:
    whole = photo()
    flower = Image.open(Path(get_data_path()) / "sample_data" / "Minduka_Present_Blue_Pack.png")
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    deep = Image.fromarray((np.asarray(whole.convert("L"), np.uint16) * 257).astype(np.uint16))
    palette = flower.convert("RGBA").quantize(64)
    frames = [whole.crop((at, 0, at + 300, 300)) for at in (0, 100, 200)]
    yield "JPEG", saved(whole, "JPEG")
    yield "JPEG of 12 MP", saved(whole.resize((3000, 4000), Image.Resampling.BICUBIC), "JPEG")
    yield "JPEG with EXIF orientation 6", saved(whole.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=turned)
    yield "CMYK JPEG", saved(whole.convert("CMYK"), "JPEG")
    yield "PNG with transparency", saved(flower, "PNG")
    yield "PNG with a palette", saved(palette, "PNG")
    yield "PNG of 16 bits", saved(deep, "PNG")
    yield "WebP, three times as wide as high", saved(whole.crop((0, 100, 512, 270)), "WEBP")
    yield "AVIF, four times as high as wide", saved(whole.crop((180, 0, 330, 600)), "AVIF")
    yield "animated GIF", saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=60_000)


def scene(at_s: float) -> Image.Image:
    """The photograph passing by in four seconds, with the time on it."""
    left = round(at_s / 4 * 190)
    shown = photo().crop((left, 40, left + 320, 280))
    draw = ImageDraw.Draw(shown)
    draw.rectangle((0, 0, 74, 22), fill="white")
    draw.text((4, 3), f"{at_s:.2f} s", fill="black", font_size=16)
    return shown


def film(codec: str, form: str, times: list[float], pixels: str = "yuv420p", **options: str) -> bytes:
    out = io.BytesIO()
    with same_scheduling(), av.open(out, "w", format=form) as container:
        stream: Any = container.add_stream(codec, rate=15, options=options)
        stream.width, stream.height, stream.pix_fmt = 320, 240, pixels
        stream.codec_context.time_base = Fraction(1, 1000) if form == "matroska" else Fraction(1, 15)
        for at_s in times:
            frame = av.VideoFrame.from_ndarray(np.array(scene(at_s)), format="rgb24")
            frame.time_base = stream.codec_context.time_base
            frame.pts = round(at_s / frame.time_base)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()


def on_its_side(data: bytes) -> bytes:
    """An MP4 with the display matrix of a phone held upright: a quarter turn."""
    at = data.index(b"tkhd") + 4 + 40
    matrix = (0, 65536, 0, -65536, 0, 0, 240 * 65536, 0, 2**30)
    return data[:at] + b"".join(value.to_bytes(4, "big", signed=True) for value in matrix) + data[at + 36 :]


def videos() -> Iterator[tuple[str, bytes]]:
    steady = [index / 15 for index in range(60)]
    varying = [index / 30 for index in range(30)] + [1 + index / 2 for index in range(6)]
    moving = [scene(index / 2) for index in range(8)]
    quiet = {"x265-params": "log-level=none"}
    yield "H.264, MP4", film("libx264", "mp4", steady)
    yield "H.264 with B-frames, MPEG-TS", film("libx264", "mpegts", steady, bf="4")
    yield "H.264, varying rate, Matroska", film("libx264", "matroska", varying)
    yield "H.264 on its side, MP4", on_its_side(film("libx264", "mp4", steady))
    yield "HEVC of 10 bits, QuickTime", film("libx265", "mov", steady, "yuv420p10le", **quiet)
    yield "VP8, WebM", film("libvpx", "webm", steady)
    yield "VP9, WebM", film("libvpx-vp9", "webm", steady, deadline="realtime")
    yield "AV1, MP4", film("libsvtav1", "mp4", steady, preset="12")
    yield "MPEG-4, AVI", film("mpeg4", "avi", steady, b="2M")
    yield "animated WebP", saved(moving[0], "WEBP", save_all=True, append_images=moving[1:], duration=500)


def opened(data: bytes, kind: Any) -> Picture | Clip:
    size_policy = SmartResizePolicy(RULES, SETTINGS)
    opener = Opener(SETTINGS, Fetcher(SETTINGS), size_policy)
    item = Media(kind=kind, source=Upload(data=data), where=kind, controls=FRAMES if kind == "video" else Controls())
    try:
        [[shown]] = asyncio.run(opener.open([item]))
        return shown
    finally:
        opener.close()


def seen(shown: Picture | Clip) -> list[Image.Image]:
    """What is in the patches, put together again."""
    if isinstance(shown, Picture):
        height, width, _ = SmartResizePolicy(RULES, SETTINGS).picture(*shown.size, shown.controls)
        return unfolded(of_picture(shown.rgb, Size(height, width), RULES))
    height, width = shown.frames[0].shape[:2]
    size = video_size(len(shown.frames), height, width, RULES, SETTINGS.max_video_tokens, shown.controls)
    return unfolded(of_frames(shown.frames, size, RULES))


def unfolded(patches: Patches) -> list[Image.Image]:
    (t, h, w), m, p = patches.grid, RULES.merge, RULES.patch
    blocks = patches.pixels.view(t, h // m, w // m, m, m, 3, patches.copies, p, p)
    frames = blocks.permute(0, 6, 1, 3, 7, 2, 4, 8, 5).reshape(t * patches.copies, h * p, w * p, 3)
    return [Image.fromarray(frame.numpy()) for frame in torch.unbind(frames)]


def decoded(data: bytes, times: tuple[float, ...]) -> list[Image.Image]:
    """The frames nearest to these times, decoded whole and one after the other, turned as the file says."""
    with av.open(io.BytesIO(data), mode="r") as container:
        frames = [(float(frame.time or 0), frame) for frame in container.decode(video=0)]
    first = frames[0][0]
    nearest = [min(frames, key=lambda each: abs(each[0] - first - at))[1] for at in times]
    shown = [Image.fromarray(frame.to_ndarray(format="rgb24")) for frame in nearest]
    return [image.rotate(frame.rotation, expand=True) for image, frame in zip(shown, nearest, strict=True)]


def tag(data: bytes, kind: str) -> str:
    return f'<img height="{SHOWN}" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'


def picture_sheet() -> str:
    rows = []
    for name, data in pictures():
        [pixels] = seen(opened(data, "image"))
        kind = {"JPEG": "jpeg", "CMYK": "jpeg", "PNG": "png", "WebP": "webp", "AVIF": "avif"}.get(
            name.split()[0], "gif"
        )
        shown = tag(data, kind.rstrip(",")) + tag(saved(pixels, "PNG"), "png")
        rows.append(f"<figure><figcaption>{name}: {pixels.width}x{pixels.height}</figcaption>{shown}</figure>")
    return page(rows, 2)


def video_sheet() -> str:
    rows = []
    for name, data in videos():
        clip = opened(data, "video")
        assert isinstance(clip, Clip) and clip.times is not None
        pixels = seen(clip)
        sources = decoded(data, clip.times) if name != "animated WebP" else moving_frames(data, clip.times)
        pairs = [each for pair in zip(sources, pixels, strict=True) for each in pair]
        shown = "".join(tag(saved(image, "PNG"), "png") for image in pairs).replace(f'"{SHOWN}"', '"86"')
        times = ", ".join(f"{at:.2f}" for at in clip.times)
        rows.append(f"<figure><figcaption>{name}: {times} s</figcaption>{shown}</figure>")
    return page(rows, 1)


def moving_frames(data: bytes, times: tuple[float, ...]) -> list[Image.Image]:
    image, found = Image.open(io.BytesIO(data)), []
    for at in times:
        image.seek(round(at / 0.5))
        found.append(image.convert("RGB"))
    return found


def page(rows: list[str], columns: int) -> str:
    return f"<!doctype html><style>{STYLE.replace('COLUMNS', str(columns))}</style>{''.join(rows)}"


def shoot(sheets: dict[str, Callable[[], str]]) -> None:
    options = webdriver.ChromeOptions()
    for option in OPTIONS:
        options.add_argument(option)
    browser = webdriver.Chrome(options=options)
    try:
        for name, make in sheets.items():
            browser.get("about:blank")
            browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
            browser.set_window_size(1024, 300)
            browser.execute_script("document.open(); document.write(arguments[0]); document.close()", make())
            wait = "const done = arguments[0]; Promise.all([...document.images].map(i => i.decode())).then(done)"
            browser.execute_async_script(wait)
            height = browser.execute_script("return document.documentElement.scrollHeight")
            metrics = {"width": 1024, "height": height, "deviceScaleFactor": 1, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            shot = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
            shot.save(PICTURES / f"{name}.jpg", quality=82, optimize=True)
    finally:
        browser.quit()


if __name__ == "__main__":
    shoot({"sheet_pictures": picture_sheet, "sheet_videos": video_sheet})
