"""What the bodies of all dialects share: strictness, messages in blocks, media references, error places."""

import math
import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
)
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError

from worker.core.contract import (
    AS_IT_IS,
    MAX_BIASES,
    MAX_STOPS,
    MAX_TEXT_CHARS,
    AdditivePenalty,
    BoundedText,
    Controls,
    Frames,
    Inline,
    Likely,
    MaxSeconds,
    MaxTokens,
    Media,
    Message,
    MinP,
    MinTokens,
    NumAnswers,
    NumLikely,
    RepetitionPenalty,
    Role,
    Sampling,
    Seed,
    StopString,
    Temperature,
    Text,
    TokenIds,
    TokenLogprob,
    TopK,
    TopP,
    Upload,
    Url,
    Whole,
)
from worker.core.errors import InputInvalid, InputNotObject, MediaParamInvalid

LOW_DETAIL_PIXELS = 512 * 512  # OpenAI's `detail: low` sees pictures at this size
MAX_FORMS = 1024  # blocks of a message, frames of a video: more are refused before they are looked at

_NO_SUCH_FIELD = "there is no such field"
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]{0,31}://", re.IGNORECASE)


B = TypeVar("B", bound=BaseModel)


class Body(BaseModel):
    """A part of an outside body: every field is known, of its own type, and finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)


Pixels = Annotated[Whole, Field(ge=1, le=2**31)]
NumFrames = Annotated[Whole, Field(ge=1, le=100_000)]
Rate = Annotated[float, Field(gt=0, le=240)]
At = Annotated[float, Field(ge=0, le=1_000_000)]


class PictureControls(Body):
    """How a picture is to be seen."""

    min_pixels: Pixels | None = None
    max_pixels: Pixels | None = None
    resized_height: Pixels | None = None
    resized_width: Pixels | None = None


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
        custom_error_type="media_form",
        custom_error_message='a picture or video is a string, {"url": …} or {"base64": …}',
    ),
]


FrameForms = Annotated[list[MediaForm], Field(min_length=1, max_length=MAX_FORMS)]


class FramesForm(FramesControls):
    """A video as a list of pictures, at a rate or each at its own time."""

    frames: FrameForms
    times: Annotated[list[At], Field(max_length=MAX_FORMS)] | None = None


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
        custom_error_type="video_form",
        custom_error_message='a video is a list of frames, {"frames": […], "fps": …}, or a form that pictures have',
    ),
]


class TextBlock(Body):
    type: Literal["text"]
    text: BoundedText = Field(repr=False)


class ImageBlock(PictureControls):
    """A picture in a message."""

    type: Literal["image"]
    image: MediaForm


class VideoBlock(VideoControls):
    """A video in a message."""

    type: Literal["video"]
    video: VideoForm


class ImageUrl(PictureControls):
    """OpenAI's form of a picture."""

    url: str = Field(repr=False)
    detail: Literal["auto", "low", "high"] = "auto"


class ImageUrlBlock(Body):
    type: Literal["image_url"]
    image_url: ImageUrl


class VideoUrlBlock(Body):
    type: Literal["video_url"]
    video_url: VideoUrlForm


_BLOCKS = ("text", "image", "video", "image_url", "video_url")


def _kind_of_block(value: object) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else None
    return f"<{kind}>" if kind in _BLOCKS else None


Block = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ImageBlock, Tag("<image>")]
    | Annotated[VideoBlock, Tag("<video>")]
    | Annotated[ImageUrlBlock, Tag("<image_url>")]
    | Annotated[VideoUrlBlock, Tag("<video_url>")],
    Discriminator(
        _kind_of_block,
        custom_error_type="block_kind",
        custom_error_message=f"a block is an object whose type is one of {', '.join(_BLOCKS)}",
    ),
]

Content = Annotated[
    Annotated[BoundedText, Tag("<string>")]
    | Annotated[Annotated[list[Block], Field(min_length=1, max_length=MAX_FORMS)], Tag("<blocks>")],
    Discriminator(
        lambda value: "<string>" if isinstance(value, str) else "<blocks>" if isinstance(value, list) else None,
        custom_error_type="content_form",
        custom_error_message="content is a string or a list of blocks",
    ),
]

