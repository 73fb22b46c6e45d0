"""What an answer's tokens are held to, beside its sampling: the end of its thinking, then its grammar.

Knows tokens alone. The grammar begins behind the thinking, and behind the blank line with which every template of the
families separates the two.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from worker.checkpoint.tokenizer import Tokenizer
from worker.core.tags import THINK, THINK_END

GAP = "\n\n"


class State(Protocol):
    """Where an answer is in its grammar. See `grammar.GrammarState`."""

    @property
    def mask(self) -> npt.NDArray[np.int32]: ...

    @property
    def is_complete(self) -> bool: ...

    def prepare(self) -> None: ...

    def following(self) -> list[int]: ...

    def allows_other_than(self, tokens: Iterable[int]) -> bool: ...

    def accept(self, token: int) -> None: ...


@dataclass(frozen=True)
class ThinkingTokens:
    """The tokens around a thought; None for a model that has none. gap: what stands between it and the answer."""

    begin: int | None = None
    end: int | None = None
    gap: tuple[int, ...] = ()


def thinking_tokens(tokenizer: Tokenizer) -> ThinkingTokens:
    """By the names that all families give them."""
    return ThinkingTokens(tokenizer.id_of(THINK), tokenizer.id_of(THINK_END), tuple(tokenizer.encode(GAP)))


class Guide:
    """Of one answer. opens_thought: the prompt ends within a thought; budget: tokens of it, None: no limit; state: its
    grammar."""

    def __init__(
        self,
        tokens: ThinkingTokens = ThinkingTokens(),
        *,
        opens_thought: bool = False,
        budget: int | None = None,
        state: State | None = None,
    ) -> None:
        self._tokens, self._budget, self._state = tokens, budget, state
        self._forced: deque[int] = deque()
        self._has_begun = self._is_cut = False
        self.num_reasoning = 0
        self.is_thinking = opens_thought and tokens.end is not None
        self._end_overdue()

    @property
    def forced(self) -> int | None:
        """The next token, whatever the model says; None where it is chosen."""
        return self._forced[0] if self._forced else None

    @property
    def is_free(self) -> bool:
        """Whether it never holds a token to anything."""
        return self._state is None and self._budget is None

    @property
    def has_grammar(self) -> bool:
        """Whether the answer has one, which may begin later."""
        return self._state is not None

    @property
    def grammar(self) -> State | None:
        """What the next token is held to."""
        return None if self.is_thinking or self._forced else self._state

    def following(self) -> list[int]:
        """The tokens that come next whatever the model says, as many as are known; empty where the next is chosen."""
        if self._forced:
            return list(self._forced)
        return [] if self.grammar is None else self.grammar.following()

    @property
    def is_complete(self) -> bool:
        """Whether the answer has its grammar and nothing can follow."""
        grammar = self.grammar
        return grammar is not None and self._has_begun and grammar.is_complete

    def end_thought(self) -> bool:
        """Have the thought end with the next token, as at the end of its budget. False where that cannot be: no thought
        goes on, or its steps are launched before the last token is known (`is_free`)."""
        if not self.is_thinking or self._tokens.end is None or self.is_free:
            return False
        self._is_cut = True
        if not self._forced:
            self._forced.append(self._tokens.end)
        return True

    def may_end(self, ending: Iterable[int], *, has_enough: bool) -> bool:
        """Whether the answer may end with the next token: not before it has enough tokens, unless its grammar allows no
        others, and not before its grammar has begun."""
        if self.is_thinking and self.has_grammar:
            return False
        return has_enough or (self.grammar is not None and not self.grammar.allows_other_than(ending))

    def accept(self, token: int) -> None:
        """Take it as the next token. Raises GrammarTooComplex."""
        is_first, self._has_begun = not self._has_begun, True
        if self.is_thinking:
            self.num_reasoning += 1
            if self._forced:
                self._forced.popleft()
            if token == self._tokens.end:
                self.is_thinking = False
                self._forced.clear()
                if self._state is not None or self._is_spent:
                    self._forced.extend(self._tokens.gap)
            self._end_overdue()
        elif self._forced:
            self._forced.popleft()
        elif self._state is not None:
            self._state.accept(token)
        elif is_first and token == self._tokens.begin:
            self.num_reasoning += 1
            self.is_thinking = self._tokens.end is not None

    @property
    def _is_spent(self) -> bool:
        return self._is_cut or (self._budget is not None and self.num_reasoning > self._budget)

    def _end_overdue(self) -> None:
        is_due = self._budget is not None and self.num_reasoning >= self._budget
        if self.is_thinking and is_due and not self._forced and self._tokens.end is not None:
            self._forced.append(self._tokens.end)
