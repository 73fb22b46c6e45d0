"""Where a request's seconds went, and what its share of the device's time costs."""

import math

from worker.core.contract import ChatRequest, Done
from worker.core.errors import InputInvalid
from worker.core.timeline import Timeline


def timing_of(done: Done, media_s: float | None, came_at: float, now: float) -> dict[str, float]:
    """Seconds by name, from the request's arrival at `came_at` to `now`, both of `time.monotonic`; see docs/answers.md.
    media_s: of the opening of its media, all at once, of which the slowest one's reading and decoding are told."""
    work = done.work
    measured: dict[str, float | None] = {
        "media_s": media_s,
        "fetch_s": max((info.fetch_s for info in done.media if info.fetch_s), default=None),
        "media_decode_s": max((info.decode_s for info in done.media if info.decode_s), default=None),
    }
    if work is not None:
        num_followed = done.usage.completion_tokens - len(done.reasons)
        measured |= {
            "preprocess_s": work.preprocess_s,
            "queue_s": work.queue_s,
            "vision_s": work.vision_s if done.media else None,
            "prefill_s": work.prefill_s,
            "decode_s": work.decode_s,
            "tokens_per_second": num_followed / work.decode_s if num_followed > 0 and work.decode_s > 0 else None,
        }
    measured["first_token_s"] = None if done.first_token_at is None else done.first_token_at - came_at
    measured["total_s"] = now - came_at
    return {name: round(seconds, 3) for name, seconds in measured.items() if seconds is not None}


def cost_of(done: Done, usd_per_second: float | None, start: Timeline | None) -> dict[str, float]:
    """The request's share of the seconds in which the device was busy, and its price, an estimate: what a worker costs
    while it waits for requests is in no answer. start: of the worker, told with its first answer alone."""
    if done.work is None:
        return {}
    cost = {"gpu_seconds": _rounded(done.work.gpu_seconds)}
    if usd_per_second is not None:
        cost["cost_usd"] = _rounded(done.work.gpu_seconds * usd_per_second)
    if start is not None:
        seconds = start.start_s
        cost["start_seconds"] = seconds
        if usd_per_second is not None:
            cost["start_cost_usd"] = _rounded(seconds * usd_per_second)
    return cost


def with_gpu_limit(request: ChatRequest, usd_per_second: float | None) -> ChatRequest:
    """The request with its limit of cost as one of the device's seconds. Raises InputInvalid."""
    if request.max_cost_usd is None:
        return request
    if not usd_per_second:
        raise InputInvalid(
            where="max_cost_usd", detail="needs the worker's setting GPU_USD_PER_SECOND: write max_gpu_seconds instead"
        )
    seconds = request.max_cost_usd / usd_per_second
    return request.model_copy(update={"max_gpu_seconds": min(seconds, request.max_gpu_seconds or math.inf)})


def _rounded(number: float) -> float:
    """To six significant digits."""
    return float(f"{number:.6g}")
