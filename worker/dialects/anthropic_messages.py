"""Anthropic's Messages: `POST /v1/messages`, and `POST /v1/messages/count_tokens`."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from worker.core.contract import ChatRequest, Message, Text
from worker.core.errors import InputInvalid
from worker.core.safe_json import JsonObject
from worker.core.tools import NamedTool, ToolChoice, Tools
from worker.dialects.anthropic_fields import (
    AnthropicBody,
    AnyPart,
    CountBody,
    DocumentPart,
    ImagePart,
    RedactedPart,
    ShownPart,
    TextPart,
    ThinkingPart,
    ToolResultPart,
    ToolUsePart,
)
from worker.dialects.anthropic_reply import (
    AnthropicCount,
    AnthropicEvents,
    AnthropicFault,
    AnthropicReply,
    count,
    http_error,
    refuse,
    shape,
)
from worker.dialects.base import Dialect, answers_only, counts_only
from worker.dialects.constraint_fields import only_one
from worker.dialects.media_fields import Base64Form, UrlWithDetail
from worker.dialects.messages import ROLES, Block, ImageBlock, ImageUrlBlock, TextBlock, conversation, with_one_system
from worker.dialects.openai_fields import Unbuilt, ignored, refuse_unbuilt, unread
from worker.dialects.tool_fields import offered
from worker.dialects.turns import TurnParts, spoken_parts
from worker.dialects.validation import validated

_CHOICES: dict[str, ToolChoice] = {"auto": "auto", "any": "required", "none": "none"}
# What changes an answer and is not built: what to do instead.
_NOT_BUILT: Unbuilt = {
    "mcp_servers": ((None, []), "offer their tools in tools"),
    "container": ((None,), "nothing is run here"),
    "n": ((None, 1), "send several requests"),
}


def _parse(body: JsonObject, form: type[CountBody]) -> ChatRequest:
    """Raises InputInvalid, MediaParamInvalid."""
    refuse_unbuilt(body, _NOT_BUILT)
    asked = validated(form, body)
    request = ChatRequest(
        messages=asked.seen(conversation(with_one_system(_messages(asked)))),
        template=_variables(asked),
        model=asked.model,
        ignored=ignored(
            body,
            {*form.model_fields, *_NOT_BUILT},
            unread(body, "output_config", but=("format", "effort"))
            | unread(body, "thinking", but=("type", "budget_tokens")),
        ),
        tools=_tools(asked),
        continues_last=_continues(asked),
    )
    if not isinstance(asked, AnthropicBody):
        return request.model_copy(update={"counts_only": True})
    budget = None if asked.thinking is None else asked.thinking.budget_tokens
    update = {
        "stop": [*(asked.stop or ()), *(asked.stop_sequences or ())],
        "thinking_budget": asked.thinking_budget if budget is None else budget,
    }
    sampling = asked.model_copy(update=update).sampling(only_one(asked.forms()))
    # The API demands max_tokens, so clients send what their largest models can say.
    more = {
        "sampling": sampling.model_copy(update={"fits_context": True}),
        **asked.limits(),
        "stream": asked.stream or False,
    }
    return request.model_copy(update=more)


def _variables(asked: CountBody) -> tuple[tuple[str, Any], ...]:
    """The API's models do not think unless they are asked to."""
    thinks = {None: False, "disabled": False, "enabled": True, "adaptive": None}
    wanted = thinks[None if asked.thinking is None else asked.thinking.type]
    if asked.enable_thinking is None and wanted is not None:
        asked = asked.model_copy(update={"enable_thinking": wanted})
    config = asked.output_config if isinstance(asked, AnthropicBody) else None
    return asked.variables(None if config is None else config.effort)


def _continues(asked: CountBody) -> bool:
    """A last turn that is the assistant's is the beginning of the answer. Raises InputInvalid."""
    last, where = asked.messages[-1], f"messages[{len(asked.messages) - 1}].content"
    if last.role != "assistant":
        return False
    parts = (TextPart(text=last.content),) if isinstance(last.content, str) else last.content
    if any(isinstance(part, ToolUsePart) for part in parts):
        raise InputInvalid(where=where, detail="cannot be continued behind a tool_use: send its tool_result")
    if not any(isinstance(part, TextPart) and part.text.strip() for part in parts):
        raise InputInvalid(where=where, detail="must have words: the answer goes on from them")
    return True


def _tools(asked: CountBody) -> Tools:
    choice = asked.tool_choice
    wanted: ToolChoice | NamedTool | None = None if choice is None else _CHOICES.get(choice.type)
    if choice is not None and choice.type == "tool":
        if choice.name is None:
            raise InputInvalid(where="tool_choice.name", detail="is required")
        wanted = NamedTool(name=choice.name)
    return offered(
        {f"tools[{index}]": tool.function() for index, tool in enumerate(asked.tools or ())},
        wanted,
        is_parallel=choice is None or not choice.disable_parallel_tool_use,
        inside="",
        schema="input_schema",
    )


