"""`POST /api/chat/private`: a user's message to a chat bot; the worker remembers what was said before."""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from worker.core.contract import (
    Answer,
    BoundedText,
    ChatRequest,
    Media,
    Message,
    Meta,
    Sampling,
    StreamEvent,
    Talk,
    Text,
)
from worker.core.errors import InputInvalid, WorkerError
from worker.dialects import fields
from worker.dialects.fields import Body

ROUTE = "/api/chat/private"
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
    images: list[BotImage] = Field([], max_length=fields.MAX_FORMS)
    timestamp: float | None = Field(None, ge=0)


class PrivateBody(BotBody):
    """A message to the bot alone."""

    type: Literal["private"]


def speaks(body: dict[str, Any]) -> bool:
    return body.get("route") == ROUTE


def parse(body: dict[str, Any]) -> ChatRequest:
    """Raises InputInvalid, InputNotObject."""
    form = fields.validated(PrivateBody, fields.routed(body))
    return as_request(form, form.content, Talk(key=f"private:{form.user_id}", content=form.content, at=form.timestamp))


def as_request(form: BotBody, text: str, talk: Talk) -> ChatRequest:
    """A message to the bot, its pictures before its words. Raises InputInvalid."""
    if not form.content.strip() and not form.images:
        raise InputInvalid(where="content", detail="a message has words or pictures")
    pictures: list[Text | Media] = [
        fields.image(one.data, f"images[{index}].data") for index, one in enumerate(form.images)
    ]
    return ChatRequest(
        messages=(Message(role="user", parts=(*pictures, Text(text=text))),),
        sampling=Sampling(max_tokens=MAX_TOKENS, temperature=TEMPERATURE),
        talk=talk,
    )


def reply(answer: Answer) -> dict[str, Any]:
    return {"status": "success", "reply": answer.said[0].text}


def chunks(event: StreamEvent, meta: Meta) -> list[dict[str, Any] | str]:
    raise AssertionError("there is no stream on this route")


def refusal(error: WorkerError, body: dict[str, Any]) -> list[dict[str, Any] | str]:
    return [{"error": error.as_json()}]