Stops = Annotated[
    list[StopString],
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    Field(max_length=MAX_STOPS),
]


def _token_ids(bias: dict[str, float]) -> dict[int, float]:
    if any(not (key.isascii() and key.isdigit() and len(key) < 10) for key in bias):
        raise PydanticCustomError("token_ids", "the keys are token ids")
    return {int(key): value for key, value in bias.items()}


_TEMPLATE_NAME = re.compile(r"[A-Za-z]\w{0,63}", re.ASCII)
_TEMPLATE_WORD = re.compile(r"[\w.+-]{0,64}")
_TEMPLATES_OWN = (
    *("messages", "conversations", "chat_template", "tools", "documents", "add_generation_prompt"),
    *("continue_final_message", "return_assistant_tokens_mask", "self", "loop", "namespace", "dict", "range"),
    *("raise_exception", "strftime_now", "cycler", "joiner", "lipsum", "bos_token", "eos_token", "pad_token"),
)


def _template_variables(given: dict[str, str | bool | int | float]) -> dict[str, str | bool | int | float]:
    """What a template is told may not become more than a value: no control tokens, none of its own variables."""
    for name, value in given.items():
        if not _TEMPLATE_NAME.fullmatch(name) or name in _TEMPLATES_OWN:
            raise PydanticCustomError("template_name", "a template cannot be told this name")
        if isinstance(value, str) and not _TEMPLATE_WORD.fullmatch(value):
            raise PydanticCustomError("template_value", "a value is true, false, a number or one plain word")
    return given


TemplateVariables = Annotated[
    dict[str, bool | int | float | str], Field(max_length=MAX_STOPS), AfterValidator(_template_variables)
]


LogitBias = Annotated[
    dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MAX_BIASES), AfterValidator(_token_ids)
]


CONTENT: TypeAdapter[str | list[Any]] = TypeAdapter(Content, config=ConfigDict(hide_input_in_errors=True))


def routed(body: dict[str, Any]) -> dict[str, Any]:
    """The body of `{"route", "body"}`, in which the job API carries what HTTP routes take. Raises InputInvalid,
    InputNotObject."""
    for name in body.keys() - {"route", "body"}:
        raise no_such_field(name)
    given = body.get("body")
    if not isinstance(given, dict):
        raise InputNotObject(where="body")
    return given


