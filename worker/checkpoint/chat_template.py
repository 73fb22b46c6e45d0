"""A checkpoint's chat template, found where the library's processor finds it and rendered in a sandbox as the library
renders it, without the library."""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from worker.checkpoint.family import Family, VisionTokens
from worker.checkpoint.locate import read_json
from worker.checkpoint.tool_prompt import ToolFormat
from worker.core.errors import InputInvalid, ModelError
from worker.core.safe_json import JsonObject
from worker.core.tags import THINK, THINK_END

log = logging.getLogger(__name__)
_FOLDERS = ("additional_chat_templates", "chat_templates")  # of templates with names, the library's own first
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


@dataclass(frozen=True)
class TemplateSource:
    """A chat template and where it stands."""

    file: Path
    text: str


def template_sources(folder: Path) -> list[TemplateSource]:
    """The chat templates for any conversation in a checkpoint's folder, the one that the library's processor takes
    first. Raises ModelError.

    Of templates with names it is `default`. The processor's order: `processor_config.json`, `chat_template.json`,
    `chat_template.jinja` or a folder of templates; behind it the tokenizer's, in `tokenizer_config.json`.
    """
    return list(_sources(folder))


def _sources(folder: Path) -> Iterator[TemplateSource]:
    for name in ("processor_config.json", "chat_template.json"):
        yield from _in_json(folder / name)
    for name in ("chat_template.jinja", *(f"{place}/default.jinja" for place in _FOLDERS)):
        file = folder / name
        try:
            if file.is_file():
                yield TemplateSource(file, file.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            raise ModelError(f"{file} is not valid: download it again") from None
    yield from _in_json(folder / "tokenizer_config.json")


def _in_json(file: Path) -> Iterator[TemplateSource]:
    """A text, or several by their names."""
    found = read_json(file).get("chat_template")
    if isinstance(found, list):
        found = {str(entry.get("name")): entry.get("template") for entry in found if isinstance(entry, dict)}
    if isinstance(found, dict):
        found = found.get("default")
    if isinstance(found, str) and found:
        yield TemplateSource(file, found)


def vision_template(folder: Path, family: Family, tokens: VisionTokens) -> "ChatTemplate":
    """The folder's chat template that shows pictures: text-only ones are passed over. Where there are only those, the
    family's own if it writes a text as they do, else a ModelError."""
    sources = template_sources(folder)
    for source in sources:
        template = ChatTemplate(folder, source)
        if template.shows(tokens):
            if source is not sources[0]:
                log.warning("%s shows no pictures: the chat template of %s is used", sources[0].file, source.file.name)
            elif differing := [other for other in sources if other.text.strip() != source.text.strip()]:
                others = ", ".join(other.file.name for other in differing)
                log.info(
                    "the chat template is that of %s, as the library's processor chooses; not %s", source.file, others
                )
            return template
    remedy = "put the chat_template.jinja of the model that it was made of into the folder"
    if not sources:
        names = sorted(file.stem for place in _FOLDERS for file in (folder / place).glob("*.jinja"))
        which = f": there are {', '.join(names)}, but no default" if names else ""
        raise ModelError(f"{folder} has no chat template{which}; {remedy}")
    if family.template is not None:
        own = ChatTemplate(folder, TemplateSource(sources[0].file, family.template))
        if ChatTemplate(folder, sources[0]).text_of(_CONVERSATION) == own.text_of(_CONVERSATION):
            log.warning("the chat template of %s is for text alone: the family's own is used", sources[0].file)
            return own
    raise ModelError(f"the chat template of {sources[0].file} has no place for images: {remedy}")


_CONVERSATION: list[JsonObject] = [
    {"role": role, "content": text}
    for role, text in (("system", "Be brief."), ("user", "One?"), ("assistant", "Two."), ("user", "Three?"))
]
_TOOL_NAME = "a_tool_to_look_for"
_TOOL: JsonObject = {"type": "function", "function": {"name": _TOOL_NAME, "parameters": {"type": "object"}}}
_PICTURE: list[JsonObject] = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]


def opens_thought(rendered: str) -> bool:
    """Whether the answer to a prompt begins within a thought."""
    turn = rendered.rpartition("<|im_start|>")[2]
    return turn.startswith("assistant") and turn.rfind(THINK) > turn.rfind(THINK_END)


class ChatTemplate:
    """A checkpoint's chat template; `source`: one of several."""

    def __init__(self, folder: Path, source: TemplateSource | None = None) -> None:
        config = read_json(folder / "tokenizer_config.json")
        if source is None:
            source = next(_sources(folder), None)
        if source is None:
            raise ModelError(f"{folder} has no chat template")
        self._text = text = source.text
        sandbox = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        sandbox.filters["tojson"] = _to_json
        sandbox.globals |= {"raise_exception": _raise, "strftime_now": _now, "dict": _dict, "namespace": _Namespace}
        try:
            self._template = sandbox.from_string(text)
        except TemplateError as error:
            raise ModelError(f"the chat template of {source.file} cannot be read: {error}") from None
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        tokens = {name: config.get(name) for name in names}
        self._tokens = {
            name: token["content"] if isinstance(token, dict) else token for name, token in tokens.items() if token
        }

    def shows(self, tokens: VisionTokens) -> bool:
        """Whether a picture in a message gets its token."""
        return tokens.image_pad in (self.text_of(_PICTURE) or "")

    @property
    def opens_thought(self) -> bool:
        """Whether a prompt ends within a thought of the model's, as those of thinking checkpoints do."""
        return opens_thought(self.text_of(_CONVERSATION) or "")

    @cached_property
    def knows_tools(self) -> bool:
        """Whether it tells the model of the tools that it is given."""
        try:
            return _TOOL_NAME in self.render(_CONVERSATION, {"tools": [_TOOL]})
        except InputInvalid:
            return False

    @property
    def tool_format(self) -> ToolFormat:
        """How the model writes a call of a tool."""
        return "xml" if "<function=" in self._text else "json"

    def reads(self, variable: str) -> bool:
        """Whether a variable of this name changes anything."""
        return variable in self._text

    def text_of(self, messages: list[JsonObject]) -> str | None:
        """What `render` gives; None where the template does not take the messages."""
        try:
            return self.render(messages)
        except InputInvalid:
            return None

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
            raise InputInvalid(where="messages", detail=f"the model's chat template refuses them{told}") from None
