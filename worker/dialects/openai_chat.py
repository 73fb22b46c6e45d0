"""OpenAI Chat Completions, as the platform's OpenAI route carries it: `openai_route` and `openai_input`.

Fields of the API that change an answer and are not built yet are refused unless they ask for nothing;
fields that are unknown are ignored and named in the log.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from worker.core.contract import ChatRequest, Frames, Media, Message, Role, TemplateValue
from worker.core.errors import InputInvalid
from worker.core.names import shown_name
from worker.core.safe_json import JsonObject
from worker.core.sampling import Constraint
from worker.dialects.base import MAX_MESSAGES, Body, Dialect, answers_only, without_nulls
from worker.dialects.constraint_fields import (
    ConstraintFields,
    GuidedFields,
    ResponseFormat,
    StructuredOutputs,
    only_one,
)
from worker.dialects.media_fields import (
    NumFrames,
    ProcessorFields,
    Rate,
    VideoControls,
    seen_as,
    with_first_frames,
)
from worker.dialects.messages import ROLES, BlockHints, Turn, conversation, spoken
from worker.dialects.openai_reply import ChunkWriter, OpenAIFault, OpenAIReply, http_error, refuse, shape
from worker.dialects.sampling_fields import Effort, MaxTokens, SamplingFields, TemplateVariables
from worker.dialects.tool_fields import ToolFields
from worker.dialects.validation import validated

MAX_NAMES_LOGGED = 20

# What changes an answer and is not built: the values that ask for nothing, and what to do instead of the others.
_NOT_BUILT: dict[str, tuple[tuple[Any, ...], str]] = {
    "functions": ((None, []), "write tools"),
    "function_call": ((None, "none", "auto"), "write tool_choice"),
    "modalities": ((None, [], ["text"]), "only text is answered"),
    "audio": ((None,), "only text is answered"),
    "web_search_options": ((None,), "offer a search of your own in tools"),
    "echo": ((None, False), "the prompt is not repeated"),
    "prompt_logprobs": ((None, False), "only the answer has log-probabilities: write logprobs"),
    "bad_words": ((None, []), "write logit_bias with -100"),
    "allowed_token_ids": ((None, []), "write choice, regex or grammar in structured_outputs"),
    "logits_processors": ((None, []), "write structured_outputs or logit_bias"),
    "use_beam_search": ((None, False), "leave it out: tokens are sampled"),
    "best_of": ((None, 1), "write n"),
    "length_penalty": ((None, 1, 1.0), "it belongs to beam search, which is not supported"),
    "early_stopping": ((None, False), "it belongs to beam search, which is not supported"),
    "skip_special_tokens": ((None, True), "control tokens are not part of an answer"),
    "spaces_between_special_tokens": ((None, True, False), ""),
    "truncate_prompt_tokens": ((None,), "shorten the messages"),
    "return_token_ids": ((None, False), "write logprobs, which has each token's bytes"),
    "return_tokens_as_token_ids": ((None, False), "write logprobs, which has each token's bytes"),
    "add_special_tokens": ((None, False), "the chat template writes all special tokens"),
    "chat_template": ((None,), "the model's own is used; its variables go into chat_template_kwargs"),
    "documents": ((None, []), "write them into the messages"),
    "structural_tag": ((None,), "write tools with strict: true"),
    "ebnf": ((None,), "write grammar"),
    "guidance": ((None,), "write grammar"),
    "format": ((None,), "write response_format"),
    "stop_regex": ((None, []), "write stop"),
    "stop_sequences": ((None, []), "write stop"),
    "max_new_tokens": ((None,), "write max_tokens"),
    "min_new_tokens": ((None,), "write min_tokens"),
    "thinking": ((None,), "write enable_thinking"),
    "reasoning": ((None,), "write reasoning_effort"),
    "thinking_token_budget": ((None,), "write thinking_budget"),
    "include_reasoning": ((None, True), "thinking is always returned in a field of its own"),
    "separate_reasoning": ((None, True), "thinking is always returned in a field of its own"),
}
# An OpenAI client names its model. The clients of an older service on this route cannot, and count on these.
_FLAT = {"max_tokens": 512, "temperature": 0.7, "top_p": 0.9}
_ROLES: dict[str, Role] = {"developer": "system", **ROLES}


class OpenAIMessage(Turn):
    """A turn by the API's roles."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    function_call: None = None
    audio: None = None

    model_config = ConfigDict(extra="ignore")  # the client sends back its own reply, `refusal` and all


