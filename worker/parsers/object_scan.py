"""Places in a text as it comes: JSON objects with a box or a point, `(x,y),(x,y)`, `[x1, y1, x2, y2]`,
`<points x1="…" y1="…" alt="…">`. Knows no pictures.

Each JSON object is found by itself, so that those of a list that is cut off, or that has a broken one in it, are there.
"""

import ast
import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from worker.core.safe_json import JsonObject
from worker.parsers.json_call import loaded

MAX_DEPTH = 32
MAX_OBJECTS = 2000  # of one answer
MAX_LABEL_CHARS = 200
_WINDOW = 64  # in which a sign's neighbour is looked for
MAX_PLACE_CHARS = 256  # of numbers in brackets
MAX_PYTHON_CHARS = 10_000  # of an object in Python's form: its parser is slow and deep
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
_MARKS = re.compile(r"""\\.|["'{}\[\](<]""", re.DOTALL)
_BOUNDARY = re.compile(r"[.!?;:,\n。，；：！？()\[\]{}]")
_TAG = re.compile(r"</?[a-z_]+>|[*`]")
# An object begins within a string, which in JSON cannot be: a quote ends the string, and no name follows.
_NEW_OBJECT = re.compile(r"""\{\s{0,32}(["'])[^"'\n{}\[\]:,]{1,48}\1\s{0,32}:""")
_NEW_GOES_ON = re.compile(r"""\{\s{0,32}(?:(["'])[^"'\n{}\[\]:,]{0,48}(?:\1\s{0,32})?)?""")
MAX_POINTS_CHARS = 4096  # of a tag with points
_POINTS = re.compile(rf"<points?\s([^<>]{{0,{MAX_POINTS_CHARS}}})>")
_POINTS_GO_ON = re.compile(r"<(?:p(?:o(?:i(?:n(?:t(?:s?(?:\s[^<>]*+)?)?)?)?)?)?)?")
_COORDINATE = re.compile(r"""\b([xy])(\d{0,4})\s*=\s*["']?(-?\d+(?:\.\d+)?)""")
_ALT = re.compile(r"""\balt\s*=\s*(?:"([^"]*)"|'([^']*)')""")


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
        self._string_quote = ""  # of the string that it is in
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
        if self._string_quote:
            return self._in_string(sign, at, is_last=is_last)
        if sign == "{":
            return self._opened(at, is_last=is_last)
        if self._stack:
            if sign == self._stack[-1].quote or sign == '"':  # Python's quotes are `'`, and `"` around an apostrophe
                self._string_quote = sign
            elif sign == "}":
                self._closed(at + 1)
            return at + len(sign)
        if sign == "(":
            return self._pairs(at, is_last=is_last)
        if sign == "[":
            return self._four(at, is_last=is_last)
        if sign == "<":
            return self._points(at, is_last=is_last)
        if sign == "]":
            self._is_in_list = False
        return at + len(sign)

    def _in_string(self, sign: str, at: int, *, is_last: bool) -> int | None:
        """A string that was never closed, or that a quote too many opened, ends where a new object begins."""
        if sign == self._string_quote:
            self._string_quote = ""
        elif sign == "{":
            following = _NEW_OBJECT.match(self._text, at)
            if following is None and not is_last and _NEW_GOES_ON.fullmatch(self._text, at):
                return None
            if following is not None and following.group(1) == self._string_quote:
                self._string_quote = ""
                self._stack.pop()
                self.num_broken += 1
                return at
        return at + len(sign)

    def _following(self, at: int) -> str:
        return self._text[at : at + _WINDOW].lstrip()[:1]

    def _opened(self, at: int, *, is_last: bool) -> int | None:
        following = self._following(at + 1)
        if not following and not is_last and len(self._text) - at <= _WINDOW:
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
        fields = _fields(written, entry.quote)
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

    def _points(self, at: int, *, is_last: bool) -> int | None:
        match = _POINTS.match(self._text, at)
        if match is None:
            is_short = len(self._text) - at <= MAX_POINTS_CHARS
            return None if not is_last and is_short and _POINTS_GO_ON.fullmatch(self._text, at) else at + 1
        label = next((each for each in _ALT.findall(match.group(1)) for each in each if each), "")
        for numbers in _coordinates(match.group(1)):
            self._found.append(Written(label=label[:MAX_LABEL_CHARS], numbers=numbers))
        self._label_from = match.end()
        return match.end()

    def _is_open(self, goes_on: re.Pattern[str], at: int) -> bool:
        """Whether what comes next may belong to it."""
        return len(self._text) - at < MAX_PLACE_CHARS and goes_on.fullmatch(self._text, at) is not None

    def _label_before(self, at: int) -> str:
        before = _TAG.sub("", self._text[max(self._label_from, at - MAX_LABEL_CHARS) : at]).rstrip(" :=：")
        label = _BOUNDARY.split(before)[-1].strip(" -").strip("\"'")
        return "" if label in (*BOX_KEYS, *POINT_KEYS) else label


def has_place(fields: JsonObject) -> bool:
    """Whether a JSON object gives the place of something."""
    return any(fields.get(key) is not None for key in (*BOX_KEYS, *POINT_KEYS, BOX_3D_KEY))


def _fields(written: str, quote: str) -> object:
    """What a JSON object says, also with commas too many, or as Python writes it; None where it cannot be read."""
    fields = loaded(written, is_strict=False)
    if fields is None:
        fields = loaded(re.sub(r",\s*([}\]])", r"\1", written), is_strict=False)
    if fields is None and quote == "'" and len(written) <= MAX_PYTHON_CHARS:
        fields = _of_python(written)
        if fields is None and '"' not in written:  # `null` and `true` among Python's quotes
            fields = loaded(written.replace("'", '"'), is_strict=False)
    return fields


def _of_python(written: str) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        warnings.simplefilter("ignore", DeprecationWarning)  # of unknown escapes, before Python 3.12
        try:
            return loaded(json.dumps(ast.literal_eval(written), allow_nan=False), is_strict=False)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return None


def _coordinates(attributes: str) -> Iterator[tuple[float, float]]:
    """The points of a tag, `x1="…" y1="…" x2=…`."""
    columns: dict[str, float] = {}
    for axis, number, value in _COORDINATE.findall(attributes):
        if axis == "x":
            columns[number] = float(value)
        elif number in columns:
            yield columns.pop(number), float(value)


def _corners(written: str) -> tuple[float, ...]:
    numbers = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", written)]
    return min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2])
