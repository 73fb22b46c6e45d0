"""Replies and streams of OpenAI's formats from an engine's events."""

from typing import Any

from tests.dialects.test_official_types import events
from worker.core.contract import (
    Done,
    FinishReason,
    Meta,
    Piece,
    Start,
    TokenAlternative,
    TokenLogprob,
    Usage,
)
from worker.core.gathering import Gathered
from worker.core.tools import ToolCall
from worker.dialects.openai_reply import ChunkWriter
from worker.dialects.responses_reply import EventWriter, shape


def token(text: str) -> TokenLogprob:
    return TokenLogprob(TokenAlternative(text, text.encode(), -0.5), ())


def told_by(pieces: list[Piece], reason: FinishReason = "stop") -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The plain response of these pieces, and the items that its stream has done."""
    meta = Meta(id="1", model="m", code="native", created=0)
    gathered, writer, said = Gathered(), EventWriter(meta), ""
    done = Done(reasons=(reason,), usage=Usage(prompt_tokens=1, completion_tokens=1))
    for event in (Start(), *pieces, done):
        gathered.feed(event)
        said += "".join(str(chunk) for chunk in writer.feed(event))
    items = [value["item"] for _, value in events([said]) if value["type"] == "response.output_item.done"]
    return shape(gathered.answer(meta)), items


def test_log_probabilities_of_a_thought_and_of_a_call_open_no_message() -> None:
    pieces = [
        Piece(text="", reasoning="Hm", logprobs=(token("Hm"),)),
        Piece(text="", reasoning=".", logprobs=(token("."), token("</think>"))),
        Piece(text="Yes", logprobs=(token("\n\n"), token("Yes"))),
        Piece(text="", tool_calls=(ToolCall(name="zoom", arguments="{}"),), logprobs=(token("<tool_call>"),)),
    ]
    response, items = told_by(pieces)
    assert [item["type"] for item in items] == ["reasoning", "message", "function_call"]
    [part] = items[1]["content"]
    assert [entry["token"] for entry in part["logprobs"]] == ["Yes"]
    assert response["output"] == items


def test_what_was_cut_is_incomplete_and_a_whole_call_is_not() -> None:
    call = ToolCall(name="zoom", arguments="{}")
    response, items = told_by([Piece(text="A "), Piece(text="", tool_calls=(call,)), Piece(text=" <tool")], "length")
    assert [(item["type"], item["status"]) for item in items] == [
        *(("message", "completed"), ("function_call", "completed"), ("message", "incomplete")),
    ]
    assert (response["output"], response["status"]) == (items, "incomplete")


def test_tokens_so_far_never_become_fewer() -> None:
    meta = Meta(id="1", model="m", code="native", created=0, include_usage=True, continuous_usage=True, num_answers=2)
    writer = ChunkWriter(meta)
    used = [Usage(prompt_tokens=1, completion_tokens=count) for count in (1, 8, 7)]
    pieces = [Piece(text="x", index=index % 2, usage=usage) for index, usage in enumerate(used)]
    said = [chunk for event in (*pieces, Piece(text="x")) for chunk in writer.feed(event)]
    assert [value["usage"]["completion_tokens"] for _, value in events(said)] == [1, 8, 8, 8]
