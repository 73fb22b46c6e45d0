"""What is said of a body that is wrong: the field, what it must be, and the name that was perhaps meant."""

from typing import Any

import pytest

from worker.core.errors import InputError
from worker.dialects.table import DIALECTS

ASKED = [{"role": "user", "content": "x"}]


def said(body: Any) -> str:
    def parse() -> None:
        call = DIALECTS.choose(body)
        call.dialect.parse(call.body())

    with pytest.raises(InputError) as failed:
        parse()
    return failed.value.message


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"prompt": "x", "temprature": 1}, "temprature: unknown field: did you mean temperature?"),
        ({"prompt": "x", "maxTokens": 1}, "maxTokens: unknown field: did you mean max_tokens?"),
        ({"prompt": "x", "max_new_tokens": 1}, "max_new_tokens: unknown field: write max_tokens"),
        ({"prompt": "x", "zzz": 1}, "zzz: unknown field"),
        ({"prompt": "x", "best_of": 2}, "best_of: unknown field: write n"),
        ({"prompt": "x", "use_beam_search": True}, "use_beam_search: unknown field: not supported"),
        (
            {"prompt": "x", "fps": 2},
            'fps: unknown field: write it into the image or video: {"url": …, "max_pixels": …}',
        ),
        ({"prompt": "x", "image": {"urll": "y"}}, "image.urll: unknown field: did you mean url?"),
        ({"route": "/generate", "bod": {}}, "bod: unknown field: did you mean body?"),
        ({"dialect": "generate", "messages": ASKED, "stop_sequences": []}, "stop_sequences: unknown field"),
        (
            {"dialect": "openai_chat", "messages": ASKED, "functions": [{}]},
            "functions: this value is not supported: write tools",
        ),
        (
            {"dialect": "openai_chat", "messages": ASKED, "chat_template_kwargs": {"a": [1]}},
            "chat_template_kwargs.a: must be true, false, a number or one plain word",
        ),
        (
            {"prompt": "x", "image": "y", "sampling_params": {}},
            "sampling_params: unknown field: write its fields directly beside prompt or messages",
        ),
        (
            {"prompt": "x", "image": {"url": "https://a.test/", "maxpixels": 9}},
            "image.maxpixels: unknown field: did you mean max_pixels?",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "imge": "x"}]}]},
            "messages[0].content[0].imge: unknown field: did you mean image?",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "txt": "y"}]}]},
            "messages[0].content[0].txt: unknown field: did you mean text?",
        ),
        ({"prompt": "x", "max_tokens": "64"}, "max_tokens: must be a whole number"),
        ({"prompt": "x", "temperature": "hot"}, "temperature: must be a number"),
        ({"prompt": "x", "temperature": 11}, "temperature: must be at most 10"),
        ({"prompt": "x", "top_p": -1}, "top_p: must be at least 0"),
        ({"prompt": "x", "stream": "yes"}, "stream: must be true or false"),
        ({"prompt": 5}, "prompt: must be a string"),
        ({"prompt": "x", "images": "y"}, "images: must be a list"),
        ({"messages": "hi"}, "messages: must be a list"),
        ({"messages": []}, "messages: must not be empty"),
        (
            {"messages": [{"role": "bot", "content": "x"}]},
            "messages[0].role: must be one of 'system', 'user', 'assistant' or 'tool'",
        ),
        (
            {"messages": [{"role": "user", "content": [{"text": "x"}]}]},
            "messages[0].content[0]: must be an object whose type is one of text, image, video, image_url, video_url",
        ),
        ({}, "input: needs prompt (a string), messages (a list) or task (a preset's name)"),
        ("text", "input: must be a JSON object"),
    ],
    ids=str,
)  # fmt: skip
def test_the_place_and_what_it_must_be_are_said(body: Any, told: str) -> None:
    assert said(body) == told


def test_vllms_way_to_say_no_limit_is_understood() -> None:
    call = DIALECTS.choose({"prompt": "x", "top_k": -1})
    request: Any = call.dialect.parse(call.body())
    assert request.sampling.top_k == 0


def test_what_does_not_look_like_a_name_is_not_repeated() -> None:
    assert said({"prompt": "x", "<b>": 1}) == "(a name that cannot be shown): unknown field"
