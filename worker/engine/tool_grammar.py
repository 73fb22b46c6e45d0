"""Calls of tools as a grammar: where the client asks for a call, the answer is one. Arguments have their schema: surely
where the tool is strict, and where the schema can be compiled otherwise."""

import json
from collections.abc import Sequence
from typing import Any

from worker.checkpoint.spec import ModelSpec
from worker.checkpoint.tool_prompt import ToolFormat
from worker.core.errors import GrammarTooComplex, InputInvalid
from worker.core.json_schema import prepared
from worker.core.sampling import Constraint
from worker.core.tags import CALL, CALL_END
from worker.core.tools import Tool, Tools
from worker.engine.grammar import (
    NO_FORCING,
    Grammar,
    GrammarCompiler,
    choice_rule,
    has_callers_rules,
    json_rule,
    lark_of,
    regex_rule,
)
from worker.engine.xml_call_grammar import xml_call

_SINGLE, _SEVERAL = "call", r"call (/\n/ call)*"


class AnswerCompiler:
    """Compiles the grammars of one model's answers, those with tool calls too. Safe to use from many threads."""

    def __init__(self, spec: ModelSpec) -> None:
        self._tool_format = spec.tool_format
        self._has_tags = spec.tokenizer.id_of(CALL) is not None
        self._compiler = GrammarCompiler(spec.tokenizer, spec.vocabulary_size, spec.eos_ids)

    def compile(self, asked: Constraint | None, tools: Tools) -> Grammar | None:
        """The grammar of an answer; None where it is free. Raises InputInvalid, GrammarTooComplex."""
        try:
            return self._compiled(asked, tools, holds_all=True)
        except (InputInvalid, GrammarTooComplex):
            if all(tool.is_strict for tool in tools.usable):
                raise
        # Only of a strict tool the client counts on arguments in their schema.
        return self._compiled(asked, tools, holds_all=False)

    def _compiled(self, asked: Constraint | None, tools: Tools, *, holds_all: bool) -> Grammar | None:
        constraint = constraint_of(asked, tools, self._tool_format, holds_all=holds_all, has_tags=self._has_tags)
        return None if constraint is None else self._compiler.compile(constraint)


def constraint_of(
    asked: Constraint | None, tools: Tools, tool_format: ToolFormat, *, holds_all: bool = True, has_tags: bool = True
) -> Constraint | None:
    """The constraint on an answer that may have tool calls. Without tools it is the one asked for. holds_all: the
    arguments of tools that are not strict are held to their schema too. has_tags: the tags around a call are tokens of
    their own. Raises InputInvalid."""
    usable = tools.usable
    if not usable:
        return asked
    if tools.is_forced:
        wanted = [tool for tool in usable if tools.named in (None, tool.name)]
        calls = _SINGLE if tools.named is not None or not tools.is_parallel else _SEVERAL
        rules = [f"start: {calls}", *_calls(wanted, tool_format, holds_all=holds_all, has_tags=has_tags)]
    elif asked is not None:
        calls = _SEVERAL if tools.is_parallel else _SINGLE
        rules = [
            f"start: answer | {calls}",
            *_answer(asked),
            *_calls(usable, tool_format, holds_all=holds_all, has_tags=has_tags),
        ]
    elif has_tags and any(tool.is_strict for tool in usable):
        rules = [
            "start: (WORDS call)* WORDS",
            r"WORDS: /(.|\n)*/",
            *_calls(usable, tool_format, holds_all=False, has_tags=True),
        ]
    else:
        return None
    if asked is not None and has_callers_rules(asked):
        rules.append(NO_FORCING)
    return Constraint(kind="rules", text="\n".join(rules), where="tools" if asked is None else asked.where)


def _answer(asked: Constraint) -> list[str]:
    match asked.kind:
        case "json_schema":
            return [f"answer: {json_rule(json.loads(asked.text), asked.whitespace)}"]
        case "choice":
            return [f"answer: {choice_rule(json.loads(asked.text))}"]
        case "regex":
            return [f"answer: {regex_rule(asked.text)}"]
        case _:
            return [f"answer: %lark {{\n{lark_of(asked)}\n}}"]


def _calls(tools: Sequence[Tool], tool_format: ToolFormat, *, holds_all: bool, has_tags: bool) -> list[str]:
    """Rules named call, call_0, …"""
    begin, end = (tag if has_tags else json.dumps(tag) for tag in (CALL, CALL_END))
    bodies = " | ".join(f"call_{index}" for index in range(len(tools)))
    rules = [f'call: {begin} "\\n" ({bodies}) "\\n" {end}']
    for index, tool in enumerate(tools):
        schema = _schema(tool, holds_all=holds_all)
        rules += _json_call(tool, index, schema) if tool_format == "json" else xml_call(tool, index, schema)
    return rules


def _schema(tool: Tool, *, holds_all: bool) -> dict[str, Any] | None:
    """Of its arguments; None where they are any object. Raises InputInvalid."""
    if not (tool.is_strict or holds_all):
        return None
    try:
        schema: dict[str, Any] = json.loads(prepared(tool.parameters, f"{tool.where}.function.parameters"))
    except InputInvalid:
        if tool.is_strict:
            raise
        return None
    return {**schema, "type": "object"} if "type" not in schema else schema


def _json_call(tool: Tool, index: int, schema: dict[str, Any] | None) -> list[str]:
    head = json.dumps(f'{{"name": {json.dumps(tool.name)}, "arguments": ')
    return [
        f"call_{index}: {head} args_{index} {json.dumps('}')}",
        f"args_{index}: {json_rule(schema or {'type': 'object'})}",
    ]
