"""A checkpoint's chat template, rendered in a sandbox as transformers renders it, without transformers."""

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from worker.checkpoint.locate import read_json
from worker.core.errors import InputInvalid, ModelError
from worker.core.safe_json import JsonObject

# What a template raises for messages that it does not take.
_REFUSED = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)


class _Generation(Extension):
    """`{% generation %}` marks what the assistant says, for training; here it is only what is in it."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Namespace(Namespace):
    """A namespace that keeps nothing under a name with an underscore before it: no way out of the sandbox."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *values = args
        for name in dict(*values, **kwargs):
            _refuse_hidden(name)
        Namespace.__init__(self, *values, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_hidden(name)
        super().__setitem__(name, value)


def _refuse_hidden(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a template cannot keep {name}")


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    """Instead of the class, whose attributes lead elsewhere."""
    return dict(*args, **kwargs)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(value: Any, **options: Any) -> str:
    """Without jinja's escapes for HTML."""
    return json.dumps(value, **{"ensure_ascii": False, **options})


def _now(form: str) -> str:
    return datetime.now().strftime(form)


class ChatTemplate:
    """A checkpoint's chat template."""

    def __init__(self, folder: Path) -> None:
        file = folder / "chat_template.jinja"
        config = read_json(folder / "tokenizer_config.json")
        try:
            text = file.read_text(encoding="utf-8") if file.is_file() else config.get("chat_template")
        except UnicodeDecodeError:
            raise ModelError(f"{file} is damaged: fetch it again") from None
        text = text or read_json(folder / "chat_template.json").get("chat_template")
        if not isinstance(text, str):
            raise ModelError(f"{folder} has no chat template")
        self._text = text
        sandbox = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        sandbox.filters["tojson"] = _to_json
        sandbox.globals |= {"raise_exception": _raise, "strftime_now": _now, "dict": _dict, "namespace": _Namespace}
        try:
            self._template = sandbox.from_string(text)
        except TemplateError as error:
            raise ModelError(f"{folder} has a chat template that cannot be read: {error}") from None
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        tokens = {name: config.get(name) for name in names}
        self._tokens = {
            name: token["content"] if isinstance(token, dict) else token for name, token in tokens.items() if token
        }

    def render(self, messages: list[JsonObject], variables: Mapping[str, Any] = MappingProxyType({})) -> str:
        """The conversation as text, up to where the answer begins. `variables`: further ones of the template. Raises
        InputInvalid where the template does not take the messages."""
        known = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
        try:
            return self._template.render({**known, **variables, **self._tokens})
        except _REFUSED as error:
            reason = str(error)
            # The template's own words, as in `raise_exception('…')`, may be told; what has the caller's in it may not.
            told = f": {reason}" if isinstance(error, TemplateError) and reason and reason in self._text else ""
            raise InputInvalid(where="messages", detail=f"the model's chat template does not take them{told}") from None
