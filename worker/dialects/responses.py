"""OpenAI's Responses: `POST /v1/responses`, without anything kept between requests.

Items of the input become turns: an assistant's thinking, words and calls that follow each other are one.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from worker.core.contract import ChatRequest, Message, Role, Text
from worker.core.errors import InputInvalid
from worker.core.names import shown_name
from worker.core.safe_json import JsonObject
from worker.core.sampling import Constraint
from worker.dialects.base import MAX_MESSAGES, Body, BoundedText, Dialect, answers_only, without_nulls
from worker.dialects.constraint_fields import (
    ANY_OBJECT,
    GuidedFields,
    Schema,
    StructuredOutputs,
    only_one,
    schema_constraint,
)
from worker.dialects.media_fields import MAX_FORMS
from worker.dialects.messages import Block, Turn, conversation, spoken
from worker.dialects.openai_fields import MAX_NAMES_LOGGED
from worker.dialects.openai_reply import OpenAIFault
from worker.dialects.prompt_fields import PromptFields
from worker.dialects.responses_reply import FAULTS, EventWriter, ResponsesReply, refuse, shape
from worker.dialects.sampling_fields import Effort, MaxTokens, NumAlternatives, SamplingFields
from worker.dialects.tool_fields import MAX_TOOLS, FunctionBody, ToolCallBody, ToolName, offered
from worker.dialects.validation import validated

_ROLES: dict[str, Role] = {
    "developer": "system",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
_KEPT = "nothing is kept here: send the whole conversation in input"
# What changes an answer and is not built: the values that ask for nothing, and what to do instead of the others.
_NOT_BUILT: dict[str, tuple[tuple[Any, ...], str]] = {
    "previous_response_id": ((None,), _KEPT),
    "conversation": ((None,), _KEPT),
    "background": ((None, False), "send the request as a job of the platform, which need not be waited for"),
    "prompt": ((None,), "write instructions and input"),
    "truncation": ((None, "disabled"), "shorten the input"),
    "max_tool_calls": ((None,), "calls are made by the client, which can count them"),
    "n": ((None, 1), "send several requests"),
}
# Repeated in the reply, as the API does.
_REPEATED = (
    *("instructions", "max_output_tokens", "metadata", "parallel_tool_calls", "prompt_cache_key", "reasoning"),
    *("safety_identifier", "temperature", "text", "tool_choice", "tools", "top_logprobs", "top_p", "user"),
)


def _as_block(value: object) -> object:
    """A part of this API as the block that it is in a chat."""
    part = without_nulls(value)
    if not isinstance(part, dict):
        return value
    match part.get("type"):
        case "input_text" | "output_text" | "summary_text" | "reasoning_text":
            return {"type": "text", "text": part.get("text")}
        case "input_image" if "file_id" in part:
            raise PydanticCustomError("own_file", "names a file, and none are kept here: write image_url")
        case "input_image":
            url: JsonObject = {"url": part.get("image_url"), "detail": part.get("detail", "auto")}
            return {"type": "image_url", "image_url": url}
        case "input_video":
            return {"type": "video_url", "video_url": part.get("video_url")}
        case "input_file" if str(part.get("file_data", ""))[:11].lower() == "data:image/":
            return {"type": "image_url", "image_url": {"url": part["file_data"]}}
        case "input_file":
            raise PydanticCustomError("own_file", "only images are read from files: send a document's pages as images")
    return value


ResponsesContent = Annotated[
    Annotated[BoundedText, Tag("<string>")]
    | Annotated[
        Annotated[list[Annotated[Block, BeforeValidator(_as_block)]], Field(max_length=MAX_FORMS, fail_fast=True)],
        Tag("<blocks>"),
    ],
    Discriminator(
        lambda value: "<string>" if isinstance(value, str) else "<blocks>" if isinstance(value, list) else None,
        custom_error_type="own_content_form",
        custom_error_message="must be a string or a list of parts",
    ),
]


class Item(Body):
    """Of the input. What a client sends back of a reply has more fields than matter."""

    model_config = ConfigDict(extra="ignore")


class MessageItem(Item):
    """A turn's words and pictures."""

    role: Literal["user", "assistant", "system", "developer"]
    content: ResponsesContent


class CallItem(Item):
    """An assistant's call of a function."""

    call_id: str
    name: ToolName
    arguments: BoundedText = Field("", repr=False)


class OutputItem(Item):
    """What a function returned."""

    call_id: str
    output: ResponsesContent


