"""A caller's schema is bounded, and what cannot be compiled is refused by name and place."""

import json
from typing import Any

import pytest

from worker.core.errors import InputInvalid
from worker.core.json_schema import MAX_PROPERTIES, MAX_SCHEMA_DEPTH, prepared


def refusal(schema: object) -> str:
    with pytest.raises(InputInvalid) as caught:
        prepared(schema, "json_schema")
    return caught.value.message


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


REFUSED = {
    "not": ({"not": {}}, "json_schema: not is not supported"),
    "if": (
        {"properties": {"a": {"if": {}, "then": {}}}},
        "json_schema.properties.a: if is not supported",
    ),
    "unique items": (
        {"anyOf": [{}, {"items": {"uniqueItems": True}}]},
        "json_schema.anyOf[1].items: uniqueItems is not supported",
    ),
    "in definitions": ({"$defs": {"a": {"contains": {}}}}, "json_schema.$defs.a: contains is not supported"),
    "in a tuple": (
        {"prefixItems": [{"propertyNames": {"minLength": 2}}]},
        "json_schema.prefixItems[0]: propertyNames is not",
    ),
    "a format": ({"format": "regex"}, "json_schema: the format regex is not supported"),
    "too deep": (nested(MAX_SCHEMA_DEPTH + 1), f"the schema is nested more than {MAX_SCHEMA_DEPTH} deep"),
    "too wide": ({"$defs": {str(index): {} for index in range(MAX_PROPERTIES + 1)}}, "has more than 1000 names"),
    "too many optional names": (
        {"properties": {str(index): {} for index in range(401)}},
        "json_schema.properties: has more than 400 optional names",
    ),
    "a long pattern": ({"pattern": "a?" * 2000}, "json_schema.pattern: has more than 2048 characters"),
    "many patterns": (
        {"prefixItems": [{"pattern": "a" * 2000}] * 9},
        "json_schema: its patterns have more than 16384 characters",
    ),
    "too large": ({"enum": ["x" * 300_000]}, "the schema is larger than 262144 bytes"),
    "nothing is allowed": (False, "must be a JSON schema: an object"),
    "a list": ([], "must be a JSON schema: an object"),
}


@pytest.mark.parametrize(("schema", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_built_is_refused_by_name(schema: object, message: str) -> None:
    assert message in refusal(schema)


def test_a_name_that_could_be_anything_is_not_repeated() -> None:
    assert "secret words" not in refusal({"properties": {"secret words": {"not": {}}}})


def kept(schema: object) -> Any:
    return json.loads(prepared(schema, "json_schema"))


def test_what_is_only_a_note_is_dropped() -> None:
    assert kept({"type": "string", "format": "binary"}) == {"type": "string"}
    assert kept({"type": "string", "format": "date"}) == {"type": "string", "format": "date"}
    assert kept({"items": {"uniqueItems": False}}) == {"items": {}}
    assert kept({"x-guidance": {"lenient": True}, "maxLength": 3.0}) == {"maxLength": 3}
    assert kept(True) == {}
    assert kept({"propertyNames": {"type": "string"}, "dependentRequired": {}}) == {}
    assert kept({"if": {}, "format": ["email"]}) == {}
    assert kept({"then": {}, "else": {}}) == {}


def test_names_of_properties_are_no_keywords() -> None:
    schema = {"properties": {"not": {"type": "string"}, "format": {}, "if": {}}, "required": ["not"]}
    assert kept(schema) == schema
    constant = {"const": {"not": 1, "format": "x"}, "enum": [{"uniqueItems": True}]}
    assert kept(constant) == constant
