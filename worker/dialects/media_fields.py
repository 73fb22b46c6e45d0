"""Pictures and videos in a body: their forms, the controls beside them, and the references that they become."""

import math
import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Annotated, Any, Literal, assert_never, get_args

from pydantic import BeforeValidator, Discriminator, Field, Tag
from pydantic.json_schema import SkipJsonSchema

from worker.core.contract import NO_CONTROLS, Color, Controls, File, Frames, Inline, Media, Message, Upload, Url
from worker.core.errors import MediaParamInvalid
from worker.dialects.base import Body, Whole, without_nulls

LOW_DETAIL_PIXELS = 512 * 512  # OpenAI's `detail: low` sees pictures at this size
MAX_FORMS = 1024  # blocks of a message, frames of a video: more are refused before they are looked at

_ADDRESS = re.compile(r"[\ufeff\u200b\xa0\s]{0,64}[a-z][a-z0-9+.-]{0,31}://", re.IGNORECASE)
# vLLM's form of a list of frames: their base64 in one data URI, with commas between.
_FRAMES_URI = re.compile(
    r"[\ufeff\s]{0,64}data:video/(?:jpeg|jpg|png|webp)(?:;[^,;]{0,64}){0,4};base64,", re.IGNORECASE
)
_PICTURE_HEADS = ("/9j/", "iVBOR", "UklGR")  # of JPEG, PNG and WebP, in base64

Pixels = Annotated[Whole, Field(ge=1, le=2**31)]
NumFrames = Annotated[Whole, Field(ge=1, le=100_000)]
Rate = Annotated[float, Field(ge=0.0001, le=240)]
At = Annotated[float, Field(ge=0, le=1_000_000)]


class PictureControls(Body):
    """How a picture is to be seen."""

    min_pixels: Pixels | None = None
    max_pixels: Pixels | None = None
    resized_height: Pixels | None = None
    resized_width: Pixels | None = None
    strict_media: bool | None = None
    color: Color | None = None


class FramesControls(PictureControls):
    """How a list of frames is to be seen; `fps` is its rate."""

    fps: Rate | None = None
    total_pixels: Pixels | None = None


class VideoControls(FramesControls):
    """How a video file is to be seen, and which of its frames."""

    nframes: NumFrames | None = None
    min_frames: NumFrames | None = None
    max_frames: NumFrames | None = None
    video_start: At | None = None
    video_end: At | None = None


class UrlForm(PictureControls):
    """A picture by its address or as a data URI."""

    url: str = Field(repr=False)


class Base64Form(PictureControls):
    """A picture in base64."""

    base64: str = Field(repr=False)


class VideoUrlForm(VideoControls):
    """A video by its address or as a data URI."""

    url: str = Field(repr=False)


class VideoBase64Form(VideoControls):
    """A video in base64."""

    base64: str = Field(repr=False)


def _form_of_media(value: object) -> str | None:
    if isinstance(value, str):
        return "<string>"
    if isinstance(value, bytes):
        return "<bytes>"
    if isinstance(value, dict):
        return "<base64>" if "base64" in value else "<url>"
    return None


MediaForm = Annotated[
    Annotated[str, Tag("<string>")]
    | Annotated[SkipJsonSchema[bytes], Tag("<bytes>")]  # of an uploaded file: JSON has none
    | Annotated[UrlForm, Tag("<url>")]
    | Annotated[Base64Form, Tag("<base64>")],
    Discriminator(
        _form_of_media,
        custom_error_type="own_media_form",
        custom_error_message='must be a string (URL, data URI or base64), {"url": …} or {"base64": …}',
    ),
]


FrameForms = Annotated[list[MediaForm], Field(min_length=1, max_length=MAX_FORMS, fail_fast=True)]


class FramesForm(FramesControls):
    """A video as a list of pictures, at a rate or each at its own time."""

    frames: FrameForms
    times: Annotated[list[At], Field(max_length=MAX_FORMS, fail_fast=True)] | None = None


def _form_of_video(value: object) -> str | None:
    if isinstance(value, list):
        return "<list>"
    if isinstance(value, dict) and "frames" in value:
        return "<frames>"
    return _form_of_media(value)


