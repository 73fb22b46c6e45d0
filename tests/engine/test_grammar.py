"""Documents that a compiled schema lets through are valid by the schema: random rows, judged by another library."""

import json
import random
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np
import pytest

from worker.checkpoint.tokenizer import Tokenizer, read_tokenizer
from worker.core.errors import GrammarTooComplex, InputInvalid
from worker.core.json_schema import prepared
from worker.core.sampling import Constraint
from worker.core.settings import EMBEDDED_MODEL
from worker.engine.grammar import Grammar, GrammarCompiler

SUITE = Path(__file__).parent / "json_schema_suite" / "draft2020-12.json"
EOS, VOCABULARY = 1000, 1024
NUM_ROWS = 16
MAX_TOKENS = 400


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return read_tokenizer(EMBEDDED_MODEL)


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, VOCABULARY, {EOS})


def compiled(compiler: GrammarCompiler, schema: object) -> Grammar:
    text = prepared(schema, "json_schema")
    return compiler.compile(Constraint(kind="json_schema", text=text))


class Writer:
    """Writes documents at random, in a hurry to end them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._bytes = [tokenizer.bytes_of(token) for token in range(VOCABULARY)]
        self._closes = np.array([text[:1] in (b'"', b"}", b"]") for text in self._bytes])

    def document(self, grammar: Grammar, rng: random.Random) -> bytes | None:
        """None where it became too long."""
        state = grammar.begin()
        written = b""
        for _ in range(MAX_TOKENS):
            allowed = np.unpackbits(state.mask.view(np.uint8), bitorder="little")[:VOCABULARY].astype(bool)
            if allowed[EOS] and rng.random() < 0.5:
                return written
            allowed[EOS] = False
            closing = allowed & self._closes
            chosen = closing if closing.any() and rng.random() < 0.5 else allowed
            token = int(rng.choice(chosen.nonzero()[0]))
            state.accept(token)
            written += self._bytes[token]
            if state.is_complete:
                return written
        return None


def finite(value: Any) -> Any:
    """JSON has numbers beyond a float; the judge has not."""
    match value:
        case float():
            return value if abs(value) < 1e300 else 1e300
        case list():
            return [finite(item) for item in value]
        case dict():
            return {name: finite(item) for name, item in value.items()}
    return value


def groups() -> Iterator[tuple[str, dict[str, Any]]]:
    for file, found in json.loads(SUITE.read_text(encoding="utf-8")).items():
        yield from ((f"{file}: {group['description']}", group) for group in found)


def invalid_documents(writer: Writer, grammar: Grammar, schema: object, seed: int) -> tuple[list[bytes], int]:
    """Those that the judge refuses, and how many were written."""
    judge = jsonschema_rs.Draft202012Validator(schema)
    rng = random.Random(seed)
    written = [document for _ in range(NUM_ROWS) if (document := writer.document(grammar, rng)) is not None]
    return [one for one in written if not judge.is_valid(finite(json.loads(one)))], len(written)


def test_no_schema_of_the_suite_lets_an_invalid_document_through(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    writer = Writer(tokenizer)
    num_compiled = num_written = 0
    for name, group in groups():
        try:
            grammar = compiled(compiler, group["schema"])
        except (InputInvalid, GrammarTooComplex):
            continue
        num_compiled += 1
        invalid, written = invalid_documents(writer, grammar, group["schema"], 1)
        num_written += written
        if "multipleOf" not in name:  # of numbers of forty digits a float cannot tell
            assert not invalid, name
        for instance in group["invalid"]:
            text = json.dumps(instance, ensure_ascii=False)
            tokens = tokenizer.encode(text)
            if tokenizer.decode(tokens) == text:  # it normalises Unicode
                assert not takes(grammar.begin(), tokens), (name, instance)
    assert num_compiled >= 160
    assert num_written >= 2400


def takes(state: Any, tokens: list[int]) -> bool:
    for token in tokens:
        if not state.mask.view(np.uint32)[token // 32] >> token % 32 & 1:
            return False
        state.accept(token)
    return bool(state.mask.view(np.uint32)[EOS // 32] >> EOS % 32 & 1)


WORDS = ("name", "total", "date", "items", "address", "status", "tags", "price", "id", "notes", "email", "lines", "tax")
LEAVES: tuple[dict[str, Any], ...] = (
    {"type": "string"},
    {"type": "string", "minLength": 1, "maxLength": 12},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3,5}$"},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "uuid"},
    {"type": "string", "format": "binary"},
    {"type": "integer", "minimum": 0, "maximum": 150},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 99.5},
    {"type": "boolean"},
    {"type": ["string", "null"], "maxLength": 5},
    {"enum": ["draft", "sent", 3, None]},
    {"const": "EUR"},
    {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None, "title": "A title"},
)


def real_life(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema as pydantic and zod write them: an invoice, a person, a list of findings."""
    properties: dict[str, Any] = {}
    for name in rng.sample(WORDS, rng.randint(1, 5)):
        way = rng.random()
        if depth < 2 and way < 0.2:
            properties[name] = real_life(rng, depth + 1)
        elif depth < 2 and way < 0.4:
            items = real_life(rng, depth + 1) if rng.random() < 0.5 else rng.choice(LEAVES)
            properties[name] = {"type": "array", "items": items, "maxItems": rng.randint(1, 3)}
        elif way < 0.5:
            properties[name] = {"$ref": "#/$defs/money"}
        else:
            properties[name] = {**rng.choice(LEAVES), "description": f"the {name}"}
    required = [name for name in properties if rng.random() < 0.7]
    schema: dict[str, Any] = {"type": "object", "properties": properties, "required": required}
    if rng.random() < 0.8:
        schema["additionalProperties"] = False
    if depth == 0:
        amount = {"amount": {"type": "number"}, "currency": {"enum": ["EUR", "USD"]}}
        schema["$defs"] = {"money": {"type": "object", "properties": amount, "required": ["amount"]}}
    return schema


