"""What a media report says of a picture or video that is not seen just as its bytes are stored: a stable code, and a
sentence with our own words and numbers. Never the file's texts."""

import re
from dataclasses import dataclass
from typing import Literal

Code = Literal[
    "IMAGE_COLOR_CONVERTED",
    "IMAGE_END_MISSING",
    "IMAGE_FIRST_PAGE",
    "IMAGE_METADATA_IGNORED",
    "IMAGE_PROFILE_IGNORED",
    "IMAGE_SHRUNK",
    "VIDEO_CLOCK_RESTARTS",
    "VIDEO_FRAMES_DAMAGED",
    "VIDEO_FRAMES_LOST",
    "VIDEO_MIRRORED",
    "VIDEO_PIXELS_STRETCHED",
    "VIDEO_SHRUNK",
    "VIDEO_SIZE_CHANGES",
    "VIDEO_STREAM_CHOSEN",
    "VIDEO_TIMES_COUNTED",
    "VIDEO_TONE_MAPPED",
    "VIDEO_TRIMMED",
    "VIDEO_TRUNCATED",
]
SENTENCES: dict[Code, str] = {
    "IMAGE_COLOR_CONVERTED": 'Its color profile is not sRGB: colors were converted to sRGB; "color": "as_is" keeps '
    "the stored values.",
    "IMAGE_END_MISSING": "The JPEG has no end marker; all of its pixels are there.",
    "IMAGE_FIRST_PAGE": "The file has {count} pages or images: the first was used; send each as an image of its own.",
    "IMAGE_METADATA_IGNORED": "Metadata that cannot be read was ignored, with any orientation or color profile in it.",
    "IMAGE_PROFILE_IGNORED": "Its color profile cannot be used: colors are as stored.",
    "IMAGE_SHRUNK": "{source} was shrunk to {seen}: small text may be lost. Send a crop, or raise `max_pixels` or "
    "`MAX_IMAGE_TOKENS`.",
    "VIDEO_CLOCK_RESTARTS": "The file's clock restarts: its parts are seen one after the other.",
    "VIDEO_FRAMES_DAMAGED": "{count} frames are damaged and shown as far as they can be decoded.",
    "VIDEO_FRAMES_LOST": "{count} of {total} frames cannot be decoded: the others are used.",
    "VIDEO_MIRRORED": "The frames are mirrored, as the file says.",
    "VIDEO_PIXELS_STRETCHED": "Its pixels are not square: frames of {stored} are shown as {shown}.",
    "VIDEO_SHRUNK": "Frames of {source} were shrunk to {seen}: small text may be lost. Ask for fewer frames, or raise "
    "`max_pixels` or `MAX_VIDEO_TOKENS`.",
    "VIDEO_SIZE_CHANGES": "Frames change their size: all are scaled to {size}, with black bars where the shape "
    "differs.",
    "VIDEO_STREAM_CHOSEN": "The file has {count} video streams: the default one, else the largest, was used.",
    "VIDEO_TIMES_COUNTED": "Presentation times are missing: frames are in the decoder's order, their times evenly "
    "spread or those of decoding.",
    "VIDEO_TONE_MAPPED": "Its colors are HDR ({curve}): they were tone-mapped to SDR.",
    "VIDEO_TRIMMED": "{count} frames that the file hides (edit list) are not shown.",
    "VIDEO_TRUNCATED": "The file ends before its last frame: what is there is seen.",
}


@dataclass(frozen=True)
class MediaWarning:
    """One of them. code: stable, for programs; message: for people."""

    code: Code
    message: str


def table() -> str:
    """All of them, as Markdown."""
    rows = ["| code | message |", "|---|---|"]
    rows += [f"| `{code}` | {re.sub(r'{[a-z]+}', '…', sentence)} |" for code, sentence in SENTENCES.items()]
    return "\n".join(rows) + "\n"


def warning(code: Code, **numbers: int | str) -> MediaWarning:
    """The warning with its numbers."""
    return MediaWarning(code, SENTENCES[code].format(**numbers))