class ReasoningItem(Item):
    """What an assistant thought; `encrypted_content` is another server's."""

    class Part(Item):
        """Of the thinking."""

        text: BoundedText = Field(repr=False)

    content: list[Part] | None = Field(None, max_length=MAX_FORMS)


_KINDS = ("message", "function_call", "function_call_output", "reasoning")


def _kind_of_item(value: object) -> str | None:
    if not isinstance(value, dict):
        return None
    kind = value.get("type") or ("message" if "role" in value else None)
    return f"<{kind}>" if kind in _KINDS else None


AnyItem = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[CallItem, Tag("<function_call>")]
    | Annotated[OutputItem, Tag("<function_call_output>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")],
    Discriminator(
        _kind_of_item,
        custom_error_type="own_item_kind",
        custom_error_message=f"must be an object whose type is one of {', '.join(_KINDS)}",
    ),
]
Input = Annotated[
    Annotated[BoundedText, Tag("<string>")]
    | Annotated[Annotated[list[AnyItem], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)], Tag("<items>")],
    Discriminator(
        lambda value: "<string>" if isinstance(value, str) else "<items>" if isinstance(value, list) else None,
        custom_error_type="own_input_form",
        custom_error_message="must be a string or a list of items",
    ),
]


class ResponsesTool(FunctionBody):
    """A function that the model may call."""

    type: Literal["function"]


def _own_tool(value: object) -> object:
    """What the API itself would run is not here."""
    if isinstance(value, dict) and value.get("type", "function") != "function":
        raise PydanticCustomError("own_tool", "must be a function that the client runs: none is run here")
    return value


OwnTool = Annotated[ResponsesTool, BeforeValidator(_own_tool)]


class TextConfig(Body):
    """The form of the answer."""

    class Format(Body):
        model_config = ConfigDict(extra="ignore")

        type: Literal["text", "json_object", "json_schema"]
        schema_: Schema | None = Field(None, alias="schema", repr=False)

    model_config = ConfigDict(extra="ignore")

    format: Format | None = None

    def constraints(self) -> Iterator[Constraint]:
        """Raises InputInvalid."""
        form, where = self.format, "text.format"
        if form is None or form.type == "text":
            return
        if form.type == "json_object":
            yield Constraint(kind="json_schema", text=ANY_OBJECT, where=where)
        elif form.schema_ is None:
            raise InputInvalid(where=f"{where}.schema", detail="is required")
        else:
            yield schema_constraint(form.schema_, f"{where}.schema")


class ReasoningConfig(Body):
    model_config = ConfigDict(extra="ignore")

    effort: Effort | None = None


def _choice(value: object) -> object:
    """The choice, or the name of the function that is named."""
    match value:
        case None | "auto" | "none" | "required":
            return value
        case {"type": "function", "name": str(name)}:
            return name
    raise PydanticCustomError(
        "own_tool_choice", 'must be "auto", "none", "required" or {"type": "function", "name": …}'
    )


class ResponsesBody(SamplingFields, GuidedFields, PromptFields):
    """What is honoured of a Responses body."""

    model_config = ConfigDict(extra="ignore")

    input: Input = Field(repr=False)
    instructions: BoundedText | None = Field(None, repr=False)
    model: str | None = None
    stream: bool | None = None
    max_output_tokens: MaxTokens | None = None
    top_logprobs: NumAlternatives | None = None
    include: list[str] | None = Field(None, max_length=32)
    tools: Annotated[list[OwnTool] | None, Field(max_length=MAX_TOOLS, fail_fast=True)] = None
    tool_choice: Annotated[str | None, BeforeValidator(_choice)] = None
    parallel_tool_calls: bool | None = None
    text: Annotated[TextConfig | None, BeforeValidator(without_nulls)] = None
    reasoning: Annotated[ReasoningConfig | None, BeforeValidator(without_nulls)] = None
    structured_outputs: StructuredOutputs | None = None
    # Repeated, and nothing else.
    metadata: JsonObject | None = None
    user: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None

    def forms(self) -> Iterator[Constraint]:
        """The constraints on the answer that are asked for. Raises InputInvalid."""
        for asked in (self.text, self.structured_outputs):
            if asked is not None:
                yield from asked.constraints()
        yield from self.guided()


