"""What a media report says of a picture or video: its source, and how the model sees it."""

from collections.abc import Sequence

from worker.core.contract import Coordinates, MediaInfo
from worker.core.media_warnings import MediaWarning, warning
from worker.core.opened import Opened, Picture, Source

SHRUNK = 2  # sides that are as many times as long as those that are seen: small text may be lost


def media_info(
    where: str,
    opened: Opened,
    seen: tuple[int, int],
    tokens: int,
    times: Sequence[float] = (),
    coordinates: Coordinates = "thousandths",
) -> MediaInfo:
    """where: its place in the request; seen: width and height for the model; times: of a video's frames, in seconds;
    coordinates: what the model's boxes count."""
    height, width = opened.size
    source = opened.source or Source(height, width)
    is_image = isinstance(opened, Picture)
    return MediaInfo(
        where=where,
        kind="image" if is_image else "video",
        width=seen[0],
        height=seen[1],
        tokens=tokens,
        times=tuple(round(at, 3) for at in times),
        source_width=width,
        source_height=height,
        orientation=source.orientation,
        coordinates=coordinates,
        frames_lost=source.frames_lost,
        truncated=source.is_truncated,
        warnings=(*source.warnings, *_shrunk((width, height), seen, is_image=is_image)),
        type=source.type,
        num_bytes=source.num_bytes,
        fetch_s=round(source.fetch_s, 3),
        decode_s=round(source.decode_s, 3),
    )


def _shrunk(source: tuple[int, int], seen: tuple[int, int], *, is_image: bool) -> tuple[MediaWarning, ...]:
    """Widths and heights: a warning where less than a quarter of the pixels is left."""
    if min(of / to for of, to in zip(source, seen, strict=True)) < SHRUNK:
        return ()
    sizes = {"source": "{}x{}".format(*source), "seen": "{}x{}".format(*seen)}
    return (warning("IMAGE_SHRUNK" if is_image else "VIDEO_SHRUNK", **sizes),)
