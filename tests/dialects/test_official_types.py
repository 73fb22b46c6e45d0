"""What the worker sends in the formats of others is what their own libraries' types take: every object and every event
of every case."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from anthropic.types import Message, MessageTokensCount, RawMessageStreamEvent
from openai.types import Completion, ErrorObject, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from openai.types.responses.input_token_count_response import InputTokenCountResponse
from pydantic import BaseModel, TypeAdapter

CASES = sorted((Path(__file__).parents[1] / "cases").glob("*/*.json"))
OBJECTS: dict[str, type[BaseModel]] = {
    "openai_chat": ChatCompletion,
    "openai_models": Model,
    "openai_completions": Completion,
    "openai_responses": Response,
    "openai_responses_count": InputTokenCountResponse,
    "anthropic_messages": Message,
    "anthropic_count": MessageTokensCount,
}
EVENTS: dict[str, TypeAdapter[Any]] = {
    "openai_chat": TypeAdapter(ChatCompletionChunk),
    "openai_completions": TypeAdapter(Completion),
    "openai_responses": TypeAdapter(ResponseStreamEvent),
    "anthropic_messages": TypeAdapter(RawMessageStreamEvent),
}
PAIRS = [(path.parent.name, path) for path in CASES if path.parent.name in OBJECTS]


def told(path: Path) -> list[Any]:
    outputs: list[Any] = json.loads(path.read_text(encoding="utf-8"))["outputs"]
    return outputs


def events(outputs: list[Any]) -> Iterator[tuple[str | None, Any]]:
    """The name and the object of each event, in order."""
    for block in "".join(output for output in outputs if isinstance(output, str)).split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines())
        if lines and lines["data"] != "[DONE]":
            yield lines.get("event"), json.loads(lines["data"])


@pytest.mark.parametrize(("name", "path"), PAIRS, ids=lambda value: value.stem if isinstance(value, Path) else value)
def test_their_types_take_every_object(name: str, path: Path) -> None:
    for output in told(path):
        if not isinstance(output, dict):
            continue
        if "error" in output and isinstance(output["error"], str):
            error = json.loads(output["error"])["error"]
            if name.startswith("openai"):
                ErrorObject.model_validate(error)
            assert error["message"]
            continue
        for one in output["data"] if output.get("object") == "list" else [output]:
            assert OBJECTS[name].model_validate(one).to_dict() | one == one


@pytest.mark.parametrize(("name", "path"), PAIRS, ids=lambda value: value.stem if isinstance(value, Path) else value)
def test_their_types_take_every_event(name: str, path: Path) -> None:
    for kind, value in events(told(path)):
        if kind == "ping":  # a part of the protocol that its library swallows
            continue
        assert kind is None or kind == value["type"]
        if name == "openai_completions":  # its type has no chunk before the last, whose reason is null
            value["choices"] = [{**choice, "finish_reason": "stop"} for choice in value["choices"]]
        parsed = EVENTS[name].validate_python(value)
        assert parsed.to_dict() | value == value


def test_the_cases_have_streams_and_failures_of_all() -> None:
    """So that the tests above see some."""
    streamed = {name for name, path in PAIRS if list(events(told(path)))}
    assert streamed == EVENTS.keys()


def test_the_events_of_a_response_are_numbered_without_a_gap_and_end_as_its_reply() -> None:
    [*streams] = [path for name, path in PAIRS if name == "openai_responses" and "stream" in path.stem]
    assert len(streams) == 4
    for path in streams:
        seen = [value for _, value in events(told(path))]
        assert [value["sequence_number"] for value in seen] == list(range(len(seen)))
        done = [value["item"] for value in seen if value["type"] == "response.output_item.done"]
        assert seen[-1]["response"]["output"] == done
        added = [value["output_index"] for value in seen if value["type"] == "response.output_item.added"]
        assert added == list(range(len(done)))


def test_the_blocks_of_a_message_start_and_stop_one_after_the_other() -> None:
    for path in [path for name, path in PAIRS if name == "anthropic_messages"]:
        steps = [(value["type"], value.get("index")) for _, value in events(told(path))]
        if steps:
            assert steps[0][0] == "message_start"
            assert [kind for kind, _ in steps[-2:]] == ["message_delta", "message_stop"]
            edges = [step for step in steps if step[0] in ("content_block_start", "content_block_stop")]
            num_blocks = len(edges) // 2
            assert edges == [
                (kind, index) for index in range(num_blocks) for kind in ("content_block_start", "content_block_stop")
            ]
