"""Messages in a body: a role and content, a string or a list of blocks."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Annotated, Literal, assert_never, get_args

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, TypeAdapter
from pydantic.json_schema import SkipJsonSchema

from worker.core.contract import Media, Message, Role, Text
from worker.core.errors import InputInvalid
from worker.core.safe_json import JsonObject
from worker.dialects.base import MAX_TEXT_CHARS, Body, BoundedText, string_or_list, without_nulls
from worker.dialects.media_fields import (
    MAX_FORMS,
    ImageUrl,
    MediaForm,
    PictureControls,
    VideoControls,
    VideoForm,
    VideoUrlForm,
    as_url_object,
    image,
    video,
)
from worker.dialects.tool_fields import MAX_CALLS, ToolCallBody, calls


class BlockHints(Body):
    """What other servers' caches are told of a block; it changes nothing here. uuid: vLLM's name for a picture."""

    cache_control: SkipJsonSchema[JsonObject | None] = None
    uuid: SkipJsonSchema[str | None] = None


class TextBlock(BlockHints):
    """Words in a message."""

    type: Literal["text"]
    text: BoundedText = Field(repr=False)


class RefusalBlock(BlockHints):
    """OpenAI's part of an assistant's turn."""

    type: Literal["refusal"]
    refusal: BoundedText = Field(repr=False)


class ImageBlock(PictureControls, BlockHints):
    """A picture in a message."""

    type: Literal["image"]
    image: MediaForm


class VideoBlock(VideoControls, BlockHints):
    """A video in a message."""

    type: Literal["video"]
    video: VideoForm


class ImageUrlBlock(BlockHints):
    """A picture in OpenAI's form."""

    type: Literal["image_url"]
    image_url: ImageUrl


class VideoUrlBlock(BlockHints):
    """A video in vLLM's form."""

    type: Literal["video_url"]
    video_url: Annotated[VideoUrlForm, BeforeValidator(as_url_object)]


_BLOCKS = ("text", "image", "video", "image_url", "video_url")
_TAKEN = (*_BLOCKS, "refusal")


def _kind_of_block(value: object) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else None
    return f"<{kind}>" if kind in _TAKEN else None


_Block = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ImageBlock, Tag("<image>")]
    | Annotated[VideoBlock, Tag("<video>")]
    | Annotated[ImageUrlBlock, Tag("<image_url>")]
    | Annotated[VideoUrlBlock, Tag("<video_url>")]
    | Annotated[RefusalBlock, Tag("<refusal>")],
    Discriminator(
        _kind_of_block,
        custom_error_type="own_block_kind",
        custom_error_message=f"must be an object whose type is one of {', '.join(_BLOCKS)}",
    ),
]

Block = Annotated[_Block, BeforeValidator(without_nulls)]

Content = Annotated[
    Annotated[BoundedText, Tag("<string>")]
    | Annotated[Annotated[list[Block], Field(min_length=1, max_length=MAX_FORMS, fail_fast=True)], Tag("<blocks>")],
    string_or_list("<blocks>", "must be a string or a list of content blocks"),
]

CONTENT: TypeAdapter[str | list[Block]] = TypeAdapter(Content, config=ConfigDict(hide_input_in_errors=True))


class PlainMessage(Body):
    """A message whose roles are the model's own."""

    role: Literal["system", "user", "assistant"]
    content: Content


class Turn(Body):
    """A message that may be an assistant's calls of tools, or a tool's result."""

    role: str
    content: Annotated[Content | None, BeforeValidator(lambda value: None if value == [] else value)] = None
    reasoning_content: BoundedText | None = Field(None, repr=False)
    reasoning: BoundedText | None = Field(None, repr=False)
    refusal: BoundedText | None = Field(None, repr=False)
    tool_calls: list[ToolCallBody] | None = Field(None, max_length=MAX_CALLS)
    tool_call_id: str | None = None
    name: str | None = None


ROLES: Mapping[str, Role] = {role: role for role in get_args(Role)}
OPENAI_ROLES: Mapping[str, Role] = {"developer": "system", **ROLES}


# Of a list of blocks, or of each of them.
Place = str | tuple[str, ...]


def in_messages(index: int, field: str) -> Place:
    """The place of a field of a turn in a body's `messages`."""
    return f"messages[{index}].{field}"


