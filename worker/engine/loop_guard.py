"""Tells an answer that repeats itself for ever from one that has rows that are alike.

A loop is an exact period of the tail: the last tokens, of any number up to `MAX_PERIOD`, are those before them once
more. It is one when it is three periods and `MARGIN` tokens long: an answer may well have seven rows of twelve tokens
that are alike, or five of thirty. What is of `PLAIN` characters, tags and words for no value alone (rulers, dots,
columns of zeros, empty cells) may go on for `PLAIN_MARGIN`.
"""

import re
from collections.abc import Callable, Sequence

MIN_MATCH = 4  # tokens that come back before a period is looked for
MAX_PERIOD = 2048
PERIODS = 3
MARGIN = 64
PLAIN_MARGIN = 512
PLAIN = frozenset("0123456789|-_=.*#+~,:;/\\<>()[]{}\"'…·—–─│┼━═＿．、")


# Tags, also those cut off at either end, and words that stand for no value.
_NOTHING = re.compile(r"^[^<>]{0,200}>|<[^<>]*>|<[^<>]{0,200}$|\b(?:null|None|nil|nan|NaN|N/A|n/a|true|false)\b")


class LoopGuard:
    """Of one answer. text_of: a token's."""

    def __init__(self, text_of: Callable[[int], str]) -> None:
        self._text_of = text_of
        self._tokens: list[int] = []
        self._last_at: dict[tuple[int, ...], int] = {}
        self._runs: dict[int, int] = {}  # tokens that agree with those a period before, by period
        self._plain: dict[int, bool] = {}  # of periods in `_runs`

    def push(self, token: int) -> bool:
        """Whether the answer has become a loop with this token."""
        tokens = self._tokens
        tokens.append(token)
        if self._runs:
            self._runs = {period: run + 1 for period, run in self._runs.items() if token == tokens[-1 - period]}
            if not self._runs:
                self._plain.clear()
        if len(tokens) < MIN_MATCH:
            return False
        tail, end = tuple(tokens[-MIN_MATCH:]), len(tokens)
        period = end - self._last_at.get(tail, -MAX_PERIOD)
        self._last_at[tail] = end
        if len(self._last_at) > 2 * MAX_PERIOD:
            self._last_at = {tail: at for tail, at in self._last_at.items() if end - at <= MAX_PERIOD}
        if period <= MAX_PERIOD and period not in self._runs:
            self._runs[period] = self._agreeing(period)
            self._plain.pop(period, None)
        return any(
            run >= (PERIODS - 1) * period + MARGIN and self._is_loop(period, run) for period, run in self._runs.items()
        )

    @property
    def is_repeating(self) -> bool:
        """Whether the newest tokens are a second time what was there already, so that they may be the tail of a
        loop."""
        return any(run >= max(period, MIN_MATCH * 4) for period, run in self._runs.items())

    def _agreeing(self, period: int) -> int:
        tokens, run = self._tokens, 0
        most = (PERIODS - 1) * period + PLAIN_MARGIN
        while run < most and run + period < len(tokens) and tokens[-1 - run] == tokens[-1 - run - period]:
            run += 1
        return run

    def _is_loop(self, period: int, run: int) -> bool:
        if period not in self._plain:
            self._plain[period] = self._is_plain(self._tokens[-period:])
        return not self._plain[period] or run >= (PERIODS - 1) * period + PLAIN_MARGIN

    def _is_plain(self, tokens: Sequence[int]) -> bool:
        """The period may begin within a tag: it is looked at twice in a row, without what is cut off at its ends."""
        text = "".join(map(self._text_of, tokens)) * 2
        return all(sign in PLAIN or sign.isspace() for sign in _NOTHING.sub("", text))
