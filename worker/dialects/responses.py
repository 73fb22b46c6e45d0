"""OpenAI's Responses: `POST /v1/responses`, without anything kept between requests.

Items of the input become turns: an assistant's thinking, words and calls that follow each other are one.
"""

from collections.abc import Iterator, Sequence

from worker.core.contract import ChatRequest, Counted, Message, Text
from worker.core.safe_json import JsonObject
from worker.dialects.base import Dialect, answers_only, counts_only
from worker.dialects.constraint_fields import only_one
from worker.dialects.messages import OPENAI_ROLES, Block, conversation, with_one_system
from worker.dialects.openai_fields import Unbuilt, ignored, refuse_unbuilt, unread
from worker.dialects.openai_reply import OpenAIFault
from worker.dialects.responses_fields import AnyItem, CallItem, MessageItem, OutputItem, ReasoningItem, ResponsesBody
from worker.dialects.responses_reply import FAULTS, EventWriter, ResponsesCount, ResponsesReply, refuse, shape
from worker.dialects.tool_fields import offered
from worker.dialects.turns import TurnParts, spoken_parts
from worker.dialects.validation import validated

_KEPT = "nothing is kept here: send the whole conversation in input"
# What changes an answer and is not built: the values that ask for nothing, and what to do instead of the others.
_NOT_BUILT: Unbuilt = {
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
    *("instructions", "max_output_tokens", "metadata", "parallel_tool_calls", "prompt_cache_key"),
    *("safety_identifier", "temperature", "tool_choice", "top_logprobs", "top_p", "user"),
)


def _parse(body: JsonObject) -> ChatRequest:
    """Raises InputInvalid, MediaParamInvalid."""
    refuse_unbuilt(body, _NOT_BUILT)
    form = validated(ResponsesBody, body)
    has_logprobs = bool(form.top_logprobs) or "message.output_text.logprobs" in (form.include or ())
    update = {"max_tokens": form.max_output_tokens or form.max_tokens, "logprobs": has_logprobs or None}
    form = form.model_copy(update=update)
    return ChatRequest(
        messages=form.seen(conversation(with_one_system(_messages(form)), "input")),
        template=form.variables(None if form.reasoning is None else form.reasoning.effort),
        sampling=form.sampling(only_one(form.forms())),
        **form.limits(),
        stream=form.stream or False,
        model=form.model,
        ignored=ignored(
            body,
            {*ResponsesBody.model_fields, *_NOT_BUILT},
            unread(body, "text", but=("format",)) | unread(body, "reasoning", but=("effort",)),
        ),
        tools=offered(
            {f"tools[{index}]": tool for index, tool in enumerate(form.tools or ())},
            form.tool_choice,
            is_parallel=form.parallel_tool_calls is not False,
            inside="",
        ),
        echo=_echo(body, form),
    )


def _messages(form: ResponsesBody) -> Iterator[Message]:
    if form.instructions is not None:
        yield Message(role="system", parts=(Text(text=form.instructions),))
    if isinstance(form.input, str):
        yield Message(role="user", parts=(Text(text=form.input),))
        return
    yield from spoken_parts(list(_turns(form.input)), OPENAI_ROLES, "input")


def _turns(items: Sequence[AnyItem]) -> Iterator[TurnParts]:
    turn: TurnParts | None = None  # of the assistant, and not yet over
    for index, item in enumerate(items):
        where = f"input[{index}]"
        if isinstance(item, OutputItem) or (isinstance(item, MessageItem) and item.role != "assistant"):
            if turn is not None:
                yield turn
            turn = None
            yield _heard(item, where)
            continue
        if turn is not None and not _takes(turn, item):
            yield turn
            turn = None
        turn = turn or TurnParts("assistant", where)
        match item:
            case ReasoningItem():
                turn.reasoning += [part.text for part in item.content or ()]
            case MessageItem():
                _put_into(turn, item.content, f"{where}.content")
            case CallItem():
                turn.call(item.call_id, item.name, item.arguments, f"{where}.arguments")
    if turn is not None:
        yield turn


def _takes(turn: TurnParts, item: MessageItem | CallItem | ReasoningItem) -> bool:
    """Whether an assistant's item belongs to a turn of its own, in which it thinks, speaks and calls. While results of
    its calls are to come, everything does: they follow it together."""
    return isinstance(item, CallItem) or bool(turn.calls) or not turn.blocks


def _heard(item: OutputItem | MessageItem, where: str) -> TurnParts:
    """A turn that is no assistant's: one item."""
    if isinstance(item, OutputItem):
        heard = TurnParts("tool", where, call_id=item.call_id)
        _put_into(heard, item.output, f"{where}.output")
    else:
        heard = TurnParts(item.role, where)
        _put_into(heard, item.content, f"{where}.content")
    return heard


def _put_into(turn: TurnParts, content: str | list[Block], where: str) -> None:
    if isinstance(content, str):
        turn.say(content, where)
        return
    for index, block in enumerate(content):
        turn.show(block, f"{where}[{index}]")


def _echo(body: JsonObject, form: ResponsesBody) -> JsonObject:
    """What the reply repeats of what was read; the format of an answer has a name there."""
    echo = {name: body[name] for name in _REPEATED if body.get(name) is not None}
    if form.tools is not None:
        names = ("name", "description", "parameters", "strict")
        echo["tools"] = [{"type": "function", **{name: getattr(tool, name) for name in names}} for tool in form.tools]
    if form.reasoning is not None:
        echo["reasoning"] = {"effort": form.reasoning.effort, "summary": None}
    if form.text is not None and form.text.format is not None:
        kind = form.text.format
        shown_form: JsonObject = {"type": kind.type}
        if kind.schema_ is not None:
            shown_form |= {"name": kind.name or "response", "schema": kind.schema_, "strict": kind.strict}
        echo["text"] = {"format": shown_form}
    return echo


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


def _parse_count(body: JsonObject) -> ChatRequest:
    return _parse(body).model_copy(update={"counts_only": True, "stream": False})


def _count(counted: Counted) -> JsonObject:
    return {"object": "response.input_tokens", "input_tokens": counted.prompt_tokens}


COUNT = Dialect(
    name="openai_responses_count",
    about="OpenAI's count of an input's tokens",
    route="/v1/responses/input_tokens",
    is_openai=True,
    parse=_parse_count,
    reply=counts_only(_count),
    refuse=refuse,
    http_error=FAULTS.http_error,
    body=ResponsesBody,
    reply_model=ResponsesCount,
    fault=OpenAIFault,
    example=DIALECT.example,
)
