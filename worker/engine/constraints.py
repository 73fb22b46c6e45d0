"""From a request to the grammar of its answer. llguidance is loaded when the first request has a constraint."""

import threading
from typing import Protocol

from worker.checkpoint.spec import ModelSpec
from worker.core.sampling import Constraint
from worker.core.tools import Tools
from worker.engine.guide import State


class CompiledGrammar(Protocol):
    """See `grammar.Grammar`."""

    def begin(self) -> State: ...


class Compiler(Protocol):
    """See `tool_grammar.AnswerCompiler`."""

    def compile(self, asked: Constraint | None, tools: Tools) -> CompiledGrammar | None: ...


class Constraints:
    """Compiles the constraints on answers of one model. Safe to use from many threads."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._compiler: Compiler | None = None
        self._lock = threading.Lock()

    def compiled(self, asked: Constraint | None, tools: Tools) -> CompiledGrammar | None:
        """The grammar of an answer; None where it is free. Raises InputInvalid, GrammarTooComplex."""
        if self.is_free(asked, tools):
            return None
        with self._lock:
            if self._compiler is None:
                from worker.engine.tool_grammar import AnswerCompiler

                self._compiler = AnswerCompiler(self._spec)
        return self._compiler.compile(asked, tools)

    @staticmethod
    def is_free(asked: Constraint | None, tools: Tools) -> bool:
        """Whether nothing holds the answer."""
        return asked is None and not tools.needs_grammar
