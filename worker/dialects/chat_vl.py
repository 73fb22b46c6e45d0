"""`POST /chat-vl`: Qwen messages as JSON in a string, and one file that fills the blocks without a source."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, Strict, ValidationError

from worker.core.contract import Answer, ChatRequest, Done, Meta, Piece, Start, StreamEvent, Usage
from worker.core.errors import InputInvalid
from worker.core.safe_json import Json, JsonObject, TooManyValuesError, read_json
from worker.core.sampling import Sampling
from worker.dialects.base import (
    MAX_MESSAGES,
    MAX_TEXT_CHARS,
    Body,
    BoundedText,
    Chunk,
    Dialect,
    ReplyBody,
    StreamWriter,
    Upload,
    answers_only,
    job_error,
    upload_error,
)
from worker.dialects.media_fields import MAX_FORMS
from worker.dialects.messages import CONTENT, Content, conversation, message
from worker.dialects.sampling_fields import MaxTokens
from worker.dialects.validation import invalid, validated

T = TypeVar("T")
MAX_TOKENS = 256


class ChatVLMessage(Body):
    role: Literal["system", "user", "assistant"]
    content: Annotated[str, Field(max_length=MAX_TEXT_CHARS)] | Annotated[list[Any], Field(max_length=MAX_FORMS)]


class ChatVLBody(Body):
    """The fields of the form. Their values may be text, as forms have them."""

    model_config = ConfigDict(strict=False)

    messages: BoundedText | list[Any] | JsonObject = Field(repr=False)
    file: Annotated[str, Strict()] | Annotated[bytes, Strict()] | None = Field(None, repr=False)
    max_new_tokens: MaxTokens = MAX_TOKENS
    stream: bool = False


class ChatVLForm(ReplyBody):
    """Messages as JSON in a string; the file fills the block without a source."""

    model_config = ConfigDict(extra="forbid", defer_build=True)

    messages: str = Field(examples=['[{"role": "user", "content": [{"type": "image"}]}]'])
    file: bytes | None = Field(None, json_schema_extra={"type": "string", "format": "binary"})
    max_new_tokens: int = Field(MAX_TOKENS, ge=1)
    stream: bool = False


class TokenUsage(ReplyBody):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatVLReply(ReplyBody):
    """The whole answer."""

    response: str
    usage: TokenUsage


def _parse(body: JsonObject) -> ChatRequest:
    """Raises InputInvalid, MediaParamInvalid."""
    form = validated(ChatVLBody, body)
    num_filled = 0
    messages = []
    for index, raw in enumerate(_messages(form.messages)):
        where = f"messages[{index}]"
        turn = _at(where, ChatVLMessage.model_validate, raw, ChatVLMessage)
        content = turn.content
        if isinstance(content, list):
            blocks, filled = _filled(content, form.file, f"{where}.content")
            num_filled += filled
            content = _at(f"{where}.content", CONTENT.validate_python, blocks, Content)
        messages.append(message(turn.role, content, f"{where}.content"))
    if form.file is not None and not num_filled:
        raise InputInvalid(where="file", detail="no image or video block without a source refers to it")
    return ChatRequest(
        messages=conversation(messages), sampling=Sampling(max_tokens=form.max_new_tokens), stream=form.stream
    )


def _at(where: str, validate: Callable[[object], T], value: object, form: object) -> T:
    """The value, validated; a fault is named by its place below `where`. Raises InputInvalid."""
    try:
        return validate(value)
    except ValidationError as error:
        failure = invalid(error, value, form)
        inner = "" if failure.where in (None, "input") else failure.where
        raise failure.at(f"{where}{inner}" if str(inner).startswith("[") else f"{where}.{inner}".rstrip(".")) from None


def _messages(field: str | list[Any] | JsonObject) -> list[Any]:
    """One message or a list of them, as JSON in a string or as it is. Raises InputInvalid."""
    read: Json = field
    if isinstance(field, str):
        try:
            read = read_json(field.encode())
        except TooManyValuesError as error:
            raise InputInvalid(where="messages", detail=str(error)) from None
        except (ValueError, RecursionError):
            raise InputInvalid(where="messages", detail="is not valid JSON") from None
    messages = [read] if isinstance(read, dict) else read
    if not isinstance(messages, list) or not 1 <= len(messages) <= MAX_MESSAGES:
        raise InputInvalid(where="messages", detail=f"must be a message or a list of 1 to {MAX_MESSAGES} messages")
    return messages


def _filled(blocks: list[Any], file: str | bytes | None, where: str) -> tuple[list[Any], int]:
    """The blocks, the bare ones with the file in them, and how many those were. Raises InputInvalid."""
    filled = []
    num_bare = 0
    for index, block in enumerate(blocks):
        kind = block.get("type") if isinstance(block, dict) else None
        if kind in ("image", "video") and kind not in block:
            if file is None:
                raise InputInvalid(
                    where=f"{where}[{index}]", detail=f"this {kind} block has no source, and no file was uploaded"
                )
            block, num_bare = {**block, kind: file}, num_bare + 1
        filled.append(block)
    return filled, num_bare


def _shape(answer: Answer) -> JsonObject:
    return {"response": answer.choices[0].text, "usage": token_usage(answer.usage)}


def token_usage(usage: Usage) -> dict[str, int]:
    """The three counts that every API has."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }


def _chunks(event: StreamEvent, _: Meta) -> list[Chunk]:
    """The text and nothing else."""
    match event:
        case Piece():
            return [event.text]
        case Start() | Done():
            return []


DIALECT = Dialect(
    name="chat_vl",
    about="Messages and one uploaded file",
    route="/chat-vl",
    upload=Upload("file"),
    parse=_parse,
    reply=answers_only(_shape),
    writer=lambda meta: StreamWriter(meta, _chunks, job_error),
    http_error=lambda error, declared_type: upload_error(error, declared_type),
    body=ChatVLForm,
    reply_model=ChatVLReply,
    stream_type="text/plain; charset=utf-8",
)
