"""The table of dialects: which one reads an input, and what of the input is that dialect's own body.

To add an API format, write its module and give its `DIALECT` a row in `DIALECTS`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from worker.core.errors import InputInvalid, InputNotObject, RouteUnknown, WorkerError
from worker.core.safe_json import JsonObject
from worker.dialects import (
    anthropic_messages,
    bot,
    chat_vl,
    completions,
    generate,
    native,
    openai_chat,
    openai_models,
    recognize,
    responses,
    tasks,
    tokenize,
    vllm_job,
)
from worker.dialects.base import Dialect, HttpError, plain_error
from worker.dialects.unknown_routes import no_route
from worker.dialects.validation import unknown_field

SALT = "cache_salt"  # vLLM's name
MAX_ROUTE_CHARS = 1024
METHOD = "method"  # of worker-vllm's jobs, beside a route
MAX_SALT_CHARS = 256
OPENAI_PREFIX = "/v1/"  # a path below it that no dialect has is answered as the OpenAI API would


def plain_path(path: str) -> str:
    """Without a slash at the end or twice in a row: clients join an address and a route in every way."""
    return "/" + "/".join(part for part in path.split("/") if part)


def _path_of(route: object) -> str:
    """The path that a job's route names, without its query; no dialect's for what is no route."""
    is_route = isinstance(route, str) and len(route) <= MAX_ROUTE_CHARS
    return plain_path(str(route).partition("?")[0]) if is_route else ""


@dataclass(frozen=True)
class Call:
    """An input and the dialect that reads it. form: whether the input is the dialect's body, or has it inside, as
    `{"route", "body"}` or as the platform's `{"openai_route", "openai_input"}`. unknown: why no dialect has the
    route."""

    dialect: Dialect
    envelope: JsonObject
    form: Literal["direct", "routed", "openai"] = "direct"
    unknown: RouteUnknown | None = None

    @property
    def wants_stream(self) -> bool:
        """Whether the body asks for a stream, whatever else is wrong with it."""
        body = self._inside()
        return isinstance(body, dict) and body.get("stream") is True

    def body(self) -> JsonObject:
        """The dialect's own body, without `cache_salt`. Raises InputInvalid, InputNotObject, RouteUnknown."""
        self.cache_salt()
        return {name: value for name, value in self._body().items() if name != SALT}

    def cache_salt(self) -> str:
        """What keeps its caches apart from others', beside the route or in the body; empty for none. Raises
        InputInvalid."""
        places = [place for place in (self.envelope, self._inside()) if isinstance(place, dict)]
        given = [place[SALT] for place in places if place.get(SALT) is not None]
        salt = given[0] if given else ""
        if any(other != salt for other in given) or not isinstance(salt, str) or len(salt) > MAX_SALT_CHARS:
            raise InputInvalid(
                where=SALT,
                detail=f"must be a string of at most {MAX_SALT_CHARS} characters, the same wherever it is given",
            )
        return salt

    def _body(self) -> JsonObject:
        if self.form == "direct":
            return self.envelope
        route, inside = ("route", "body") if self.form == "routed" else ("openai_route", "openai_input")
        if self.unknown is not None:
            raise self.unknown
        known = frozenset({route, inside, METHOD, SALT})
        for name in self.envelope.keys() - known:
            raise unknown_field(name, known)
        method = self.envelope.get(METHOD)
        if method is not None and method not in (self.dialect.method, self.dialect.method.lower()):
            raise InputInvalid(where=METHOD, detail=f"must be {self.dialect.method} for this route")
        if self.dialect.has_tail:
            assert self.dialect.route is not None
            return {"tail": self._path()[len(self.dialect.route) + 1 :]}
        body = self.envelope.get(inside)
        if not isinstance(body, dict):
            raise InputNotObject(where=inside)
        return body

    def _path(self) -> str:
        return _path_of(self.envelope["route" if self.form == "routed" else "openai_route"])

    def _inside(self) -> object:
        names = {"routed": "body", "openai": "openai_input"}
        return self.envelope if self.form == "direct" else self.envelope.get(names[self.form])


