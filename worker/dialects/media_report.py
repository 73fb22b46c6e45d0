"""How the model saw the pictures and videos of a request: the part of an answer that says so, in any API format."""

from dataclasses import asdict

from worker.core.contract import MediaInfo
from worker.core.safe_json import JsonObject

_SHOWN = ("where", "kind", "width", "height", "tokens", "times", "frames_lost")


def media_report(media: tuple[MediaInfo, ...]) -> JsonObject:
    """`media`: an entry for each, in order, where there are any. Sides in pixels, tokens, seconds of a video's frames;
    what damage took, and `warnings`, {code, message} each, where it is seen otherwise than stored."""
    if not media:
        return {}
    return {"media": [_entry(item) for item in media]}


def _entry(item: MediaInfo) -> JsonObject:
    entry: JsonObject = item.model_dump(mode="json", include=set(_SHOWN), exclude_defaults=True)
    if item.truncated:
        entry["truncated"] = True
    if item.warnings:
        entry["warnings"] = [asdict(told) for told in item.warnings]
    return entry
