"""How a model is told of tools, and writes its calls. For chat templates that know no tools, as those of Qwen2.5-VL's
vision models: the family's own words (the Hermes format) are written into the messages."""

import json
from collections.abc import Sequence
from typing import Any, Literal

from worker.core.safe_json import JsonObject
from worker.core.tags import CALL, CALL_END

# As JSON within <tool_call>, or as <function=…> with <parameter=…> in it.
ToolFormat = Literal["json", "xml"]

_HEAD = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_TAIL = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
    "</tool_call>"
)
DEFAULT_SYSTEM = "You are a helpful assistant."


def tools_text(tools: Sequence[JsonObject]) -> str:
    """What the model is told of its tools."""
    return _HEAD + "".join("\n" + json.dumps(tool, ensure_ascii=False) for tool in tools) + _TAIL


def call_text(name: str, arguments: JsonObject) -> str:
    """A call as the model writes it."""
    return f'{CALL}\n{{"name": "{name}", "arguments": {json.dumps(arguments, ensure_ascii=False)}}}\n{CALL_END}'


def with_tools_as_text(messages: Sequence[JsonObject], tools: Sequence[JsonObject]) -> list[JsonObject]:
    """The messages for a template that knows no tools: the system message tells of them, calls and their results are
    texts. Contents are lists of parts."""
    written = _with_results([_as_text(message) for message in messages])
    if not tools:
        return written
    if written and written[0]["role"] == "system":
        system, written = written[0]["content"], written[1:]
    else:
        system = [_text(DEFAULT_SYSTEM)]
    return [{"role": "system", "content": [*system, _text("\n\n" + tools_text(tools))]}, *written]


def _as_text(message: JsonObject) -> JsonObject:
    calls = message.get("tool_calls")
    if not calls:
        return message
    parts = list(message["content"])
    for call in calls:
        function = call["function"]
        gap = "\n" if parts else ""
        parts.append(_text(gap + call_text(function["name"], function["arguments"])))
    return {"role": "assistant", "content": parts}


def _with_results(messages: Sequence[JsonObject]) -> list[JsonObject]:
    """Results that follow each other are one turn of the user's."""
    written: list[JsonObject] = []
    is_behind_result = False
    for message in messages:
        if message["role"] != "tool":
            written.append(message)
            is_behind_result = False
            continue
        parts = [_text("<tool_response>\n"), *message["content"], _text("\n</tool_response>")]
        if is_behind_result:
            last = written[-1]
            written[-1] = {**last, "content": [*last["content"], _text("\n"), *parts]}
        else:
            written.append({"role": "user", "content": parts})
        is_behind_result = True
    return written


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}
