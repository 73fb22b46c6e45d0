"""Anthropic's Messages: `POST /v1/messages`, and `POST /v1/messages/count_tokens`."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from worker.core.contract import ChatRequest, Message, Text
from worker.core.errors import InputInvalid
from worker.core.names import shown_name
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
from worker.dialects.base import Dialect, answers_only
from worker.dialects.constraint_fields import only_one
from worker.dialects.media_fields import Base64Form, UrlWithDetail
from worker.dialects.messages import (
    Block,
    ImageBlock,
    ImageUrlBlock,
    Place,
    TextBlock,
    Turn,
    conversation,
    spoken,
    with_one_system,
)
from worker.dialects.openai_fields import MAX_NAMES_LOGGED, Unbuilt, refuse_unbuilt, unread
from worker.dialects.tool_fields import ToolCallBody, offered
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
        ignored=_ignored(body, form),
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
        "max_seconds": asked.max_seconds,
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
    turns = list(_turns(asked))

    def place(index: int, field: str) -> Place:
        return turns[index][1] if field == "content" else f"{turns[index][2]}.content"

    system = asked.system
    if system:
        words = system if isinstance(system, str) else "\n\n".join(_words(system))
        yield Message(role="system", parts=(Text(text=words),))
    yield from spoken([turn for turn, *_ in turns], place=place)


def _words(parts: Sequence[ShownPart]) -> Iterator[str]:
    for index, part in enumerate(parts):
        if not isinstance(part, TextPart):
            raise InputInvalid(where=f"system[{index}]", detail="must be an object whose type is text")
        yield part.text


def _turns(asked: CountBody) -> Iterator[tuple[Turn, Place, str]]:
    """Turns, each with the places of its blocks and of its message."""
    for index, said in enumerate(asked.messages):
        where = f"messages[{index}]"
        if isinstance(said.content, str):
            yield _turn(said.role, content=said.content), f"{where}.content", where
        elif said.role == "assistant":
            yield _spoken_by_assistant(said.content, where)
        else:
            yield from _heard(said.role, said.content, where)


def _spoken_by_assistant(parts: Sequence[AnyPart], where: str) -> tuple[Turn, Place, str]:
    thoughts = [part.thinking for part in parts if isinstance(part, ThinkingPart)]
    blocks, places, calls = [], [], []
    for index, part in enumerate(parts):
        at = f"{where}.content[{index}]"
        if isinstance(part, ToolUsePart):
            function = ToolCallBody.Function.model_construct(name=part.name, arguments=part.input)
            calls.append(ToolCallBody.model_construct(id=part.id, type="function", function=function))
        elif isinstance(part, ToolResultPart):
            raise InputInvalid(where=at, detail="is only for messages with the role user")
        elif not isinstance(part, ThinkingPart | RedactedPart):
            blocks.append(_block(part, at))
            places.append(at)
    reasoning = "".join(thoughts) or None
    turn = _turn("assistant", content=blocks or None, reasoning=reasoning, tool_calls=calls or None)
    return turn, tuple(places), where


def _heard(role: str, parts: Sequence[AnyPart], where: str) -> Iterator[tuple[Turn, Place, str]]:
    """A user's turns: results of tools are turns of their own."""
    blocks: list[Block] = []
    places: list[str] = []
    for index, part in enumerate(parts):
        at = f"{where}.content[{index}]"
        if isinstance(part, ToolResultPart):
            if blocks:
                yield _turn(role, content=blocks), tuple(places), where
                blocks, places = [], []
            yield _result(part, at, where)
        elif isinstance(part, ToolUsePart | ThinkingPart | RedactedPart):
            raise InputInvalid(where=at, detail="is only for messages with the role assistant")
        else:
            blocks.append(_block(part, at))
            places.append(at)
    if blocks or not parts:
        yield _turn(role, content=blocks or ""), tuple(places), where


def _result(part: ToolResultPart, at: str, where: str) -> tuple[Turn, Place, str]:
    inner: Sequence[ShownPart] = part.content if isinstance(part.content, list) else (TextPart(text=part.content),)
    places = [f"{at}.content[{index}]" for index in range(len(inner))]
    blocks = [_block(shown, place) for shown, place in zip(inner, places, strict=True)]
    if part.is_error:
        blocks.insert(0, TextBlock(type="text", text="Error: "))
        places.insert(0, at)
    turn = _turn("tool", content=blocks or None, tool_call_id=part.tool_use_id)
    return turn, tuple(places), where


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


def _turn(role: str, **fields: Any) -> Turn:
    """Of parts that are validated already."""
    return Turn.model_construct(role=role, **fields)


def _ignored(body: JsonObject, form: type[CountBody]) -> tuple[str, ...]:
    known = form.model_fields.keys() | _NOT_BUILT.keys()
    names = {shown_name(name) for name in body.keys() - known}
    names |= unread(body, "output_config", but=("format", "effort"))
    names |= unread(body, "thinking", but=("type", "budget_tokens"))
    return tuple(sorted(names)[:MAX_NAMES_LOGGED])


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
    reply=count,
    refuse=refuse,
    http_error=http_error,
    body=CountBody,
    reply_model=AnthropicCount,
    fault=AnthropicFault,
    example={"messages": _ASKED},
)
