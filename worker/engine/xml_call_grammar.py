"""Calls of tools as Qwen3.5 writes them, as rules of a grammar: values are plain text or JSON by the tool's schema."""

import json
from typing import Any

from worker.core.json_schema import referred
from worker.core.tools import Tool
from worker.engine.grammar import choice_rule, json_rule, regex_rule


def xml_call(tool: Tool, index: int, held: dict[str, Any] | None) -> list[str]:
    """Parameters in the order of the schema, those that must be given at least; text values end at their tag. Where the
    schema names none, any may be given."""
    head, end = json.dumps(f"<function={tool.name}>\n"), json.dumps("</function>")
    root = tool.parameters if held is None else held
    schema = resolved(root, root)
    properties = schema.get("properties")
    if not isinstance(properties, dict) or not properties:
        anything = f'"<parameter=" name_{index} ">\\n" value_{index}'
        is_closed = schema.get("additionalProperties") is False
        rules = [] if is_closed else [rf"name_{index}: /[^>\n]+/", _text_rule(f"value_{index}")]
        return [f"call_{index}: {head} {'' if is_closed else f'({anything})*'} {end}", *rules]
    required = schema.get("required") if isinstance(schema.get("required"), list) else []
    values = XmlValues(root, f"value_{index}")
    parts = [
        f"({json.dumps(f'<parameter={name}>' + chr(10))} {values.rule(value if held is not None else {})})"
        + ("" if name in (required or ()) else "?")
        for name, value in properties.items()
    ]
    return [f"call_{index}: {head} {' '.join(parts)} {end}", *values.rules]


class XmlValues:
    """Rules for the values of parameters, each with the tag that ends it. root: the schema whose definitions they may
    refer to; prefix: of the rules' names."""

    def __init__(self, root: dict[str, Any], prefix: str) -> None:
        self._root, self._prefix = root, prefix
        self._definitions = {name: part for name, part in root.items() if name in ("$defs", "definitions")}
        self.rules: list[str] = []

    def rule(self, schema: Any) -> str:
        """The name of the rule for a value of this schema."""
        place = len(self.rules)
        name = f"{self._prefix}_{place}"
        self.rules.append(_text_rule(name))
        if place < MAX_RULES:  # a schema may refer to itself
            self.rules[place] = self._written(name, resolved(schema, self._root))
        return name

    def _written(self, name: str, schema: dict[str, Any]) -> str:
        parts = schema.get("anyOf") or schema.get("oneOf")
        kinds = schema.get("type")
        if isinstance(parts, list):
            return f"{name}: {' | '.join(self.rule(part) for part in parts)}"
        if isinstance(kinds, list):
            return f"{name}: {' | '.join(self.rule({**schema, 'type': kind}) for kind in kinds)}"
        constants = [schema["const"]] if "const" in schema else schema.get("enum")
        if isinstance(constants, list):
            return f"{name}: {choice_rule(_plain(constant) + VALUE_END for constant in constants)}"
        if kinds in ("integer", "number", "boolean", "array", "object", "null"):
            return f"{name}: {json_rule({**schema, **self._definitions})} {json.dumps(VALUE_END)}"
        return self._text(name, schema) if kinds == "string" else _text_rule(name)

    def _text(self, name: str, schema: dict[str, Any]) -> str:
        pattern, least, most = (schema.get(word) for word in ("pattern", "minLength", "maxLength"))
        if pattern is None and least is None and most is None:
            return _text_rule(name)
        terminal = f"{name.upper()}"
        shapes = [] if pattern is None else [_searched(pattern)]
        if least is not None or most is not None:
            shapes.append(f"/(.|\\n){{{least or 0},{'' if most is None else most}}}/")
        return f"{name}[suffix={json.dumps(VALUE_END)}]: {terminal}\n{terminal}: {' & '.join(shapes)}"


VALUE_END = "\n</parameter>\n"
MAX_REFERENCES = 16
MAX_RULES = 2_000  # of a tool


def resolved(schema: Any, root: dict[str, Any]) -> dict[str, Any]:
    """A schema without the local reference that it is."""
    for _ in range(MAX_REFERENCES):
        if not isinstance(schema, dict):
            return {}
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            return schema
        schema = referred(root, reference)
    return {}


def _text_rule(name: str) -> str:
    return f"{name}[suffix={json.dumps(VALUE_END)}]: /(.|\\n)*/"


def _searched(pattern: str) -> str:
    """A text in which the pattern is found somewhere, as JSON Schema has it."""
    before = "" if pattern.startswith("^") else "(.|\\n)*"
    after = "" if pattern.endswith("$") else "(.|\\n)*"
    return regex_rule(f"{before}({pattern.removeprefix('^').removesuffix('$')}){after}")


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
