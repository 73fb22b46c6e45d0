"""The path of a request, with an engine that says what it is told."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import FakeEngine, FakeOpener
from worker.core.contract import MediaInfo, Usage
from worker.core.errors import InternalError, MediaCorrupt, OutOfMemory
from worker.core.logs import AsJson
from worker.core.media_warnings import warning
from worker.core.settings import load
from worker.service import Service

ASKED = [{"role": "user", "content": "x"}]
CASES = sorted((Path(__file__).parent / "cases").glob("*/*.json"))


def outputs(body: object, engine: FakeEngine | None = None, opener: FakeOpener | None = None) -> list[Any]:
    settings = load({"STREAM_INTERVAL_MS": "0"})
    clocks: dict[str, Any] = {"clock": lambda: 1_700_000_000.9, "timer": lambda: 0.0}
    service = Service(engine or FakeEngine(), opener or FakeOpener(), settings, **clocks)

    async def run() -> list[Any]:
        return [output async for output in service.answer(body, "job-1")]

    return asyncio.run(run())


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_case_is_answered_to_the_byte(path: Path) -> None:
    case = json.loads(path.read_text(encoding="utf-8"))
    says = case["model"]
    media = tuple(MediaInfo(**info) for info in says.get("media", ()))
    engine = FakeEngine(says["pieces"], says["finish_reason"], says.get("stop"), Usage(**says["usage"]), media=media)
    assert outputs(case["input"], engine) == case["outputs"]


@pytest.mark.parametrize("body", [None, "text", ["list"], 3, True])
def test_an_input_that_is_no_object_is_refused(body: object) -> None:
    [refusal] = outputs(body)
    assert json.loads(refusal["error"])["code"] == "INPUT_NOT_OBJECT"


def test_a_failure_before_the_first_word_ends_a_plain_request_with_its_code() -> None:
    [refusal] = outputs({"prompt": "x", "image": "y"}, opener=FakeOpener(MediaCorrupt(where="image")))
    assert json.loads(refusal["error"])["code"] == "MEDIA_CORRUPT"


def test_a_stream_says_why_it_failed_before_the_error_ends_the_job() -> None:
    engine = FakeEngine(pieces=["Hal"], error=OutOfMemory())
    said, failed, last = outputs({"prompt": "x", "stream": True}, engine)
    assert said == {"text": "Hal"}
    assert failed["type"] == "failed"
    assert failed["detail"]["code"] == "OUT_OF_MEMORY"
    assert "error" not in failed
    assert json.loads(last["error"])["retryable"] is True


def test_an_openai_stream_that_fails_stays_server_sent_events() -> None:
    engine = FakeEngine(pieces=["Hal"], error=OutOfMemory())
    body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
    chunks = outputs({"openai_route": "/v1/chat/completions", "openai_input": body}, engine)
    assert all(isinstance(chunk, str) for chunk in chunks)
    assert json.loads(chunks[-1].split("\n\n")[0].removeprefix("data: "))["error"]["code"] == "OUT_OF_MEMORY"
    assert chunks[-1].endswith("data: [DONE]\n\n")


def test_an_unforeseen_fault_shows_nothing_of_itself() -> None:
    [refusal] = outputs({"prompt": "x"}, FakeEngine(pieces=[], error=ValueError("/secret/path")))
    assert json.loads(refusal["error"]) == json.loads(InternalError().as_json())


def test_what_is_cancelled_inside_of_a_request_is_a_failure_and_not_a_client_that_left() -> None:
    for error in (asyncio.CancelledError(), StopIteration()):
        engine = FakeEngine(pieces=[])

        async def failing(*_: Any, raised: BaseException = error) -> Any:
            raise raised

        engine.count_tokens = failing  # type: ignore[method-assign]
        body = {"type": "private", "user_id": "1", "content": "x"}
        [refusal] = outputs({"route": "/api/chat/private", "body": body}, engine)
        assert json.loads(refusal["error"])["code"] == "INTERNAL"


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "x", "cache_salt": "ann"},
        {"route": "/generate", "cache_salt": "ann", "body": {"messages": ASKED}},
        {"route": "/generate", "body": {"messages": ASKED, "cache_salt": "ann"}},
        {"openai_route": "/v1/chat/completions", "openai_input": {"messages": ASKED, "cache_salt": "ann"}},
        {"dialect": "openai_chat", "messages": ASKED, "cache_salt": "ann"},
        {"route": "/chat-vl", "body": {"messages": ASKED, "cache_salt": "ann"}},
    ],
)
def test_a_cache_salt_may_stand_beside_the_route_or_in_the_body(body: dict[str, Any]) -> None:
    engine = FakeEngine()
    outputs(body, engine)
    assert [(request.cache_salt, request.caller, request.ignored) for request in engine.asked] == [("ann", "", ())]


def test_leaving_early_closes_the_generation() -> None:
    engine = FakeEngine(pieces=["a", "b", "c"])

    async def leave() -> None:
        settings = load({"STREAM_INTERVAL_MS": "0"})
        answer = Service(engine, FakeOpener(), settings).answer({"prompt": "x", "stream": True}, "job-1")
        assert await anext(answer) == {"text": "a"}
        await answer.aclose()

    asyncio.run(leave())
    assert engine.num_closed == 1


def test_media_are_opened_in_the_order_of_the_prompt() -> None:
    opener = FakeOpener()
    body = {"prompt": "x", "image": "a", "images": ["b", "c"], "videos": [["d", "e"]]}
    outputs(body, opener=opener)
    assert [item.where for item in opener.opened] == ["image", "images[0]", "images[1]", "videos[0]"]


def _chat(**fields: Any) -> dict[str, Any]:
    return {
        "openai_route": "/v1/chat/completions",
        "openai_input": {"messages": [{"role": "user", "content": "x"}], **fields},
    }


def test_the_served_model_may_be_named_and_no_other() -> None:
    assert outputs(_chat(model="tiny-qwen3-vl"))[0]["object"] == "chat.completion"
    [refusal] = outputs(_chat(model="gpt-4"))
    assert json.loads(refusal["error"])["error"]["code"] == "model_not_found"


def codes(bodies: Sequence[dict[str, Any]]) -> list[str]:
    return [json.loads(outputs(body)[-1]["error"])["code"] for body in bodies]


def test_after_bad_input_the_next_request_is_answered() -> None:
    assert codes([{"prompt": 3}, {}]) == ["INPUT_INVALID", "INPUT_INVALID"]
    assert outputs({"prompt": "x"})[0]["text"] == "A cat."


class Hanging(FakeOpener):
    """An opener whose other side never answers."""

    def __init__(self) -> None:
        self.has_begun = asyncio.Event()

    async def open(self, items: Sequence[Any]) -> Any:
        self.has_begun.set()
        await asyncio.Event().wait()


def ends(body: dict[str, Any], **arguments: Any) -> str:
    """The code with which the request fails while its picture never comes."""

    async def run() -> str:
        service = Service(FakeEngine(), Hanging(), load({}))
        [refusal] = [output async for output in service.answer(body, "job-1", **arguments)]
        return str(json.loads(refusal["error"])["code"])

    return asyncio.run(run())


def test_the_requests_own_limit_ends_it_wherever_it_waits() -> None:
    assert ends({"prompt": "x", "image": "y", "max_seconds": 1e-6}) == "DEADLINE_EXCEEDED"


def test_the_platforms_limit_ends_it_too() -> None:
    assert ends({"prompt": "x", "image": "y", "max_seconds": 3600}, max_seconds=1e-6) == "DEADLINE_EXCEEDED"


def test_a_stop_brings_running_requests_to_their_end_and_new_ones_too() -> None:
    async def run() -> list[str]:
        opener = Hanging()
        service = Service(FakeEngine(), opener, load({}))

        async def code() -> str:
            [refusal] = [output async for output in service.answer({"prompt": "x", "image": "y"}, "job-1")]
            return str(json.loads(refusal["error"])["code"])

        running = asyncio.create_task(code())
        await opener.has_begun.wait()
        service.stop_by(0.0)
        return [await running, await code()]

    assert asyncio.run(run()) == ["DEADLINE_EXCEEDED"] * 2


def test_the_phases_are_phases_in_order() -> None:
    phases: list[str] = []

    async def run(body: dict[str, Any]) -> None:
        async for _ in Service(FakeEngine(), FakeOpener(), load({})).answer(body, "job-1", on_phase=phases.append):
            pass

    asyncio.run(run({"prompt": "x", "image": "y"}))
    asyncio.run(run({"prompt": "x"}))
    assert phases == ["opening media", "reading the prompt", "reading the prompt"]


SECRET = "the words of the person"


@pytest.mark.parametrize("log_prompts", ["", "1"])
def test_the_log_has_one_line_an_answer_and_content_only_where_it_was_wanted(
    caplog: pytest.LogCaptureFixture, log_prompts: str
) -> None:
    service = Service(FakeEngine(pieces=["its answer"]), FakeOpener(), load({"LOG_PROMPTS": log_prompts}))

    async def run() -> None:
        async for _ in service.answer({"prompt": SECRET, "image": "aGVsbG8="}, "job-1"):
            pass

    with caplog.at_level("INFO"):
        asyncio.run(run())
    [answered] = [json.loads(AsJson().format(one)) for one in caplog.records if one.message == "answered"]
    assert answered["requestId"] == "job-1"
    assert answered["usage"]["prompt_tokens"] == 20
    assert answered["seconds"].keys() == {"media", "answer"}
    written = "".join(AsJson().format(one) for one in caplog.records)
    assert (SECRET in written) == bool(log_prompts)
    assert "aGVsbG8" not in written
    assert "its answer" not in written


@pytest.mark.parametrize("stream", [False, True])
def test_the_answer_says_how_its_pictures_were_seen(stream: bool) -> None:
    seen = MediaInfo(where="image", kind="image", width=64, height=32, tokens=2)
    last = outputs({"prompt": "x", "image": "y", "stream": stream}, FakeEngine(media=(seen,)))[-1]
    assert last["media"] == [{"where": "image", "kind": "image", "width": 64, "height": 32, "tokens": 2}]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("is_openai", [False, True])
def test_the_answer_says_what_damage_took_and_why_it_was_seen_otherwise(stream: bool, is_openai: bool) -> None:
    """Natively, and on OpenAI's form in a field that its clients keep."""
    told = warning("VIDEO_FRAMES_LOST", count=15, total=120)
    seen = MediaInfo(
        where="video", kind="video", width=64, height=32, tokens=2, frames_lost=15, truncated=True, warnings=(told,)
    )
    body: dict[str, Any] = {"prompt": "x", "video": "y", "stream": stream}
    if is_openai:
        block = {"type": "video_url", "video_url": {"url": "y"}}
        messages = [{"role": "user", "content": [block]}]
        body = {"openai_route": "/v1/chat/completions", "openai_input": {"messages": messages, "stream": stream}}
    last = outputs(body, FakeEngine(media=(seen,)))[-1]
    if isinstance(last, str):
        last = json.loads(last.split("\n\n")[0].removeprefix("data: "))
    [entry] = last["media"]
    assert (entry["frames_lost"], entry["truncated"]) == (15, True)
    assert entry["warnings"] == [
        {"code": "VIDEO_FRAMES_LOST", "message": "15 of 120 frames cannot be decoded: the others are used."}
    ]
