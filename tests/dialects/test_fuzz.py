"""Bodies that nobody thought of, in every dialect: each ends in a reply or a coded error, and in nothing else.

`pytest tests/dialects/test_fuzz.py --fuzz-cases 200000` tries more of them.
"""

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from PIL import Image

from tests.fakes import FakeEngine, FakeOpener, as_base64
from worker.checkpoint.locate import Checkpoint
from worker.checkpoint.spec import read_spec
from worker.core.contract import ChatRequest, Event
from worker.core.deadline import Deadline
from worker.core.engine_protocol import TokenCounts
from worker.core.error_table import request_errors
from worker.core.errors import InternalError
from worker.core.opened import Opened
from worker.core.settings import EMBEDDED_MODEL, load
from worker.core.tasks import TASKS
from worker.models.native.qwen3_vl import QWEN3_VL
from worker.platform import sdk
from worker.prompt.builder import PromptBuilder
from worker.service import Service

CODES = {error.code for error in request_errors()}
SPECIALS = ["<|im_end|>", "<|im_start|>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<think>", "</think>"]
PIXEL = as_base64(Image.new("RGB", (1, 1)))
FIELDS = [
    *("prompt", "messages", "system", "image", "images", "video", "videos", "stream", "model", "max_tokens"),
    *("temperature", "top_p", "top_k", "min_p", "seed", "stop", "stop_token_ids", "ignore_eos", "n", "logprobs"),
    *("top_logprobs", "logit_bias", "min_tokens", "max_seconds", "repetition_penalty", "presence_penalty"),
    *("cache_salt", "dialect", "route", "body", "openai_route", "openai_input", "stream_options", "tools"),
    *("chat_template_kwargs", "mm_processor_kwargs", "response_format", "file", "max_new_tokens", "user_id"),
    *("group_id", "content", "type", "timestamp", "user_nickname", "user_card", "tool_choice", "fps", "min_pixels"),
    *("role", "text", "url", "base64", "frames", "image_url", "video_url", "detail", "nframes", "max_pixels"),
]  # fmt: skip
ROUTES = ["/chat-vl", "/generate", "/v1/image/recognize", "/v1/chat/completions", "/v1/models", "/v1/models/x", "/v1/x"]
ROUTES += ["/api/chat/private", "/api/chat/group", "", "/", None, 5]
EXTREMES = [0, 1, -1, 2**31, 2**63, 2**64, 10**400, -(10**400), 1e308, -1e308, math.nan, math.inf, -0.0, 1e-320, True]

NAMED = st.sampled_from(["native", "openai_chat", "chat_vl", "nobody"])
words = st.one_of(
    st.sampled_from(
        ["", "x", "user", "assistant", "system", "image", "video", "text", "a" * 5000, "\ud800", "\0", PIXEL]
    ),
    st.sampled_from([*SPECIALS, *(special[:5] for special in SPECIALS), *(special[5:] for special in SPECIALS)]),
    st.text(max_size=12),
)
numbers = st.one_of(st.sampled_from(EXTREMES), st.integers(-5, 5000), st.floats(width=64))
leaves = st.one_of(words, numbers, st.none(), st.booleans())
anything = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.sampled_from(FIELDS), st.text(max_size=6)), inner, max_size=4),
    ),
    max_leaves=12,
)
block = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": words}),
    st.fixed_dictionaries({"type": st.just("image"), "image": st.one_of(st.just(PIXEL), words)}),
    st.fixed_dictionaries(
        {"type": st.just("image_url"), "image_url": st.fixed_dictionaries({"url": st.one_of(st.just(PIXEL), words)})}
    ),
    st.fixed_dictionaries({"type": st.just("video"), "video": st.lists(st.just(PIXEL), max_size=3)}),
    anything,
)
message = st.one_of(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["user", "assistant", "system", "tool", "developer"]),
            "content": st.one_of(words, st.lists(block, max_size=4)),
        }
    ),
    anything,
)
fields = st.dictionaries(st.sampled_from(FIELDS), anything, max_size=3)


