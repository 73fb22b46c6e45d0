"""Bodies of OpenAI's Responses and Completions, Anthropic's Messages and worker-vllm: what they become."""

import asyncio
from typing import Any

import pytest

from tests.fakes import FakeEngine
from tests.test_service import outputs
from worker.core.contract import (
    ChatRequest,
    Inline,
    Media,
    Message,
    Text,
    Url,
)
from worker.core.errors import InputError, OutOfMemory, RouteUnknown
from worker.dialects import validation
from worker.dialects.table import DIALECTS

URL = "https://a.test/x.png"
SCHEMA = {"type": "object", "properties": {"box": {"type": "array"}}}
ASKED = [{"role": "user", "content": "hello"}]
CALLED = {"type": "function_call", "call_id": "a", "name": "x"}


def parse(body: dict[str, Any]) -> ChatRequest:
    call = DIALECTS.choose(body)
    request = call.dialect.parse(call.body())
    assert isinstance(request, ChatRequest)
    return request


def responses(**body: Any) -> ChatRequest:
    return parse({"openai_route": "/v1/responses", "openai_input": {"input": "hello", **body}})


def anthropic(**body: Any) -> ChatRequest:
    return parse({"openai_route": "/v1/messages", "openai_input": {"max_tokens": 5, "messages": ASKED, **body}})


def completion(**body: Any) -> ChatRequest:
    return parse({"openai_route": "/v1/completions", "openai_input": {"prompt": "hello", **body}})


def job(**body: Any) -> ChatRequest:
    return parse(body)


def refusal(parsed: Any, **body: Any) -> str:
    with pytest.raises(InputError) as failed:
        parsed(**body)
    return failed.value.message


def heard(part: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [part]}]}


def spoken(part: Any) -> dict[str, Any]:
    return {"messages": [{"role": "assistant", "content": [part]}]}


def put_in(part: Any) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": [part]}]}


def shown(message: Message) -> list[str]:
    return [part.text if isinstance(part, Text) else part.where for part in message.parts]


def test_items_become_turns_and_an_assistants_thinking_words_and_calls_are_one() -> None:
    request = responses(
        instructions="Be brief.",
        input=[
            {
                "role": "user",
                "content": [{"type": "input_image", "image_url": URL}, {"type": "input_text", "text": "?"}],
            },
            {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
            {
                "type": "message",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "I look."}],
                "id": "m",
            },
            {"type": "function_call", "call_id": "a", "name": "zoom", "arguments": '{"box": [1]}', "status": None},
            {"type": "function_call", "call_id": "b", "name": "zoom", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "b", "output": "second"},
            {
                "type": "function_call_output",
                "call_id": "a",
                "output": [{"type": "input_image", "image_url": "data:image/png;base64,AA", "file_id": None}],
            },
            {"type": "message", "role": "assistant", "content": "So."},
            {"type": "message", "role": "assistant", "content": "Yes."},
            {"role": "developer", "content": "Stop."},
        ],
    )
    assert [message.role for message in request.messages] == [
        *("system", "user", "assistant", "tool", "tool", "assistant", "assistant", "system"),
    ]
    _, user, turn, first, second, *_ = request.messages
    assert shown(user) == ["input[0].content[0]", "?"]
    assert (turn.reasoning, shown(turn), [call.arguments for call in turn.tool_calls]) == (
        "Hm.",
        ["I look."],
        ['{"box": [1]}', "{}"],
    )
    assert shown(first) == ["input[6].output[0]"]  # in the order of the calls
    assert shown(second) == ["second"]
    assert [media.source for media in request.media] == [Url(url=URL), Inline(data="data:image/png;base64,AA")]