class StreamOptions(Body):
    """continuous_usage_stats: vLLM's, `usage` so far in each chunk."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False
    continuous_usage_stats: bool = False


class MediaIo(Body):
    """vLLM's `media_io_kwargs`: how video files are read. num_frames: -1 for as many as there are."""

    class Video(Body):
        model_config = ConfigDict(extra="ignore")

        fps: Rate | None = None
        num_frames: Annotated[NumFrames | None, BeforeValidator(lambda value: None if value == -1 else value)] = None

    model_config = ConfigDict(extra="ignore")

    video: Video | None = None


class OpenAIBody(SamplingFields, ToolFields, GuidedFields, ConstraintFields):
    """What is honoured of a Chat Completions body."""

    model_config = ConfigDict(extra="ignore")

    messages: list[OpenAIMessage] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    model: str | None = None
    max_completion_tokens: MaxTokens | None = None
    stream: bool | None = None
    stream_options: Annotated[StreamOptions | None, BeforeValidator(without_nulls)] = None
    mm_processor_kwargs: Annotated[ProcessorFields | None, BeforeValidator(without_nulls)] = None
    media_io_kwargs: Annotated[MediaIo | None, BeforeValidator(without_nulls)] = None
    strict_media: bool | None = None
    chat_template_kwargs: TemplateVariables | None = None
    reasoning_effort: Effort | None = None
    enable_thinking: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    def forms(self) -> Iterator[Constraint]:
        """The constraints on the answer that are asked for. Raises InputInvalid."""
        for asked in (self.response_format, self.structured_outputs):
            if asked is not None:
                yield from asked.constraints()
        yield from self.guided()
        yield from self.constraints()


_HONOURED = frozenset(OpenAIBody.model_fields)


def _parse(body: JsonObject) -> ChatRequest:
    """Raises InputInvalid, MediaParamInvalid."""
    _refuse_unbuilt(body)
    chat = validated(OpenAIBody, body)
    if chat.max_completion_tokens is not None:
        chat = chat.model_copy(update={"max_tokens": chat.max_completion_tokens})
    if chat.model is None:
        chat = chat.model_copy(update={name: flat for name, flat in _FLAT.items() if getattr(chat, name) is None})
    messages = conversation(spoken(chat.messages, _ROLES))
    for defaults in _seeing(chat):
        messages = tuple(seen_as(turn, defaults) for turn in messages)
    _check_frames_chosen(chat, messages)
    if chat.media_io_kwargs is not None and chat.media_io_kwargs.video is not None:
        count = chat.media_io_kwargs.video.num_frames
        messages = messages if count is None else tuple(with_first_frames(turn, count) for turn in messages)
    options = chat.stream_options or StreamOptions()
    return ChatRequest(
        messages=messages,
        template=_template_variables(chat),
        sampling=chat.sampling(only_one(chat.forms())),
        max_seconds=chat.max_seconds,
        stream=chat.stream or False,
        include_usage=options.include_usage,
        continuous_usage=options.include_usage and options.continuous_usage_stats,
        model=chat.model,
        ignored=_ignored(body),
        tools=chat.offered(),
        opens_turn=chat.add_generation_prompt is not False,
        continues_last=_continues(chat),
    )


