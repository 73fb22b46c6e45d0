"""What a body may say about how tokens are chosen and for how long; log-probabilities as OpenAI's API writes them."""

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from worker.core.contract import TemplateValue, TokenAlternative, TokenLogprob
from worker.core.errors import InputInvalid
from worker.core.safe_json import JsonObject
from worker.core.sampling import Constraint, Sampling
from worker.dialects.base import Body, Whole, without_nulls

MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_TOKENS_CEILING = 1_000_000
MAX_ANSWERS = 16
MAX_ALTERNATIVES = 20
MAX_BIASES = 1024
MAX_SECONDS_CEILING = 604_800  # a week, the longest that the platform lets a job run

MaxTokens = Annotated[Whole, Field(ge=1, le=MAX_TOKENS_CEILING)]
MinTokens = Annotated[Whole, Field(ge=0, le=MAX_TOKENS_CEILING)]
Temperature = Annotated[float, Field(ge=0, le=10)]
TopP = Annotated[float, Field(ge=0, le=1)]  # 0: the likeliest token alone
TopK = Annotated[Whole, Field(ge=-1, le=1_000_000)]  # -1 is vLLM's way to say no limit
MinP = Annotated[float, Field(ge=0, le=1)]
RepetitionPenalty = Annotated[float, Field(gt=0, le=10)]
AdditivePenalty = Annotated[float, Field(ge=-2, le=2)]
MaxSeconds = Annotated[float, Field(gt=0, le=MAX_SECONDS_CEILING)]
MaxCost = Annotated[float, Field(gt=0, le=1_000_000)]
NumAnswers = Annotated[Whole, Field(ge=1, le=MAX_ANSWERS)]
NumAlternatives = Annotated[Whole, Field(ge=0, le=MAX_ALTERNATIVES)]
TokenIds = Annotated[list[Annotated[Whole, Field(ge=0)]], Field(max_length=MAX_STOPS)]
ThinkingBudget = Annotated[Whole, Field(ge=0, le=MAX_TOKENS_CEILING)]
Seed = Annotated[Whole, Field(ge=-(2**63), lt=2**64)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Stops = Annotated[
    list[StopString],
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    Field(max_length=MAX_STOPS),
]


def _token_ids(bias: dict[str, float]) -> dict[int, float]:
    if any(not (key.isascii() and key.isdigit() and len(key) < 10) for key in bias):
        raise PydanticCustomError("own_token_ids", "must have token ids as its keys")
    return {int(key): value for key, value in bias.items()}


_NO_TEMPLATE_VALUE = "must be true, false, a number or one plain word"
_TEMPLATE_NAME = re.compile(r"[A-Za-z]\w{0,63}", re.ASCII)
_TEMPLATE_WORD = re.compile(r"[\w.+-]{0,64}")
_TEMPLATES_OWN = (
    *("messages", "conversations", "chat_template", "tools", "documents", "add_generation_prompt"),
    *("continue_final_message", "return_assistant_tokens_mask", "self", "loop", "namespace", "dict", "range"),
    *("raise_exception", "strftime_now", "cycler", "joiner", "lipsum", "bos_token", "eos_token", "pad_token"),
)


def _template_variables(variables: dict[str, TemplateValue]) -> dict[str, TemplateValue]:
    """What a template is told may not become more than a value: no control tokens, none of its own variables."""
    for name, value in variables.items():
        if not _TEMPLATE_NAME.fullmatch(name) or name in _TEMPLATES_OWN:
            raise PydanticCustomError("own_template_name", "has a name that a chat template cannot be given")
        if isinstance(value, str) and not _TEMPLATE_WORD.fullmatch(value):
            raise PydanticCustomError("own_template_value", _NO_TEMPLATE_VALUE)
    return variables


def _template_value(value: object) -> object:
    if not isinstance(value, bool | int | float | str):
        raise PydanticCustomError("own_template_value", _NO_TEMPLATE_VALUE)
    return value


TemplateVariables = Annotated[
    dict[str, Annotated[bool | int | float | str, BeforeValidator(_template_value)]],
    Field(max_length=MAX_STOPS),
    AfterValidator(_template_variables),
    BeforeValidator(without_nulls),
]


# OpenAI's levels, and Qwen's.
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]

LogitBias = Annotated[
    dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MAX_BIASES), AfterValidator(_token_ids)
]


class SamplingFields(Body):
    """What a body of any dialect may say about how tokens are chosen, and for how long."""

    max_seconds: MaxSeconds | None = None
    max_gpu_seconds: MaxSeconds | None = None
    max_cost_usd: MaxCost | None = None
    loop_guard: bool | None = None
    max_tokens: MaxTokens | None = None
    min_tokens: MinTokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    repetition_penalty: RepetitionPenalty | None = None
    presence_penalty: AdditivePenalty | None = None
    frequency_penalty: AdditivePenalty | None = None
    logit_bias: LogitBias | None = None
    seed: Seed | None = None
    stop: Stops | None = None
    stop_token_ids: TokenIds | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    n: NumAnswers | None = None
    logprobs: bool | None = None
    top_logprobs: NumAlternatives | None = None
    thinking_budget: ThinkingBudget | None = None

    def limits(self) -> dict[str, float | None]:
        """Of a request's time and cost, by the names of `ChatRequest`."""
        return {name: getattr(self, name) for name in ("max_seconds", "max_gpu_seconds", "max_cost_usd")}

    def sampling(self, constraint: Constraint | None = None, *, reports_confidence: bool = False) -> Sampling:
        """The same in the contract's terms. constraint: the form of the answer; reports_confidence: of its fields,
        where it is a schema. Raises InputInvalid."""
        if self.top_logprobs and not self.logprobs:
            raise InputInvalid(where="top_logprobs", detail="needs logprobs: true")
        if self.min_tokens and self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InputInvalid(where="min_tokens", detail="must be at most max_tokens")
        return Sampling(
            max_tokens=self.max_tokens,
            min_tokens=self.min_tokens or 0,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=0 if self.top_k == -1 else self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias=tuple((self.logit_bias or {}).items()),  # ids by now
            seed=self.seed,
            stop=tuple(self.stop or ()),
            keeps_stop=self.include_stop_str_in_output or False,
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=self.ignore_eos or False,
            n=self.n or 1,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            constraint=constraint,
            thinking_budget=self.thinking_budget,
            loop_guard=self.loop_guard,
            wants_confidence=reports_confidence and constraint is not None and constraint.kind == "json_schema",
        )


def logprobs(tokens: Iterable[TokenLogprob]) -> list[JsonObject]:
    """Log-probabilities as the OpenAI API writes them; the native dialect has the same."""
    return [
        {**_alternative(token.chosen), "top_logprobs": [_alternative(other) for other in token.top]} for token in tokens
    ]


def logprobs_of(text: str, tokens: Sequence[TokenLogprob]) -> list[JsonObject]:
    """Those of the tokens that are the text's, of more that were read with it: a thought, a call of a tool."""
    joined = "".join(token.chosen.text for token in tokens)
    begin = joined.rfind(text.strip())
    if begin < 0:
        return []
    end, at, kept = begin + len(text.strip()), 0, []
    for token in tokens:
        if at < end and at + len(token.chosen.text) > begin:
            kept.append(token)
        at += len(token.chosen.text)
    return logprobs(kept)


def _alternative(token: TokenAlternative) -> JsonObject:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.bytes)}
