"""Functions that a model may call, and its calls of them. Values alone: no template and no parser."""

import json
from functools import cached_property
from typing import Any, Literal

from pydantic import Field

from worker.core.value import Value

ToolChoice = Literal["auto", "none", "required"]


class Tool(Value):
    """A function that the model may call. definition: as the client wrote it, JSON of `{"type": "function",
    "function": {"name", "description", "parameters"}}`. is_strict: its arguments are held to their schema.
    where: its place in the request, for error messages."""

    name: str
    definition: str = Field(repr=False)
    is_strict: bool = False
    where: str = "tools"

    @cached_property
    def function(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.definition)["function"]
        return found

    @property
    def parameters(self) -> dict[str, Any]:
        """The JSON schema of its arguments; without one they are any object."""
        return self.function.get("parameters") or {"type": "object"}


class Tools(Value):
    """The functions of a request and how they are to be used. named: the one that must be called. is_parallel: one
    answer may have several calls."""

    offered: tuple[Tool, ...] = ()
    choice: ToolChoice = "auto"
    named: str | None = None
    is_parallel: bool = True

    @property
    def usable(self) -> tuple[Tool, ...]:
        """What the model is shown, and may call."""
        return () if self.choice == "none" else self.offered

    @property
    def is_forced(self) -> bool:
        """Whether the answer must be a call."""
        return bool(self.offered) and (self.choice == "required" or self.named is not None)

    @property
    def needs_grammar(self) -> bool:
        """Whether a grammar holds the calls: all calls that must be made, and those of strict tools."""
        return self.is_forced or any(tool.is_strict for tool in self.usable)


class NamedTool(Value):
    """The choice of one tool, which may have any name."""

    name: str


class ToolCall(Value):
    """A call of a tool. arguments: JSON of an object."""

    name: str
    arguments: str = Field(repr=False)
