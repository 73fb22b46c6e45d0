"""`POST /api/chat/group`: a message in a group that a chat bot belongs to; the model sees who said what."""

from typing import Any, Literal

from worker.core.contract import Answer, ChatRequest, Talk
from worker.dialects import fields
from worker.dialects.bot_private import BotBody, Id, Name, as_request, chunks, refusal

__all__ = ["ROUTE", "GroupBody", "chunks", "parse", "refusal", "reply", "speaks"]

ROUTE = "/api/chat/group"


class GroupBody(BotBody):
    """A message to a group."""

    type: Literal["group"]
    group_id: Id
    group_name: Name = None
    user_card: Name = None


def speaks(body: dict[str, Any]) -> bool:
    return body.get("route") == ROUTE


def parse(body: dict[str, Any]) -> ChatRequest:
    """Raises InputInvalid, InputNotObject."""
    form = fields.validated(GroupBody, fields.routed(body))
    names = (form.user_card, form.user_nickname, str(form.user_id))
    sender = next(shown for name in names if (shown := " ".join((name or "").split())))
    talk = Talk(key=f"group:{form.group_id}", content=form.content, at=form.timestamp, is_group=True)
    return as_request(form, f"{sender}: {form.content}", talk)


def reply(answer: Answer) -> dict[str, Any]:
    """Without an answer the message was for others, and is remembered."""
    said = answer.said[0].text if answer.said else ""
    return {"status": "success", "should_reply": bool(answer.said), "reply": said}
