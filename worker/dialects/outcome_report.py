"""What an answer carries beside its text, in any API format: objects, result, confidence, pictures."""

import base64
from collections.abc import Sequence
from typing import Any

from worker.core.outcome import DetectedObject, DrawnPicture, Outcome
from worker.core.safe_json import JsonObject


def outcome_report(outcome: Outcome | None) -> JsonObject:
    """The fields that were asked for, and no others."""
    report: JsonObject = {}
    if outcome is None:
        return report
    if outcome.objects is not None:
        report["objects"] = objects_report(outcome.objects)
        report["objects_status"] = {"broken": outcome.num_broken, "is_whole": outcome.is_whole}
    if outcome.result is not None:
        report["result"] = outcome.result
    if outcome.result_problem is not None:
        report |= {"result": None, "result_error": {"code": outcome.result_problem, "message": _NOT_IN_FORM}}
    if outcome.annotated:
        report["annotated"] = [_picture(picture) for picture in outcome.annotated]
    if outcome.crops:
        report["crops"] = [_picture(picture) for picture in outcome.crops]
    if outcome.drawing_problem is not None:
        code, message = outcome.drawing_problem
        report["drawing_error"] = {"code": code, "message": message}
    if outcome.confidence is not None:
        report["confidence"] = {"calibrated": False, "fields": outcome.confidence}
    return report


_NOT_IN_FORM = "The text has not the form of the task: read it in text, or ask again with a higher max_tokens."


def objects_report(objects: Sequence[DetectedObject]) -> list[JsonObject]:
    """In order. Pixels of the upright source to hundredths, parts of its sides in `…_norm`."""
    return [_object(each) for each in objects]


def _object(found: DetectedObject) -> JsonObject:
    shown: JsonObject = {"label": found.label, "image": found.image}
    if found.box is None and found.point is None:
        shown["box"] = None
    places = {
        "box": found.box,
        "point": found.point,
        "box_norm": found.box_norm,
        "point_norm": found.point_norm,
        "box_stored": found.box_stored,
        "point_stored": found.point_stored,
    }
    shown |= {name: list(place) for name, place in places.items() if place is not None}
    if found.relative:
        shown["relative"] = list(found.relative)
    if found.time is not None:
        shown |= {"time": found.time, "frame_time": found.frame_time}
    shown["valid"] = found.is_valid
    if found.problem is not None:
        shown["problem"] = found.problem
    if found.is_clipped:
        shown["clipped"] = True
    if found.attributes:
        shown["attributes"] = found.attributes
    return shown


def _picture(picture: DrawnPicture) -> JsonObject:
    shown: dict[str, Any] = {"image": picture.image}
    if picture.object is not None:
        shown["object"] = picture.object
    if picture.time is not None:
        shown["time"] = picture.time
    data = base64.b64encode(picture.data).decode()
    return {
        **shown,
        "width": picture.width,
        "height": picture.height,
        "data": f"data:image/{picture.format};base64,{data}",
    }
