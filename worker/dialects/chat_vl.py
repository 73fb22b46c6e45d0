"""`POST /chat-vl`: Qwen messages as JSON in a string, and one file that fills the blocks without a source."""

import json
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, Strict, ValidationError

from worker.core.contract import (
    MAX_MESSAGES,
    MAX_TEXT_CHARS,
    Answer,
    BoundedText,
    ChatRequest,
    Done,
    MaxTokens,
    Meta,
    Piece,
    Sampling,
    Start,
    StreamEvent,
)
from worker.core.errors import InputInvalid, WorkerError
from worker.dialects import fields
from worker.dialects.fields import Body

T = TypeVar("T")
ROUTE = "/chat-vl"
MAX_TOKENS = 256


class ChatVLMessage(Body):
    role: Literal["system", "user", "assistant"]
    content: Annotated[str, Field(max_length=MAX_TEXT_CHARS)] | Annotated[list[Any], Field(max_length=fields.MAX_FORMS)]


class ChatVLBody(Body):
    """The fields of the form. Their values may be text, as forms have them."""

    model_config = ConfigDict(strict=False)

    messages: BoundedText | list[Any] | dict[str, Any] = Field(repr=False)
    file: Annotated[str, Strict()] | Annotated[bytes, Strict()] | None = Field(None, repr=False)
    max_new_tokens: MaxTokens = MAX_TOKENS
    stream: bool = False


def speaks(body: dict[str, Any]) -> bool:
    return body.get("route") == ROUTE


def parse(body: dict[str, Any]) -> ChatRequest:
    """Raises InputInvalid, InputNotObject, MediaParamInvalid."""
    given = fields.routed(body)
    form = fields.validated(ChatVLBody, given)
    num_filled = 0
    said = []
    for index, one in enumerate(_messages(form.messages)):
        where = f"messages[{index}]"
        message = _at(where, ChatVLMessage.model_validate, one)
        content = message.content
        if isinstance(content, list):
            blocks, filled = _filled(content, form.file, f"{where}.content")
            num_filled += filled
            content = _at(f"{where}.content", fields.CONTENT.validate_python, blocks)
        said.append(fields.message(message.role, content, f"{where}.content"))
    if form.file is not None and not num_filled:
        raise InputInvalid(where="file", detail="no block without a source asks for it")
    return ChatRequest(
        messages=fields.conversation(said), sampling=Sampling(max_tokens=form.max_new_tokens), stream=form.stream
    )


def _at(where: str, validate: Callable[[Any], T], value: Any) -> T:
    """The value, validated; a fault is named by its place below `where`. Raises InputInvalid."""
    try:
        return validate(value)
    except ValidationError as error:
        failure = fields.invalid(error)
        inner = "" if failure.where in (None, "input") else failure.where
        raise failure.at(f"{where}{inner}" if str(inner).startswith("[") else f"{where}.{inner}".rstrip(".")) from None


def _messages(given: str | list[Any] | dict[str, Any]) -> list[Any]:
    """One message or a list of them, as JSON in a string or as it is. Raises InputInvalid."""
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            raise InputInvalid(where="messages", detail="not valid JSON") from None
    messages = [given] if isinstance(given, dict) else given
    if not isinstance(messages, list) or not 1 <= len(messages) <= MAX_MESSAGES:
        raise InputInvalid(where="messages", detail=f"a message or a list of 1 to {MAX_MESSAGES}")
    return messages


def _filled(blocks: list[Any], file: str | bytes | None, where: str) -> tuple[list[Any], int]:
    """The blocks, the bare ones with the file in them, and how many those were. Raises InputInvalid."""
    filled = []
    num_bare = 0
    for index, block in enumerate(blocks):
        kind = block.get("type") if isinstance(block, dict) else None
        if kind in ("image", "video") and kind not in block:
            if file is None:
                raise InputInvalid(where=f"{where}[{index}]", detail=f"this {kind} has no source and no file was sent")
            block, num_bare = {**block, kind: file}, num_bare + 1
        filled.append(block)
    return filled, num_bare


def reply(answer: Answer) -> dict[str, Any]:
    used = answer.usage
    usage = {
        "prompt_tokens": used.prompt_tokens,
        "completion_tokens": used.completion_tokens,
        "total_tokens": used.total_tokens,
    }
    return {"response": answer.said[0].text, "usage": usage}


def chunks(event: StreamEvent, meta: Meta) -> list[dict[str, Any] | str]:
    """The text and nothing else."""
    match event:
        case Piece():
            return [event.text]
        case Start() | Done():
            return []


def refusal(error: WorkerError, body: dict[str, Any]) -> list[dict[str, Any] | str]:
    return [{"error": error.as_json()}]
