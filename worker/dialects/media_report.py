"""How the model saw the pictures and videos of a request, and what the answer took: the part of an answer that says so,
in any API format."""

from collections.abc import Mapping
from dataclasses import asdict

from worker.core.contract import Answer, Done, FinishReason, MediaInfo
from worker.core.safe_json import JsonObject

_SHOWN = (
    *("where", "kind", "type", "bytes", "source_width", "source_height", "orientation", "width", "height", "tokens"),
    *("times", "frames_lost", "fetch_s", "decode_s", "preprocess_s", "cached"),
)


def media_report(media: tuple[MediaInfo, ...]) -> JsonObject:
    """`media`: an entry for each, in order, where there are any: the file's type and bytes, the sides of the upright
    source and those that the model saw, in pixels, tokens, seconds of a video's frames, seconds of the work, what was
    known already; what damage took, and `warnings`, {code, message} each, where it is seen otherwise than stored."""
    if not media:
        return {}
    return {"media": [_entry(item) for item in media]}


def _entry(item: MediaInfo) -> JsonObject:
    known = item.model_dump(mode="json", exclude_defaults=True)
    known["bytes"] = known.get("num_bytes")
    entry: JsonObject = {name: known[name] for name in _SHOWN if known.get(name) is not None}
    if item.truncated:
        entry["truncated"] = True
    if item.warnings:
        entry["warnings"] = [asdict(told) for told in item.warnings]
    return entry


def cost_report(cost: Mapping[str, float]) -> JsonObject:
    """`cost`: seconds of the device, and dollars where the operator said what one costs. An estimate."""
    return {"cost": dict(cost)} if cost else {}


def work_report(ended: Answer | Done) -> JsonObject:
    """`media`, `timing` and `cost`, where there are any."""
    return {**media_report(ended.media), "timing": ended.timing, **cost_report(ended.cost)}


def own_reason(reason: FinishReason) -> JsonObject:
    """`worker_finish_reason`, where the reasons of another API say less."""
    return {"worker_finish_reason": reason} if reason in ("time", "repetition") else {}
