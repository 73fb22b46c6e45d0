"""What a body of OpenAI's Responses may say."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from worker.core.errors import InputInvalid
from worker.core.sampling import Constraint
from worker.core.tools import NamedTool, ToolChoice
from worker.dialects.base import MAX_MESSAGES, Body, BoundedText, string_or_list, without_nulls
from worker.dialects.constraint_fields import ANY_OBJECT, GuidedFields, Schema, StructuredOutputs, schema_constraint
from worker.dialects.media_fields import DETAILS, MAX_FORMS
from worker.dialects.messages import Block
from worker.dialects.prompt_fields import PromptFields
from worker.dialects.sampling_fields import Effort, MaxTokens, NumAlternatives, SamplingFields
from worker.dialects.tool_fields import MAX_TOOLS, FunctionBody, ToolName

MAX_NAME_CHARS = 256
MAX_PAIRS = 16
Label = Annotated[str, Field(max_length=512)]  # what clients call a request by; it is repeated in each event


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
        case "input_image" if "image_url" not in part:
            raise PydanticCustomError("own_image", "needs image_url: a URL or a data URI")
        case "input_image" if part.get("detail", "auto") not in DETAILS:
            raise PydanticCustomError("own_detail", f"must have a detail of {', '.join(DETAILS)}, or none")
        case "input_image":
            shown = part.get("image_url")
            url = shown if isinstance(shown, dict) else {"url": shown}
            return {"type": "image_url", "image_url": {"detail": part.get("detail", "auto"), **url}}
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
    string_or_list("<blocks>", "must be a string or a list of parts"),
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
    string_or_list("<items>", "must be a string or a list of items"),
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
        name: Annotated[str, Field(max_length=MAX_NAME_CHARS)] | None = None
        strict: bool | None = None
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
    """The choice, or the function that is named."""
    match value:
        case None | "auto" | "none" | "required":
            return value
        case {"type": "function", "name": str(name)}:
            return NamedTool(name=name)
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
    tool_choice: Annotated[ToolChoice | NamedTool | None, BeforeValidator(_choice)] = None
    parallel_tool_calls: bool | None = None
    text: Annotated[TextConfig | None, BeforeValidator(without_nulls)] = None
    reasoning: Annotated[ReasoningConfig | None, BeforeValidator(without_nulls)] = None
    structured_outputs: StructuredOutputs | None = None
    # Repeated, and nothing else.
    metadata: Annotated[dict[Label, Label] | None, Field(max_length=MAX_PAIRS)] = None
    user: Label | None = None
    prompt_cache_key: Label | None = None
    safety_identifier: Label | None = None

    def forms(self) -> Iterator[Constraint]:
        """The constraints on the answer that are asked for. Raises InputInvalid."""
        for asked in (self.text, self.structured_outputs):
            if asked is not None:
                yield from asked.constraints()
        yield from self.guided()