def form(**wanted: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A body that is nearly right, and something more."""
    return st.tuples(st.fixed_dictionaries(wanted), fields, st.booleans()).map(
        lambda made: {**made[0], **(made[1] if made[2] else {})}
    )


messages = st.one_of(st.lists(message, max_size=4), st.lists(message, max_size=2).map(json.dumps), anything)
user = {"user_id": st.one_of(st.just("7"), leaves), "content": words, "type": st.sampled_from(["private", "group"])}
chat = form(messages=messages, stream=st.booleans())
body = st.one_of(
    chat,
    form(prompt=words, image=st.one_of(st.just(PIXEL), leaves)),
    form(**user),
    form(group_id=leaves, **user),
    fields,
)
outputs = st.dictionaries(
    st.sampled_from(["task", "prompt", "objects", "annotate", "crops", "labels", "fields", "language", "confidence"]),
    st.one_of(st.sampled_from([*TASKS]), st.booleans(), st.just(["cup"]), st.just({"type": "object"}), anything),
    max_size=4,
)
job = st.one_of(
    form(prompt=words, stream=st.booleans()),
    st.tuples(form(image=st.just(PIXEL), stream=st.booleans()), outputs).map(lambda made: {**made[0], **made[1]}),
    chat,
    form(route=st.sampled_from(ROUTES), body=body),
    form(openai_route=st.sampled_from(ROUTES), openai_input=body),
    st.tuples(NAMED, body).map(lambda made: {**made[1], "dialect": made[0]}),
    anything,
)  # fmt: skip


class Building(FakeEngine):
    """Makes the prompt of what it is asked, as the real one does, and runs no model."""

    builder: PromptBuilder

    async def count_tokens(self, request: ChatRequest, media: Sequence[Opened]) -> TokenCounts:
        prompt = self.builder.build(request, media)
        return TokenCounts(len(prompt.ids), prompt.media)

    async def generate(
        self, request: ChatRequest, media: Sequence[Opened], deadline: Deadline, *_: Any
    ) -> AsyncGenerator[Event, None]:
        self.builder.build(request, media)
        async for event in super().generate(request, media, deadline):
            yield event


@pytest.fixture(scope="module")
def service() -> Service:
    chosen = load({"STREAM_INTERVAL_MS": "0", "DEVICE": "cpu"})
    engine = Building()
    engine.builder = PromptBuilder(read_spec(Checkpoint(EMBEDDED_MODEL, "tiny", "a test"), chosen, QWEN3_VL), chosen)
    return Service(engine, FakeOpener(), chosen)


def test_every_body_ends_in_a_reply_or_a_coded_error(service: Service, request: pytest.FixtureRequest) -> None:
    count = int(request.config.getoption("--fuzz-cases"))
    loop = asyncio.new_event_loop()
    seen = {"replies": 0, "refusals": 0}

    @settings(
        max_examples=count, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )  # fmt: skip
    @given(job)
    def check(given_input: Any) -> None:
        outputs = loop.run_until_complete(_outputs(service, given_input))
        assert outputs, "a job without an end"
        json.dumps(outputs, allow_nan=False).encode()
        code = _code(outputs[-1])
        assert code is None or code in CODES
        assert code != InternalError.code, outputs
        seen["replies" if code is None else "refusals"] += 1

    check()
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    assert min(seen.values()) > count // 20, f"the bodies are all alike: {seen}"


async def _outputs(service: Service, body: Any) -> list[Any]:
    limit = sdk.max_seconds({"policy": {"executionTimeout": 60_000}})
    return [output async for output in service.answer(body, "job", limit, is_bounded=True)]


def _code(last: Any) -> str | None:
    """Of the error that a stream or a job ends with."""
    if isinstance(last, str) and last.startswith('data: {"error"'):
        last = {"error": last.removeprefix("data: ").partition("\n\n")[0]}
    if not isinstance(last, dict) or "error" not in last:
        return None
    error = json.loads(last["error"])
    found = error.get("error", error)
    return str(found.get("worker_code", found["code"]))
