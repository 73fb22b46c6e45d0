"""One answer's text, as it comes, told apart into thinking, words and calls of tools.

A call ends where its JSON ends, not at a tag, which may stand inside a string. It is held back until it is whole. What
looks like a call and is none (broken JSON, an unknown tool) stays text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from worker.core.tags import CALL, CALL_END, THINK, THINK_END
from worker.core.tools import Tool, ToolCall
from worker.core.undecided import num_undecided
from worker.parsers.json_call import JsonEnd, as_json, json_call
from worker.parsers.xml_call import FUNCTION, BrokenCallError, XmlCall, head_of, typed

MAX_TRIES = 16  # calls that never became whole, of one answer
MAX_NAME_CHARS = 256
# Behind a call: its end tag, and brackets too many before it.
_CLOSING = re.compile(rf"[\s}}\]]*{CALL_END}")


@dataclass
class Told:
    """What a piece of an answer was told apart into."""

    reasoning: str = ""
    text: str = ""
    calls: list[ToolCall] = field(default_factory=list)


class _Words:
    """Words that come in parts. Blanks at their end are held back until more words come; blanks at their beginning, and
    twice between words where a call stood, are dropped."""

    def __init__(self, *, is_trimmed: bool, holds_blanks: bool) -> None:
        self._is_trimmed, self._holds_blanks = is_trimmed, holds_blanks
        self._held = ""
        self._has_begun = self._is_behind_gap = False

    def trim(self) -> None:
        """What comes begins behind something that is no words."""
        self._is_trimmed = True

    def gap(self) -> None:
        """A call stands here."""
        self._is_behind_gap = True

    def say(self, text: str) -> str:
        """The text that can be sent."""
        if self._is_behind_gap or (self._is_trimmed and not self._has_begun):
            words = text.lstrip()
            if not words:
                self._held += "" if self._held or not self._has_begun else text
                return ""
            blanks = text[: len(text) - len(words)]
            text = (self._held or blanks if self._has_begun else "") + words
            self._held, self._is_behind_gap = "", False
        text, self._held = self._held + text, ""
        if self._holds_blanks:
            words = text.rstrip()
            text, self._held = words, text[len(words) :]
        self._has_begun = self._has_begun or bool(text)
        return text

    def finish(self) -> str:
        """What was held back and belongs to the words after all."""
        return self._held if self._has_begun and not self._is_behind_gap else ""


class AnswerParser:
    """Tells one answer apart. tools: those that it may call; is_parallel: several of them. opens_thought: the prompt
    ends within a thought."""

    def __init__(self, tools: Sequence[Tool] = (), *, is_parallel: bool = True, opens_thought: bool = False) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._has_strict = any(tool.is_strict for tool in tools)  # whose calls stand between tags alone
        self._is_parallel = is_parallel
        self._text = ""  # undecided
        self._opening = ""  # of the call that is being read, as it was written
        self._json = JsonEnd()
        self._xml: XmlCall | None = None
        self._state = self._begin
        self._is_thinking = self._was_thinking = opens_thought
        self._reasoning = _Words(is_trimmed=True, holds_blanks=True)
        self._words = _Words(is_trimmed=opens_thought, holds_blanks=bool(tools))
        self._num_calls = 0
        self._told = Told()
        self._is_last = False

    @property
    def has_calls(self) -> bool:
        return self._num_calls > 0

    def push(self, text: str) -> Told:
        """What the text makes certain."""
        self._text += text
        self._advance()
        told, self._told = self._told, Told()
        return told

    def _advance(self) -> None:
        while self._state():
            pass

    def finish(self, *, is_cut: bool) -> Told:
        """What is left. is_cut: the answer was ended before the model ended it: a call that is not whole is none."""
        self._is_last = not is_cut
        self._advance()
        for _ in range(MAX_TRIES):
            if self._state != self._call:
                break
            self._refuse_call()  # it never became whole: the next one is looked for behind its beginning
            self._advance()
        if self._state == self._call:
            self._say(self._opening)
        if self._state == self._behind_call:
            self._text = "" if not self._text.strip() or CALL_END.startswith(self._text.strip()) else self._text
        self._say(self._text)
        self._text = ""
        self._told.text += self._words.finish()
        return self._told

    def _begin(self) -> bool:
        """At the very beginning: `<think>` from a model whose prompt does not open the thought, or once more."""
        start = self._text.lstrip()
        if THINK.startswith(start) and start != THINK and not self._is_last:
            return False
        if start.startswith(THINK):
            self._text = start.removeprefix(THINK)
            self._is_thinking = self._was_thinking = True
            self._words.trim()
        self._state = self._speak
        return True

    def _speak(self) -> bool:
        """Words up to the next tag."""
        tags = [THINK_END] if self._was_thinking else []
        tags += [CALL, *([] if self._has_strict else [FUNCTION])] if self._tools else []
        found = [(at, tag) for tag in tags if (at := self._text.find(tag)) >= 0]
        if not found:
            kept = 0 if self._is_last else num_undecided(self._text, tags)
            end = len(self._text) - kept
            self._say(self._text[:end])
            self._text = self._text[end:]
            return False
        at, tag = min(found)
        self._say(self._text[:at])
        self._text = self._text[at:] if tag == FUNCTION else self._text[at + len(tag) :]
        if tag == THINK_END:
            self._is_thinking = self._was_thinking = False
        else:
            self._begin_call("" if tag == FUNCTION else tag)
        return True

    def _call(self) -> bool:
        """A call, once it is whole."""
        thought_end = self._text.find(THINK_END) if self._is_thinking else -1
        written = self._text if thought_end < 0 else self._text[:thought_end]
        start = written.lstrip()
        is_open = not start or (FUNCTION.startswith(start) and start != FUNCTION)
        try:
            if not is_open and self._is_taken(start, len(written) - len(start)):
                return True
            is_open = is_open or start.startswith(("{", FUNCTION))
        except ValueError:
            is_open = False
        if is_open and thought_end < 0:
            return False
        self._refuse_call()  # none, or one that is only thought about
        return True

    def _is_taken(self, start: str, blanks: int) -> bool:
        """Whether a text is a call, which is taken then. Raises ValueError where it cannot become one."""
        if start.startswith("{"):
            return self._json_call(start, blanks)
        return start.startswith(FUNCTION) and self._xml_call(start, blanks)

    def _json_call(self, start: str, blanks: int) -> bool:
        end = self._json.find(start)
        if end is None:
            return False
        found = json_call(start[:end])
        tool = None if found is None else self._tools.get(found[0])
        arguments = None if found is None else as_json(found[1])
        if tool is None or arguments is None:
            self._refuse_call(blanks + end)
        else:
            self._take(ToolCall(name=tool.name, arguments=arguments), blanks + end)
        return True

    def _xml_call(self, start: str, blanks: int) -> bool:
        name = head_of(start)
        if name is None:
            if "\n" in start or len(start) > MAX_NAME_CHARS:
                raise BrokenCallError
            return False  # the rest of its name may still come
        tool = self._tools.get(name)
        if tool is None:
            raise BrokenCallError
        if self._xml is None:
            self._xml = XmlCall(_names(tool))
        end = self._xml.find(start, is_last=self._is_last)
        if end is None:
            return False
        arguments = as_json(typed(self._xml.values, tool.parameters))
        if arguments is None:
            raise BrokenCallError
        self._take(ToolCall(name=tool.name, arguments=arguments), blanks + end)
        return True

    def _take(self, call: ToolCall, end: int) -> None:
        self._text = self._text[end:]
        self._num_calls += 1
        if self._is_parallel or self._num_calls == 1:
            self._told.calls.append(call)
        self._is_thinking = False  # a call ends the thinking: what comes behind it is said
        self._words.gap()
        self._state = self._behind_call

    def _behind_call(self) -> bool:
        """The end tag, where there is one, and further calls within the same tags."""
        closing = _CLOSING.match(self._text)
        if closing is not None:
            self._text = self._text[closing.end() :]
        else:
            rest = self._text.lstrip()
            if rest.startswith(("{", FUNCTION)):
                self._begin_call("")
                return True
            is_open = not rest.strip("}] \n\r\t") or CALL_END.startswith(rest.lstrip("}] \n\r\t"))
            if is_open and not self._is_last:
                return False
            if is_open:
                self._text = ""
        self._state = self._speak
        return True

    def _begin_call(self, opening: str) -> None:
        self._opening, self._json, self._xml = opening, JsonEnd(), None
        self._state = self._call

    def _refuse_call(self, end: int = 0) -> None:
        """It is none: the tag that opened it, and the text up to here, are words."""
        end = end or (0 if self._opening else len(FUNCTION))
        self._say(self._opening + self._text[:end])
        self._text, self._opening = self._text[end:], ""
        self._state = self._speak

    def _say(self, text: str) -> None:
        if not text:
            return
        if self._is_thinking:
            self._told.reasoning += self._reasoning.say(text)
        else:
            self._told.text += self._words.say(text)


def _names(tool: Tool) -> list[str]:
    """Of its parameters."""
    properties = tool.parameters.get("properties")
    return list(properties) if isinstance(properties, dict) else []
