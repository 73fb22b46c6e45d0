"""OpenAI's list of models: `GET /v1/models` and `/v1/models/<name>`."""

from typing import Literal, assert_never

from worker.core.contract import Answer, Counted, ModelCard, ModelQuery, Reply, Silence
from worker.core.safe_json import JsonObject
from worker.dialects.base import Dialect, ReplyBody
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


def _reply(outcome: Reply) -> JsonObject:
    match outcome:
        case ModelCard():
            card = {"id": outcome.model, "object": "model", "created": outcome.created, "owned_by": "worker-qwen-vl"}
            card["max_model_len"] = outcome.max_model_len  # vLLM's
            return card if outcome.is_named else {"object": "list", "data": [card]}
        case Answer() | Counted() | Silence():
            raise AssertionError(f"{type(outcome).__name__} is no outcome of a question about the model")
        case _:
            assert_never(outcome)


DIALECT = Dialect(
    name="openai_models",
    about="The model that is served",
    route="/v1/models",
    method="GET",
    has_tail=True,
    is_openai=True,
    is_named=False,
    parse=_parse,
    reply=_reply,
    refuse=FAULTS.refuse,
    http_error=FAULTS.http_error,
    reply_model=OpenAIModelList,
    tail_reply_model=OpenAIModel,
    fault=OpenAIFault,
)