def _template_variables(chat: OpenAIBody) -> tuple[tuple[str, TemplateValue], ...]:
    """What the chat template is told: fields of its own names, and what `chat_template_kwargs` says, which takes
    precedence."""
    named = {"enable_thinking": chat.enable_thinking, "reasoning_effort": chat.reasoning_effort}
    if chat.reasoning_effort == "none":
        named = {"enable_thinking": False if chat.enable_thinking is None else chat.enable_thinking}
    variables = {name: value for name, value in named.items() if value is not None}
    return tuple({**variables, **(chat.chat_template_kwargs or {})}.items())


def _continues(chat: OpenAIBody) -> bool:
    """Raises InputInvalid."""
    if chat.continue_final_message and chat.add_generation_prompt:
        raise InputInvalid(where="continue_final_message", detail="cannot be combined with add_generation_prompt: true")
    if chat.continue_final_message and chat.messages[-1].role != "assistant":
        raise InputInvalid(where="continue_final_message", detail="needs a last message with the role assistant")
    return chat.continue_final_message or False


def _seeing(chat: OpenAIBody) -> Iterator[VideoControls]:
    """What the body says of all pictures and videos, what takes precedence first."""
    if chat.mm_processor_kwargs is not None:
        yield chat.mm_processor_kwargs.controls()
    video = None if chat.media_io_kwargs is None else chat.media_io_kwargs.video
    if video is not None:
        yield VideoControls(fps=video.fps, nframes=video.num_frames)
    if chat.strict_media is not None:
        yield VideoControls(strict_media=chat.strict_media)


def _check_frames_chosen(chat: OpenAIBody, messages: tuple[Message, ...]) -> None:
    """Without sampling there is no telling which frames of a file are meant. Raises InputInvalid."""
    if chat.mm_processor_kwargs is None or chat.mm_processor_kwargs.do_sample_frames is not False:
        return
    media = [part for turn in messages for part in turn.parts if isinstance(part, Media) and part.kind == "video"]
    if any(not isinstance(video.source, Frames) and video.controls.nframes is None for video in media):
        raise InputInvalid(
            where="mm_processor_kwargs.do_sample_frames",
            detail="false needs the number of frames: write num_frames beside it, or send the frames themselves",
        )


def _ignored(body: JsonObject) -> tuple[str, ...]:
    names = {shown_name(name) for name in body.keys() - _HONOURED - _NOT_BUILT.keys()}
    known, hints = OpenAIMessage.model_fields.keys(), BlockHints.model_fields.keys()
    names |= {f"messages[].{shown_name(name)}" for turn in body["messages"] for name in turn.keys() - known}
    contents = [turn["content"] for turn in body["messages"] if isinstance(turn.get("content"), list)]
    names |= {
        f"messages[].content[].{name}" for blocks in contents for block in blocks for name in hints & block.keys()
    }
    options = body.get("stream_options") or {}
    names |= {f"stream_options.{shown_name(name)}" for name in options.keys() - StreamOptions.model_fields.keys()}
    return tuple(sorted(names)[:MAX_NAMES_LOGGED])


def _refuse_unbuilt(body: JsonObject) -> None:
    for name, (harmless, instead) in _NOT_BUILT.items():
        if name in body and not any(type(body[name]) is type(one) and body[name] == one for one in harmless):
            raise InputInvalid(where=name, detail=f"this value is not supported: {instead}")


_PICTURE = {"type": "image_url", "image_url": {"url": "https://example.org/shapes.png"}}
_QUESTION = {"type": "text", "text": "What is in the picture?"}
DIALECT = Dialect(
    name="openai_chat",
    about="OpenAI Chat Completions",
    route="/v1/chat/completions",
    is_openai=True,
    parse=_parse,
    reply=answers_only(shape),
    writer=ChunkWriter,
    refuse=refuse,
    http_error=http_error,
    body=OpenAIBody,
    reply_model=OpenAIReply,
    fault=OpenAIFault,
    stream_type="text/event-stream",
    example={"messages": [{"role": "user", "content": [_PICTURE, _QUESTION]}]},
)
