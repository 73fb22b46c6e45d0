"""`POST /v1/image/recognize`: one picture, one question."""

from typing import Any

from pydantic import Field

from worker.core.contract import Answer, BoundedText, ChatRequest, Message, Meta, Sampling, StreamEvent, Text
from worker.core.errors import WorkerError
from worker.dialects import fields
from worker.dialects.fields import Body, MediaForm

ROUTE = "/v1/image/recognize"
MAX_TOKENS = 1024


class RecognizeBody(Body):
    image: MediaForm
    prompt: BoundedText = Field(repr=False)


def speaks(body: dict[str, Any]) -> bool:
    return body.get("route") == ROUTE


def parse(body: dict[str, Any]) -> ChatRequest:
    """Raises InputInvalid, InputNotObject."""
    form = fields.validated(RecognizeBody, fields.routed(body))
    parts = (fields.image(form.image, "image"), Text(text=form.prompt))
    return ChatRequest(messages=(Message(role="user", parts=parts),), sampling=Sampling(max_tokens=MAX_TOKENS))


def reply(answer: Answer) -> dict[str, Any]:
    return {"status": "success", "result": answer.said[0].text}


def chunks(event: StreamEvent, meta: Meta) -> list[dict[str, Any] | str]:
    raise AssertionError("there is no stream on this route")


def refusal(error: WorkerError, body: dict[str, Any]) -> list[dict[str, Any] | str]:
    return [{"error": error.as_json()}]