def test_a_response_says_how_to_answer() -> None:
    request = responses(
        max_output_tokens=7,
        temperature=0.5,
        top_logprobs=3,
        reasoning={"effort": "none", "summary": None},
        text={"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}, "verbosity": "low"},
        tools=[{"type": "function", "name": "zoom", "parameters": SCHEMA, "strict": None}],
        tool_choice={"type": "function", "name": "zoom"},
        store=True,
        metadata={"a": "b"},
    )
    assert (request.sampling.max_tokens, request.sampling.temperature, request.sampling.logprobs) == (7, 0.5, 3)
    assert request.sampling.constraint is not None
    assert request.sampling.constraint.where == "text.format.schema"
    assert request.template == (("enable_thinking", False),)
    assert (request.tools.named, [tool.name for tool in request.tools.offered]) == ("zoom", ["zoom"])
    assert request.ignored == ("reasoning.summary", "store", "text.verbosity")
    assert request.echo["metadata"] == {"a": "b"}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"previous_response_id": "r"}, "previous_response_id: this value is not supported: nothing is kept here"),
        ({"conversation": "c"}, "conversation: this value is not supported"),
        ({"background": True}, "background: this value is not supported"),
        ({"truncation": "auto"}, "truncation: this value is not supported"),
        ({"input": []}, "input: must not be empty"),
        ({"input": 5}, "input: must be a string or a list of items"),
        ({"input": [{"type": "web_search_call"}]}, "input[0]: must be an object whose type is one of message, "),
        (put_in({"type": "input_file", "file_id": "f"}), "input[0].content[0]: only"),
        (put_in({"type": "input_image", "file_id": "f"}), "input[0].content[0]: names"),
        (put_in({"type": "input_text", "text": 5}), "input[0].content[0].text: must"),
        ({"input": [{"type": "function_call", "name": "x", "call_id": "c", "arguments": "["}]}, "input[0].arg"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]: must be a function that the client runs"),
        ({"tools": [{"type": "function", "name": "x", "parameters": {"type": "array"}}]}, "tools[0].parameters.type"),
        ({"tool_choice": {"type": "function", "name": "x"}}, "tool_choice.name: must be the name of one of the tools"),
        ({"tool_choice": {"type": "web_search"}}, 'tool_choice: must be "auto"'),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema: is required"),
        ({"max_output_tokens": 0}, "max_output_tokens: must be at least 1"),
        ({"n": 2}, "n: this value is not supported"),
        (put_in({"type": "input_image"}), "input[0].content[0]: needs image_url"),
        (put_in({"type": "input_image", "image_url": URL, "detail": "huge"}), "input[0].content[0]: must have"),
        ({"metadata": {"a": {"b": 1}}}, "metadata.a: must be a string"),
        ({"user": "x" * 600}, "user: has more than 512 characters"),
        ({"input": [{**CALLED, "arguments": " " * 300_000}] * 2}, "input: 600000 characters"),
    ],
)  # fmt: skip
def test_what_a_response_cannot_be_is_refused_at_its_place(body: dict[str, Any], said: str) -> None:
    assert refusal(responses, **body).startswith(said)


def test_a_message_of_anthropics_becomes_turns() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA"}}
    request = anthropic(
        system=[
            {"type": "text", "text": "One.", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "Two."},
        ],
        messages=[
            {"role": "user", "content": [image, {"type": "text", "text": "?", "citations": None}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "a", "name": "zoom", "input": {"box": [1]}},
                    {"type": "tool_use", "id": "b", "name": "zoom", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "b", "content": "lost", "is_error": True},
                    {"type": "tool_result", "tool_use_id": "a", "content": [image]},
                    {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "A page."}},
                    {"type": "image", "source": {"type": "url", "url": URL}},
                ],
            },
        ],
    )
    system, user, turn, first, second, last = request.messages
    assert shown(system) == ["One.\n\nTwo."]
    assert shown(user) == ["messages[0].content[0]", "?"]
    assert (turn.reasoning, shown(turn)) == ("Hm.", ["I look."])
    assert [call.arguments for call in turn.tool_calls] == ['{"box": [1]}', "{}"]
    assert (first.role, shown(first)) == ("tool", ["messages[2].content[1].content[0]"])
    assert (second.role, shown(second)) == ("tool", ["Error: ", "lost"])
    assert (last.role, shown(last)) == ("user", ["A page.", "messages[2].content[3]"])


