"""The table that chooses a dialect: outside JSON on one side, the contract on the other.

A dialect is a module with the functions of `Dialect`. All are pure: no I/O, no clock, no torch. To add one,
write the module and give it a row in `DIALECTS`; the first that speaks a body gets it.
"""

from typing import Any, Protocol

from worker.contract import Answer, ChatRequest, Meta, StreamEvent
from worker.dialects import bot_group, bot_private, chat_vl, generate, native, openai_chat, openai_models, recognize
from worker.errors import InputNotObject, WorkerError

JSON = dict[str, Any] | str


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


def choose(body: object) -> tuple[Dialect, dict[str, Any]]:
    """The dialect of this input and the input as an object. Raises InputNotObject."""
    if not isinstance(body, dict):
        raise InputNotObject()
    return next(dialect for dialect in DIALECTS if dialect.speaks(body)), body
