"""Good bodies: what they become in the contract."""

from typing import Any

import pytest

from worker.contract import ChatRequest, Frames, Inline, Media, Text, Url
from worker.dialects import choose


def parse(body: dict[str, Any]) -> ChatRequest:
    dialect, shown = choose(body)
    return dialect.parse(shown)


@pytest.mark.parametrize(
    ("form", "source"),
    [
        ("https://a.test/x.png", Url(url="https://a.test/x.png")),
        ("HTTP://a.test/x.png", Url(url="HTTP://a.test/x.png")),
        ("file:///etc/passwd", Url(url="file:///etc/passwd")),
        ("data:image/png;base64,AAAA", Inline(data="data:image/png;base64,AAAA")),
        ("iVBORw0KGgo", Inline(data="iVBORw0KGgo")),
        ({"url": "https://a.test/x"}, Url(url="https://a.test/x")),
        ({"url": "data:;base64,AA"}, Inline(data="data:;base64,AA")),
        ({"base64": "AAAA"}, Inline(data="AAAA")),
    ],
)
def test_a_picture_has_many_forms(form: object, source: Url | Inline) -> None:
    [media] = parse({"prompt": "x", "image": form}).media
    assert media == Media(kind="image", source=source, where="image")


@pytest.mark.parametrize(
    ("form", "fps"),
    [(["a", {"base64": "b"}], None), ({"frames": ["a", "b"]}, None), ({"frames": ["a", "b"], "fps": 4}, 4.0)],
)
def test_a_video_is_a_list_of_frames(form: object, fps: float | None) -> None:
    [media] = parse({"prompt": "x", "video": form}).media
    assert media.source == Frames(frames=(Inline(data="a"), Inline(data="b")), fps=fps)


def test_pictures_come_before_videos_before_the_prompt() -> None:
    request = parse({"prompt": "x", "system": "s", "video": ["a"], "images": ["b"], "image": "c"})
    system, user = request.messages
    assert system.parts == (Text(text="s"),)
    assert [getattr(part, "where", "text") for part in user.parts] == ["image", "images[0]", "video", "text"]


def test_blocks_keep_their_order_and_their_place() -> None:
    content = [
        {"type": "text", "text": "first"},
        {"type": "image", "image": "a"},
        {"type": "image_url", "image_url": {"url": "https://a.test/"}},
        {"type": "video", "video": ["b"], "fps": 3},
    ]
    [message] = parse({"messages": [{"role": "user", "content": content}]}).messages
    places = [getattr(part, "where", "text") for part in message.parts]
    assert places == ["text", "messages[0].content[1]", "messages[0].content[2]", "messages[0].content[3]"]


def test_one_stop_string_is_a_list_of_one() -> None:
    assert parse({"prompt": "x", "stop": "\n"}).sampling.stop == ("\n",)


def test_sampling_that_is_not_given_is_left_open() -> None:
    sampling = parse({"prompt": "x"}).sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed, sampling.max_tokens) == (None,) * 5


def test_openai_chat_is_read() -> None:
    body = {
        "model": "m",
        "messages": [
            {"role": "developer", "content": "be brief"},
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "data:;base64,AA", "detail": "auto"}}],
            },
        ],
        "max_completion_tokens": 7,
        "temperature": 0,
        "stop": None,
        "n": 1,
        "tools": [],
        "stream": True,
        "stream_options": {"include_usage": True},
        "user": "u",
        "metadata": {"a": "b"},
    }
    request = parse({"openai_route": "/v1/chat/completions", "openai_input": body})
    assert [message.role for message in request.messages] == ["system", "user"]
    assert (request.sampling.max_tokens, request.sampling.temperature) == (7, 0)
    assert (request.stream, request.include_usage, request.model) == (True, True, "m")
    assert request.ignored == ("metadata", "user")


def test_the_openai_clients_own_reply_may_be_sent_back() -> None:
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hey", "refusal": None, "tool_calls": None, "annotations": []},
        {"role": "user", "content": "again"},
    ]
    options = {"include_usage": True, "include_obfuscation": False}
    body = {"messages": messages, "stream": True, "stream_options": options}
    assert len(parse({"openai_route": "/v1/chat/completions", "openai_input": body}).messages) == 3


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": 5, "max_completion_tokens": None}, 5),
        ({"max_tokens": 5, "max_completion_tokens": 7}, 7),
        ({"max_completion_tokens": 7}, 7),
        ({}, None),
    ],
)
def test_both_names_of_the_token_limit_are_read(fields: dict[str, Any], expected: int | None) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], **fields}
    assert parse({"openai_route": "/v1/chat/completions", "openai_input": body}).sampling.max_tokens == expected
