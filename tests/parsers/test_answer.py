"""What a model wrote is told apart the same whole and cut at every place."""

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from worker.core.contract import ChatRequest, Done, Event, Piece, TokenAlternative, TokenLogprob, Usage
from worker.core.tools import Tool, Tools
from worker.parsers.answer import AnswerParser
from worker.parsers.events import EventParser

SCHEMAS: dict[str, dict[str, Any]] = {
    "crop": {
        "box": {"type": "array", "items": {"type": "number"}},
        "page": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "note": {"type": "string"},
        "keep": {"type": "boolean"},
        "style": {"$ref": "#/$defs/style"},
        "level": {"enum": [1, 2, 3]},
        "what": {"type": ["string", "number"]},
    },
    "find": {"text": {"type": "string"}},
    "stop": {},
}
DEFINITIONS = {"style": {"type": "object", "properties": {"width": {"type": "number"}}}}


def tool(name: str) -> Tool:
    parameters = {"type": "object", "properties": SCHEMAS[name], "$defs": DEFINITIONS}
    definition = {"type": "function", "function": {"name": name, "parameters": parameters}}
    return Tool(name=name, definition=json.dumps(definition))


TOOLS = tuple(map(tool, SCHEMAS))
Calls = list[tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class Case:
    """What was written, and what a client is to get. text: None for no words at all."""

    wrote: str
    text: str = ""
    calls: Calls = field(default_factory=list)
    reasoning: str = ""
    opens_thought: bool = False
    is_cut: bool = False
    tools: tuple[Tool, ...] = TOOLS
    is_parallel: bool = True


def found(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


FIND = '{"name": "find", "arguments": {"text": "a"}}'
FOUND: Calls = [("find", {"text": "a"})]
BROKEN = found('{"name": "find", "arguments": {text: a}}')
LIST = found('{"name": "find", "arguments": [1]}')
OPEN = found('{"name": "find", "arguments": {"text": "a}}')


def xml(*values: tuple[str, str]) -> str:
    parameters = "".join(f"<parameter={name}>\n{value}\n</parameter>\n" for name, value in values)
    return found(f"<function=crop>\n{parameters}</function>")


CASES = {
    "words alone": Case("A red circle. ", "A red circle. "),
    "a tag in words": Case("See <tool_call> or <function=x>.", "See <tool_call> or <function=x>."),
    "a call": Case(found(FIND), calls=FOUND),
    "no tools: all is text": Case(found(FIND), found(FIND), tools=()),
    "an end tag in a string": Case(
        found('{"name": "find", "arguments": {"text": "</tool_call> and \\"{[\\\\"}}'),
        calls=[("find", {"text": '</tool_call> and "{[\\'})],
    ),
    "arguments first": Case(found('{"arguments": {"text": "a"}, "name": "find"}'), calls=FOUND),
    "no arguments": Case(found('{"name": "stop"}'), calls=[("stop", {})]),
    "null for no arguments": Case(found('{"name": "stop", "arguments": null}'), calls=[("stop", {})]),
    "arguments in a string": Case(found('{"name": "find", "arguments": "{\\"text\\": \\"a\\"}"}'), calls=FOUND),
    "a line break in a string": Case(
        found('{"name": "find", "arguments": {"text": "a\nb"}}'), calls=[("find", {"text": "a\nb"})]
    ),
    "words around": Case(f"One.\n{found(FIND)}\nTwo. {found(FIND)}\n\nThree.", "One.\nTwo. Three.", FOUND * 2),
    "words before alone": Case(f"Look:\n\n{found(FIND)}\n", "Look:", FOUND),
    "words behind alone": Case(f"{found(FIND)}\nDone.", "Done.", FOUND),
    "two calls in one pair of tags": Case(found(f"{FIND}\n{FIND}"), calls=FOUND * 2),
    "no tag at the end": Case(f"<tool_call>\n{FIND}", calls=FOUND),
    "no tag at the end, words behind": Case(f"<tool_call>{FIND} and so on", "and so on", FOUND),
    "a bracket too many": Case(found(FIND + "}"), calls=FOUND),
    "not the only call that is wanted": Case(found(FIND) * 2, calls=FOUND, is_parallel=False),
    "an unknown tool": Case(found('{"name": "fly", "arguments": {}}'), found('{"name": "fly", "arguments": {}}')),
    "broken JSON": Case(
        f"{BROKEN}\n{found(FIND)}",
        BROKEN,
        FOUND,
    ),
    "JSON that never ends, then a call": Case(
        f"{OPEN}{found(FIND)}",
        OPEN,
        FOUND,
    ),
    "a list for arguments": Case(LIST, LIST),
    "a number beyond JSON": Case(
        found('{"name": "find", "arguments": {"text": NaN}}'), found('{"name": "find", "arguments": {"text": NaN}}')
    ),
    "cut within a call": Case(
        f"{found(FIND)}\n<tool_call>\n{FIND[:20]}", f"<tool_call>\n{FIND[:20]}", FOUND, is_cut=True
    ),
    "cut within a tag": Case("Yes.<tool_", "Yes.<tool_", is_cut=True),
    "cut behind a call": Case(f"<tool_call>\n{FIND}\n</tool", calls=FOUND, is_cut=True),
    "parameters by their types": Case(
        xml(("box", "[1, 2.5]"), ("page", "3"), ("note", "12"), ("keep", "True"), ("style", '{"width": 2}')),
        calls=[("crop", {"box": [1, 2.5], "page": 3, "note": "12", "keep": True, "style": {"width": 2}})],
    ),
    "parameters in other spellings": Case(
        xml(("box", "(1"), ("page", "None"), ("keep", "yes"), ("style", "{'width': 2}"), ("level", "2"), ("what", "7")),
        calls=[("crop", {"box": "(1", "page": None, "keep": "yes", "style": {"width": 2}, "level": 2, "what": 7})],
    ),
    "a parameter that is not in the schema": Case(xml(("more", "1")), calls=[("crop", {"more": "1"})]),
    "lines and tags in a value": Case(
        xml(("note", "a\n\n</function> b\n</parameter> c\n")),
        calls=[("crop", {"note": "a\n\n</function> b\n</parameter> c\n"})],
    ),
    "no parameters": Case(found("<function=stop>\n</function>"), calls=[("stop", {})]),
    "no call tag around a function": Case("So:\n<function=stop>\n</function>", "So:", [("stop", {})]),
    "an unknown function": Case(found("<function=fly>\n</function>"), found("<function=fly>\n</function>")),
    "the answer ends within a call": Case(
        "<tool_call>\n<function=find>\n<parameter=text>\na\n</parameter>", calls=FOUND
    ),
    "no end of the last parameter": Case(
        "<tool_call>\n<function=find>\n<parameter=text>\na\n</function>\n</tool_call>", calls=FOUND
    ),
    "cut within a function": Case(
        "<tool_call>\n<function=find>\n<parameter=text>\na\n</parameter>",
        "<tool_call>\n<function=find>\n<parameter=text>\na\n</parameter>",
        is_cut=True,
    ),
    "a thought": Case("Two things.\n</think>\n\n2", "2", reasoning="Two things.", opens_thought=True),
    "a thought that the model opens": Case("<think>\nTwo.\n</think>\n\n2\n", "2\n", reasoning="Two.", tools=()),
    "a thought that is opened twice": Case("<think>\nTwo.</think>2", "2", reasoning="Two.", opens_thought=True),
    "an empty thought": Case("\n</think>\n\n2", "2", opens_thought=True),
    "a thought that does not end": Case("Two", reasoning="Two", opens_thought=True, is_cut=True),
    "a thought tag in words": Case("It says <think> here.", "It says <think> here."),
    "words that begin alike": Case("<thing>", "<thing>"),
    "a thought's end without a thought": Case("a</think>b", "a</think>b"),
    "a call behind a thought": Case(
        f"So.\n</think>\n\n{found(FIND)}", reasoning="So.", calls=FOUND, opens_thought=True
    ),
    "a call within a thought": Case(
        f"So.\n{found(FIND)}\nThen.</think>", "Then.", FOUND, reasoning="So.", opens_thought=True
    ),
    "a tag within a thought": Case(
        "A <tool_call> is\nneeded.</think>No.", "No.", reasoning="A <tool_call> is\nneeded.", opens_thought=True
    ),
    "a function that is thought about": Case(
        "I could use <function=crop> here.\n</think>\n\nFive.",
        "Five.",
        reasoning="I could use <function=crop> here.",
        opens_thought=True,
    ),
    "a call that is thought about, then one": Case(
        f'Maybe <tool_call>{{"name":\n</think>\n\n{found(FIND)}',
        reasoning='Maybe <tool_call>{"name":',
        calls=FOUND,
        opens_thought=True,
    ),
    "a function that is begun in a thought": Case(
        "A <tool_call>\n<function=find>\n<parameter=text>.\n</think>No.",
        "No.",
        reasoning="A <tool_call>\n<function=find>\n<parameter=text>.",
        opens_thought=True,
    ),
    "a function that is spoken of, then a call": Case(
        f"In C, <function=find> means ok. {found(FIND)}", "In C, <function=find> means ok.", FOUND
    ),
    "no end of a parameter before the next one": Case(
        "<tool_call>\n<function=crop>\n<parameter=note>\nx\n<parameter=page>\n3\n</parameter>\n</function>\n</tool_call>",
        calls=[("crop", {"note": "x", "page": 3})],
    ),
    "no end of a parameter, then another call": Case(
        f"<tool_call>\n<function=find>\n<parameter=text>\na\n</function>\n</tool_call>\nThen.\n{found(FIND)}",
        "Then.",
        FOUND * 2,
    ),
    "a call in a value": Case(
        xml(("note", "<function=x>\n<parameter=y>\n1\n</parameter>\n</function>"), ("page", "1")),
        calls=[("crop", {"note": "<function=x>\n<parameter=y>\n1\n</parameter>\n</function>", "page": 1})],
    ),
    "parameters of others in a value": Case(
        xml(("note", "<parameter=a>\n1\n</parameter>\n<parameter=b>\n2\n</parameter>")),
        calls=[("crop", {"note": "<parameter=a>\n1\n</parameter>\n<parameter=b>\n2\n</parameter>"})],
    ),
    "arguments under another name": Case(found('{"name": "find", "parameters": {"text": "a"}}'), calls=FOUND),
    "values beyond JSON": Case(
        xml(("page", "NaN"), ("style", '{"a": 1e999}'), ("box", "[(1, 2), {3}]")),
        calls=[("crop", {"page": "NaN", "style": '{"a": 1e999}', "box": "[(1, 2), {3}]"})],
    ),
    "Windows' line ends": Case(
        "<tool_call>\r\n<function=find>\r\n<parameter=text>\r\na\r\n</parameter>\r\n</function>\r\n</tool_call>",
        calls=FOUND,
    ),
    "many beginnings that are none": Case(
        "<tool_call>{</tool_call>" * 40 + found(FIND), "<tool_call>{</tool_call>" * 40, FOUND
    ),
    "a cut thought": Case("One, tw</thi", reasoning="One, tw</thi", opens_thought=True, is_cut=True),
}  # fmt: skip


def told(case: Case, *parts: str) -> tuple[str, str, Calls]:
    parser = AnswerParser(case.tools, is_parallel=case.is_parallel, opens_thought=case.opens_thought)
    pieces = [*(parser.push(part) for part in parts), parser.finish(is_cut=case.is_cut)]
    calls = [(call.name, json.loads(call.arguments)) for piece in pieces for call in piece.calls]
    return "".join(piece.text for piece in pieces), "".join(piece.reasoning for piece in pieces), calls


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_it_is_told_apart_whole_and_cut_at_every_place(case: Case) -> None:
    expected = case.text, case.reasoning, case.calls
    assert told(case, case.wrote) == expected
    for at in range(len(case.wrote) + 1):
        assert told(case, case.wrote[:at], case.wrote[at:]) == expected, case.wrote[:at]
    assert told(case, *case.wrote) == expected


def test_words_come_as_soon_as_they_are_certain() -> None:
    parser = AnswerParser(TOOLS)
    parts = ("A ", "<b", ">", " c\n", "<tool", "_call", ">", "d")
    assert [parser.push(part).text for part in parts] == ["A", " <b", ">", " c", "", "", "", "\n<tool_call>d"]


def test_a_call_comes_whole_when_its_json_is() -> None:
    parser = AnswerParser(TOOLS)
    assert not parser.push(f"<tool_call>\n{FIND[:-1]}").calls
    assert [call.name for call in parser.push("}").calls] == ["find"]


def test_a_long_call_costs_little_each_time_that_it_grows() -> None:
    """Its text is looked at once, not at each piece anew."""
    parser = AnswerParser(TOOLS)
    parser.push('<tool_call>\n{"name": "find", "arguments": {"text": "')
    for _ in range(20_000):
        parser.push("abcde")
    [call] = parser.push('"}}').calls
    assert len(json.loads(call.arguments)["text"]) == 100_000
    parser = AnswerParser(TOOLS)
    parser.push("<tool_call>\n<function=find>\n<parameter=text>\n</function>")
    for _ in range(8_000):
        parser.push("</parameter>")
    [call] = parser.push("\n</parameter>\n</function>\n</tool_call>").calls
    assert len(json.loads(call.arguments)["text"]) == 8_000 * 12 + len("</function>")


def test_a_schema_that_refers_to_itself_is_looked_at_once() -> None:
    """46 references in each of 46 would be looked up 46 to the fourth times."""
    references = [{"$ref": "#/$defs/a"}] * 45
    parameters = {"properties": {"q": references[0]}, "$defs": {"a": {"anyOf": references, "enum": 5}}}
    definition = json.dumps({"type": "function", "function": {"name": "f", "parameters": parameters}})
    parser = AnswerParser([Tool(name="f", definition=definition)])
    told = parser.push("<tool_call>\n<function=f>\n<parameter=q>\n1\n</parameter>\n</function>\n</tool_call>")
    assert [call.arguments for call in told.calls] == ['{"q": "1"}']


def test_a_function_alone_is_no_call_of_strict_tools() -> None:
    """Without its tag no grammar held it."""
    strict = tool("stop").model_copy(update={"is_strict": True})
    wrote = "<function=stop>\n</function>"
    assert told(Case(wrote, tools=(strict,)), wrote) == (wrote, "", [])
    assert told(Case(wrote, tools=(strict,)), found(wrote)) == ("", "", [("stop", {})])


def request(*tools: Tool) -> ChatRequest:
    return ChatRequest(messages=(), tools=Tools(offered=tools))


def through(asked: ChatRequest, *events: Event) -> list[Event]:
    parser = EventParser(asked)
    return [out for event in events for out in parser.feed(event)]


DONE = Done(reasons=("stop", "length"), usage=Usage(prompt_tokens=1, completion_tokens=2))


def test_each_of_several_answers_has_its_own_calls_and_its_own_end() -> None:
    call = found(FIND)
    *pieces, done = through(request(*TOOLS), Piece(text=call, index=1), Piece(text=call, index=0), DONE)
    assert [(piece.index, len(piece.tool_calls)) for piece in pieces if isinstance(piece, Piece)] == [(1, 1), (0, 1)]
    assert isinstance(done, Done)
    assert done.reasons == ("tool_calls", "length")


def test_calls_that_are_whole_before_a_loop_are_made() -> None:
    text = f"{found(FIND)}\n{found(FIND)}\n<tool_call>\n{FIND[:20]}"
    ended = DONE.model_copy(update={"reasons": ("repetition",)})
    *pieces, done = through(request(*TOOLS), Piece(text=text), ended)
    assert sum(len(piece.tool_calls) for piece in pieces if isinstance(piece, Piece)) == 2
    assert isinstance(done, Done)
    assert done.reasons == ("tool_calls",)
    *_, done = through(request(*TOOLS), Piece(text="red red"), ended)
    assert isinstance(done, Done)
    assert done.reasons == ("repetition",)


def test_what_is_held_back_takes_its_log_probabilities_along() -> None:
    first, second = ((TokenLogprob(TokenAlternative(text, text.encode(), -1.0), ()),) for text in ("<tool_call>", "x"))
    one, done = through(
        request(*TOOLS),
        Piece(text="<tool_call>", logprobs=first),
        Piece(text="x", logprobs=second),
        DONE.model_copy(update={"reasons": ("stop",)}),
    )
    assert isinstance(one, Piece)
    assert (one.text, one.logprobs) == ("<tool_call>x", first + second)
    assert isinstance(done, Done)
    assert done.reasons == ("stop",)


def test_tools_that_may_not_be_called_are_not_looked_for() -> None:
    asked = ChatRequest(messages=(), tools=Tools(offered=TOOLS, choice="none"))
    piece, _ = through(asked, Piece(text=found(FIND)), DONE.model_copy(update={"reasons": ("stop",)}))
    assert isinstance(piece, Piece)
    assert piece.text == found(FIND)
