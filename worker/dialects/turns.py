"""Turns that are put together from parts which stand elsewhere in a body: items of OpenAI's Responses, blocks of
Anthropic's Messages. Each part keeps its place, for error messages."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from worker.core.contract import Message, Role
from worker.core.safe_json import JsonObject
from worker.dialects.messages import Block, Place, TextBlock, Turn, spoken
from worker.dialects.tool_fields import ToolCallBody


@dataclass
class TurnParts:
    """One turn. where: its own place; places: of its blocks, and of the arguments of its calls; call_id: whose result
    it is."""

    role: str
    where: str
    blocks: list[Block] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    calls: list[ToolCallBody] = field(default_factory=list)
    call_places: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    call_id: str | None = None

    def show(self, block: Block, where: str) -> None:
        """Its next block, validated."""
        self.blocks.append(block)
        self.places.append(where)

    def say(self, text: str, where: str) -> None:
        """Words, validated."""
        self.show(TextBlock.model_construct(type="text", text=text), where)

    def call(self, call_id: str, name: str, arguments: str | JsonObject, where: str) -> None:
        """A call of a tool, validated but for its arguments. where: of those."""
        function = ToolCallBody.Function.model_construct(name=name, arguments=arguments)
        self.calls.append(ToolCallBody.model_construct(id=call_id, type="function", function=function))
        self.call_places.append(where)

    def made(self) -> Turn:
        """As it would stand in a chat."""
        return Turn.model_construct(
            role=self.role,
            content=self.blocks or None,
            reasoning="".join(self.reasoning) or None,
            tool_calls=self.calls or None,
            tool_call_id=self.call_id,
        )


def spoken_parts(turns: Sequence[TurnParts], roles: Mapping[str, Role], where: str) -> Iterator[Message]:
    """The turns as messages. where: of all of them in the body. Raises InputInvalid."""

    def place(index: int, name: str) -> Place:
        turn = turns[index]
        return tuple(turn.call_places) if name == "tool_calls" else tuple(turn.places) or f"{turn.where}.content"

    yield from spoken([turn.made() for turn in turns], roles, place, where)