VideoForm = Annotated[
    Annotated[str, Tag("<string>")]
    | Annotated[SkipJsonSchema[bytes], Tag("<bytes>")]
    | Annotated[VideoUrlForm, Tag("<url>")]
    | Annotated[VideoBase64Form, Tag("<base64>")]
    | Annotated[FramesForm, Tag("<frames>")]
    | Annotated[FrameForms, Tag("<list>")],
    Discriminator(
        _form_of_video,
        custom_error_type="own_video_form",
        custom_error_message='must be a string (URL, data URI or base64), {"url": …}, {"base64": …}, a list of frames '
        'or {"frames": […]}',
    ),
]


def as_url_object(value: object) -> object:
    """The address alone stands for the object that has it; clients that dump their objects write nulls into it."""
    return {"url": value} if isinstance(value, str) else without_nulls(value)


Detail = Literal["auto", "low", "high", "original"]
DETAILS = get_args(Detail)


class UrlWithDetail(PictureControls):
    """OpenAI's object of a picture's address."""

    url: str = Field(repr=False)
    detail: Detail = "auto"


ImageUrl = Annotated[UrlWithDetail, BeforeValidator(as_url_object)]


class SizeBounds(Body):
    """The `size` of the families' processors: bounds in pixels, whatever their names say."""

    shortest_edge: Pixels | None = None
    longest_edge: Pixels | None = None


class ProcessorFields(VideoControls):
    """`mm_processor_kwargs`: what Qwen's processors take, as vLLM's users pass it on. do_sample_frames: frames of a
    video file are chosen by `fps`, or by their number alone."""

    size: Annotated[SizeBounds | None, BeforeValidator(without_nulls)] = None
    num_frames: NumFrames | None = None
    do_sample_frames: bool | None = None

    def controls(self) -> VideoControls:
        """Without its own names."""
        return self if self.num_frames is None else self.model_copy(update={"nframes": self.num_frames})


def image(form: MediaForm | UrlWithDetail, where: str, beside: PictureControls | None = None) -> Media:
    """A picture from any of its forms; what the form says takes precedence over what stands `beside` it."""
    return Media(kind="image", source=source(form), where=where, controls=_controls(where, form, beside))


def video(form: VideoForm, where: str, beside: VideoControls | None = None) -> Media:
    """A video from any of its forms; beside a list of frames, `fps` is the list's rate."""
    controls = _controls(where, form, beside)
    if not isinstance(form, FramesForm | list):
        file = source(form)
        parts = _frames_in_one(file, where)
        if not parts:
            return Media(kind="video", source=file, where=where, controls=controls)
        form = FramesForm.model_construct(frames=list(parts[: controls.nframes]))
        controls = controls.model_copy(update={"nframes": None})
    chosen = [name for name in _CHOOSING if getattr(controls, name) is not None]
    if chosen:
        raise MediaParamInvalid(
            where=where, detail=f"{chosen[0]} applies to video files, a list of frames is used whole"
        )
    forms = form.frames if isinstance(form, FramesForm) else form
    times = _times(form, controls, where) if isinstance(form, FramesForm) else None
    frames = Frames(frames=tuple(source(frame) for frame in forms), fps=controls.fps, times=times)
    return Media(kind="video", source=frames, where=where, controls=controls.model_copy(update={"fps": None}))


def _frames_in_one(file: File, where: str) -> list[str]:
    """The frames of a data URI that is a list of them, in base64; else nothing. Raises MediaParamInvalid."""
    if not isinstance(file, Inline) or (head := _FRAMES_URI.match(file.data)) is None:
        return []
    parts = [part for part in file.data[head.end() :].split(",", MAX_FORMS + 1) if part.strip()]
    if len(parts) > MAX_FORMS:
        raise MediaParamInvalid(where=where, detail=f"more than {MAX_FORMS} frames in one data URI")
    return parts if len(parts) > 1 or (parts and parts[0].lstrip().startswith(_PICTURE_HEADS)) else []


def _times(form: FramesForm, controls: Controls, where: str) -> tuple[float, ...] | None:
    """Raises MediaParamInvalid."""
    if form.times is None:
        return None
    if controls.fps is not None:
        raise MediaParamInvalid(where=where, detail="fps and times exclude each other")
    if len(form.times) != len(form.frames):
        raise MediaParamInvalid(where=where, detail=f"{len(form.times)} times for {len(form.frames)} frames")
    if any(later <= sooner for sooner, later in pairwise(form.times)):
        raise MediaParamInvalid(where=where, detail="times must increase")
    return tuple(form.times)


