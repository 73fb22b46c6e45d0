"""What bodies ask of an answer's form, of tools and of thinking, in every dialect's words."""

import json
from typing import Any

import pytest

from worker.core.contract import ChatRequest, Media, Text
from worker.core.errors import InputInvalid
from worker.core.sampling import Constraint
from worker.core.tools import ToolCall
from worker.dialects.table import DIALECTS

ASKED = [{"role": "user", "content": "x"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "format": "binary"}}}
TEXT = '{"type": "object", "properties": {"a": {"type": "string"}}}'
ZOOM = {"type": "function", "function": {"name": "zoom", "description": "Look.", "parameters": SCHEMA}}
OTHER = {"type": "function", "function": {"name": "other"}}


def parse(body: dict[str, Any]) -> ChatRequest:
    call = DIALECTS.choose(body)
    request = call.dialect.parse(call.body())
    assert isinstance(request, ChatRequest)
    return request


def openai(**fields: Any) -> ChatRequest:
    return parse({"dialect": "openai_chat", "messages": ASKED, "model": "m", **fields})


def native(**fields: Any) -> ChatRequest:
    return parse({"messages": ASKED, **fields})


def refusal(parsed: Any, **fields: Any) -> str:
    with pytest.raises(InputInvalid) as caught:
        parsed(**fields)
    return caught.value.message


def call(identity: str, arguments: Any) -> dict[str, Any]:
    return {"id": identity, "type": "function", "function": {"name": "zoom", "arguments": arguments}}


def json_schema(**more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA, **more}}


FORMS: dict[str, tuple[ChatRequest, tuple[str, str] | None]] = {
    "json_schema": (openai(response_format=json_schema(strict=True)), ("json_schema", TEXT)),
    "json_schema, not strict": (openai(response_format=json_schema()), ("json_schema", TEXT)),
    "json_object": (openai(response_format={"type": "json_object"}), ("json_schema", '{"type": "object"}')),
    "text": (openai(response_format={"type": "text"}), None),
    "guided_json": (openai(guided_json=SCHEMA), ("json_schema", TEXT)),
    "guided_json in a string": (openai(guided_json=json.dumps(SCHEMA)), ("json_schema", TEXT)),
    "guided_regex": (openai(guided_regex="a+"), ("regex", "a+")),
    "guided_choice": (openai(guided_choice=["a", "b", "a"]), ("choice", '["a", "b"]')),
    "guided_grammar": (openai(guided_grammar='start: "a"'), ("grammar", 'start: "a"')),
    "structured_outputs": (openai(structured_outputs={"json": SCHEMA}), ("json_schema", TEXT)),
    "structured_outputs, choice": (openai(structured_outputs={"choice": ["a"]}), ("choice", '["a"]')),
    "structured_outputs, json_object": (
        openai(structured_outputs={"json_object": True, "regex": None}),
        ("json_schema", '{"type": "object"}'),
    ),
    "structured_outputs, nothing": (openai(structured_outputs={}), None),
    "the native name": (openai(json_schema=SCHEMA), ("json_schema", TEXT)),
    "native json_schema": (native(json_schema=SCHEMA), ("json_schema", TEXT)),
    "native regex": (native(regex="a+"), ("regex", "a+")),
    "native choice": (native(choice=["a"]), ("choice", '["a"]')),
    "native grammar": (native(grammar='start: "a"'), ("grammar", 'start: "a"')),
    "any value": (native(json_schema=True), ("json_schema", "{}")),
}


@pytest.mark.parametrize(("request_", "expected"), FORMS.values(), ids=FORMS.keys())
def test_a_form_has_many_names(request_: ChatRequest, expected: tuple[str, str] | None) -> None:
    found = request_.sampling.constraint
    assert (None if found is None else (found.kind, found.text)) == expected


def test_blanks_are_free_where_their_pattern_is_given() -> None:
    asked = openai(structured_outputs={"json": SCHEMA, "whitespace_pattern": r"[\n ]*"}).sampling.constraint
    assert asked == Constraint(kind="json_schema", text=TEXT, whitespace=r"[\n ]*", where="structured_outputs.json")
    older = openai(guided_json=SCHEMA, guided_whitespace_pattern=" ?").sampling.constraint
    assert older is not None
    assert older.whitespace == " ?"


