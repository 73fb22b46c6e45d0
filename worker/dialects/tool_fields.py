"""What a body may say about tools: those that the model may call, its calls, and their results."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from worker.core.contract import Meta
from worker.core.errors import InputInvalid
from worker.core.json_schema import MAX_SCHEMA_BYTES, prepared
from worker.core.safe_json import JsonObject, is_unicode, read_json
from worker.core.tools import NamedTool, Tool, ToolCall, ToolChoice, Tools
from worker.dialects.base import MAX_TEXT_CHARS, Body, BoundedText

MAX_TOOLS = 128
MAX_CALLS = 128
_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.:/-]{0,127}$"
_FUNCTION_FIELDS = ("name", "description", "parameters")
_CHOICES = 'must be "auto", "none", "required" or {"type": "function", "function": {"name": …}}'

ToolName = Annotated[str, Field(pattern=_NAME)]


class FunctionBody(Body):
    model_config = ConfigDict(extra="ignore")

    name: ToolName
    description: BoundedText | None = Field(None, repr=False)
    parameters: JsonObject | None = Field(None, repr=False)
    strict: bool | None = None


class ToolBody(Body):
    model_config = ConfigDict(extra="ignore")

    type: Literal["function"]
    function: FunctionBody


def _choice(value: object) -> object:
    """The choice, or the tool that is named."""
    match value:
        case None | "auto" | "none" | "required":
            return value
        case {"function": {"name": str(name)}, **rest} if rest.get("type", "function") == "function":
            return NamedTool(name=name)
    raise PydanticCustomError("own_tool_choice", _CHOICES)


class ToolFields(Body):
    """The tools of a body, and how they are to be used."""

    tools: list[ToolBody] | None = Field(None, max_length=MAX_TOOLS, fail_fast=True)
    tool_choice: Annotated[ToolChoice | NamedTool | None, BeforeValidator(_choice)] = None
    parallel_tool_calls: bool | None = None

    def offered(self) -> Tools:
        """The same in the contract's terms. Raises InputInvalid."""
        functions = {f"tools[{index}]": tool.function for index, tool in enumerate(self.tools or ())}
        return offered(functions, self.tool_choice, is_parallel=self.parallel_tool_calls is not False)


def offered(
    functions: Mapping[str, FunctionBody],
    asked: ToolChoice | NamedTool | None,
    *,
    is_parallel: bool,
    inside: str = ".function",
    schema: str = "parameters",
) -> Tools:
    """Tools by their places in the body. asked: the choice, or the tool that is named; inside: where a
    tool's fields stand, in it and in the choice; schema: the field that has its parameters. Raises InputInvalid."""
    tools = tuple(_tool(body, where, inside, schema) for where, body in functions.items())
    names = [tool.name for tool in tools]
    for index, tool in enumerate(tools):
        if tool.name in names[:index]:
            raise InputInvalid(where=f"{tool.where}{inside}.name", detail="two tools have the same name")
    if sum(len(tool.definition) for tool in tools) > MAX_SCHEMA_BYTES:
        raise InputInvalid(where="tools", detail=f"have more than {MAX_SCHEMA_BYTES} characters")
    named, choice = (asked.name, None) if isinstance(asked, NamedTool) else (None, asked)
    if named is not None and named not in names:
        raise InputInvalid(where=f"tool_choice{inside}.name", detail="must be the name of one of the tools")
    if choice == "required" and not tools:
        raise InputInvalid(where="tool_choice", detail="needs tools to choose from")
    return Tools(offered=tools, choice=choice or "auto", named=named, is_parallel=is_parallel)


def _tool(body: FunctionBody, where: str, inside: str, schema: str) -> Tool:
    """As the client wrote it, without what only this worker is told."""
    function = body.model_dump(include=set(_FUNCTION_FIELDS), exclude_none=True)
    definition = json.dumps({"type": "function", "function": function}, ensure_ascii=False)
    _check_parameters(body.parameters or {}, f"{where}{inside}.{schema}")
    if not is_unicode(definition):
        raise InputInvalid(where=where, detail="must be of valid Unicode")
    if body.strict:
        prepared(body.parameters or {}, f"{where}{inside}.{schema}")
    return Tool(name=body.name, definition=definition, is_strict=body.strict or False, where=where)


def _check_parameters(schema: JsonObject, where: str) -> None:
    """Raises InputInvalid."""
    if schema.get("type", "object") != "object":
        raise InputInvalid(where=f"{where}.type", detail='must be "object"')
    if not isinstance(schema.get("properties", {}), dict):
        raise InputInvalid(where=f"{where}.properties", detail="must be an object")
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise InputInvalid(where=f"{where}.required", detail="must be a list of strings")


class ToolCallBody(Body):
    class Function(Body):
        model_config = ConfigDict(extra="ignore")

        name: ToolName
        arguments: Annotated[str, Field(max_length=MAX_TEXT_CHARS)] | JsonObject | None = Field(None, repr=False)

    model_config = ConfigDict(extra="ignore")

    id: str | None = None
    type: Literal["function"] | None = None
    function: Function


def calls(bodies: Sequence[ToolCallBody], where: str | tuple[str, ...]) -> tuple[ToolCall, ...]:
    """Calls that a client sends back. where: the place of their list, or of the arguments of each. Raises
    InputInvalid."""
    if isinstance(where, str):
        where = tuple(f"{where}[{index}].function.arguments" for index in range(len(bodies)))
    return tuple(
        ToolCall(name=call.function.name, arguments=_arguments(call.function.arguments, at))
        for call, at in zip(bodies, where, strict=True)
    )


class CallWriter:
    """Writes the calls of one request as OpenAI's API has them, each with the name by which its result comes back."""

    def __init__(self, meta: Meta) -> None:
        self._meta = meta
        self._num_calls: Counter[int] = Counter()

    def written(self, calls: Iterable[ToolCall], index: int) -> list[JsonObject]:
        """The next calls of an answer; index: which one."""
        return [self._written(call, index) for call in calls]

    def numbered(self, calls: Iterable[ToolCall], index: int) -> list[JsonObject]:
        """The same, each with its place among the answer's calls."""
        return [{"index": self._num_calls[index], **self._written(call, index)} for call in calls]

    def _written(self, call: ToolCall, index: int) -> JsonObject:
        identity = f"call_{self._meta.id}_{index}_{self._num_calls[index]}"
        self._num_calls[index] += 1
        return {"id": identity, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _arguments(given: str | JsonObject | None, where: str) -> str:
    """JSON of an object: templates write one argument after the other. Raises InputInvalid."""
    try:
        value: Any = {} if given is None else given
        if isinstance(given, str):
            value = read_json(given.encode()) if given.strip() else {}
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        if isinstance(value, dict) and is_unicode(text):
            return text
    except (ValueError, RecursionError):
        pass
    raise InputInvalid(where=where, detail="must be JSON of an object, such as {}")
