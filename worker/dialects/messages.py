"""Messages in a body: a role and content, a string or a list of blocks."""

from collections.abc import Iterable
from typing import Annotated, Literal, assert_never

from pydantic import ConfigDict, Discriminator, Field, Tag, TypeAdapter

from worker.core.contract import Media, Message, Role, Text
from worker.core.errors import InputInvalid
from worker.dialects.base import MAX_TEXT_CHARS, Body, BoundedText
from worker.dialects.media_fields import (
    MAX_FORMS,
    ImageUrl,
    MediaForm,
    PictureControls,
    VideoControls,
    VideoForm,
    VideoUrlForm,
    image,
    video,
)


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
        custom_error_type="own_block_kind",
        custom_error_message=f"must be an object whose type is one of {', '.join(_BLOCKS)}",
    ),
]

Content = Annotated[
    Annotated[BoundedText, Tag("<string>")]
    | Annotated[Annotated[list[Block], Field(min_length=1, max_length=MAX_FORMS, fail_fast=True)], Tag("<blocks>")],
    Discriminator(
        lambda value: "<string>" if isinstance(value, str) else "<blocks>" if isinstance(value, list) else None,
        custom_error_type="own_content_form",
        custom_error_message="must be a string or a list of content blocks",
    ),
]

CONTENT: TypeAdapter[str | list[Block]] = TypeAdapter(Content, config=ConfigDict(hide_input_in_errors=True))


class PlainMessage(Body):
    """A message whose roles are the model's own."""

    role: Literal["system", "user", "assistant"]
    content: Content


def conversation(messages: Iterable[Message]) -> tuple[Message, ...]:
    """The messages, if their text is not too long all in all. Raises InputInvalid."""
    kept = tuple(messages)
    num_chars = sum(len(part.text) for turn in kept for part in turn.parts if isinstance(part, Text))
    if num_chars > MAX_TEXT_CHARS:
        raise InputInvalid(where="messages", detail=f"{num_chars} characters of text in total, limit {MAX_TEXT_CHARS}")
    return kept


def message(role: Role, content: str | list[Block], where: str) -> Message:
    """A message of the contract; `where` is the place of its content in the body. Raises InputInvalid."""
    if isinstance(content, str):
        return Message(role=role, parts=(Text(text=content),))
    parts = tuple(_part(block, f"{where}[{index}]") for index, block in enumerate(content))
    for part in parts:
        if isinstance(part, Media) and role != "user":
            raise InputInvalid(
                where=part.where, detail="images and videos are only allowed in messages with the role user"
            )
    return Message(role=role, parts=parts)


def _part(block: Block, where: str) -> Text | Media:
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
            assert_never(block)
