"""`GET /v1/tasks` and `/v1/tasks/<name>`: the task presets, with their words and options, an example and its result."""

from typing import Any, Literal

from worker.core.contract import ModelCard, ModelQuery
from worker.core.errors import RouteUnknown
from worker.core.safe_json import JsonObject
from worker.core.tasks import TASKS, listed
from worker.dialects.base import Dialect, ReplyBody, cards_only


class TaskCard(ReplyBody):
    """A task preset. example: of a job's input; result: of the typed output."""

    id: str
    object: Literal["task"]
    about: str
    prompts: dict[str, str]
    options: list[str]
    example: dict[str, Any]
    result: dict[str, Any]


class TaskList(ReplyBody):
    """All of them."""

    object: Literal["list"]
    data: list[TaskCard]


def _parse(body: JsonObject) -> ModelQuery:
    """Raises RouteUnknown."""
    if body["tail"] and body["tail"] not in TASKS:
        raise RouteUnknown(where="route", detail=f"the tasks are {', '.join(TASKS)}")
    return ModelQuery(topic=body["tail"] or "")


def _shape(card: ModelCard) -> JsonObject:
    found = [task for task in listed() if task["id"] == card.topic]
    return found[0] if found else {"object": "list", "data": listed()}


DIALECT = Dialect(
    name="tasks",
    about="The task presets",
    route="/v1/tasks",
    method="GET",
    has_tail=True,
    is_named=False,
    parse=_parse,
    reply=cards_only(_shape),
    reply_model=TaskList,
    tail_reply_model=TaskCard,
)
