"""OpenAI Chat Completions, as the platform's OpenAI route carries it: `openai_route` and `openai_input`."""

from functools import partial
from typing import Literal

from pydantic import ConfigDict, Field

from worker.core.contract import ChatRequest
from worker.core.errors import InputInvalid
from worker.core.names import shown_name
from worker.core.safe_json import JsonObject
from worker.dialects.base import MAX_MESSAGES, Dialect, answers_only
from worker.dialects.constraint_fields import only_one
from worker.dialects.messages import OPENAI_ROLES, BlockHints, Turn, conversation, spoken
from worker.dialects.openai_fields import OpenAIFields, refuse_unbuilt
from worker.dialects.openai_reply import FAULTS, ChunkWriter, OpenAIFault, OpenAIReply, shape
from worker.dialects.output_fields import OutputFields, asked
from worker.dialects.prompt_fields import PromptFields
from worker.dialects.sampling_fields import Effort, MaxTokens
from worker.dialects.tool_fields import ToolFields
from worker.dialects.validation import validated

# An OpenAI client names its model. The clients of an older service on this route cannot, and count on these.
_FLAT = {"max_tokens": 512, "temperature": 0.7, "top_p": 0.9}


class OpenAIMessage(Turn):
    """A turn by the API's roles."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    function_call: None = None
    audio: None = None

    model_config = ConfigDict(extra="ignore")  # the client sends back its own reply, `refusal` and all


class OpenAIBody(OpenAIFields, PromptFields, ToolFields, OutputFields):
    """What is honoured of a Chat Completions body."""

    model_config = ConfigDict(extra="ignore")

    messages: list[OpenAIMessage] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    max_completion_tokens: MaxTokens | None = None
    reasoning_effort: Effort | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


def parse_chat(body: JsonObject, *, has_flat_defaults: bool = False) -> ChatRequest:
    """A Chat Completions body as a request. has_flat_defaults: a body without `model` gets those of the older service
    on the same route. Raises InputInvalid, MediaParamInvalid."""
    refuse_unbuilt(body)
    chat = validated(OpenAIBody, body)
    if chat.max_completion_tokens is not None:
        chat = chat.model_copy(update={"max_tokens": chat.max_completion_tokens})
    if has_flat_defaults and chat.model is None:
        chat = chat.model_copy(update={name: flat for name, flat in _FLAT.items() if getattr(chat, name) is None})
    said = asked(chat, conversation(spoken(chat.messages, OPENAI_ROLES)))
    constraint = only_one((*chat.forms(), *said.forms))
    return ChatRequest(
        messages=chat.seen(said.messages),
        template=chat.variables(chat.reasoning_effort),
        sampling=chat.sampling(constraint, reports_confidence=said.outputs.confidence),
        **chat.limits(),
        outputs=said.outputs,
        stream=chat.stream or False,
        include_usage=chat.includes_usage,
        continuous_usage=chat.continues_usage,
        model=chat.model,
        ignored=chat.ignored(body, _ignored_in(body["messages"])),
        tools=chat.offered(),
        opens_turn=chat.add_generation_prompt is not False,
        continues_last=_continues(chat),
    )


def _continues(chat: OpenAIBody) -> bool:
    """Raises InputInvalid."""
    if chat.continue_final_message and chat.add_generation_prompt:
        raise InputInvalid(where="continue_final_message", detail="cannot be combined with add_generation_prompt: true")
    if chat.continue_final_message and chat.messages[-1].role != "assistant":
        raise InputInvalid(where="continue_final_message", detail="needs a last message with the role assistant")
    return chat.continue_final_message or False


def _ignored_in(messages: list[JsonObject]) -> set[str]:
    """Names of what changes nothing in a body's messages."""
    known, hints = OpenAIMessage.model_fields.keys(), BlockHints.model_fields.keys()
    names = {f"messages[].{shown_name(name)}" for turn in messages for name in turn.keys() - known}
    contents = [turn["content"] for turn in messages if isinstance(turn.get("content"), list)]
    hinted = {name for blocks in contents for block in blocks for name in hints & block.keys()}
    return names | {f"messages[].content[].{name}" for name in hinted}


_PICTURE = {"type": "image_url", "image_url": {"url": "https://example.org/shapes.png"}}
_QUESTION = {"type": "text", "text": "What is in the picture?"}
DIALECT = Dialect(
    name="openai_chat",
    about="OpenAI Chat Completions",
    route="/v1/chat/completions",
    is_openai=True,
    parse=partial(parse_chat, has_flat_defaults=True),
    reply=answers_only(shape),
    writer=ChunkWriter,
    refuse=FAULTS.refuse,
    http_error=FAULTS.http_error,
    body=OpenAIBody,
    reply_model=OpenAIReply,
    fault=OpenAIFault,
    stream_type="text/event-stream",
    example={"messages": [{"role": "user", "content": [_PICTURE, _QUESTION]}]},
)
