"""Calls of tools in both forms, as the grammar lets them be written: whatever it lets through, the parser reads."""

import json
import random
from typing import Any

import pytest

from tests.engine.test_grammar import VOCABULARY, Writer, takes
from worker.checkpoint.tokenizer import read_tokenizer
from worker.checkpoint.tool_prompt import ToolFormat
from worker.core.sampling import Constraint
from worker.core.settings import EMBEDDED_MODEL
from worker.core.tools import Tool, Tools
from worker.engine.grammar import GrammarCompiler
from worker.engine.tool_grammar import constraint_of
from worker.parsers.answer import AnswerParser

EOS = 1000
CROP = {
    "type": "object",
    "properties": {
        "box": {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": 9},
            "minItems": 4,
            "maxItems": 4,
        },
        "keep": {"type": "boolean"},
        "note": {"type": "string", "maxLength": 5},
        "unit": {"$ref": "#/$defs/unit"},
    },
    "required": ["box", "note"],
    "additionalProperties": False,
    "$defs": {"unit": {"enum": ["px", "mm"]}},
}
FIND = {"type": "object", "properties": {"level": {"type": "integer", "maximum": 99}}, "additionalProperties": False}


def tools(**options: Any) -> Tools:
    offered = [
        Tool(
            name=name,
            definition=json.dumps({"type": "function", "function": {"name": name, "parameters": parameters}}),
            is_strict=True,
        )
        for name, parameters in (("crop", CROP), ("find", FIND))
    ]
    return Tools(offered=tuple(offered), **options)


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(read_tokenizer(EMBEDDED_MODEL), VOCABULARY, {EOS})


@pytest.fixture(scope="module")
def writer() -> Writer:
    return Writer(read_tokenizer(EMBEDDED_MODEL))


def written(compiler: GrammarCompiler, writer: Writer, asked: Tools, form: ToolFormat, seed: int) -> str:
    constraint = constraint_of(None, asked, form)
    assert constraint is not None
    document = None
    rng = random.Random(seed)
    while document is None:
        document = writer.document(compiler.compile(constraint), rng)
    return document.decode(errors="replace")


@pytest.mark.parametrize("form", ["json", "xml"])
def test_what_the_grammar_lets_through_is_read_as_calls(
    compiler: GrammarCompiler, writer: Writer, form: ToolFormat
) -> None:
    for seed in range(12):
        asked = tools(choice="required")
        told = AnswerParser(asked.offered)
        text = written(compiler, writer, asked, form, seed)
        calls = [*told.push(text).calls, *told.finish(is_cut=False).calls]
        assert calls, text
        for call in calls:
            arguments = json.loads(call.arguments)
            if call.name == "crop":
                assert len(arguments["box"]) == 4
                assert isinstance(arguments["note"], str)
                assert arguments.get("keep", True) in (True, False)
            else:
                assert arguments.keys() <= {"level"}


@pytest.mark.parametrize("form", ["json", "xml"])
def test_a_named_tool_is_called_once(compiler: GrammarCompiler, writer: Writer, form: ToolFormat) -> None:
    for seed in range(4):
        asked = tools(named="find")
        told = AnswerParser(asked.offered)
        text = written(compiler, writer, asked, form, seed)
        assert [call.name for call in [*told.push(text).calls, *told.finish(is_cut=False).calls]] == ["find"]


@pytest.mark.parametrize(
    "asked",
    [
        Constraint(kind="json_schema", text='{"enum": ["yes"]}'),
        Constraint(kind="choice", text='["yes", "no"]'),
        Constraint(kind="regex", text="^yes/no$"),
        Constraint(kind="grammar", text='start: "y" e\ne: "es"'),
    ],
    ids=lambda asked: asked.kind,
)
def test_an_answer_has_its_form_beside_calls(compiler: GrammarCompiler, writer: Writer, asked: Constraint) -> None:
    constraint = constraint_of(asked, tools(), "json")
    assert constraint is not None
    grammar = compiler.compile(constraint)
    documents = {writer.document(grammar, random.Random(seed)) for seed in range(30)}
    plain = {one for one in documents if one is not None and not one.startswith(b"<tool_call>")}
    assert plain <= {b'"yes"', b"yes", b"no", b"yes/no"}
    assert plain
    assert any(one is not None and one.startswith(b"<tool_call>") for one in documents)


