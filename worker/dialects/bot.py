"""`POST /api/chat/private` and `/api/chat/group`: messages to a chat bot, which remembers what was said before.

In a group the model sees who said what.
"""

from typing import Annotated, Literal, assert_never

from pydantic import Field, StringConstraints

from worker.core.contract import (
    Answer,
    ChatRequest,
    ConversationRef,
    Counted,
    Media,
    Message,
    ModelCard,
    Reply,
    Silence,
    Text,
)
from worker.core.errors import InputInvalid, WorkerError
from worker.core.safe_json import JsonObject
from worker.core.sampling import Sampling
from worker.dialects.base import Body, BoundedText, Dialect, Fault, HttpError, ReplyBody
from worker.dialects.media_fields import MAX_FORMS, image
from worker.dialects.validation import validated

PRIVATE_ROUTE = "/api/chat/private"
GROUP_ROUTE = "/api/chat/group"
MAX_TOKENS = 1000
TEMPERATURE = 0.7
MAX_ID_CHARS = 128
MAX_NAME_CHARS = 128

_Word = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_ID_CHARS)]
Id = _Word | Annotated[int, Field(ge=0, lt=2**64)]
Name = Annotated[str, Field(max_length=MAX_NAME_CHARS)] | None


class BotImage(Body):
    """A picture of a message. What it is, its bytes tell; `format` is what its sender took it for."""

    data: str = Field(min_length=1, repr=False)
    format: Literal["jpeg", "jpg", "png", "gif", "webp"] | None = None


class BotBody(Body):
    """What messages to the bot share."""

    user_id: Id
    user_nickname: Name = None
    content: BoundedText = Field("", repr=False)
    images: list[BotImage] = Field([], max_length=MAX_FORMS, fail_fast=True)
    timestamp: float | None = Field(None, ge=0)


class PrivateBody(BotBody):
    """A message to the bot alone."""

    type: Literal["private"]


class GroupBody(BotBody):
    """A message to a group."""

    type: Literal["group"]
    group_id: Id
    group_name: Name = None
    user_card: Name = None


class PrivateReply(ReplyBody):
    """What the bot says."""

    status: Literal["success"]
    reply: str


class GroupReply(PrivateReply):
    """What the bot says in a group, and whether it says anything."""

    should_reply: bool


class BotFault(Fault):
    """Why a request of the chat bot's clients failed."""

    status: Literal["error"]


def _parse_private(body: JsonObject) -> ChatRequest:
    """Raises InputInvalid."""
    form = validated(PrivateBody, body)
    conversation = ConversationRef(key=f"private:{form.user_id}", content=form.content, at=form.timestamp)
    return _as_request(form, form.content, conversation)


def _parse_group(body: JsonObject) -> ChatRequest:
    """Raises InputInvalid."""
    form = validated(GroupBody, body)
    names = (form.user_card, form.user_nickname, str(form.user_id))
    sender = next(shown for name in names if (shown := " ".join((name or "").split())))
    key = f"group:{form.group_id}"
    conversation = ConversationRef(key=key, content=form.content, at=form.timestamp, is_group=True)
    return _as_request(form, f"{sender}: {form.content}", conversation)


def _as_request(form: BotBody, text: str, conversation: ConversationRef) -> ChatRequest:
    """A message to the bot, its pictures before its words. Raises InputInvalid."""
    if not form.content.strip() and not form.images:
        raise InputInvalid(where="content", detail="is empty, and there are no images")
    pictures: list[Text | Media] = [
        image(picture.data, f"images[{index}].data") for index, picture in enumerate(form.images)
    ]
    return ChatRequest(
        messages=(Message(role="user", parts=(*pictures, Text(text=text))),),
        sampling=Sampling(max_tokens=MAX_TOKENS, temperature=TEMPERATURE),
        conversation=conversation,
    )


def _reply_private(outcome: Reply) -> JsonObject:
    return {"status": "success", "reply": _text(outcome)}


def _reply_group(outcome: Reply) -> JsonObject:
    return {"status": "success", "should_reply": not isinstance(outcome, Silence), "reply": _text(outcome)}


def _text(outcome: Reply) -> str:
    match outcome:
        case Answer():
            return outcome.choices[0].text
        case Silence():
            return ""
        case Counted() | ModelCard():
            raise AssertionError(f"{type(outcome).__name__} is no outcome of a message to the bot")
        case _:
            assert_never(outcome)


def _error(error: WorkerError, declared_type: str | None) -> HttpError:
    return HttpError(error.status, {"status": "error", "detail": error.message, "code": error.code})


_EXAMPLE = {"user_id": "77", "user_nickname": "Ann", "content": "Hello!", "images": [], "timestamp": 1700000000.5}
GROUP = Dialect(
    name="bot_group",
    about="A message to a chat bot's group",
    route=GROUP_ROUTE,
    parse=_parse_group,
    reply=_reply_group,
    http_error=_error,
    body=GroupBody,
    reply_model=GroupReply,
    fault=BotFault,
    example={"type": "group", "group_id": "5512", "group_name": "Shapes", "user_card": "Ann from art", **_EXAMPLE},
)
PRIVATE = Dialect(
    name="bot_private",
    about="A message to a chat bot",
    route=PRIVATE_ROUTE,
    parse=_parse_private,
    reply=_reply_private,
    http_error=_error,
    body=PrivateBody,
    reply_model=PrivateReply,
    fault=BotFault,
    example={"type": "private", **_EXAMPLE},
)
