"""`POST /generate`: Qwen messages in, the text alone out."""

from typing import Any

from pydantic import Field

from worker.core.contract import (
    MAX_MESSAGES,
    Answer,
    ChatRequest,
    MaxTokens,
    Meta,
    Sampling,
    StreamEvent,
    Temperature,
    TopP,
)
from worker.core.errors import WorkerError
from worker.dialects import fields
from worker.dialects.fields import Body
from worker.dialects.native import NativeMessage

ROUTE = "/generate"


class GenerateBody(Body):
    messages: list[NativeMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_tokens: MaxTokens = 512
    temperature: Temperature = 0.7
    top_p: TopP = 0.9


def speaks(body: dict[str, Any]) -> bool:
    return body.get("route") == ROUTE


def parse(body: dict[str, Any]) -> ChatRequest:
    """Raises InputInvalid, InputNotObject."""
    form = fields.validated(GenerateBody, fields.routed(body))
    messages = (
        fields.message(one.role, one.content, f"messages[{index}].content") for index, one in enumerate(form.messages)
    )
    return ChatRequest(
        messages=fields.conversation(messages),
        sampling=Sampling(max_tokens=form.max_tokens, temperature=form.temperature, top_p=form.top_p),
    )


def reply(answer: Answer) -> dict[str, Any]:
    return {"response": answer.said[0].text}


def chunks(event: StreamEvent, meta: Meta) -> list[dict[str, Any] | str]:
    raise AssertionError("there is no stream on this route")


def refusal(error: WorkerError, body: dict[str, Any]) -> list[dict[str, Any] | str]:
    return [{"error": error.as_json()}]