HELD: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "an enum of texts": ({"enum": ["x", "y", 3]}, ["x", "3"], ["zzz", '"x"']),
    "a pattern": ({"type": "string", "pattern": "^[a-c]+$"}, ["abc"], ["xyz", ""]),
    "a pattern somewhere": ({"type": "string", "pattern": "b"}, ["abc"], ["ac"]),
    "a length": ({"type": "string", "maxLength": 2}, ["ab"], ["abc"]),
    "both": ({"type": "string", "pattern": "^a+$", "minLength": 2}, ["aa"], ["a", "bb"]),
    "a number or null": ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, ["12", "null"], ["x"]),
    "several types": ({"type": ["integer", "null"]}, ["12", "null"], ["x"]),
    "a reference to an object": ({"$ref": "#/$defs/point"}, ['{"x": 1}'], ["x", "1"]),
    "any text": ({"type": "string"}, ["anything <b>\nat all"], []),
}


def is_taken(compiler: GrammarCompiler, asked: Tools, value: str) -> bool:
    constraint = constraint_of(None, asked, "xml")
    assert constraint is not None
    text = f"<function=f>\n<parameter=a>\n{value}\n</parameter>\n</function>\n"
    tokenizer = read_tokenizer(EMBEDDED_MODEL)
    begin, end = (tokenizer.id_of(tag) or 0 for tag in ("<tool_call>", "</tool_call>"))
    tokens = [begin, *tokenizer.encode("\n"), *tokenizer.encode(text), end]
    return takes(compiler.compile(constraint).begin(), tokens)


@pytest.mark.parametrize(("schema", "good", "bad"), HELD.values(), ids=HELD.keys())
def test_a_value_of_a_strict_tool_is_held_to_its_schema_as_text(
    compiler: GrammarCompiler, schema: dict[str, Any], good: list[str], bad: list[str]
) -> None:
    point = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    parameters = {"type": "object", "properties": {"a": schema}, "required": ["a"], "$defs": {"point": point}}
    definition = json.dumps({"type": "function", "function": {"name": "f", "parameters": parameters}})
    asked = Tools(offered=(Tool(name="f", definition=definition, is_strict=True),), named="f")
    assert [value for value in good if not is_taken(compiler, asked, value)] == []
    assert [value for value in bad if is_taken(compiler, asked, value)] == []


@pytest.mark.parametrize(
    "parameters", [{"type": "object"}, {}, {"$ref": "#/$defs/nothing"}, {"additionalProperties": {}}]
)
def test_any_parameter_may_be_given_where_the_schema_names_none(
    compiler: GrammarCompiler, parameters: dict[str, Any]
) -> None:
    definition = json.dumps({"type": "function", "function": {"name": "f", "parameters": parameters}})
    assert is_taken(compiler, Tools(offered=(Tool(name="f", definition=definition),), named="f"), "b")


def test_tags_that_are_no_tokens_are_letters(compiler: GrammarCompiler, writer: Writer) -> None:
    constraint = constraint_of(None, tools(named="find"), "json", has_tags=False)
    assert constraint is not None
    document = writer.document(compiler.compile(constraint), random.Random(1))
    assert document is not None
    assert document.startswith(b'<tool_call>\n{"name": "find", "arguments": {')
    assert document.endswith(b"}}\n</tool_call>")
    assert constraint_of(None, tools(), "json", has_tags=False) is None


def test_gbnf_is_an_answer_beside_tools(compiler: GrammarCompiler, writer: Writer) -> None:
    constraint = constraint_of(Constraint(kind="grammar", text='root ::= "yes"'), tools(), "json")
    assert constraint is not None
    assert b"yes" in {writer.document(compiler.compile(constraint), random.Random(seed)) for seed in range(30)}


def test_without_strict_tools_and_without_a_form_the_answer_is_free() -> None:
    loose = tuple(tool.model_copy(update={"is_strict": False}) for tool in tools().offered)
    assert constraint_of(None, Tools(offered=loose), "json") is None
    assert constraint_of(None, Tools(), "json") is None
    assert constraint_of(None, tools(choice="none"), "json") is None
