"""Places in a text as it comes: JSON objects with a box or a point, `(x,y),(x,y)`, `[x1, y1, x2, y2]`. Knows no
pictures.

Each JSON object is found by itself, so that those of a list that is cut off, or that has a broken one in it, are there.
"""

import re
from dataclasses import dataclass

from worker.core.safe_json import JsonObject
from worker.parsers.json_call import loaded

MAX_DEPTH = 32
MAX_OBJECTS = 2000  # of one answer
MAX_LABEL_CHARS = 200
_WINDOW = 64  # in which a sign's neighbour is looked for
MAX_PLACE_CHARS = 256  # of numbers in brackets
BOX_KEYS = ("bbox_2d", "bbox", "box_2d", "box", "bounding_box", "bboxes", "boxes")
POINT_KEYS = ("point_2d", "point", "points")
BOX_3D_KEY = "bbox_3d"
_HAS_PLACE = re.compile(rf"[\"'](?:{'|'.join((*BOX_KEYS, *POINT_KEYS, BOX_3D_KEY))})[\"']\s*:")
_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
_PAIR = rf"\({_NUMBER},{_NUMBER}\)"
_PAIRS = re.compile(rf"{_PAIR}(?:\s*,?\s*{_PAIR}){{0,7}}")
# Possessive: there is one way to read it, and none is tried twice.
_PAIRS_GO_ON = re.compile(r"[\s,]*+(?:\([\s\d.,(-]*+(?:\)[\s,]*+|\Z))*+", re.ASCII)
_FOUR = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")
_FOUR_GOES_ON = re.compile(r"\[[\s\d.,-]*", re.ASCII)
_MARKS = re.compile(r"""\\.|["'{}\[\](]""", re.DOTALL)
_BOUNDARY = re.compile(r"[.!?;:,\n。，；：！？()\[\]{}]")
_TAG = re.compile(r"</?[a-z_]+>|[*`]")
_NEW_OBJECT = re.compile(r"\n\s*\Z")


@dataclass(frozen=True)
class Written:
    """A place as it was written: a JSON object, or numbers behind a label."""

    fields: JsonObject | None = None
    label: str = ""
    numbers: tuple[float, ...] = ()


@dataclass
class _Open:
    """A JSON object that is not at its end. own_end: where the first object inside of it begins."""

    start: int
    quote: str
    own_end: int | None = None


