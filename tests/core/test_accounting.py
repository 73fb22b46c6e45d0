"""Seconds and dollars from an engine's end of an answer."""

import pytest

from worker.core.accounting import cost_of, timing_of, with_gpu_limit
from worker.core.contract import ChatRequest, Done, MediaInfo, Usage, Work
from worker.core.errors import InputInvalid

WORK = Work(preprocess_s=0.01, queue_s=0.02, vision_s=0.2, prefill_s=0.3, decode_s=2.0, gpu_seconds=1.5)
INFO = MediaInfo(where="image", kind="image", width=32, height=32, tokens=1, fetch_s=0.1, decode_s=0.05)
DONE = Done(
    reasons=("stop",), usage=Usage(prompt_tokens=9, completion_tokens=41), media=(INFO, INFO), work=WORK,
    first_token_at=11.0,
)  # fmt: skip


def test_each_part_has_its_name() -> None:
    assert timing_of(DONE, 0.2, 10.0, 13.5) == {
        "media_s": 0.2, "fetch_s": 0.1, "media_decode_s": 0.05, "preprocess_s": 0.01, "queue_s": 0.02,
        "vision_s": 0.2, "prefill_s": 0.3, "decode_s": 2.0, "tokens_per_second": 20.0, "first_token_s": 1.0,
        "total_s": 3.5,
    }  # fmt: skip


def test_what_an_engine_does_not_tell_is_left_out() -> None:
    bare = Done(reasons=("stop",), usage=Usage(prompt_tokens=9, completion_tokens=0))
    assert timing_of(bare, None, 10.0, 11.0) == {"total_s": 1.0}
    assert cost_of(bare, 0.1, None) == {}


def test_a_price_makes_dollars() -> None:
    assert cost_of(DONE, None, None) == {"gpu_seconds": 1.5}
    assert cost_of(DONE, 0.0004, None) == {"gpu_seconds": 1.5, "cost_usd": 0.0006}


def test_a_limit_of_dollars_is_one_of_seconds() -> None:
    request = ChatRequest(messages=(), max_cost_usd=0.01)
    assert with_gpu_limit(request, 0.002).max_gpu_seconds == 5.0
    both = request.model_copy(update={"max_gpu_seconds": 3.0})
    assert with_gpu_limit(both, 0.002).max_gpu_seconds == 3.0
    assert with_gpu_limit(ChatRequest(messages=()), None).max_gpu_seconds is None
    with pytest.raises(InputInvalid, match="GPU_USD_PER_SECOND"):
        with_gpu_limit(request, None)
