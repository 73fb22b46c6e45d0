"""How the tokens of an answer are chosen, and the form that it must have. Knows no model and no library of grammars."""

from typing import Literal

from pydantic import Field

from worker.core.value import Value

ConstraintKind = Literal["json_schema", "regex", "choice", "grammar", "rules"]


class Constraint(Value):
    """The form of an answer. text: a schema as JSON, a regular expression, a JSON list of the possible answers, a
    caller's grammar in Lark or GBNF, or the worker's own rules in Lark. whitespace: the regular expression of what may
    stand between the tokens of JSON, None: a blank behind each comma and colon. where: its place in the request, for
    error messages."""

    kind: ConstraintKind
    text: str = Field(repr=False)
    whitespace: str | None = None
    where: str = "input"


class Sampling(Value):
    """How tokens are chosen. None takes the checkpoint's default; temperature 0 is greedy.

    fits_context: max_tokens is lowered to what fits behind the prompt. n: answers to the one prompt. logprobs: None for
    no log-probabilities, else how many of the likeliest tokens to name beside the chosen one. logit_bias: token ids
    with what is added to their logits. keeps_stop: the stop string that ends an answer is part of it. constraint: the
    form of the answer; of a model that thinks, what follows its thinking. thinking_budget: tokens after which the
    thinking is ended; None: no limit. loop_guard: whether an answer that repeats itself is ended; None: as the worker
    is set. wants_confidence: chosen tokens come with their log-probabilities, but those that the constraint leaves no
    choice about.
    """

    max_tokens: int | None = None
    fits_context: bool = False
    min_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = Field(default=(), repr=False)
    keeps_stop: bool = False
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    n: int = 1
    logprobs: int | None = None
    constraint: Constraint | None = None
    thinking_budget: int | None = None
    loop_guard: bool | None = None
    wants_confidence: bool = False