class SamplingFields(Body):
    """What a body of any dialect may say about how tokens are chosen, and for how long."""

    max_seconds: MaxSeconds | None = None
    max_tokens: MaxTokens | None = None
    min_tokens: MinTokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    repetition_penalty: RepetitionPenalty | None = None
    presence_penalty: AdditivePenalty | None = None
    frequency_penalty: AdditivePenalty | None = None
    logit_bias: LogitBias | None = None
    seed: Seed | None = None
    stop: Stops | None = None
    stop_token_ids: TokenIds | None = None
    ignore_eos: bool | None = None
    n: NumAnswers | None = None
    logprobs: bool | None = None
    top_logprobs: NumLikely | None = None

    def sampling(self) -> Sampling:
        """The same in the contract's terms. Raises InputInvalid."""
        if self.top_logprobs and not self.logprobs:
            raise InputInvalid(where="top_logprobs", detail="logprobs must be true beside it")
        if self.min_tokens and self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InputInvalid(where="min_tokens", detail="more than max_tokens")
        return Sampling(
            max_tokens=self.max_tokens,
            min_tokens=self.min_tokens or 0,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias=tuple((self.logit_bias or {}).items()),  # type: ignore[arg-type]  # ids by now
            seed=self.seed,
            stop=tuple(self.stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=self.ignore_eos or False,
            n=self.n or 1,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
        )


def logprobs(tokens: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
    """Log-probabilities as the OpenAI API writes them; the native dialect has the same."""
    return [{**_likely(one.chosen), "top_logprobs": [_likely(other) for other in one.top]} for one in tokens]


def _likely(one: Likely) -> dict[str, Any]:
    return {"token": one.text, "logprob": one.logprob, "bytes": list(one.bytes)}


def conversation(messages: Iterable[Message]) -> tuple[Message, ...]:
    """The messages, if their text is not too long all in all. Raises InputInvalid."""
    kept = tuple(messages)
    num_chars = sum(len(part.text) for one in kept for part in one.parts if isinstance(part, Text))
    if num_chars > MAX_TEXT_CHARS:
        raise InputInvalid(where="messages", detail=f"{num_chars} characters in all, at most {MAX_TEXT_CHARS}")
    return kept


def message(role: Role, content: str | list[Any], where: str) -> Message:
    """A message of the contract; `where` is the place of its content in the body. Raises InputInvalid."""
    if isinstance(content, str):
        return Message(role=role, parts=(Text(text=content),))
    parts = tuple(_part(block, f"{where}[{index}]") for index, block in enumerate(content))
    for part in parts:
        if isinstance(part, Media) and role != "user":
            raise InputInvalid(where=part.where, detail="pictures and videos belong into messages of the user")
    return Message(role=role, parts=parts)


def _part(block: Any, where: str) -> Text | Media:
    match block:
        case TextBlock():
            return Text(text=block.text)
        case ImageBlock():
            return image(block.image, where, block)
        case VideoBlock():
            return video(block.video, where, block)
        case ImageUrlBlock():
            return image(block.image_url, where)
        case VideoUrlBlock():
            return video(block.video_url, where)
        case _:
            raise AssertionError(type(block))


def image(
    form: str | bytes | UrlForm | Base64Form | ImageUrl, where: str, beside: PictureControls | None = None
) -> Media:
    """A picture from any of its forms; what the form says goes before what stands `beside` it."""
    return Media(kind="image", source=source(form), where=where, controls=_controls(where, form, beside))


def video(
    form: str | bytes | VideoUrlForm | VideoBase64Form | FramesForm | list[Any],
    where: str,
    beside: VideoControls | None = None,
) -> Media:
    """A video from any of its forms; beside a list of frames, `fps` is the list's rate."""
    controls = _controls(where, form, beside)
    if not isinstance(form, FramesForm | list):
        return Media(kind="video", source=source(form), where=where, controls=controls)
    chosen = [name for name in _CHOOSING if getattr(controls, name) is not None]
    if chosen:
        raise MediaParamInvalid(where=where, detail=f"{chosen[0]} is for video files: of a list all frames are seen")
    forms = form.frames if isinstance(form, FramesForm) else form
    times = _times(form, controls, where) if isinstance(form, FramesForm) else None
    frames = Frames(frames=tuple(source(frame) for frame in forms), fps=controls.fps, times=times)
    return Media(kind="video", source=frames, where=where, controls=controls.model_copy(update={"fps": None}))


def _times(form: FramesForm, controls: Controls, where: str) -> tuple[float, ...] | None:
    """Raises MediaParamInvalid."""
    if form.times is None:
        return None
    if controls.fps is not None:
        raise MediaParamInvalid(where=where, detail="either fps or times")
    if len(form.times) != len(form.frames):
        raise MediaParamInvalid(where=where, detail=f"{len(form.times)} times for {len(form.frames)} frames")
    if any(later <= sooner for sooner, later in pairwise(form.times)):
        raise MediaParamInvalid(where=where, detail="each of the times must be after the one before")
    return tuple(form.times)


_RANGES = (("min_pixels", "max_pixels"), ("min_frames", "max_frames"), ("video_start", "video_end"))
_CHOOSING = ("nframes", "min_frames", "max_frames", "video_start", "video_end")


def _controls(where: str, form: object, beside: PictureControls | None) -> Controls:
    """Raises MediaParamInvalid."""
    said: dict[str, Any] = {}
    for body in (beside, form):
        if isinstance(body, PictureControls):
            said |= {name: value for name in Controls.model_fields if (value := getattr(body, name, None)) is not None}
    if not said and not isinstance(form, ImageUrl):
        return AS_IT_IS
    if isinstance(form, ImageUrl) and form.detail == "low":
        said["max_pixels"] = min(said.get("max_pixels", LOW_DETAIL_PIXELS), LOW_DETAIL_PIXELS)
    return _consistent(said, where)


def _consistent(said: dict[str, Any], where: str) -> Controls:
    """Raises MediaParamInvalid."""
    for one, other in (("resized_height", "resized_width"), ("resized_width", "resized_height")):
        if one in said and other not in said:
            raise MediaParamInvalid(where=where, detail=f"{one} needs {other} beside it")
    if "fps" in said and "nframes" in said:
        raise MediaParamInvalid(where=where, detail="either fps or nframes")
    for low, high in _RANGES:
        if low in said and high in said and said[low] > said[high]:
            raise MediaParamInvalid(where=where, detail=f"{low} is more than {high}")
    return Controls(**said)


def seen_as(message: Message, defaults: VideoControls) -> Message:
    """The message, its pictures and videos seen by `defaults` where they say nothing themselves. Raises
    MediaParamInvalid."""
    parts = tuple(_seen_as(part, defaults) if isinstance(part, Media) else part for part in message.parts)
    return message.model_copy(update={"parts": parts})


def _seen_as(media: Media, defaults: VideoControls) -> Media:
    own = {name: value for name, value in media.controls if value is not None}
    frames = media.source if isinstance(media.source, Frames) else None
    form = PictureControls if media.kind == "image" else FramesControls if frames else VideoControls
    given = {name: value for name in form.model_fields if (value := getattr(defaults, name)) is not None}
    fps = given.pop("fps", None)
    if "nframes" not in own | given and frames is None and fps is not None:
        given["fps"] = fps
    if "fps" in own:
        given.pop("nframes", None)
    if frames is not None and frames.times is None and frames.fps is None:
        media = media.model_copy(update={"source": frames.model_copy(update={"fps": fps})})
    for low, high in _RANGES:  # its own bound goes before one that contradicts it
        if own.get(low, 0) > given.get(high, math.inf):
            given.pop(high)
        if given.get(low, 0) > own.get(high, math.inf):
            given.pop(low)
    return media.model_copy(update={"controls": _consistent({**given, **own}, media.where)})


def source(form: str | bytes | PictureControls) -> Url | Inline | Upload:
    """Whatever has a scheme and an authority is an address; the rest is a data URI or base64."""
    match form:
        case UrlForm() | VideoUrlForm():
            return Inline(data=form.url) if form.url[:5].lower() == "data:" else Url(url=form.url)
        case Base64Form() | VideoBase64Form():
            return Inline(data=form.base64)
        case ImageUrl():
            return source(form.url)
        case bytes():
            return Upload(data=form)
        case str():
            return Url(url=form) if _ADDRESS.match(form) else Inline(data=form)
        case _:
            raise AssertionError(type(form))


def validated(form: type[B], given: Any) -> B:
    """The body, held to its form. Raises InputInvalid."""
    try:
        return form.model_validate(given)
    except ValidationError as error:
        raise invalid(error) from None


def invalid(error: ValidationError) -> InputInvalid:
    """The first fault as an error that names the place and never shows the value."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    reason = _NO_SUCH_FIELD if first["type"] == "extra_forbidden" else str(first["msg"])
    return InputInvalid(where=_place(first["loc"]) or "input", detail=reason)


def _place(location: tuple[int | str, ...]) -> str:
    place = ""
    for step in location:
        if isinstance(step, int):
            place += f"[{step}]"
        elif not step.startswith("<"):
            place += f".{shown_name(step)}" if place else shown_name(step)
    return place


def no_such_field(name: str) -> InputInvalid:
    """An unknown field, named."""
    return InputInvalid(where=shown_name(name), detail=_NO_SUCH_FIELD)


def shown_name(name: str) -> str:
    """A field's name as an error or a log may show it; what does not look like a name is not repeated."""
    return name if _PLAIN_NAME.fullmatch(name) else "(a name that cannot be shown)"
