"""Keeps a caller's text from becoming control tokens, whatever a chat template puts before, behind or between.

A template joins texts without a separator, so `<|im_` and `end|>` in two texts would be one control token. Each place
of a caller's text that could be part of one is marked with a character that occurs nowhere in the request; the template
carries the marks along, and a control token in the rendered text counts only where no mark lies within it. Marks stand
behind the first character of such a place, so that a template's own tests (`startswith`, `trim`, `</think>`) see what
they would see without them.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate, chain

HEAD = 2  # characters with which a control token begins anywhere in a text
# Private characters, then ones that Unicode has not assigned: more of them than a request may have characters.
_MARKS = (range(0xE000, 0xF900), range(0x40000, 0xE0000))


class ControlTokens:
    """The control tokens of one tokenizer. Safe to use from many threads."""

    def __init__(self, contents: Iterable[str]) -> None:
        kept = sorted({content for content in contents if content}, key=len, reverse=True)
        self._longest = len(kept[0]) if kept else 0
        self._contents = tuple(kept)
        self._whole = re.compile("|".join(map(re.escape, kept)) or r"(?!)")
        self._heads = re.compile(
            f"(?={'|'.join(re.escape(head) for head in sorted({c[:HEAD] for c in kept})) or '(?!)'})"
        )
        self._beginnings = {content[:size] for content in kept for size in range(1, len(content))}
        self._endings = {content[size:] for content in kept for size in range(1, len(content))}

    def mark_for(self, texts: Iterable[str]) -> str:
        """A character that is in none of the texts."""
        used = set(chain.from_iterable(texts))
        return next(mark for mark in map(chr, chain(*_MARKS)) if mark not in used)

    def marked(self, text: str, mark: str) -> str:
        """The text, marked where it could be a part of a control token."""
        places = {found.start() + 1 for found in self._heads.finditer(text)}
        for size in range(1, min(self._longest, len(text) + 1)):
            if text[-size:] in self._beginnings:
                places.add(len(text) - size + 1)
            if text[:size] in self._endings:
                places.add(1)
        if 0 < len(text) < self._longest and any(text in content for content in self._contents):
            places.add(1)
        if not places:
            return text
        ends = sorted(places)
        return mark.join(text[begin:end] for begin, end in zip([0, *ends], [*ends, len(text)], strict=True))

    def split(self, rendered: str, mark: str) -> Iterator[tuple[str, bool]]:
        """The rendered text without its marks, in parts: each with whether it is a control token."""
        pieces = rendered.split(mark)
        text = "".join(pieces)
        marks = list(accumulate(map(len, pieces)))[:-1]
        taken = at = 0
        while (found := self._whole.search(text, at)) is not None:
            if bisect_right(marks, found.end()) > bisect_right(marks, found.start()):
                at = found.start() + 1
                continue
            if found.start() > taken:
                yield text[taken : found.start()], False
            yield found.group(), True
            taken = at = found.end()
        if taken < len(text):
            yield text[taken:], False
