"""OpenAI's list of models, `/v1/models` and `/v1/models/<name>`, as the platform's OpenAI route carries them."""

from typing import Any

from worker.core.contract import Answer, ChatRequest, Meta, StreamEvent
from worker.core.errors import WorkerError
from worker.dialects import fields, openai_chat

ROUTE = "/v1/models"


def speaks(body: dict[str, Any]) -> bool:
    route = body.get("openai_route")
    return isinstance(route, str) and (route == ROUTE or route.startswith(ROUTE + "/"))


def parse(body: dict[str, Any]) -> ChatRequest:
    """A request that asks the model nothing. Raises InputInvalid."""
    for name in body.keys() - {"openai_route", "openai_input"}:
        raise fields.no_such_field(name)
    return ChatRequest(messages=(), model=body["openai_route"][len(ROUTE) + 1 :] or None)


def reply(answer: Answer) -> dict[str, Any]:
    meta = answer.meta
    card = {"id": meta.model, "object": "model", "created": meta.created, "owned_by": "worker-qwen-vl"}
    return card if meta.is_named else {"object": "list", "data": [card]}


def chunks(event: StreamEvent, meta: Meta) -> list[dict[str, Any] | str]:
    raise AssertionError("a list of models is never streamed")


def refusal(error: WorkerError, body: dict[str, Any]) -> list[dict[str, Any] | str]:
    return openai_chat.refusal(error, body)