REFUSED = {
    "two forms": (openai, {"guided_regex": "a", "response_format": json_schema()}, "guided_regex: cannot be combined"),
    "two native forms": (native, {"regex": "a", "choice": ["b"]}, "choice: cannot be combined with regex"),
    "a keyword": (
        openai,
        {"response_format": json_schema(schema={"properties": {"a": {"not": {}}}})},
        "response_format.json_schema.schema.properties.a: not is not supported",
    ),
    "no schema": (openai, {"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema: is req"),
    "a schema that is none": (openai, {"guided_json": "{"}, "guided_json: must be a JSON schema"),
    "structural tags": (openai, {"structured_outputs": {"structural_tag": "x"}}, "structural_tag: is not supported"),
    "an unknown form": (openai, {"structured_outputs": {"jsn": {}}}, "did you mean json?"),
    "no choice": (openai, {"guided_choice": []}, "guided_choice: must not be empty"),
    "native, OpenAI's name": (
        native,
        {"response_format": {}, "image": "x"},
        "write json_schema with the schema itself",
    ),
    "two tools of one name": (openai, {"tools": [ZOOM, ZOOM]}, "tools[1].function.name: two tools have the same"),
    "a tool of another type": (openai, {"tools": [{"type": "web_search"}]}, "tools[0].type: must be 'function'"),
    "a name with blanks": (openai, {"tools": [{"type": "function", "function": {"name": "a b"}}]}, "function.name"),
    "a strict schema": (
        openai,
        {"tools": [{"type": "function", "function": {"name": "a", "strict": True, "parameters": {"not": {}}}}]},
        "tools[0].function.parameters: not is not supported",
    ),
    "no such tool": (
        openai,
        {"tools": [ZOOM], "tool_choice": {"type": "function", "function": {"name": "a"}}},
        "tool_choice.function.name: must be the name of one of the tools",
    ),
    "no tool to call": (openai, {"tool_choice": "required"}, "tool_choice: needs tools"),
    "an unknown choice": (openai, {"tools": [ZOOM], "tool_choice": "any"}, 'tool_choice: must be "auto"'),
    "a turn to begin and to go on": (
        openai,
        {"continue_final_message": True, "add_generation_prompt": True},
        "continue_final_message: cannot be combined",
    ),
    "no turn to go on": (openai, {"continue_final_message": True}, "needs a last message with the role assistant"),
    "a schema that is not used": (
        openai,
        {"response_format": {"type": "json_object", "json_schema": {"schema": SCHEMA}}},
        'response_format.json_schema: needs type "json_schema"',
    ),
    "too many choices": (native, {"choice": [f"{index}" * 2000 for index in range(10, 50)]}, "choice: has more"),
    "an expression too long": (native, {"regex": "a?" * 5000}, "regex: has more than 8192 characters"),
    "arguments that are no object": (
        openai,
        {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "string"}}}]},
        'tools[0].function.parameters.type: must be "object"',
    ),
    "properties in a list": (
        openai,
        {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"properties": ["a"]}}}]},
        "tools[0].function.parameters.properties: must be an object",
    ),
    "half a character": (
        openai,
        {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"title": "\ud800"}}}]},
        "tools[0]: must be of valid Unicode",
    ),
    "allowed tools": (
        openai,
        {"tools": [ZOOM], "tool_choice": {"type": "allowed_tools", "allowed_tools": {}}},
        'tool_choice: must be "auto"',
    ),
    "tools too large": (
        openai,
        {"tools": [{"type": "function", "function": {"name": f"a{i}", "description": "x" * 200_000}} for i in (1, 2)]},
        "tools: have more than 262144 characters",
    ),
    "arguments too large": (
        openai,
        {"messages": [*ASKED, *[{"role": "assistant", "tool_calls": [call("1", {"a": "x" * 300_000})]}] * 2]},
        "characters of text in total",
    ),
    "a budget below zero": (openai, {"thinking_budget": -1}, "thinking_budget: must be at least 0"),
    "an unknown effort": (openai, {"reasoning_effort": "huge"}, "reasoning_effort: must be one of"),
}