def _messages(asked: CountBody) -> Iterator[Message]:
    system = asked.system
    if system:
        words = system if isinstance(system, str) else "\n\n".join(_words(system))
        yield Message(role="system", parts=(Text(text=words),))
    yield from spoken_parts(list(_turns(asked)), ROLES, "messages")


def _words(parts: Sequence[ShownPart]) -> Iterator[str]:
    for index, part in enumerate(parts):
        if not isinstance(part, TextPart):
            raise InputInvalid(where=f"system[{index}]", detail="must be an object whose type is text")
        yield part.text


def _turns(asked: CountBody) -> Iterator[TurnParts]:
    for index, said in enumerate(asked.messages):
        where = f"messages[{index}]"
        if isinstance(said.content, str):
            turn = TurnParts(said.role, where)
            turn.say(said.content, f"{where}.content")
            yield turn
        elif said.role == "assistant":
            yield _of_assistant(said.content, where)
        else:
            yield from _heard(said.role, said.content, where)


def _of_assistant(parts: Sequence[AnyPart], where: str) -> TurnParts:
    turn = TurnParts("assistant", where)
    for index, part in enumerate(parts):
        at = f"{where}.content[{index}]"
        if isinstance(part, ToolUsePart):
            turn.call(part.id, part.name, part.input, f"{at}.input")
        elif isinstance(part, ThinkingPart):
            turn.reasoning.append(part.thinking)
        elif isinstance(part, ToolResultPart):
            raise InputInvalid(where=at, detail="is only for messages with the role user")
        elif not isinstance(part, RedactedPart):
            turn.show(_block(part, at), at)
    return turn


def _heard(role: str, parts: Sequence[AnyPart], where: str) -> Iterator[TurnParts]:
    """A user's turns: results of tools are turns of their own."""
    turn = TurnParts(role, where)
    for index, part in enumerate(parts):
        at = f"{where}.content[{index}]"
        if isinstance(part, ToolResultPart):
            if turn.blocks:
                yield turn
            turn = TurnParts(role, where)
            yield _result(part, at)
        elif isinstance(part, ToolUsePart | ThinkingPart | RedactedPart):
            raise InputInvalid(where=at, detail="is only for messages with the role assistant")
        else:
            turn.show(_block(part, at), at)
    if turn.blocks or not parts:
        yield turn


def _result(part: ToolResultPart, at: str) -> TurnParts:
    turn = TurnParts("tool", at, call_id=part.tool_use_id)
    if part.is_error:
        turn.say("Error: ", at)
    if isinstance(part.content, str):
        turn.say(part.content, f"{at}.content")
    else:
        for index, shown in enumerate(part.content):
            place = f"{at}.content[{index}]"
            turn.show(_block(shown, place), place)
    return turn


def _block(part: ShownPart, where: str) -> Block:
    """A part as the block that it is in a chat. Raises InputInvalid."""
    match part:
        case TextPart():
            return TextBlock(type="text", text=part.text)
        case DocumentPart():
            return TextBlock(type="text", text=part.source.data)
        case ImagePart():
            field = "data" if part.source.type == "base64" else "url"
            found = getattr(part.source, field)
            if found is None:
                raise InputInvalid(where=f"{where}.source.{field}", detail="is required")
            if part.source.type == "base64":
                return ImageBlock.model_construct(type="image", image=Base64Form.model_construct(base64=found))
            return ImageUrlBlock(type="image_url", image_url=UrlWithDetail(url=found))


_PICTURE = {"type": "image", "source": {"type": "url", "url": "https://example.org/shapes.png"}}
_QUESTION = {"type": "text", "text": "What is in the picture?"}
_ASKED: list[JsonObject] = [{"role": "user", "content": [_PICTURE, _QUESTION]}]
DIALECT = Dialect(
    name="anthropic_messages",
    about="Anthropic Messages",
    route="/v1/messages",
    is_openai=True,
    parse=partial(_parse, form=AnthropicBody),
    reply=answers_only(shape),
    writer=AnthropicEvents,
    refuse=refuse,
    http_error=http_error,
    body=AnthropicBody,
    reply_model=AnthropicReply,
    fault=AnthropicFault,
    stream_type="text/event-stream",
    example={"max_tokens": 256, "messages": _ASKED},
)
COUNT = Dialect(
    name="anthropic_count",
    about="Anthropic's count of a prompt's tokens",
    route="/v1/messages/count_tokens",
    is_openai=True,
    parse=partial(_parse, form=CountBody),
    reply=counts_only(count),
    refuse=refuse,
    http_error=http_error,
    body=CountBody,
    reply_model=AnthropicCount,
    fault=AnthropicFault,
    example={"messages": _ASKED},
)
