"""What the bodies of OpenAI's routes have in common: fields that other servers added, the form of the answer, streams.

Fields of the APIs that change an answer and are not built are refused unless they ask for nothing; fields that are
unknown are ignored and named in the log.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict

from worker.core.errors import InputInvalid
from worker.core.names import shown_name
from worker.core.safe_json import JsonObject
from worker.core.sampling import Constraint
from worker.dialects.base import Body, without_nulls
from worker.dialects.constraint_fields import ConstraintFields, GuidedFields, ResponseFormat, StructuredOutputs
from worker.dialects.sampling_fields import SamplingFields

MAX_NAMES_LOGGED = 20

# What changes an answer and is not built: the values that ask for nothing, and what to do instead of the others.
Unbuilt = Mapping[str, tuple[tuple[Any, ...], str]]
NOT_BUILT: Unbuilt = {
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


class StreamOptions(Body):
    """continuous_usage_stats: vLLM's, `usage` so far in each chunk."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False
    continuous_usage_stats: bool = False


class OpenAIFields(SamplingFields, GuidedFields, ConstraintFields):
    """Of the routes that make text."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    stream: bool | None = None
    stream_options: Annotated[StreamOptions | None, BeforeValidator(without_nulls)] = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def continues_usage(self) -> bool:
        """vLLM's clients ask for both."""
        return self.includes_usage and self.stream_options is not None and self.stream_options.continuous_usage_stats

    def forms(self) -> Iterator[Constraint]:
        """The constraints on the answer that are asked for. Raises InputInvalid."""
        for asked in (self.response_format, self.structured_outputs):
            if asked is not None:
                yield from asked.constraints()
        yield from self.guided()
        yield from self.constraints()

    def ignored(self, body: JsonObject, inside: Iterable[str] = ()) -> tuple[str, ...]:
        """Names of what changes nothing in this body. inside: in its messages."""
        options = unread(body, "stream_options", but=StreamOptions.model_fields)
        return ignored(body, {*type(self).model_fields, *NOT_BUILT}, {*options, *inside})


def ignored(body: JsonObject, known: Iterable[str], inside: Iterable[str] = ()) -> tuple[str, ...]:
    """Names of what changes nothing here, for the log. known: fields that do; inside: what parts of the body ignore."""
    names = {shown_name(name) for name in body.keys() - set(known)} | set(inside)
    return tuple(sorted(names)[:MAX_NAMES_LOGGED])


def refuse_unbuilt(body: JsonObject, table: Unbuilt = NOT_BUILT, taken: tuple[str, ...] = ()) -> None:
    """Raises InputInvalid for a field of the table with a value that would change an answer. taken: fields that change
    none in this API."""
    for name, (harmless, instead) in table.items():
        value = body.get(name)
        if name == "best_of" and value == body.get("n"):
            continue  # none of them is left out
        if name in body and name not in taken and not any(is_same(value, one) for one in harmless):
            raise InputInvalid(where=name, detail=f"this value is not supported: {instead}")


def unread(body: JsonObject, *names: str, but: Iterable[str] = ()) -> set[str]:
    """Names of what objects in the body have and nobody reads. names: of those objects; but: what is read in them."""
    inside = {name: value for name in names if isinstance(value := body.get(name), dict)}
    return {f"{name}.{shown_name(inner)}" for name, value in inside.items() for inner in value.keys() - set(but)}


def is_same(one: Any, other: Any) -> bool:
    """Whether two values of a body are: 1 is neither true nor 1.0."""
    return type(one) is type(other) and bool(one == other)