def test_a_message_of_anthropics_says_how_to_answer() -> None:
    request = anthropic(
        stop_sequences=["x"],
        top_k=5,
        tools=[{"name": "zoom", "input_schema": SCHEMA, "type": "custom", "cache_control": None}],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        output_config={"format": {"type": "json_schema", "schema": SCHEMA}, "effort": "low"},
        metadata={"user_id": "u"},
    )
    assert (request.sampling.max_tokens, request.sampling.stop, request.sampling.top_k) == (5, ("x",), 5)
    assert (request.tools.choice, request.tools.is_parallel) == ("required", False)
    assert request.sampling.constraint is not None
    assert request.sampling.constraint.where == "output_config.format.schema"
    assert request.ignored == ("metadata",)
    assert request.template == (("enable_thinking", False), ("reasoning_effort", "low"))  # unless it is asked for


@pytest.mark.parametrize(
    ("thinking", "template", "budget"),
    [
        ({"type": "enabled", "budget_tokens": 1024}, (("enable_thinking", True),), 1024),
        ({"type": "disabled"}, (("enable_thinking", False),), None),
        ({"type": "adaptive"}, (), None),
    ],
)
def test_thinking_is_asked_for_by_anthropics_names(thinking: Any, template: Any, budget: int | None) -> None:
    request = anthropic(thinking=thinking)
    assert (request.template, request.sampling.thinking_budget) == (template, budget)


def test_a_last_message_of_the_assistant_is_the_beginning_of_the_answer() -> None:
    begun = [*ASKED, {"role": "assistant", "content": [{"type": "text", "text": "I am"}]}]
    assert anthropic(messages=begun).continues_last
    assert not anthropic(messages=ASKED).continues_last


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"max_tokens": None}, "max_tokens: must be a whole number"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role: must be one of"),
        (heard({"type": "tool_use", "id": "a", "name": "x"}), "messages[0].content[0]: is only for"),
        (spoken({"type": "tool_result", "tool_use_id": "a"}), "messages[0].content[0]: is only for"),
        (heard({"type": "image", "source": {"type": "file", "file_id": "x"}}), "messages[0].content[0].source.type"),
        (heard({"type": "image", "source": {"type": "url"}}), "messages[0].content[0].source.url: is required"),
        (heard({"type": "document", "source": {"type": "base64"}}), "messages[0].content[0].source: must be plain"),
        (heard({"type": "video"}), "messages[0].content[0]: must be an object whose type"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]: must have a name and an"),
        ({"tools": [{"name": "x", "input_schema": {"type": "array"}}]}, "tools[0].input_schema.type: must be"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name: is required"),
        ({"tool_choice": {"type": "tool", "name": "x"}}, "tool_choice.name: must be the name of one of the tools"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers: this value is not supported"),
        ({"n": 2}, "n: this value is not supported: send several requests"),
        (spoken({"type": "text", "text": "  "}), "messages[0].content: must have words"),
        (spoken({"type": "tool_use", "id": "a", "name": "x"}), "messages[0].content: cannot be continued"),
        ({"system": [{"type": "image", "source": {"type": "url", "url": URL}}]}, "system[0]: must be an object"),
    ],
)  # fmt: skip
def test_what_a_message_cannot_be_is_refused_at_its_place(body: dict[str, Any], said: str) -> None:
    assert refusal(anthropic, **body).startswith(said)


