"""From a request to the form of its answer. The library of grammars is loaded when the first request asks for one."""

import threading
from collections.abc import Callable
from typing import Protocol

from worker.checkpoint.spec import ModelSpec
from worker.core.errors import GrammarTooComplex, InputInvalid
from worker.core.sampling import Constraint
from worker.core.tags import CALL
from worker.core.tools import Tools
from worker.engine.guide import State


class Form(Protocol):
    """A compiled form. See `grammar.Grammar`."""

    def begin(self) -> State: ...


Compile = Callable[[Constraint | None, Tools], Form | None]


class Forms:
    """Compiles forms for one model. Safe to use from many threads."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._compile: Compile | None = None
        self._lock = threading.Lock()

    def compiled(self, asked: Constraint | None, tools: Tools) -> Form | None:
        """The form of an answer; None where it is free. Raises InputInvalid, GrammarTooComplex."""
        if asked is None and not (tools.is_forced or any(tool.is_strict for tool in tools.usable)):
            return None
        with self._lock:
            if self._compile is None:
                self._compile = _loaded(self._spec)
        return self._compile(asked, tools)


def _loaded(spec: ModelSpec) -> Compile:
    from worker.engine.grammar import GrammarCompiler
    from worker.engine.tool_grammar import constraint_of

    compiler = GrammarCompiler(spec.tokenizer, spec.vocabulary_size, spec.eos_ids)

    has_tags = spec.tokenizer.id_of(CALL) is not None

    def compile_form(asked: Constraint | None, tools: Tools) -> Form | None:
        try:
            return compiled(constraint_of(asked, tools, spec.tool_form, has_tags=has_tags))
        except (InputInvalid, GrammarTooComplex):
            if all(tool.is_strict for tool in tools.usable):
                raise
        # Only of a strict tool the client counts on arguments in their schema.
        return compiled(constraint_of(asked, tools, spec.tool_form, holds_all=False, has_tags=has_tags))

    def compiled(constraint: Constraint | None) -> Form | None:
        return None if constraint is None else compiler.compile(constraint)

    return compile_form