@pytest.mark.parametrize(("parsed", "fields", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_contradicts_itself_or_cannot_be_is_refused(parsed: Any, fields: dict[str, Any], message: str) -> None:
    assert message in refusal(parsed, **fields)


NOT_BUILT = {
    "functions": [{"name": "a"}],
    "stop_sequences": ["a"],
    "thinking": {"type": "disabled"},
    "thinking_token_budget": 5,
    "max_new_tokens": 5,
    "separate_reasoning": False,
    "ebnf": "x",
    "function_call": {"name": "a"},
    "modalities": ["text", "audio"],
    "audio": {"voice": "a"},
    "web_search_options": {},
    "echo": True,
    "prompt_logprobs": 1,
    "bad_words": ["a"],
    "allowed_token_ids": [1],
    "use_beam_search": True,
    "best_of": 3,
    "length_penalty": 0.5,
    "skip_special_tokens": False,
    "truncate_prompt_tokens": 10,
    "return_token_ids": True,
    "chat_template": "x",
    "documents": [{}],
}


@pytest.mark.parametrize("name", NOT_BUILT)
def test_a_field_that_is_not_built_is_refused_by_name_unless_it_asks_for_nothing(name: str) -> None:
    assert refusal(openai, **{name: NOT_BUILT[name]}).startswith(f"{name}: this value is not supported: ")
    openai(**{name: None})


def test_nothing_and_no_are_not_the_same() -> None:
    assert refusal(openai, prompt_logprobs=0).startswith("prompt_logprobs: ")


def test_fields_that_only_tell_something_are_taken_and_named() -> None:
    told = {"store": True, "metadata": {}, "user": "u", "service_tier": "auto", "safety_identifier": "s"}
    assert set(openai(**told).ignored) == set(told)


def test_tools_are_shown_as_they_were_written() -> None:
    tools = openai(tools=[ZOOM, {**OTHER, "function": {**OTHER["function"], "strict": True}}]).tools  # type: ignore[dict-item]
    assert [json.loads(tool.definition) for tool in tools.offered] == [ZOOM, OTHER]
    assert [tool.is_strict for tool in tools.offered] == [False, True]
    assert (tools.choice, tools.named, tools.is_parallel, tools.is_forced) == ("auto", None, True, False)


def test_how_tools_are_used_is_chosen() -> None:
    named = {"type": "function", "function": {"name": "zoom"}}
    assert openai(tools=[ZOOM], tool_choice=named).tools.named == "zoom"
    assert openai(tools=[ZOOM], tool_choice="required", parallel_tool_calls=False).tools.is_forced
    assert openai(tools=[ZOOM], tool_choice="none").tools.usable == ()
    assert native(tools=[ZOOM], tool_choice="required").tools.is_forced
    assert not openai(tool_choice="auto", tools=None).tools.usable
    assert not openai(tool_choice=None, tools=None).tools.usable


@pytest.mark.parametrize("dialect", ["native", "openai_chat"])
def test_calls_and_results_are_turns(dialect: str) -> None:
    picture = {"type": "image_url", "image_url": {"url": "https://a.test/x.png"}}
    turns = [
        *ASKED,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [call("1", '{"a": 1}'), call("2", "")],
            "reasoning": "So.",
        },
        {"role": "tool", "tool_call_id": "2", "content": "second"},
        {"role": "tool", "tool_call_id": "1", "content": [picture]},
        {"role": "assistant", "content": []},
        {"role": "tool", "content": None},
        {"role": "user", "content": "y"},
    ]
    _, called, first, second, *_ = parse({"dialect": dialect, "messages": turns}).messages
    assert called.tool_calls == (ToolCall(name="zoom", arguments='{"a": 1}'), ToolCall(name="zoom", arguments="{}"))
    assert (called.parts, called.reasoning) == ((), "So.")
    assert isinstance(first.parts[0], Media)  # in the order of the calls
    assert first.parts[0].where == "messages[3].content[0]"
    assert second.parts == (Text(text="second"),)


@pytest.mark.parametrize("arguments", ["[1]", "{", "nothing", '{"a": NaN}', f'{{"a": {"[" * 900}{"]" * 900}}}'])
def test_arguments_that_are_no_object_are_refused(arguments: str) -> None:
    turns = [*ASKED, {"role": "assistant", "tool_calls": [call("1", arguments)]}, *ASKED]
    message = refusal(openai, messages=turns)
    assert message == "messages[1].tool_calls[0].function.arguments: must be JSON of an object, such as {}"


def test_calls_are_the_assistants_alone_and_others_say_something() -> None:
    assert "is only for messages with the role assistant" in refusal(
        openai, messages=[{"role": "user", "content": "x", "tool_calls": [call("1", "")]}]
    )
    assert "messages[0].content: must be a string" in refusal(openai, messages=[{"role": "user", "content": None}])


def test_a_dumped_part_has_nulls_for_what_is_not_there() -> None:
    parts = [
        {"type": "text", "text": "x", "image_url": None},
        {"type": "image_url", "image_url": {"url": "https://a.test/x.png"}, "text": None},
    ]
    assert len(openai(messages=[{"role": "user", "content": parts}]).messages[0].parts) == 2


def test_thinking_is_asked_for_in_the_templates_words() -> None:
    assert openai(enable_thinking=False).template == (("enable_thinking", False),)
    assert openai(reasoning_effort="low").template == (("reasoning_effort", "low"),)
    assert openai(reasoning_effort="none").template == (("enable_thinking", False),)
    both = openai(enable_thinking=False, chat_template_kwargs={"enable_thinking": True})
    assert both.template == (("enable_thinking", True),)
    assert native(enable_thinking=True, thinking_budget=9).template == (("enable_thinking", True),)
    assert native(thinking_budget=9).sampling.thinking_budget == 9


def test_the_last_message_goes_on_where_it_is_asked_for() -> None:
    turns = [*ASKED, {"role": "assistant", "content": "It is"}]
    request = openai(messages=turns, continue_final_message=True, add_generation_prompt=False)
    assert (request.continues_last, request.ignored) == (True, ())
    assert not openai(add_generation_prompt=False).opens_turn