def spoken(
    turns: Sequence[Turn],
    roles: Mapping[str, Role] = ROLES,
    place: Callable[[int, str], Place] = in_messages,
    where: str = "messages",
) -> Iterator[Message]:
    """The turns of a body as messages, results in the order of the calls. roles: the contract's, by the body's; place:
    of a turn's field in the body; where: of all turns. Raises InputInvalid."""
    written = [call.function.arguments for turn in turns for call in turn.tool_calls or ()]
    num_chars = sum(len(arguments) for arguments in written if isinstance(arguments, str))
    if num_chars > MAX_TEXT_CHARS:  # before any of it is read as JSON
        detail = f"{num_chars} characters of arguments of calls in total, limit {MAX_TEXT_CHARS}"
        raise InputInvalid(where=where, detail=detail)
    for index, turn in _in_call_order(turns):
        role, content_at, calls_at = roles[turn.role], place(index, "content"), place(index, "tool_calls")
        if turn.content is None and role not in ("assistant", "tool"):
            raise InputInvalid(where=str(content_at), detail="must be a string or a list of content blocks")
        if turn.tool_calls and role != "assistant":
            raise InputInvalid(where=str(calls_at), detail="is only for messages with the role assistant")
        said = turn.refusal if turn.content is None and role == "assistant" else turn.content
        parts = () if said is None else message(role, said, content_at).parts
        yield Message(
            role=role,
            parts=parts,
            reasoning=(turn.reasoning_content or turn.reasoning) if role == "assistant" else None,
            tool_calls=calls(turn.tool_calls or (), calls_at),
        )


def _in_call_order(turns: Sequence[Turn]) -> list[tuple[int, Turn]]:
    """Turns with their places; results that follow each other stand as the calls before them, whatever their order:
    templates do not show which result is whose."""
    places: dict[str | None, int] = {}
    keys: list[tuple[int, int]] = []
    group = 0
    for index, turn in enumerate(turns):
        if turn.role != "tool":
            group = index
            places = {call.id: place for place, call in enumerate(turn.tool_calls or ()) if call.id is not None}
            keys.append((index, -1))
        else:
            keys.append((group, places.get(turn.tool_call_id, len(places))))
    return sorted(enumerate(turns), key=lambda entry: keys[entry[0]])


def with_one_system(messages: Iterable[Message]) -> list[Message]:
    """The messages, those of the system at their beginning as one: there are templates that know no second one."""
    kept = list(messages)
    leading = list(takewhile(lambda turn: turn.role == "system", kept))
    if len(leading) < 2:
        return kept
    words = [part for turn in leading for part in (Text(text="\n\n"), *turn.parts)][1:]
    return [Message(role="system", parts=tuple(words)), *kept[len(leading) :]]


def conversation(messages: Iterable[Message], where: str = "messages") -> tuple[Message, ...]:
    """The messages, if their text is not too long all in all. where: the field that has them. Raises InputInvalid."""
    kept = tuple(messages)
    num_chars = sum(len(part.text) for turn in kept for part in turn.parts if isinstance(part, Text))
    num_chars += sum(len(turn.reasoning or "") for turn in kept)
    num_chars += sum(len(call.arguments) for turn in kept for call in turn.tool_calls)
    if num_chars > MAX_TEXT_CHARS:
        raise InputInvalid(where=where, detail=f"{num_chars} characters of text in total, limit {MAX_TEXT_CHARS}")
    return kept


def message(role: Role, content: str | list[Block], where: Place) -> Message:
    """A message of the contract; `where` is the place of its content in the body, or of each block of it. Raises
    InputInvalid."""
    if isinstance(content, str):
        return Message(role=role, parts=(Text(text=content),))
    places = where if isinstance(where, tuple) else [f"{where}[{index}]" for index in range(len(content))]
    parts = tuple(_part(block, at) for block, at in zip(content, places, strict=True))
    for part in parts:
        if isinstance(part, Media) and role not in ("user", "tool"):
            raise InputInvalid(
                where=part.where, detail="images and videos are only allowed in messages with the role user or tool"
            )
    return Message(role=role, parts=parts)


def _part(block: Block, where: str) -> Text | Media:
    match block:
        case TextBlock():
            return Text(text=block.text)
        case RefusalBlock():
            return Text(text=block.refusal)
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
