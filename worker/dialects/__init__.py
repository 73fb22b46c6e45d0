"""The table that chooses a dialect: outside JSON on one side, the contract on the other.

A dialect is a module with the functions of `Dialect`. All are pure: no I/O, no clock, no torch. To add one,
write the module and give it a row in `DIALECTS`; the first that speaks a body gets it.
"""

from typing import Any, Protocol

from worker.core.contract import Answer, ChatRequest, Meta, StreamEvent
from worker.core.errors import InputInvalid, InputNotObject, WorkerError
from worker.dialects import bot_group, bot_private, chat_vl, generate, native, openai_chat, openai_models, recognize

JSON = dict[str, Any] | str


def name_of(dialect: object) -> str:
    """A dialect's name: that of its module."""
    return getattr(dialect, "__name__", "").rpartition(".")[2]


class Dialect(Protocol):
    """One language of requests and answers."""

    def speaks(self, body: dict[str, Any]) -> bool:
        """Whether this dialect is the one to read the body."""

    def parse(self, body: dict[str, Any]) -> ChatRequest:
        """The request in the contract's terms. Raises InputError."""

    def reply(self, answer: Answer) -> JSON:
        """The whole answer."""

    def chunks(self, event: StreamEvent, meta: Meta) -> list[JSON]:
        """What a streaming client receives for this event, in order."""

    def refusal(self, error: WorkerError, body: dict[str, Any]) -> list[JSON]:
        """What ends a request that failed, in order."""


DIALECTS: tuple[Dialect, ...] = (
    openai_models,
    openai_chat,
    chat_vl,
    recognize,
    generate,
    bot_group,
    bot_private,
    native,
)


BY_NAME: dict[str, Dialect] = {name_of(dialect): dialect for dialect in DIALECTS if dialect is not openai_models}


def choose(body: object) -> tuple[Dialect, dict[str, Any]]:
    """The dialect of this input and the input as an object. A `dialect` in it goes before the table: the rest is that
    dialect's body. Raises InputNotObject, InputInvalid."""
    if not isinstance(body, dict):
        raise InputNotObject()
    if "dialect" in body:
        name = body["dialect"]
        if not isinstance(name, str) or name not in BY_NAME:
            raise InputInvalid(where="dialect", detail=f"one of {', '.join(sorted(BY_NAME))}")
        rest = {key: value for key, value in body.items() if key != "dialect"}
        route = getattr(BY_NAME[name], "ROUTE", None)
        return BY_NAME[name], rest if route is None else {"route": route, "body": rest}
    return next(dialect for dialect in DIALECTS if dialect.speaks(body)), body