_RANGES = (
    ("min_pixels", "max_pixels"),
    ("shortest_edge", "longest_edge"),
    ("min_frames", "max_frames"),
    ("video_start", "video_end"),
)
_CHOOSING = ("nframes", "min_frames", "max_frames", "video_start", "video_end")


def _controls(where: str, form: object, beside: PictureControls | None) -> Controls:
    """Raises MediaParamInvalid."""
    values: dict[str, Any] = {}
    for body in (beside, form):
        if isinstance(body, PictureControls):
            values |= _set_controls(body, Controls.model_fields)
    if not values and not isinstance(form, UrlWithDetail):
        return NO_CONTROLS
    if isinstance(form, UrlWithDetail) and form.detail == "low":
        values["max_pixels"] = min(values.get("max_pixels", LOW_DETAIL_PIXELS), LOW_DETAIL_PIXELS)
    return _consistent(values, where)


def _set_controls(body: PictureControls, names: Iterable[str]) -> dict[str, Any]:
    """Those of the named controls that a body has a value for."""
    return {name: value for name in names if (value := getattr(body, name, None)) is not None}


def _consistent(values: dict[str, Any], where: str) -> Controls:
    """Raises MediaParamInvalid."""
    for side, other in (("resized_height", "resized_width"), ("resized_width", "resized_height")):
        if side in values and other not in values:
            raise MediaParamInvalid(where=where, detail=f"{side} needs {other} too")
    if "fps" in values and "nframes" in values:
        raise MediaParamInvalid(where=where, detail="fps and nframes exclude each other")
    for low, high in _RANGES:
        if low in values and high in values and values[low] > values[high]:
            raise MediaParamInvalid(where=where, detail=f"{low} is greater than {high}")
    return Controls.model_validate(values)


def seen_as(message: Message, defaults: VideoControls) -> Message:
    """The message, its pictures and videos seen by `defaults` where they say nothing themselves. Raises
    MediaParamInvalid."""
    parts = tuple(_seen_as(part, defaults) if isinstance(part, Media) else part for part in message.parts)
    return message.model_copy(update={"parts": parts})


def _seen_as(media: Media, defaults: VideoControls) -> Media:
    chosen = {name: value for name, value in media.controls if value is not None}
    frames = media.source if isinstance(media.source, Frames) else None
    form = PictureControls if media.kind == "image" else FramesControls if frames else VideoControls
    added = _set_controls(defaults, form.model_fields)
    fps = added.pop("fps", None)
    if "nframes" not in chosen | added and frames is None and fps is not None:
        added["fps"] = fps
    if "fps" in chosen:
        added.pop("nframes", None)
    if isinstance(defaults, ProcessorFields) and defaults.size is not None:
        added |= {name: value for name, value in defaults.size if value is not None}
    if frames is not None and frames.times is None and frames.fps is None:
        media = media.model_copy(update={"source": frames.model_copy(update={"fps": fps})})
    for low, high in _RANGES:  # a picture's own bound takes precedence over one that contradicts it
        if chosen.get(low, 0) > added.get(high, math.inf):
            added.pop(high)
        if added.get(low, 0) > chosen.get(high, math.inf):
            added.pop(low)
    return media.model_copy(update={"controls": _consistent({**added, **chosen}, media.where)})


def with_first_frames(message: Message, count: int) -> Message:
    """The message, its lists of frames no longer than `count`."""
    parts = tuple(_with_first_frames(part, count) if isinstance(part, Media) else part for part in message.parts)
    return message.model_copy(update={"parts": parts})


def _with_first_frames(media: Media, count: int) -> Media:
    frames = media.source
    if not isinstance(frames, Frames):
        return media
    times = None if frames.times is None else frames.times[:count]
    return media.model_copy(
        update={"source": frames.model_copy(update={"frames": frames.frames[:count], "times": times})}
    )


def source(form: MediaForm | VideoUrlForm | VideoBase64Form | UrlWithDetail) -> File:
    """Whatever has a scheme and an authority is an address; the rest is a data URI or base64."""
    match form:
        case UrlForm() | VideoUrlForm():
            return source(form.url)
        case Base64Form() | VideoBase64Form():
            return Inline(data=form.base64)
        case UrlWithDetail():
            return source(form.url)
        case bytes():
            return Upload(data=form)
        case str():
            return Url(url=form) if _ADDRESS.match(form) else Inline(data=form)
        case _:
            assert_never(form)
