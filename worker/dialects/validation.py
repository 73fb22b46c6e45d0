"""What is wrong with a body, in its caller's words: the field, what it must be, the name that was perhaps meant.

pydantic finds the fault; its own messages, class names and patterns are not shown.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, Tag, ValidationError

from worker.core.errors import InputInvalid
from worker.core.units import plain

B = TypeVar("B", bound=BaseModel)
Location = tuple[int | str, ...]

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ALIKE = 0.7  # how much alike two names are, from 0 to 1, for one to be a slip of the other

# Names of other APIs, and what stands for them here.
_ELSEWHERE = {
    "sampling_params": "write its fields directly beside prompt or messages",
    "max_new_tokens": "write max_tokens",
    "max_completion_tokens": "write max_tokens",
    "stop_sequences": "write stop",
    "best_of": "write n for several answers",
    "do_sample": "write temperature: 0 is greedy, above 0 samples",
    "apply_chat_template": "leave it out, the chat template is always applied",
    "use_openai_format": "send openai_route and openai_input for OpenAI's format",
    **dict.fromkeys(
        ("max_batch_size", "min_batch_size", "batch_size_growth_factor"),
        "leave it out, the worker's setting STREAM_INTERVAL_MS controls how often chunks are sent",
    ),
    "image_url": 'write image, or an image_url block in "messages"',
    "video_url": 'write video, or a video_url block in "messages"',
    "image_base64": "write image, it also accepts base64",
    "input": 'put its fields directly into the job\'s "input", which must not be nested',
    "response_format": "structured output is not supported yet",
    "guided_json": "structured output is not supported yet",
    "tools": "tool calls are not supported yet",
}
_MUST_BE = {
    "missing": "is required",
    "string_type": "must be a string",
    "string_unicode": "must be a string of valid Unicode",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "finite_number": "must be a finite number",
    "none_required": "is not supported: leave it out, or write null",
    "literal_error": "must be one of {expected}",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "too_long": "has more than {max_length} items",
    "too_short": "has fewer items than {min_length}",
    "string_too_long": "has more than {max_length} characters",
    "string_too_short": "has fewer characters than {min_length}",
}


def validated(form: type[B], body: object) -> B:
    """The body, held to its form. Raises InputInvalid."""
    try:
        return form.model_validate(body)
    except ValidationError as error:
        raise invalid(error, form) from None


def invalid(error: ValidationError, form: type[BaseModel] | None = None) -> InputInvalid:
    """The first fault as an error that names the place and never the value. form: whose names may be suggested."""
    first = error.errors(include_url=False, include_input=False)[0]
    location: Location = first["loc"]
    if first["type"] == "extra_forbidden":
        known = frozenset[str]() if form is None else _names_at(form, location[:-1])
        return unknown_field(str(location[-1]), known, _place(location))
    return InputInvalid(where=_place(location) or "input", detail=_reason(first["type"], first))


def unknown_field(name: str, known: frozenset[str] = frozenset(), place: str | None = None) -> InputInvalid:
    """A field that the body's form does not have, with what stands for it. known: the names that it has there."""
    hint = _ELSEWHERE.get(name) or _meant(name, known)
    return InputInvalid(where=place or shown_name(name), detail="unknown field" + (f": {hint}" if hint else ""))


def shown_name(name: str) -> str:
    """A field's name as an error or a log may show it; what does not look like a name is not repeated."""
    return name if _PLAIN_NAME.fullmatch(name) else "(a name that cannot be shown)"


def _reason(kind: str, fault: Mapping[str, Any]) -> str:
    if kind in _MUST_BE:
        return _MUST_BE[kind].format(**{name: plain(value) for name, value in fault.get("ctx", {}).items()})
    # What our own validators say is written for callers; a library's text is not.
    return str(fault["msg"]) if kind.startswith("own_") else "has an invalid value"


def _meant(name: str, known: frozenset[str]) -> str | None:
    plain = {_plain(field): field for field in sorted(known)}
    found = difflib.get_close_matches(_plain(name)[:64], plain, n=1, cutoff=_ALIKE)
    return f"did you mean {plain[found[0]]}?" if found else None


def _plain(name: str) -> str:
    return re.sub("[_-]", "", name).lower()


def _place(location: Location) -> str:
    place = ""
    for step in location:
        if isinstance(step, int):
            place += f"[{step}]"
        elif not step.startswith("<"):
            place += f".{shown_name(step)}" if place else shown_name(step)
    return place


def _names_at(form: type[BaseModel], location: Location) -> frozenset[str]:
    """The names of the fields that the object at a place may have."""
    found: list[Any] = [form]
    for step in location:
        found = [inner for annotation in found for inner in _inside(annotation, step)]
    return frozenset(name for annotation in found for model in _models(annotation) for name in model.model_fields)


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


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)
