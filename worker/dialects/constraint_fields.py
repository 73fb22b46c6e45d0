"""What a body may say about the constraint on its answer: in this worker's words, OpenAI's and vLLM's."""

import json
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from worker.core.errors import InputInvalid
from worker.core.json_schema import prepared
from worker.core.safe_json import JsonObject, read_json
from worker.core.sampling import Constraint
from worker.dialects.base import Body

MAX_PATTERN_CHARS = 8_192  # memory to compile an expression grows with its square
MAX_GRAMMAR_CHARS = 16_384
MAX_CHOICES = 1024
MAX_CHOICE_CHARS = 8192
MAX_CHOICES_CHARS = 65_536  # of all
ANY_OBJECT = '{"type": "object"}'


def _parsed(value: object) -> object:
    """vLLM takes a schema as JSON in a string, too."""
    if not isinstance(value, str):
        return value
    try:
        return read_json(value.encode())
    except ValueError:
        raise PydanticCustomError("own_schema", "must be a JSON schema: an object, or JSON of one") from None


Schema = Annotated[JsonObject | bool, BeforeValidator(_parsed)]
Pattern = Annotated[str, Field(min_length=1, max_length=MAX_PATTERN_CHARS)]
Rules = Annotated[str, Field(min_length=1, max_length=MAX_GRAMMAR_CHARS)]
Choices = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=MAX_CHOICE_CHARS)]], Field(min_length=1, max_length=MAX_CHOICES)
]


class ConstraintFields(Body):
    """The constraint on the answer, one of them."""

    json_schema: Schema | None = Field(None, repr=False)
    regex: Pattern | None = None
    choice: Choices | None = Field(None, repr=False)
    grammar: Rules | None = None

    def constraints(self) -> Iterator[Constraint]:
        """All that are given. Raises InputInvalid."""
        yield from constraints(self, "", schema="json_schema")


class JsonSchemaFormat(Body):
    model_config = ConfigDict(extra="ignore")

    name: str | None = None
    description: str | None = None
    schema_: Schema | None = Field(None, alias="schema", repr=False)
    strict: bool | None = None


class ResponseFormat(Body):
    """OpenAI's `response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    def constraints(self) -> Iterator[Constraint]:
        where = "response_format"
        if self.type == "json_object":
            yield Constraint(kind="json_schema", text=ANY_OBJECT, where=where)
        if self.type != "json_schema" and self.json_schema is not None:
            raise InputInvalid(where=f"{where}.json_schema", detail='needs type "json_schema"')
        if self.type == "json_schema":
            if self.json_schema is None or self.json_schema.schema_ is None:
                raise InputInvalid(where=f"{where}.json_schema.schema", detail="is required")
            yield schema_constraint(self.json_schema.schema_, f"{where}.json_schema.schema")


class StructuredOutputs(Body):
    """vLLM's `structured_outputs`."""

    json_: Schema | None = Field(None, alias="json", repr=False)
    regex: Pattern | None = None
    choice: Choices | None = Field(None, repr=False)
    grammar: Rules | None = None
    json_object: bool | None = None
    whitespace_pattern: Pattern | None = None
    disable_any_whitespace: bool | None = None  # so it is, unless a pattern is given
    disable_fallback: bool | None = None  # there is none
    disable_additional_properties: Literal[False] | None = None
    structural_tag: None = None

    def constraints(self) -> Iterator[Constraint]:
        where = "structured_outputs"
        yield from constraints(self, f"{where}.", schema="json_", whitespace=self.whitespace_pattern)
        if self.json_object:
            yield Constraint(kind="json_schema", text=ANY_OBJECT, whitespace=self.whitespace_pattern, where=where)


class GuidedFields(Body):
    """vLLM's older fields."""

    guided_json: Schema | None = Field(None, repr=False)
    guided_regex: Pattern | None = None
    guided_choice: Choices | None = Field(None, repr=False)
    guided_grammar: Rules | None = None
    guided_whitespace_pattern: Pattern | None = None

    def guided(self) -> Iterator[Constraint]:
        """All that are given. Raises InputInvalid."""
        yield from constraints(
            self, "", schema="guided_json", prefix="guided_", whitespace=self.guided_whitespace_pattern
        )


def constraints(
    body: Body, place: str, *, schema: str, prefix: str = "", whitespace: str | None = None
) -> Iterator[Constraint]:
    """What a body's fields ask for. place: of the body in the request; schema: the field that has one; prefix: of the
    other fields. Raises InputInvalid."""
    found: Any = getattr(body, schema)
    if found is not None:
        yield schema_constraint(found, place + schema.rstrip("_"), whitespace)
    if (pattern := getattr(body, f"{prefix}regex")) is not None:
        yield Constraint(kind="regex", text=pattern, where=f"{place}{prefix}regex")
    if (choices := getattr(body, f"{prefix}choice")) is not None:
        text = json.dumps(list(dict.fromkeys(choices)), ensure_ascii=False)
        if len(text) > MAX_CHOICES_CHARS:
            raise InputInvalid(where=f"{place}{prefix}choice", detail=f"has more than {MAX_CHOICES_CHARS} characters")
        yield Constraint(kind="choice", text=text, where=f"{place}{prefix}choice")
    if (rules := getattr(body, f"{prefix}grammar")) is not None:
        yield Constraint(kind="grammar", text=rules, where=f"{place}{prefix}grammar")


def only_one(asked: Iterable[Constraint]) -> Constraint | None:
    """The one constraint that a body asks for. Raises InputInvalid."""
    found = list(asked)
    if len(found) > 1:
        raise InputInvalid(
            where=found[1].where, detail=f"cannot be combined with {found[0].where}: give one constraint on the answer"
        )
    return found[0] if found else None


def schema_constraint(schema: JsonObject | bool, where: str, whitespace: str | None = None) -> Constraint:
    """That the answer is JSON of the schema. where: its place in the request. Raises InputInvalid."""
    return Constraint(kind="json_schema", text=prepared(schema, where), whitespace=whitespace, where=where)