class DialectTable:
    """The dialects that are spoken. The one without a route reads what no other does."""

    def __init__(self, dialects: Sequence[Dialect]) -> None:
        self._dialects = tuple(dialects)
        self._by_name = {dialect.name: dialect for dialect in dialects if dialect.is_named}
        self.default = next(dialect for dialect in dialects if dialect.route is None)
        self._openai = next(dialect for dialect in dialects if dialect.is_openai and not dialect.has_tail)

    def __iter__(self) -> Iterator[Dialect]:
        return iter(self._dialects)

    def with_dialect(self, dialect: Dialect) -> "DialectTable":
        """The same table with one more row."""
        return DialectTable((dialect, *self._dialects))

    def choose(self, job_input: object) -> Call:
        """The dialect of this input. A `dialect` in it takes precedence: the rest is that dialect's body. Raises
        InputNotObject, InputInvalid."""
        if not isinstance(job_input, dict):
            raise InputNotObject(where="input")
        if "dialect" in job_input:
            name = job_input["dialect"]
            if not isinstance(name, str) or name not in self._by_name:
                raise InputInvalid(where="dialect", detail=f"must be one of {', '.join(sorted(self._by_name))}")
            return Call(self._by_name[name], {key: value for key, value in job_input.items() if key != "dialect"})
        if "openai_route" in job_input or "openai_input" in job_input:
            job_input = {"openai_route": self._openai.route, **job_input}
            return self._routed(job_input, "openai_route", self._openai)
        if "route" in job_input:
            return self._routed(job_input, "route", self.default)
        claiming = (dialect for dialect in self._dialects if dialect.claims(job_input))
        return Call(next(claiming, self.default), job_input)

    def _routed(self, job_input: JsonObject, name: str, otherwise: Dialect) -> Call:
        """otherwise: whose errors the caller of an unknown route understands."""
        route = job_input[name]
        path = _path_of(route)
        dialect = self.at(path)
        form: Literal["routed", "openai"] = "openai" if name == "openai_route" else "routed"
        if dialect is None:
            return Call(otherwise, job_input, form, self.no_route(path, name))
        if form == "openai" and not dialect.is_openai:
            return Call(otherwise, job_input, form, RouteUnknown(where=name, detail="write it as route, beside body"))
        return Call(dialect, job_input, form)

    def no_route(self, path: str, where: str | None = None) -> RouteUnknown:
        """The error for a path that no dialect has. where: the field that names it."""
        return no_route(path, (dialect.route for dialect in self if dialect.route is not None), where)

    def at(self, path: str) -> Dialect | None:
        """The dialect behind an HTTP path."""
        for dialect in self._dialects:
            if dialect.route == path or (dialect.has_tail and path.startswith(f"{dialect.route}/")):
                return dialect
        return None

    def _above(self, path: str) -> Dialect | None:
        """The dialect of a route that the path goes on from."""
        return next((one for one in self if one.route is not None and path.startswith(f"{one.route}/")), None)

    def error_at(self, path: str, error: WorkerError, declared_type: str | None = None) -> HttpError:
        """An error as the clients of this path understand it."""
        dialect = self.at(path) or self._above(path) or (self._openai if path.startswith(OPENAI_PREFIX) else None)
        return plain_error(error) if dialect is None else dialect.http_error(error, declared_type)


def envelope_at(dialect: Dialect, path: str, body: JsonObject) -> JsonObject:
    """The input in which a job carries what an HTTP route takes."""
    if dialect.has_tail:
        return {"openai_route" if dialect.is_openai else "route": path}
    return {"route": path, "body": body}


DIALECTS = DialectTable(
    (
        openai_chat.DIALECT,
        openai_models.DIALECT,
        tasks.DIALECT,
        completions.DIALECT,
        tokenize.DIALECT,
        responses.DIALECT,
        responses.COUNT,
        anthropic_messages.DIALECT,
        anthropic_messages.COUNT,
        chat_vl.DIALECT,
        recognize.DIALECT,
        generate.DIALECT,
        bot.GROUP,
        bot.PRIVATE,
        native.DIALECT,
        vllm_job.DIALECT,
    )
)