def _parse(body: JsonObject) -> ChatRequest:
    """Raises InputInvalid, MediaParamInvalid."""
    for name, (harmless, instead) in _NOT_BUILT.items():
        if name in body and not any(type(body[name]) is type(one) and body[name] == one for one in harmless):
            raise InputInvalid(where=name, detail=f"this value is not supported: {instead}")
    form = validated(ResponsesBody, body)
    has_logprobs = bool(form.top_logprobs) or "message.output_text.logprobs" in (form.include or ())
    update = {"max_tokens": form.max_output_tokens or form.max_tokens, "logprobs": has_logprobs or None}
    form = form.model_copy(update=update)
    return ChatRequest(
        messages=form.seen(conversation(_messages(form))),
        template=form.variables(None if form.reasoning is None else form.reasoning.effort),
        sampling=form.sampling(only_one(form.forms())),
        max_seconds=form.max_seconds,
        stream=form.stream or False,
        model=form.model,
        ignored=_ignored(body),
        tools=offered(
            {f"tools[{index}]": tool for index, tool in enumerate(form.tools or ())},
            form.tool_choice,
            is_parallel=form.parallel_tool_calls is not False,
            inside="",
        ),
        echo={name: body[name] for name in _REPEATED if body.get(name) is not None},
    )


def _messages(form: ResponsesBody) -> Iterator[Message]:
    if form.instructions is not None:
        yield Message(role="system", parts=(Text(text=form.instructions),))
    if isinstance(form.input, str):
        yield Message(role="user", parts=(Text(text=form.input),))
        return
    turns = list(_turns(form.input))

    def place(index: int, field: str) -> str:
        turn, at = turns[index]
        return f"input[{at}].{'output' if turn.role == 'tool' else 'arguments' if field == 'tool_calls' else field}"

    yield from spoken([turn for turn, _ in turns], _ROLES, place)


def _turns(items: Sequence[AnyItem]) -> Iterator[tuple[Turn, int]]:
    """Turns, each with the place of its first item."""
    open_turn: tuple[Turn, int] | None = None
    for index, item in enumerate(items):
        if open_turn is not None and not _goes_on(open_turn[0], item):
            yield open_turn
            open_turn = None
        if isinstance(item, OutputItem):
            yield _turn("tool", content=item.output, tool_call_id=item.call_id), index
        elif isinstance(item, MessageItem) and item.role != "assistant":
            yield _turn(item.role, content=item.content), index
        else:
            turn, at = open_turn or (_turn("assistant"), index)
            open_turn = turn.model_copy(update=_added(turn, item)), at
    if open_turn is not None:
        yield open_turn


def _goes_on(turn: Turn, item: AnyItem) -> bool:
    """Whether an item is of the assistant's turn so far: first it thinks, then it speaks, then it calls."""
    match item:
        case ReasoningItem():
            return False
        case MessageItem():
            return item.role == "assistant" and turn.content is None and not turn.tool_calls
        case CallItem():
            return True
        case _:
            return False


def _added(turn: Turn, item: AnyItem) -> dict[str, Any]:
    match item:
        case ReasoningItem():
            return {"reasoning": "".join(part.text for part in item.content or ()) or None}
        case MessageItem():
            return {"content": item.content or None}
        case CallItem():
            function = ToolCallBody.Function.model_construct(name=item.name, arguments=item.arguments)
            call = ToolCallBody.model_construct(id=item.call_id, type="function", function=function)
            return {"tool_calls": [*(turn.tool_calls or ()), call]}
        case _:
            raise AssertionError(f"{type(item).__name__} is no part of an assistant's turn")


def _turn(role: str, **fields: Any) -> Turn:
    """Of parts that are validated already."""
    return Turn.model_construct(role=role, **fields)


def _ignored(body: JsonObject) -> tuple[str, ...]:
    known = ResponsesBody.model_fields.keys() | _NOT_BUILT.keys()
    return tuple(sorted(shown_name(name) for name in body.keys() - known)[:MAX_NAMES_LOGGED])


_PICTURE = {"type": "input_image", "image_url": "https://example.org/shapes.png"}
_QUESTION = {"type": "input_text", "text": "What is in the picture?"}
DIALECT = Dialect(
    name="openai_responses",
    about="OpenAI Responses, stateless",
    route="/v1/responses",
    is_openai=True,
    parse=_parse,
    reply=answers_only(shape),
    writer=EventWriter,
    refuse=refuse,
    http_error=FAULTS.http_error,
    body=ResponsesBody,
    reply_model=ResponsesReply,
    fault=OpenAIFault,
    stream_type="text/event-stream",
    example={"input": [{"role": "user", "content": [_PICTURE, _QUESTION]}]},
)
