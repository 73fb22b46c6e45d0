"""A caller's JSON schema made ready for the compiler of grammars: bounded, and what the compiler has not is refused by
name, with its place.

A format that JSON Schema does not define is a note, as the standard says, and is dropped.
"""

import json
from collections.abc import Iterator
from typing import Any

from worker.core.errors import InputInvalid
from worker.core.names import shown_name

MAX_SCHEMA_BYTES = 262_144
MAX_SCHEMA_DEPTH = 64
MAX_PROPERTIES = 1_000  # of one object
MAX_OPTIONAL = 400  # of these: the time to compile, and that of a mask, grows with their square
MAX_PATTERN_CHARS = 2_048  # of one expression; memory to compile grows with its square
MAX_PATTERNS_CHARS = 16_384  # of all of a schema

_NOT_BUILT = (
    *("not", "if", "then", "else", "contains", "minContains", "maxContains", "propertyNames"),
    *("dependentRequired", "dependentSchemas", "dependencies", "unevaluatedProperties", "unevaluatedItems"),
    *("$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor", "uniqueItems"),
)
# What asks for nothing: zod writes names of strings for every record.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "uniqueItems": (False,),
    "unevaluatedProperties": (True,),
    "propertyNames": (True, {}, {"type": "string"}),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "dependencies": ({},),
}
_FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "unknown")
)
_FORMATS_NOT_BUILT = frozenset(
    (
        *("idn-email", "idn-hostname", "uri-reference", "iri", "iri-reference", "uri-template"),
        *("json-pointer", "relative-json-pointer", "regex"),
    )
)
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("prefixItems", "allOf", "anyOf", "oneOf", "items")
_SINGLE = ("items", "additionalItems", "additionalProperties")
_WHOLE = tuple(f"{side}{of}" for side in ("min", "max") for of in ("Length", "Items", "Properties"))


def prepared(schema: object, where: str) -> str:
    """The schema as JSON for the compiler. `where`: its place in the request. Raises InputInvalid."""
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise InputInvalid(where=where, detail="must be a JSON schema: an object")
    try:
        text = json.dumps(_kept(schema, where, 0), ensure_ascii=False)
        num_pattern_chars = sum(_pattern_chars(schema))
    except (ValueError, RecursionError):
        raise InputInvalid(where=where, detail="must be a JSON schema") from None
    if len(text.encode(errors="surrogatepass")) > MAX_SCHEMA_BYTES:
        raise InputInvalid(where=where, detail=f"the schema is larger than {MAX_SCHEMA_BYTES} bytes")
    if num_pattern_chars > MAX_PATTERNS_CHARS:
        raise InputInvalid(where=where, detail=f"its patterns have more than {MAX_PATTERNS_CHARS} characters")
    return text


def _pattern_chars(schema: Any) -> Iterator[int]:
    """The lengths of all patterns, wherever they stand. Raises RecursionError."""
    match schema:
        case list():
            for part in schema:
                yield from _pattern_chars(part)
        case dict():
            patterns = schema.get("patternProperties")
            yield from map(len, patterns if isinstance(patterns, dict) else ())
            if isinstance(pattern := schema.get("pattern"), str):
                yield len(pattern)
            for part in schema.values():
                yield from _pattern_chars(part)


def _kept(schema: Any, where: str, depth: int) -> Any:
    """A schema with all schemas in it, without what is only a note."""
    if not isinstance(schema, dict):
        return schema
    if depth > MAX_SCHEMA_DEPTH:
        raise InputInvalid(where=where, detail=f"the schema is nested more than {MAX_SCHEMA_DEPTH} deep")
    if "if" not in schema or not {"then", "else"} & schema.keys():  # then none of the three says anything
        schema = {name: value for name, value in schema.items() if name not in ("if", "then", "else")}
    for name in _NOT_BUILT:
        if name in schema and schema[name] not in _HARMLESS.get(name, ()):
            raise InputInvalid(where=where, detail=f"{name} is not supported: leave it out, and check it in your code")
    _check_size(schema, where)
    kept = {name: value for name, value in schema.items() if name not in (*_NOT_BUILT, "format", "x-guidance")}
    kept |= _format(schema, where)
    for name in _WHOLE:
        value = kept.get(name)
        if isinstance(value, float) and value.is_integer():
            kept[name] = int(value)
    return kept | dict(_inner(kept, where, depth + 1))


def _check_size(schema: dict[str, Any], where: str) -> None:
    """Raises InputInvalid."""
    properties, required = schema.get("properties"), schema.get("required")
    if isinstance(properties, dict):
        named = {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
        if len(properties.keys() - named) > MAX_OPTIONAL:
            raise InputInvalid(where=f"{where}.properties", detail=f"has more than {MAX_OPTIONAL} optional names")
    if isinstance(pattern := schema.get("pattern"), str) and len(pattern) > MAX_PATTERN_CHARS:
        raise InputInvalid(where=f"{where}.pattern", detail=f"has more than {MAX_PATTERN_CHARS} characters")


def _inner(schema: dict[str, Any], where: str, depth: int) -> Iterator[tuple[str, Any]]:
    """Each keyword that has schemas in it, with these made ready."""
    for name, found in schema.items():
        place = f"{where}.{name}"
        if name in _MAPS and isinstance(found, dict):
            if len(found) > MAX_PROPERTIES:
                raise InputInvalid(where=place, detail=f"has more than {MAX_PROPERTIES} names")
            yield name, {key: _kept(value, f"{place}.{shown_name(key)}", depth) for key, value in found.items()}
        elif name in _LISTS and isinstance(found, list):
            yield name, [_kept(value, f"{place}[{index}]", depth) for index, value in enumerate(found)]
        elif name in _SINGLE and isinstance(found, dict):
            yield name, _kept(found, place, depth)


def _format(schema: dict[str, Any], where: str) -> dict[str, str]:
    """Raises InputInvalid for one that the standard defines and the compiler does not know."""
    form = schema.get("format")
    if isinstance(form, str) and form in _FORMATS_NOT_BUILT:
        raise InputInvalid(where=where, detail=f"the format {form} is not supported: leave it out")
    return {"format": form} if isinstance(form, str) and form in _FORMATS else {}


def referred(root: dict[str, Any], reference: str) -> Any:
    """What a local reference, `#/$defs/name`, stands for; None where nothing is there."""
    found: Any = root
    for step in reference.removeprefix("#").split("/")[1:]:
        found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    return found
