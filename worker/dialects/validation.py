"""What is wrong with a body, in its caller's words: the field, what it must be, the name that was perhaps meant.

pydantic finds the fault; its own messages, class names and patterns are not shown.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, Tag, ValidationError

from worker.core.errors import InputInvalid
from worker.core.expectations import expected
from worker.core.names import shown_name

B = TypeVar("B", bound=BaseModel)
Location = tuple[int | str, ...]

_ALIKE = 0.66  # how much alike two names are, from 0 to 1, for one to be a slip of the other

# Names of other APIs: the field that stands for them, where the body has it.
_SAME_AS = {
    "max_new_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "stop_sequences": "stop",
    "best_of": "n",
    "image_url": "image",
    "image_base64": "image",
    "video_url": "video",
    "system_prompt": "system",
    "question": "prompt",
    "detail": "max_pixels",
}
# Names that need a sentence; they are given where a body of the native form has them.
_NOT_SUPPORTED = ("use_beam_search", "length_penalty", "early_stopping", "skip_special_tokens", "stop_token")
_MEDIA_OPTIONS = (
    *("min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width", "detail"),
    *("fps", "nframes", "min_frames", "max_frames", "video_start", "video_end"),
)
_ELSEWHERE = {
    "sampling_params": "write its fields directly beside prompt or messages",
    "do_sample": "write temperature: 0 is greedy, above 0 samples",
    "model": "leave it out, a worker serves one model",
    "apply_chat_template": "leave it out, the chat template is always applied",
    "use_openai_format": "send openai_route and openai_input for OpenAI's format",
    "input": 'put its fields directly into the job\'s "input", which must not be nested',
    "response_format": "write json_schema with the schema itself",
    "structured_outputs": "write json_schema, regex, choice or grammar",
    "guided_json": "write json_schema",
    "guided_regex": "write regex",
    "guided_choice": "write choice",
    "guided_grammar": "write grammar",
    **dict.fromkeys(_NOT_SUPPORTED, "not supported"),
    **dict.fromkeys(_MEDIA_OPTIONS, 'write it into the image or video: {"url": …, "max_pixels": …}'),
    **dict.fromkeys(
        ("max_batch_size", "min_batch_size", "batch_size_growth_factor"),
        "leave it out, the worker's setting STREAM_INTERVAL_MS controls how often chunks are sent",
    ),
}
_IS = {  # faults that say more than what a value must be
    "missing": "is required",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "none_required": "is not supported: leave it out, or write null",
    "too_long": "has more than {max_length} items",
    "too_short": "must have at least {min_length} items",
    "string_too_long": "has more than {max_length} characters",
    "string_too_short": "must have at least {min_length} characters",
}
_MAX_COMPARED = 32  # faults that are looked through for a slip: a body may have thousands


def validated(form: type[B], body: object) -> B:
    """The body, held to its form. Raises InputInvalid."""
    try:
        return form.model_validate(body)
    except ValidationError as error:
        raise invalid(error, body, form) from None


def invalid(error: ValidationError, body: object, form: object = None) -> InputInvalid:
    """The first fault as an error that names the place and never the value. body: that was validated; form: whose names
    may be suggested."""
    faults = error.errors(include_url=False, include_input=False)
    first = _slip(faults, form) or faults[0]
    location: Location = first["loc"]
    if first["type"] == "extra_forbidden":
        known = frozenset[str]() if form is None else _names_at(form, location[:-1])
        return unknown_field(str(location[-1]), known, _place(location, body))
    where = _place(location, body, is_last_named=first["type"] == "missing")
    return InputInvalid(where=where or "input", detail=_reason(first["type"], first))


def unknown_field(name: str, known: frozenset[str] = frozenset(), place: str | None = None) -> InputInvalid:
    """A field that the body's form does not have, with what stands for it. known: the names that it has there."""
    hint = _meant(name, known)
    return InputInvalid(where=place or shown_name(name), detail="unknown field" + (f": {hint}" if hint else ""))


def _slip(faults: Sequence[Mapping[str, Any]], form: object) -> Mapping[str, Any] | None:
    """The unknown field that was meant to be the missing one that comes first."""
    first = faults[0]
    if first["type"] != "missing" or form is None:
        return None
    parent, missing = first["loc"][:-1], frozenset({str(first["loc"][-1])})
    for fault in faults[:_MAX_COMPARED]:
        is_beside = fault["type"] == "extra_forbidden" and fault["loc"][:-1] == parent
        if is_beside and _alike(str(fault["loc"][-1]), missing):
            return fault
    return None


def _reason(kind: str, fault: Mapping[str, Any]) -> str:
    context = fault.get("ctx", {})
    if kind in ("too_short", "string_too_short") and context.get("min_length") == 1:
        return "must not be empty"
    if kind in _IS:
        return _IS[kind].format(**context)
    wanted = expected(kind, context)
    if wanted is not None:
        return f"must be {wanted}"
    # What our own validators say is written for callers; a library's text is not.
    return str(fault["msg"]) if kind.startswith("own_") else "has an invalid value"


def _meant(name: str, known: frozenset[str]) -> str | None:
    if _SAME_AS.get(name) in known:
        return f"write {_SAME_AS[name]}"
    if "prompt" in known and name in _ELSEWHERE:
        return _ELSEWHERE[name]
    found = _alike(name, known)
    return f"did you mean {found}?" if found else None


def _alike(name: str, known: frozenset[str]) -> str | None:
    """The known name that this one is a slip of: they begin alike."""
    wanted = _plain(name[:128])[:64]
    plain = {_plain(field): field for field in sorted(known) if wanted[:1] == _plain(field)[:1]}
    found = difflib.get_close_matches(wanted, plain, n=1, cutoff=_ALIKE)
    return plain[found[0]] if found else None


def _plain(name: str) -> str:
    return re.sub("[_-]", "", name).lower()


def _place(location: Location, body: object, *, is_last_named: bool = True) -> str:
    """The steps that lead through the body: others are of pydantic's own, the members of unions that it has tried.
    is_last_named: the last one is a field, there or missing."""
    place = ""
    for index, step in enumerate(location):
        if isinstance(step, int):
            place += f"[{step}]"
            body = body[step] if isinstance(body, list) and step < len(body) else None
        elif isinstance(body, dict) and (step in body or (is_last_named and index == len(location) - 1)):
            place += f".{shown_name(step)}" if place else shown_name(step)
            body = body.get(step)
    return place


def _names_at(form: object, location: Location) -> frozenset[str]:
    """The names of the fields that the object at a place may have."""
    found: list[Any] = [form]
    for step in location:
        found = [inner for annotation in found for inner in _inside(annotation, step)]
    return frozenset(name for annotation in found for model in _models(annotation) for name in _names(model))


def _inside(annotation: Any, step: int | str) -> Iterator[Any]:
    """What stands at one step of a location: an item, a member of a union by its tag, a field."""
    if isinstance(step, int):
        yield annotation
    elif step.startswith("<"):
        if any(isinstance(mark, Tag) and mark.tag == step for mark in getattr(annotation, "__metadata__", ())):
            yield annotation
        else:
            yield from (inner for part in get_args(annotation) for inner in _inside(part, step))
    else:
        for model in _models(annotation):
            if step in model.model_fields:
                yield model.model_fields[step].annotation


def _names(model: type[BaseModel]) -> Iterator[str]:
    """Of its fields, as a body writes them."""
    return (field.alias or name for name, field in model.model_fields.items())


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)