def test_no_schema_of_real_life_lets_an_invalid_document_through(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    writer = Writer(tokenizer)
    num_written = 0
    for seed in range(120):
        schema = real_life(random.Random(seed))
        invalid, written = invalid_documents(writer, compiled(compiler, schema), schema, seed)
        assert not invalid, (schema, invalid)
        num_written += written
    assert num_written >= 1600


def test_control_tokens_are_no_part_of_a_string(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    state = compiled(compiler, {"type": "string"}).begin()
    state.accept(tokenizer.encode('"')[0])
    allowed = np.unpackbits(state.mask.view(np.uint8), bitorder="little")[:VOCABULARY]
    assert not any(allowed[token] for token in tokenizer.added)
    assert allowed.sum() > 500


def test_one_blank_stands_behind_commas_and_colons_and_none_elsewhere(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    schema = {"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}}, "required": ["a", "b"]}
    schema["additionalProperties"] = False
    grammar = compiled(compiler, schema)
    taken = {text: takes(grammar.begin(), tokenizer.encode(text)) for text in (
        '{"a": 1, "b": 2}', '{"a":1,"b":2}', '{"a":  1, "b": 2}', '{ "a": 1, "b": 2}', '{"a": 1,\n"b": 2}',
    )}  # fmt: skip
    assert list(taken.values()) == [True, False, False, False, False]
    flexible = compiler.compile(Constraint(kind="json_schema", text=json.dumps(schema), whitespace=r"[ \n]*"))
    assert takes(flexible.begin(), tokenizer.encode('{ "a": 1,\n"b": 2 }'))


def test_a_form_is_compiled_once(compiler: GrammarCompiler) -> None:
    constraint = Constraint(kind="choice", text='["once"]')
    assert compiler.compile(constraint) is compiler.compile(constraint.model_copy(update={"where": "elsewhere"}))
    assert compiler.compile(constraint) is not compiler.compile(Constraint(kind="regex", text='["once"]'))


def test_a_mask_without_some_tokens_may_be_empty(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    state = compiler.compile(Constraint(kind="regex", text="a{1,2}")).begin()
    [a] = tokenizer.encode("a")
    assert state.allows_other_than([EOS])
    state.accept(a)
    assert state.allows_other_than([EOS])
    assert not state.allows_other_than([EOS, a])
    state.accept(a)
    assert not state.allows_other_than([EOS])
    assert state.is_complete


def test_four_hundred_optional_fields_are_written_to_the_end(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    schema = {"type": "object", "properties": {f"field_{index}": {"type": "boolean"} for index in range(400)}}
    schema["additionalProperties"] = False
    invalid, written = invalid_documents(Writer(tokenizer), compiled(compiler, schema), schema, 1)
    assert not invalid
    assert written == NUM_ROWS


def test_a_mask_that_takes_too_long_is_the_last_one(compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    state = compiler.compile(Constraint(kind="regex", text="slow.*")).begin()
    monkeypatch.setattr("worker.engine.grammar.MAX_STEP_S", -1)
    state.prepare()
    with pytest.raises(GrammarTooComplex):
        state.accept(1)


def test_text_that_takes_too_long_to_look_ahead_to_is_the_last_one(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = compiler.compile(Constraint(kind="choice", text='["certain"]')).begin()
    monkeypatch.setattr("worker.engine.grammar.MAX_STEP_S", -1)
    [token, *_] = state.following()
    with pytest.raises(GrammarTooComplex):
        state.accept(token)


@pytest.mark.parametrize(
    "text",
    ["cafe\u0301", "\u212bngstr\u00f6m", "\u1100\u1161\u11a8", "e\u0301" * 40, "</think>\u0301 e\u0301", "12'llest"],
)
def test_certain_text_is_written_as_it_is(compiler: GrammarCompiler, tokenizer: Tokenizer, text: str) -> None:
    """Also where the tokenizer would write it in another form of Unicode."""
    state = compiler.compile(Constraint(kind="choice", text=json.dumps([text]))).begin()
    written = b""
    while not state.is_complete:
        for token in state.following() or [int(np.unpackbits(state.mask.view(np.uint8), bitorder="little").argmax())]:
            state.accept(token)
            written += tokenizer.bytes_of(token)
    assert written.decode() == text


# A greedy rule takes what the next one needs: only the same character can follow, for ever.
ENDLESS = {
    "Lark": Constraint(kind="grammar", text='start: ("a" | "b") /-+/ "-|"'),
    "Lark, forcing": Constraint(
        kind="grammar", text='%llguidance { "no_forcing": false }\nstart: ("a" | "b") /-+/ "-|"\n'
    ),
    "GBNF": Constraint(kind="grammar", text='root ::= ("a" | "b") dash "-|"\ndash ::= [-]+'),
    "blanks": Constraint(kind="json_schema", text='{"type": "object", "required": ["a"]}', whitespace='[" ]+'),
}
RUN = """
import sys
from worker.checkpoint.tokenizer import read_tokenizer
from worker.core.sampling import Constraint
from worker.core.settings import EMBEDDED_MODEL
from worker.core.tools import Tool, Tools
from worker.engine.grammar import GrammarCompiler
from worker.engine.tool_grammar import constraint_of

tokenizer = read_tokenizer(EMBEDDED_MODEL)
constraint = Constraint.model_validate_json(sys.argv[1])
if sys.argv[2] == "with tools":
    definition = '{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}'
    constraint = constraint_of(constraint, Tools(offered=(Tool(name="look", definition=definition),)), "json")
state = GrammarCompiler(tokenizer, 1024, {1000}).compile(constraint).begin()
for token in tokenizer.encode(sys.argv[3]):
    state.accept(token)
    state.following(), state.mask
print(state.error or "went on")
"""


@pytest.mark.parametrize("tools", ["without tools", "with tools"])
@pytest.mark.parametrize("constraint", ENDLESS.values(), ids=ENDLESS.keys())
def test_rules_that_never_end_do_not_hold_up_the_worker(constraint: Constraint, tools: str) -> None:
    """In a process of its own, since one that hangs could not be told so."""
    begin = '{"""""' if constraint.kind == "json_schema" else "a-----"
    command = [sys.executable, "-c", RUN, constraint.model_dump_json(), tools, begin]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, preexec_fn=_limited)
    assert done.stdout.strip() == "went on", done.stderr[-500:]


def _limited() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
