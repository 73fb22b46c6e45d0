"""The official `openai` client against the dialect; the transport between them does what the platform's route does."""

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest

from tests.fakes import FakeEngine, FakeOpener
from worker.core.contract import MediaInfo
from worker.core.engine_protocol import Engine
from worker.core.media_warnings import warning
from worker.core.settings import load
from worker.service import Service


def client(engine: Engine) -> openai.OpenAI:
    """A client whose requests become jobs with `openai_route` and `openai_input`."""
    service = Service(engine, FakeOpener(), load({}))

    def carry(request: httpx.Request) -> httpx.Response:
        job: dict[str, Any] = {"openai_route": request.url.path}
        if request.content:
            job["openai_input"] = json.loads(request.content)

        async def run() -> list[Any]:
            return [output async for output in service.answer(job, "job-1")]

        outputs = asyncio.run(run())
        if all(isinstance(output, str) for output in outputs):
            return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, text="".join(outputs))
        [output] = outputs
        return httpx.Response(400, text=output["error"]) if "error" in output else httpx.Response(200, json=output)

    http = httpx.Client(transport=httpx.MockTransport(carry))
    return openai.OpenAI(api_key="none", base_url="http://platform.test/v1", http_client=http, max_retries=0)


MESSAGES: Any = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is it?"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "high"}},
        ],
    }
]


def test_a_completion() -> None:
    completion = client(FakeEngine()).chat.completions.create(model="tiny-qwen3-vl", messages=MESSAGES, seed=3)
    assert completion.choices[0].message.content == "A cat."
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.total_tokens == 23


def test_a_stream_with_usage() -> None:
    stream = client(FakeEngine()).chat.completions.create(
        model="tiny-qwen3-vl", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "A cat."
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens == 20


def test_a_refusal_is_the_clients_exception() -> None:
    with pytest.raises(openai.BadRequestError) as failure:
        client(FakeEngine()).chat.completions.create(model="another", messages=MESSAGES)
    assert failure.value.code == "model_not_found"
    assert failure.value.param == "model"


def test_a_stream_that_fails_is_the_clients_exception() -> None:
    engine = FakeEngine(pieces=["A "], error=RuntimeError("secret"))
    stream = client(engine).chat.completions.create(model="tiny-qwen3-vl", messages=MESSAGES, stream=True)
    with pytest.raises(openai.APIError) as failure:
        list(stream)
    assert failure.value.code == "INTERNAL"
    assert "secret" not in str(failure.value)


def test_several_answers_with_log_probabilities(engine: Engine) -> None:
    """Against the tiny model: the client's own types, and probabilities that are some."""
    completion = client(engine).chat.completions.create(
        model="tiny-qwen3-vl",
        messages=[{"role": "user", "content": "你是谁？"}],
        n=2,
        temperature=2.0,
        seed=3,
        max_tokens=8,
        logprobs=True,
        top_logprobs=3,
        extra_body={"min_p": 0.01, "min_tokens": 8},
    )
    assert [choice.index for choice in completion.choices] == [0, 1]
    for choice in completion.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        tokens = choice.logprobs.content
        assert len(tokens) == 8
        said = b"".join(bytes(token.bytes or []) for token in tokens).decode(errors="replace")
        assert said.startswith((choice.message.content or "").rstrip("\ufffd"))
        for token in tokens:
            assert [one.logprob for one in token.top_logprobs] == sorted(
                (one.logprob for one in token.top_logprobs), reverse=True
            )
            assert token.logprob <= token.top_logprobs[0].logprob <= 0
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 16


def test_several_answers_streamed(engine: Engine) -> None:
    stream = client(engine).chat.completions.create(
        model="tiny-qwen3-vl",
        messages=[{"role": "user", "content": "Hello!"}],
        n=2,
        temperature=3.0,
        seed=1,
        max_tokens=6,
        logprobs=True,
        stream=True,
    )
    texts, reasons, num_logprobs = {0: "", 1: ""}, {}, 0
    for chunk in stream:
        [choice] = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
        num_logprobs += len(choice.logprobs.content or []) if choice.logprobs else 0
    assert texts[0] != texts[1]
    assert all(reason in ("stop", "length") for reason in reasons.values())
    assert num_logprobs > 8


def test_the_models_are_listed_and_found_by_name() -> None:
    with client(FakeEngine()) as openai_client:
        assert [model.id for model in openai_client.models.list()] == ["tiny-qwen3-vl"]
        assert openai_client.models.retrieve("tiny-qwen3-vl").owned_by == "worker-qwen-vl"
        with pytest.raises(openai.APIStatusError, match="not served here"):
            openai_client.models.retrieve("gpt-4")


def test_the_client_keeps_the_media_report() -> None:
    told = warning("IMAGE_COLOR_CONVERTED")
    seen = MediaInfo(where="image", kind="image", width=64, height=32, tokens=2, warnings=(told,))
    openai_client = client(FakeEngine(media=(seen,)))
    completion = openai_client.chat.completions.create(model="tiny-qwen3-vl", messages=MESSAGES)
    assert completion.model_extra is not None
    assert completion.model_extra["media"][0]["warnings"][0]["code"] == "IMAGE_COLOR_CONVERTED"
    stream = openai_client.chat.completions.create(model="tiny-qwen3-vl", messages=MESSAGES, stream=True)
    [report] = [chunk.model_extra["media"] for chunk in stream if chunk.model_extra]
    assert report[0]["warnings"][0]["code"] == "IMAGE_COLOR_CONVERTED"


def test_objects_are_read_off_a_completion_and_a_stream() -> None:
    info = MediaInfo(where="image", kind="image", width=64, height=64, tokens=4, source_width=640, source_height=320)
    engine = FakeEngine(pieces=['[{"bbox_2d": [0, 0, 500,', ' 500], "label": "cat"}]'], media=(info,))
    ask = client(engine).chat.completions.create
    completion = ask(model="tiny-qwen3-vl", messages=MESSAGES, extra_body={"objects": True})
    [found] = completion.choices[0].model_extra["objects"]  # type: ignore[index]
    assert (found["label"], found["box"]) == ("cat", [0, 0, 320, 160])
    with ask(model="tiny-qwen3-vl", messages=MESSAGES, extra_body={"objects": True}, stream=True) as chunks:
        told = [(chunk.choices[0].model_extra or {}).get("objects") for chunk in chunks if chunk.choices]
    assert [each for each in told if each] == [[found], [found]], "as soon as it is whole, and at the end"