def test_a_completion_is_a_raw_prompt() -> None:
    request = completion(logprobs=2, n=2, stop=["\n"], user="u")
    assert (request.is_raw, request.sampling.max_tokens, request.sampling.logprobs) == (True, 16, 2)
    assert (request.texts, request.ignored) == (("hello",), ("user",))
    assert completion(prompt=["hello"], max_tokens=3).sampling.max_tokens == 3


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"prompt": ["a", "b"]}, "prompt: must be one text"),
        ({"prompt": [1, 2]}, "prompt: must be one text"),
        ({"prompt": ""}, "prompt: must not be empty"),
        ({"echo": True}, "echo: this value is not supported: the prompt is not repeated"),
        ({"suffix": "x"}, "suffix: is not supported"),
        ({"best_of": 3}, "best_of: this value is not supported: write n"),
        ({"logprobs": 50}, "logprobs: must be from 0 to 20"),
    ],
)
def test_what_a_completion_cannot_be_is_refused(body: dict[str, Any], said: str) -> None:
    assert refusal(completion, **body).startswith(said)


def test_a_job_of_worker_vllm_is_what_its_documents_say() -> None:
    chat = job(messages=ASKED, sampling_params={"temperature": 0, "top_k": -1, "max_tokens": 9}, max_batch_size=4)
    assert (chat.is_raw, chat.sampling.temperature, chat.sampling.top_k, chat.sampling.max_tokens) == (False, 0, 0, 9)
    assert chat.ignored == ("max_batch_size",)
    raw = job(prompt="Once", sampling_params={})
    assert (raw.is_raw, raw.sampling.max_tokens) == (True, 16)
    asked = job(prompt="Who?", apply_chat_template=True, sampling_params={"max_tokens": 9}, max_tokens=9)
    assert (asked.is_raw, asked.messages[0].role, asked.texts) == (False, "user", ("Who?",))
    assert not job(prompt="Who?").is_raw  # the worker's own form
    assert job(messages=ASKED, model="m", max_completion_tokens=5, chat_template_kwargs={"a": True}).model == "m"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"messages": ASKED, "max_tokens": 1, "sampling_params": {"max_tokens": 2}}, "sampling_params.max_tokens: c"),
        ({"messages": ASKED, "sampling_params": {"temprature": 1}}, "sampling_params.temprature: unknown field: did"),
        ({"messages": ASKED, "sampling_params": {"max_tokens": 0}}, "sampling_params.max_tokens: must be at least 1"),
        ({"messages": ASKED, "sampling_params": {"use_beam_search": True}}, "sampling_params.use_beam_search: this"),
        ({"messages": ASKED, "sampling_params": 5}, "sampling_params: must be an object"),
        ({"messages": ASKED, "model": "m", "temprature": 1}, "temprature: unknown field: did you mean temperature?"),
        ({"messages": ASKED, "apply_chat_template": False}, "apply_chat_template: false goes with prompt"),
        ({"messages": ASKED, "prompt": "x", "sampling_params": {}}, "prompt: cannot be combined with messages"),
        ({"prompt": 5, "sampling_params": {}}, "prompt: must be a string"),
        ({"prompt": 5, "apply_chat_template": True}, "prompt: must be a string"),
        ({"prompt": "x", "apply_chat_template": "yes"}, "apply_chat_template: must be true or false"),
        ({"sampling_params": {}}, "prompt: is required"),
        ({"prompt": "x", "image": "y", "sampling_params": {}}, "sampling_params: unknown field: write its fields"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_in_a_job_is_refused(body: dict[str, Any], said: str) -> None:
    assert refusal(job, **body).startswith(said)


@pytest.mark.parametrize(
    ("envelope", "name"),
    [
        ({"openai_input": {"messages": ASKED}}, "openai_chat"),
        ({"route": "/v1/models"}, "openai_models"),
        ({"route": "/v1/models", "method": "get"}, "openai_models"),
        ({"route": "/v1/completions", "method": "POST", "body": {"prompt": "x"}}, "openai_completions"),
        ({"route": "/v1/chat/completions/", "body": {"messages": ASKED}}, "openai_chat"),
        ({"openai_route": "/v1//models/m"}, "openai_models"),
        (
            {"openai_route": "/v1/messages/count_tokens?beta=true", "openai_input": {"messages": ASKED}},
            "anthropic_count",
        ),
        ({"route": "/tokenize", "body": {"prompt": "x"}}, "tokenize"),
    ],
)
def test_a_route_may_be_written_in_many_ways(envelope: dict[str, Any], name: str) -> None:
    call = DIALECTS.choose(envelope)
    assert call.dialect.name == name
    call.dialect.parse(call.body())


@pytest.mark.parametrize(
    ("envelope", "said"),
    [
        ({"route": "/v1/models", "method": "POST"}, "method: must be GET for this route"),
        ({"route": "/v1/embeddings", "body": {}}, "route: no such route: embeddings are not served by this model"),
        (
            {"openai_route": "/v1/audio/speech", "openai_input": {}},
            "openai_route: no such route: audio is not served by",
        ),
        ({"openai_route": "/v1/responses/resp_1"}, "openai_route: no such route: nothing is kept here"),
        ({"route": "/chat/completions", "body": {}}, "route: no such route: did you mean /v1/chat/completions?"),
        ({"route": "/v1/chat/complitions", "body": {}}, "route: no such route: did you mean /v1/chat/completions?"),
        ({"route": "/health"}, "route: no such route: a job cannot ask for it"),
        ({"route": "/v1/none"}, "route: no such route: GET / lists the routes"),
        ({"openai_route": "/generate", "openai_input": {}}, "openai_route: no such route: write it as route"),
        ({"openai_route": "/v1/chat/completions/estimate"}, "openai_route: no such route: not served yet"),
        ({"route": 5}, "route: no such route"),
    ],
)
def test_a_route_that_is_not_there_is_answered_with_what_to_do(envelope: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as failed:
        DIALECTS.choose(envelope).body()
    assert failed.value.message.startswith(said)


def test_an_unknown_route_is_not_found() -> None:
    assert RouteUnknown.status == 404


def test_tokens_are_told_with_their_ids(engine: Any) -> None:
    request = parse({"route": "/tokenize", "body": {"prompt": "Who are you?"}})
    counts = asyncio.run(engine.count_tokens(request, ()))
    assert counts.ids == tuple(engine.builder.build(request, ()).ids)
    assert counts.prompt_tokens == len(counts.ids) < 10  # no chat template


def test_a_stream_that_fails_ends_in_its_formats_own_words() -> None:
    engine = FakeEngine(pieces=["Hal"], error=OutOfMemory())
    told = "".join(outputs({"openai_route": "/v1/responses", "openai_input": {"input": "x", "stream": True}}, engine))
    assert "event: response.failed\n" in told
    assert told.rstrip().splitlines()[-2] == "event: error"
    body = {"max_tokens": 5, "messages": ASKED, "stream": True}
    told = "".join(outputs({"openai_route": "/v1/messages", "openai_input": body}, engine))
    assert told.rstrip().splitlines()[-2] == "event: error"
    assert '"type": "overloaded_error"' in told
    *_, last = outputs({"messages": ASKED, "sampling_params": {}, "stream": True}, engine)
    assert "OUT_OF_MEMORY" in last["error"]


def test_media_in_every_format_has_its_place() -> None:
    [media] = responses(input=[{"role": "user", "content": [{"type": "input_video", "video_url": URL}]}]).media
    assert media == Media(kind="video", source=Url(url=URL), where="input[0].content[0]")


def call_item(name: str, arguments: str = "{}") -> dict[str, Any]:
    return {"type": "function_call", "call_id": name, "name": name, "arguments": arguments}


def result_item(name: str) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": name, "output": name}


@pytest.mark.parametrize(
    "between",
    [
        {"type": "message", "role": "assistant", "content": "and"},
        {"type": "reasoning", "id": "rs", "summary": []},
        {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
    ],
)
def test_results_of_calls_stay_with_their_calls_whatever_stands_between(between: dict[str, Any]) -> None:
    asked = {"role": "user", "content": "?"}
    items = [asked, call_item("a"), between, call_item("b"), result_item("b"), result_item("a")]
    _, turn, first, second = responses(input=items).messages
    assert [call.name for call in turn.tool_calls] == ["a", "b"]
    assert (first.role, shown(first), shown(second)) == ("tool", ["a"], ["b"])


@pytest.mark.parametrize(
    ("items", "place"),
    [
        ([{"type": "reasoning", "summary": []}, call_item("a"), call_item("b", "[")], "input[3].arguments"),
        (
            [
                {"type": "reasoning", "summary": []},
                {"role": "assistant", "content": [{"type": "input_image", "image_url": URL}]},
            ],
            "input[2].content[0]",
        ),
        ([{"role": "user", "content": "x" * 300_000}] * 2, "input"),
    ],
)
def test_a_place_is_that_of_the_item(items: list[Any], place: str) -> None:
    with pytest.raises(InputError) as failed:
        responses(input=[{"role": "user", "content": "?"}, *items])
    assert failed.value.where == place


def test_instructions_and_messages_of_the_system_are_one_at_the_beginning() -> None:
    said = [
        {"role": "developer", "content": "Two."},
        {"role": "user", "content": "?"},
        {"role": "system", "content": "3"},
    ]
    one, user, later = responses(instructions="One.", input=said).messages
    assert "".join(shown(one)) == "One.\n\nTwo."
    assert (user.role, later.role, shown(later)) == ("user", "system", ["3"])
    assert [message.role for message in responses().messages] == ["user"]
    assert [message.role for message in responses(instructions="One.", input=said[:1]).messages] == ["system"]


@pytest.mark.parametrize("name", ["auto", "none", "required", "any", "zoom"])
def test_a_tool_may_have_any_name(name: str) -> None:
    own = {"type": "function", "name": name}
    tools: list[Any] = [{**own, "parameters": SCHEMA}]
    assert responses(tools=tools, tool_choice=own).tools.named == name
    chosen = {"type": "tool", "name": name}
    assert anthropic(tools=[{"name": name, "input_schema": SCHEMA}], tool_choice=chosen).tools.named == name
    function = {"type": "function", "function": {"name": name}}
    asked = {"messages": ASKED, "tools": [function], "tool_choice": function}
    assert parse({"openai_route": "/v1/chat/completions", "openai_input": asked}).tools.named == name


def test_base64_is_base64_and_never_an_address() -> None:
    part = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": URL}}
    [media] = anthropic(**heard(part)).media
    assert media.source == Inline(data=URL)


def test_what_asks_for_nothing_is_taken() -> None:
    assert completion(add_special_tokens=True, best_of=2, n=2).sampling.n == 2
    assert job(messages=ASKED, sampling_params={"n": 2, "best_of": 2}).sampling.n == 2
    assert job(messages=ASKED, sampling_params={"logprobs": 2}).sampling.logprobs == 2
    assert responses(reasoning={"effort": "max"}).template == (("reasoning_effort", "max"),)


def test_what_a_response_repeats_is_what_was_read() -> None:
    tools = [{"type": "function", "name": "zoom", "parameters": SCHEMA, "x": "y" * 1000}]
    text = {"format": {"type": "json_schema", "schema": SCHEMA, "x": 1}, "verbosity": "low"}
    echo = responses(tools=tools, text=text, reasoning={"effort": "low", "summary": "auto"}, x=1).echo
    [tool] = echo["tools"]
    assert tool == {"type": "function", "name": "zoom", "description": None, "parameters": SCHEMA, "strict": None}
    assert echo["reasoning"] == {"effort": "low", "summary": None}
    assert echo["text"] == {"format": {"type": "json_schema", "name": "response", "schema": SCHEMA, "strict": None}}


def test_a_name_of_megabytes_is_compared_with_nothing_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    plain = validation._plain
    monkeypatch.setattr(validation, "_plain", lambda name: seen.append(len(name)) or plain(name))
    with pytest.raises(InputError, match="unknown field"):
        responses(mm_processor_kwargs={"_" * 5_000_000: 1})
    assert max(seen) <= 128
