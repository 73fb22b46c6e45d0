"""A request's messages, tools and calls as the checkpoint's chat template is given them, and the text that it makes of
them."""

import json
import logging
from collections.abc import Callable
from typing import Any

from worker.checkpoint.chat_template import ChatTemplate
from worker.checkpoint.tool_prompt import with_tools_as_text
from worker.core.contract import ChatRequest, Media, Message
from worker.core.errors import InputInvalid
from worker.core.safe_json import JsonObject
from worker.core.tools import Tool, ToolCall

log = logging.getLogger(__name__)
Marked = Callable[[str], str]


def conversation_text(request: ChatRequest, template: ChatTemplate, marked: Marked) -> str:
    """The conversation as text, up to where the answer begins. `marked`: what a caller's text is made to, see
    `control_tokens`. Raises InputInvalid."""
    messages = [_message(message, marked) for message in request.messages]
    tools = [_tool(tool, marked) for tool in request.tools.usable]
    is_spoken = any(message.tool_calls or message.role == "tool" for message in request.messages)
    if (tools or is_spoken) and not template.knows_tools:
        messages, tools = with_tools_as_text(messages, tools), []
    variables: dict[str, Any] = dict(request.template)
    if unread := [name for name, value in variables.items() if value is not False and not template.reads(name)]:
        log.info("the chat template does not read: %s", ", ".join(unread))
    if tools:
        variables["tools"] = tools
    if request.continues_last:
        return _continued(template.render(messages, {**variables, "add_generation_prompt": False}), request, marked)
    return template.render(messages, {**variables, "add_generation_prompt": request.opens_turn})


def _message(message: Message, marked: Marked) -> JsonObject:
    content = [
        {"type": part.kind} if isinstance(part, Media) else {"type": "text", "text": marked(part.text)}
        for part in message.parts
    ]
    shown: JsonObject = {"role": message.role, "content": content}
    if message.reasoning is not None:
        shown["reasoning_content"] = marked(message.reasoning)
    if message.tool_calls:
        shown["tool_calls"] = [_call(call, marked) for call in message.tool_calls]
    return shown


def _call(call: ToolCall, marked: Marked) -> JsonObject:
    """Its arguments are an object: templates that write one parameter after the other drop a string."""
    arguments = _marked(json.loads(call.arguments), marked)
    return {"type": "function", "function": {"name": marked(call.name), "arguments": arguments}}


def _tool(tool: Tool, marked: Marked) -> JsonObject:
    definition: JsonObject = _marked(json.loads(tool.definition), marked)
    return definition


def _marked(value: Any, marked: Marked) -> Any:
    """A JSON value with all its texts and names marked."""
    match value:
        case str():
            return marked(value)
        case list():
            return [_marked(item, marked) for item in value]
        case dict():
            return {marked(name): _marked(item, marked) for name, item in value.items()}
        case _:
            return value


def _continued(rendered: str, request: ChatRequest, marked: Marked) -> str:
    """The text up to the end of the last message's words. Raises InputInvalid."""
    last = request.messages[-1]
    words = "".join(marked(part.text) for part in last.parts if not isinstance(part, Media))
    trimmed = words.strip()
    at = rendered.rfind(trimmed) if trimmed else -1
    if at >= 0 and last.role == "assistant" and not last.tool_calls:
        # Some templates trim the words; those of an earlier turn that are alike do not count.
        tail = words[len(words.rstrip()) :]
        end = at + len(trimmed)
        return rendered[:end] + (tail if rendered.startswith(tail, end) else "")
    raise InputInvalid(
        where="continue_final_message", detail="needs a last message of the role assistant with text, and no tool calls"
    )
