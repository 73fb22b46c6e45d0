"""Bad bodies: each a coded error that names the place and repeats nothing of the caller's."""

from typing import Any

import pytest

from worker.core.errors import InputError, WorkerError
from worker.dialects.base import MAX_TEXT_CHARS
from worker.dialects.table import DIALECTS

SECRET = "zebra-crossing-4711"


def chat(**fields: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": "hello"}], **fields}
    return {"openai_route": "/v1/chat/completions", "openai_input": body}


def blocks(*content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(content)}]}


BAD: dict[str, tuple[object, str, str]] = {
    "missing input": (None, "INPUT_NOT_OBJECT", ""),
    "a string": (SECRET, "INPUT_NOT_OBJECT", ""),
    "nothing in it": ({}, "INPUT_INVALID", "input"),
    "unknown field": ({"prompt": "x", "temprature": SECRET}, "INPUT_INVALID", "temprature"),
    "unknown field with an odd name": ({"prompt": "x", f"{SECRET} \n": 1}, "INPUT_INVALID", "cannot be shown"),
    "prompt of the wrong type": ({"prompt": [SECRET]}, "INPUT_INVALID", "prompt"),
    "max_tokens as text": ({"prompt": "x", "max_tokens": "5"}, "INPUT_INVALID", "max_tokens"),
    "max_tokens 0": ({"prompt": "x", "max_tokens": 0}, "INPUT_INVALID", "max_tokens"),
    "max_tokens over the ceiling": ({"prompt": "x", "max_tokens": 10**9}, "INPUT_INVALID", "max_tokens"),
    "max_tokens true": ({"prompt": "x", "max_tokens": True}, "INPUT_INVALID", "max_tokens"),
    "NaN temperature": ({"prompt": "x", "temperature": float("nan")}, "INPUT_INVALID", "temperature"),
    "infinite temperature": ({"prompt": "x", "temperature": float("inf")}, "INPUT_INVALID", "temperature"),
    "negative temperature": ({"prompt": "x", "temperature": -1}, "INPUT_INVALID", "temperature"),
    "top_p below 0": ({"prompt": "x", "top_p": -0.1}, "INPUT_INVALID", "top_p"),
    "top_k -2": ({"prompt": "x", "top_k": -2}, "INPUT_INVALID", "top_k"),
    "100 stops": ({"prompt": "x", "stop": [SECRET] * 100}, "INPUT_INVALID", "stop"),
    "an empty stop": ({"prompt": "x", "stop": [""]}, "INPUT_INVALID", "stop[0]"),
    "a number as stop": ({"prompt": "x", "stop": 5}, "INPUT_INVALID", "stop"),
    "a million characters": ({"prompt": "x" * 10**6}, "INPUT_INVALID", "prompt"),
    "a million characters in a message": (
        {"messages": [{"role": "user", "content": "x" * (MAX_TEXT_CHARS + 1)}]},
        "INPUT_INVALID",
        "messages[0].content",
    ),
    "half a million characters twice": (
        blocks(*[{"type": "text", "text": "x" * (MAX_TEXT_CHARS // 2 + 1)}] * 2),
        "INPUT_INVALID",
        "messages",
    ),
    "two thousand blocks": (blocks(*[{"type": "text", "text": ""}] * 2000), "INPUT_INVALID", "messages[0].content"),
    "two thousand pictures": ({"prompt": "x", "images": ["a"] * 2000}, "INPUT_INVALID", "images"),
    "a lone surrogate": ({"prompt": SECRET + "\ud83d"}, "INPUT_INVALID", "prompt"),
    "a lone surrogate in a block": (blocks({"type": "text", "text": "\ud83d"}), "INPUT_INVALID", "content[0].text"),
    "a salt that is no text": ({"prompt": "x", "cache_salt": [1]}, "INPUT_INVALID", "cache_salt"),
    "a long salt": ({"prompt": "x", "cache_salt": "x" * 257}, "INPUT_INVALID", "cache_salt"),
    "two salts": (
        {"route": "/generate", "cache_salt": "a", "body": {"messages": [], "cache_salt": "b"}},
        "INPUT_INVALID",
        "cache_salt",
    ),
    "an unknown route": ({"route": "/v2/chat", "body": {}}, "ROUTE_UNKNOWN", "route"),
    "a route without a body": ({"route": "/generate"}, "INPUT_NOT_OBJECT", "body"),
    "something beside a route": ({"route": "/generate", "body": {}, "prompt": SECRET}, "INPUT_INVALID", "prompt"),
    "/generate without messages": ({"route": "/generate", "body": {}}, "INPUT_INVALID", "messages"),
    "/generate with a field of another dialect": (
        {"route": "/generate", "body": {"messages": [{"role": "user", "content": "x"}], "top_k": 4}},
        "INPUT_INVALID",
        "top_k",
    ),
    "/recognize without a picture": (
        {"route": "/v1/image/recognize", "body": {"prompt": SECRET}},
        "INPUT_INVALID",
        "image",
    ),
    "/chat-vl with messages that are not JSON": (
        {"route": "/chat-vl", "body": {"messages": SECRET}},
        "INPUT_INVALID",
        "messages",
    ),
    "/chat-vl with deep JSON": (
        {"route": "/chat-vl", "body": {"messages": "[" * 100_000}},
        "INPUT_INVALID",
        "messages",
    ),
    "/chat-vl with a role that is none": (
        {"route": "/chat-vl", "body": {"messages": [{"role": "robot", "content": "x"}]}},
        "INPUT_INVALID",
        "messages[0].role",
    ),
    "/chat-vl with a block that is none": (
        {"route": "/chat-vl", "body": {"messages": [{"role": "user", "content": [{"type": SECRET}]}]}},
        "INPUT_INVALID",
        "messages[0].content[0]",
    ),
    "/chat-vl with a file that nothing asks for": (
        {"route": "/chat-vl", "body": {"messages": [{"role": "user", "content": "x"}], "file": "AAAA"}},
        "INPUT_INVALID",
        "file",
    ),
    "/chat-vl with a flag that is none": (
        {"route": "/chat-vl", "body": {"messages": [{"role": "user", "content": "x"}], "stream": SECRET}},
        "INPUT_INVALID",
        "stream",
    ),
    "empty messages": ({"messages": []}, "INPUT_INVALID", "messages"),
    "messages as text": ({"messages": SECRET}, "INPUT_INVALID", "messages"),
    "messages beside a prompt": (
        {"prompt": "x", "messages": [{"role": "user", "content": "y"}]},
        "INPUT_INVALID",
        "prompt",
    ),
    "an unknown role": ({"messages": [{"role": SECRET, "content": "x"}]}, "INPUT_INVALID", "messages[0].role"),
    "no content": ({"messages": [{"role": "user"}]}, "INPUT_INVALID", "messages[0].content"),
    "null content": ({"messages": [{"role": "user", "content": None}]}, "INPUT_INVALID", "messages[0].content"),
    "no blocks": (blocks(), "INPUT_INVALID", "messages[0].content"),
    "a block that is no object": (blocks(SECRET), "INPUT_INVALID", "messages[0].content[0]"),
    "a block of an unknown kind": (blocks({"type": SECRET}), "INPUT_INVALID", "messages[0].content[0]"),
    "a block without media": (blocks({"type": "image"}), "INPUT_INVALID", "messages[0].content[0].image"),
    "a picture in a system message": (
        {"messages": [{"role": "system", "content": [{"type": "image", "image": SECRET}]}]},
        "INPUT_INVALID",
        "messages[0].content[0]",
    ),
    "a picture as number": ({"prompt": "x", "image": 7}, "INPUT_INVALID", "image"),
    "a picture with url and base64": (
        {"prompt": "x", "image": {"url": SECRET, "base64": SECRET}},
        "INPUT_INVALID",
        "image",
    ),
    "a video without frames": ({"prompt": "x", "video": []}, "INPUT_INVALID", "video"),
    "fps 0": ({"prompt": "x", "video": {"frames": ["a"], "fps": 0}}, "INPUT_INVALID", "video.fps"),
    "stream as text": ({"prompt": "x", "stream": "true"}, "INPUT_INVALID", "stream"),
    "openai: another route": ({"openai_route": "/v1/" + SECRET}, "ROUTE_UNKNOWN", "openai_route"),
    "openai: a route that is a list": ({"openai_route": [SECRET]}, "ROUTE_UNKNOWN", "openai_route"),
    "openai: no input": ({"openai_route": "/v1/chat/completions"}, "INPUT_NOT_OBJECT", "openai_input"),
    "openai: no messages": (
        {"openai_route": "/v1/chat/completions", "openai_input": {}},
        "INPUT_INVALID",
        "messages",
    ),
    "openai: a field beside the two": ({**chat(), "prompt": SECRET}, "INPUT_INVALID", "prompt"),
    "openai: too many choices": (chat(n=17), "INPUT_INVALID", "n"),
    "openai: tools": (chat(tools=[{"type": "function"}]), "INPUT_INVALID", "tools"),
    "openai: a form that is none": (chat(response_format={"type": "yaml"}), "INPUT_INVALID", "response_format.type"),
    "openai: top_logprobs alone": (chat(top_logprobs=2), "INPUT_INVALID", "top_logprobs"),
    "openai: too many top_logprobs": (chat(logprobs=True, top_logprobs=21), "INPUT_INVALID", "top_logprobs"),
    "openai: a bias for no token": (chat(logit_bias={SECRET: 1}), "INPUT_INVALID", "logit_bias"),
    "openai: too much bias": (chat(logit_bias={"5": 101}), "INPUT_INVALID", "logit_bias"),
    "openai: a penalty out of range": (chat(presence_penalty=2.5), "INPUT_INVALID", "presence_penalty"),
    "openai: no positive penalty": (chat(repetition_penalty=0), "INPUT_INVALID", "repetition_penalty"),
    "openai: more than all": (chat(min_p=1.1), "INPUT_INVALID", "min_p"),
    "openai: a negative token": (chat(stop_token_ids=[-1]), "INPUT_INVALID", "stop_token_ids"),
    "openai: the least over the most": (chat(min_tokens=9, max_tokens=8), "INPUT_INVALID", "min_tokens"),
    "openai: a tool call": (
        chat(messages=[{"role": "assistant", "content": "x", "tool_calls": [{"id": SECRET}]}]),
        "INPUT_INVALID",
        "messages[0].tool_calls",
    ),
    "openai: sound": (
        chat(messages=[{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]),
        "INPUT_INVALID",
        "messages[0].content[0]",
    ),
}


@pytest.mark.parametrize("body,code,place", BAD.values(), ids=BAD.keys())  # noqa: PT006
def test_bad_input_has_a_code_and_a_place(body: object, code: str, place: str) -> None:
    with pytest.raises(InputError) as failure:
        parse(body)
    error = failure.value
    assert error.code == code
    assert place in (error.where or "")
    assert SECRET not in error.message
    assert "\ud83d" not in error.message
    assert len(error.message) < 300


def parse(body: object) -> object:
    call = DIALECTS.choose(body)
    return call.dialect.parse(call.body())


@pytest.mark.parametrize("body,code,place", BAD.values(), ids=BAD.keys())  # noqa: PT006
def test_every_refusal_is_an_error_of_the_job(body: object, code: str, place: str) -> None:
    try:
        call = DIALECTS.choose(body)
    except WorkerError:
        return
    try:
        call.dialect.parse(call.body())
    except WorkerError as error:
        [refusal] = call.dialect.refuse(error, call.wants_stream)
        assert isinstance(refusal, dict)
        assert isinstance(refusal["error"], str)
        assert code in refusal["error"]
