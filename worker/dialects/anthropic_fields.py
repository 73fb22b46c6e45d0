"""What a body of Anthropic's Messages may say."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from worker.core.safe_json import JsonObject
from worker.core.sampling import Constraint
from worker.dialects.base import MAX_MESSAGES, Body, BoundedText, string_or_list, without_nulls
from worker.dialects.constraint_fields import GuidedFields, Schema, StructuredOutputs, schema_constraint
from worker.dialects.media_fields import MAX_FORMS
from worker.dialects.prompt_fields import PromptFields
from worker.dialects.sampling_fields import Effort, MaxTokens, SamplingFields, Stops, ThinkingBudget
from worker.dialects.tool_fields import MAX_TOOLS, FunctionBody, ToolName


class Part(Body):
    """Of a message. What a client sends back of a reply has more fields than matter."""

    model_config = ConfigDict(extra="ignore")


class TextPart(Part):
    """Words."""

    text: BoundedText = Field(repr=False)


class ImagePart(Part):
    """A picture in base64, or by its address."""

    class Source(Part):
        """Where its bytes are."""

        type: Literal["base64", "url"]
        data: str | None = Field(None, repr=False)
        url: str | None = Field(None, repr=False)

    source: Source


def _own_document(value: object) -> object:
    """Of documents only plain text is read."""
    if isinstance(value, dict) and value.get("type") != "text":
        raise PydanticCustomError("own_document", "must be plain text: send the pages of a document as images")
    return value


class DocumentPart(Part):
    """A document that is plain text."""

    class Source(Part):
        """Its words."""

        type: Literal["text"]
        data: BoundedText = Field(repr=False)

    source: Annotated[Source, BeforeValidator(_own_document)]


class ToolUsePart(Part):
    """An assistant's call of a tool."""

    id: str
    name: ToolName
    input: JsonObject = Field({}, repr=False)


class ThinkingPart(Part):
    """What an assistant thought before."""

    thinking: BoundedText = Field("", repr=False)


class RedactedPart(Part):
    """What another server's model thought, as nobody else can read it."""


def _tagged(kinds: tuple[str, ...], name: str) -> Discriminator:
    def kind_of(value: object) -> str | None:
        kind = value.get("type") if isinstance(value, dict) else None
        return f"<{kind}>" if kind in kinds else None

    told = f"must be an object whose type is one of {', '.join(kinds)}"
    return Discriminator(kind_of, custom_error_type=f"own_{name}", custom_error_message=told)


_STRING_OR_BLOCKS = string_or_list("<blocks>", "must be a string or a list of blocks")
_SHOWN = ("text", "image", "document")
_Shown = (
    Annotated[TextPart, Tag("<text>")]
    | Annotated[ImagePart, Tag("<image>")]
    | Annotated[DocumentPart, Tag("<document>")]
)
ShownPart = Annotated[Annotated[_Shown, _tagged(_SHOWN, "shown_part")], BeforeValidator(without_nulls)]
ShownContent = Annotated[
    Annotated[BoundedText, Tag("<string>")]
    | Annotated[Annotated[list[ShownPart], Field(max_length=MAX_FORMS, fail_fast=True)], Tag("<blocks>")],
    _STRING_OR_BLOCKS,
]


class ToolResultPart(Part):
    """What a tool returned."""

    tool_use_id: str
    content: ShownContent = ""
    is_error: bool = False


_PARTS = (*_SHOWN, "tool_use", "tool_result", "thinking", "redacted_thinking")
AnyPart = Annotated[
    Annotated[
        _Shown
        | Annotated[ToolUsePart, Tag("<tool_use>")]
        | Annotated[ToolResultPart, Tag("<tool_result>")]
        | Annotated[ThinkingPart, Tag("<thinking>")]
        | Annotated[RedactedPart, Tag("<redacted_thinking>")],
        _tagged(_PARTS, "part"),
    ],
    BeforeValidator(without_nulls),
]
AnyContent = Annotated[
    Annotated[BoundedText, Tag("<string>")]
    | Annotated[Annotated[list[AnyPart], Field(max_length=MAX_FORMS, fail_fast=True)], Tag("<blocks>")],
    _STRING_OR_BLOCKS,
]


class AnthropicMessage(Part):
    """A turn by the API's roles."""

    role: Literal["user", "assistant", "system"]
    content: AnyContent


class AnthropicTool(Part):
    """A tool that the client runs."""

    name: ToolName
    description: BoundedText | None = Field(None, repr=False)
    input_schema: JsonObject = Field(repr=False)
    strict: bool | None = None

    def function(self) -> FunctionBody:
        """The same as OpenAI's API has it."""
        return FunctionBody.model_construct(
            name=self.name, description=self.description, parameters=self.input_schema, strict=self.strict
        )


def _own_tool(value: object) -> object:
    """What the API itself would run is not here."""
    if isinstance(value, dict) and value.get("type") not in (None, "custom"):
        told = "must have a name and an input_schema: the API's own tools are not known here"
        raise PydanticCustomError("own_tool", told)
    return without_nulls(value)


class AnthropicChoice(Part):
    """How tools are to be used."""

    type: Literal["auto", "any", "none", "tool"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class Thinking(Part):
    """Whether the model thinks before it answers, and for how long."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: ThinkingBudget | None = None


class OutputFormat(Part):
    """The form of the answer."""

    type: Literal["json_schema"]
    schema_: Schema = Field(alias="schema", repr=False)


class OutputConfig(Part):
    """The API's newer place for it."""

    format: OutputFormat | None = None
    effort: Effort | None = None


class CountBody(PromptFields):
    """What makes the prompt."""

    model_config = ConfigDict(extra="ignore")

    messages: list[AnthropicMessage] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    model: str | None = None
    system: ShownContent | None = None
    tools: list[Annotated[AnthropicTool, BeforeValidator(_own_tool)]] | None = Field(
        None, max_length=MAX_TOOLS, fail_fast=True
    )
    tool_choice: Annotated[AnthropicChoice | None, BeforeValidator(without_nulls)] = None
    thinking: Annotated[Thinking | None, BeforeValidator(without_nulls)] = None


class AnthropicBody(SamplingFields, GuidedFields, CountBody):
    """What is honoured of a Messages body."""

    model_config = ConfigDict(extra="ignore")

    max_tokens: MaxTokens = Field()
    stream: bool | None = None
    stop_sequences: Stops | None = None
    output_config: Annotated[OutputConfig | None, BeforeValidator(without_nulls)] = None
    output_format: OutputFormat | None = None
    structured_outputs: StructuredOutputs | None = None

    def forms(self) -> Iterator[Constraint]:
        """The constraints on the answer that are asked for. Raises InputInvalid."""
        inner = None if self.output_config is None else self.output_config.format
        for where, form in (("output_config.format", inner), ("output_format", self.output_format)):
            if form is not None:
                yield schema_constraint(form.schema_, f"{where}.schema")
        if self.structured_outputs is not None:
            yield from self.structured_outputs.constraints()
        yield from self.guided()
