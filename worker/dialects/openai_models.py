"""OpenAI's list of models: `GET /v1/models` and `/v1/models/<name>`."""

from typing import Literal

from worker.core.contract import ModelCard, ModelQuery
from worker.core.safe_json import JsonObject
from worker.dialects.base import Dialect, ReplyBody, cards_only
from worker.dialects.openai_reply import FAULTS, OpenAIFault


class OpenAIModel(ReplyBody):
    """The served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class OpenAIModelList(ReplyBody):
    """All that is served: one model."""

    object: Literal["list"]
    data: list[OpenAIModel]


def _parse(body: JsonObject) -> ModelQuery:
    return ModelQuery(model=body["tail"] or None)


def _shape(card: ModelCard) -> JsonObject:
    shown = {"id": card.model, "object": "model", "created": card.created, "owned_by": "worker-qwen-vl"}
    shown["max_model_len"] = card.max_model_len  # vLLM's
    return shown if card.is_named else {"object": "list", "data": [shown]}


DIALECT = Dialect(
    name="openai_models",
    about="The model that is served",
    route="/v1/models",
    method="GET",
    has_tail=True,
    is_openai=True,
    is_named=False,
    parse=_parse,
    reply=cards_only(_shape),
    refuse=FAULTS.refuse,
    http_error=FAULTS.http_error,
    reply_model=OpenAIModelList,
    tail_reply_model=OpenAIModel,
    fault=OpenAIFault,
)