class ObjectScan:
    """Of one answer. num_broken: objects that began and cannot be read. is_whole: nothing is cut off."""

    def __init__(self) -> None:
        self.num_broken = 0
        self.is_whole = True
        self._text = ""
        self._at = 0
        self._label_from = 0
        self._stack: list[_Open] = []
        self._string_at: int | None = None
        self._is_in_list = False
        self._found: list[Written] = []
        self._num_found = 0

    def push(self, text: str) -> list[Written]:
        """What is whole with this text."""
        self._text += text
        self._scan(is_last=False)
        return self._taken()

    def finish(self) -> list[Written]:
        """What is left at the end."""
        self._scan(is_last=True)
        for entry in self._stack[:-1]:
            own = self._text[entry.start : entry.own_end]
            self.num_broken += _HAS_PLACE.search(own) is not None
        self.is_whole = not self._stack and not self._is_in_list
        return self._taken()

    def _taken(self) -> list[Written]:
        found, self._found = self._found, []
        room = max(0, MAX_OBJECTS - self._num_found)
        self._num_found += len(found)
        return found[:room]

    def _scan(self, *, is_last: bool) -> None:
        while (mark := _MARKS.search(self._text, self._at)) is not None:
            end = self._mark(mark.group(), mark.start(), is_last=is_last)
            if end is None:
                self._at = mark.start()
                return
            self._at = end
        self._at = max(self._at, len(self._text) - self._text.endswith("\\"))

    def _mark(self, sign: str, at: int, *, is_last: bool) -> int | None:
        """The place behind it; None where more text must come."""
        if self._string_at is not None:
            return self._in_string(sign, at, is_last=is_last)
        if sign == "{":
            return self._opened(at, is_last=is_last)
        if self._stack:
            if sign == self._stack[-1].quote:
                self._string_at = at
            elif sign == "}":
                self._closed(at + 1)
            return at + len(sign)
        if sign == "(":
            return self._pairs(at, is_last=is_last)
        if sign == "[":
            return self._four(at, is_last=is_last)
        if sign == "]":
            self._is_in_list = False
        return at + len(sign)

    def _in_string(self, sign: str, at: int, *, is_last: bool) -> int | None:
        """A string that was never closed ends where a new object begins on a line of its own."""
        assert self._string_at is not None
        if sign == self._stack[-1].quote:
            self._string_at = None
        elif sign == "{" and _NEW_OBJECT.search(self._text, max(self._string_at, at - _WINDOW), at):
            following = self._following(at + 1)
            if not following and not is_last:
                return None
            if following == self._stack[-1].quote:
                self._string_at = None
                self._stack.pop()
                self.num_broken += 1
                return at
        return at + len(sign)

    def _following(self, at: int) -> str:
        return self._text[at : at + _WINDOW].lstrip()[:1]

    def _opened(self, at: int, *, is_last: bool) -> int | None:
        following = self._following(at + 1)
        if not following and not is_last:
            return None
        if following == "{":
            self.num_broken += 1  # an object begins with a name
        elif following in ("'", '"') and len(self._stack) < MAX_DEPTH:
            if self._stack and self._stack[-1].own_end is None:
                self._stack[-1].own_end = at
            if not self._stack and self._text[max(0, at - _WINDOW) : at].rstrip().endswith("["):
                self._is_in_list = True
            self._stack.append(_Open(at, following))
        return at + 1

    def _closed(self, end: int) -> None:
        entry = self._stack.pop()
        written = self._text[entry.start : end]
        self._label_from = end
        if not _HAS_PLACE.search(written):
            return
        fields = loaded(written, is_strict=False)
        if fields is None:
            fields = loaded(_repaired(written, entry.quote), is_strict=False)
        if isinstance(fields, dict):
            if has_place(fields):
                self._found.append(Written(fields=fields))
        elif entry.own_end is None:
            self.num_broken += 1

    def _pairs(self, at: int, *, is_last: bool) -> int | None:
        match = _PAIRS.match(self._text, at, at + MAX_PLACE_CHARS)
        if not is_last and self._is_open(_PAIRS_GO_ON, at):
            return None
        if match is None:
            return at + 1
        numbers = tuple(float(number) for number in match.groups() if number is not None)
        if match.group().count("(") > 2:  # a polygon; a repeated group keeps its last pair alone
            numbers = _corners(match.group())
        self._found.append(Written(label=self._label_before(at), numbers=numbers))
        self._label_from = match.end()
        return match.end()

    def _four(self, at: int, *, is_last: bool) -> int | None:
        match = _FOUR.match(self._text, at, at + MAX_PLACE_CHARS)
        if match is None:
            return None if not is_last and self._is_open(_FOUR_GOES_ON, at) else at + 1
        numbers = tuple(float(number) for number in match.groups())
        self._found.append(Written(label=self._label_before(at), numbers=numbers))
        self._label_from = match.end()
        return match.end()

    def _is_open(self, goes_on: re.Pattern[str], at: int) -> bool:
        """Whether what comes next may belong to it."""
        return len(self._text) - at < MAX_PLACE_CHARS and goes_on.fullmatch(self._text, at) is not None

    def _label_before(self, at: int) -> str:
        before = _TAG.sub("", self._text[max(self._label_from, at - MAX_LABEL_CHARS) : at]).rstrip(" :=：")
        return _BOUNDARY.split(before)[-1].strip(" -")


def has_place(fields: JsonObject) -> bool:
    """Whether a JSON object gives the place of something."""
    return any(fields.get(key) is not None for key in (*BOX_KEYS, *POINT_KEYS, BOX_3D_KEY))


def _repaired(written: str, quote: str) -> str:
    """Commas too many, and quotes of Python."""
    text = re.sub(r",\s*([}\]])", r"\1", written)
    return text.replace("'", '"') if quote == "'" and '"' not in text else text


def _corners(written: str) -> tuple[float, ...]:
    numbers = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", written)]
    return min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2])
