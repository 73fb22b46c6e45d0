"""Tells an answer that repeats itself for ever from one that has rows that are alike.

A loop is an exact period of the tail: the last tokens, of any number up to `MAX_PERIOD`, are those before them once
more. It is one when it is three periods and `MARGIN` tokens long: an answer may well have seven rows of twelve tokens
that are alike, or five of thirty. What has no words (rulers, dots, columns of zeros and prices, empty cells, check
boxes, bytes, records of empty fields) may go on for `PLAIN_MARGIN`.
"""

import re
from collections.abc import Callable, Sequence

MIN_MATCH = 4  # tokens that come back before a period is looked for
MAX_PERIOD = 2048
PERIODS = 3
MARGIN = 64
PLAIN_MARGIN = 1024

_EMPTY = r"""(?:""|''|null|None|nil|NaN|nan|N/A|n/a|true|false|\[\s*\]|\{\s*\}|0(?:\.0+)?(?![\d.]))"""
# Letters that are no words.
_NOTHING = re.compile(
    r"<[^<>]{0,200}>"  # a tag
    r"|&[A-Za-z]{2,8};|\\[A-Za-z]{1,20}"  # HTML's spaces, LaTeX's lines
    r"|\b(?:null|None|nil|NaN|nan|N/A|n/a|true|false)\b|\bn\.a\."
    rf"""|"[^"\n]{{1,64}}"\s*:\s*(?={_EMPTY}|\{{)"""  # the name of a field that is empty
    r"|\b0[xX][0-9a-fA-F]+[uUlL]{0,3}\b|\b(?:[fF]{2}){1,4}\b"  # bytes
    r"|(?<=\d)\s?[A-Za-z]{1,3}\b|(?<=\d)\s?[元円个件年月日时分秒]"  # units
    r"|\b[A-Z]{3}\s?(?=\d)|(?<=\d)T(?=\d)|°\s?[CFK]\b"  # currencies, times, degrees
    r"|(?<![^\W\d_])[xX](?![^\W\d_])"  # a cross in a box
)
# What a loop is made of: letters, and `!!!!`, emoji, characters that are cut.
_WORDS = re.compile("[^\\W\\d_]|[!?！？\ufffd\U0001f000-\U0010ffff]")


class LoopGuard:
    """Of one answer. bytes_of: a token's."""

    def __init__(self, bytes_of: Callable[[int], bytes]) -> None:
        self._bytes_of = bytes_of
        self.clear()

    def clear(self) -> None:
        """Forget what was said: something else begins."""
        self._tokens: list[int] = []
        self._chosen: list[int] = [0]  # how many of the tokens up to each the model has chosen
        self._last_at: dict[tuple[int, ...], int] = {}
        self._runs: dict[int, int] = {}  # tokens that agree with those a period before, by period
        self._plain: dict[int, bool] = {}  # of periods in `_runs`

    def push(self, token: int, *, is_certain: bool = False) -> bool:
        """Whether the answer has become a loop with this token. is_certain: a grammar left no choice about it; a loop
        has a token in each round that the model has chosen, and ends with one."""
        tokens = self._tokens
        tokens.append(token)
        self._chosen.append(self._chosen[-1] + (not is_certain))
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
        return not is_certain and any(
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
        if self._chosen[-1] - self._chosen[-1 - run] < run // period:
            return False
        if period not in self._plain:
            self._plain[period] = self._is_plain(self._tokens[-period:])
        return not self._plain[period] or run >= (PERIODS - 1) * period + PLAIN_MARGIN

    def _is_plain(self, tokens: Sequence[int]) -> bool:
        """The period may begin within a tag or a character: it is looked at between two others."""
        text = (b"".join(map(self._bytes_of, tokens)) * 3).decode(errors="replace")
        left = _NOTHING.sub(lambda found: " " * len(found.group()), text)
        third = len(text) // 3
        return _WORDS.search(left, third, 2 * third) is None
