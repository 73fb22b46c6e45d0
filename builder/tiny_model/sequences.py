"""One sequence of a training batch while it is written: prompts, pictures and answers as ids, labels, branches and
positions."""

import re

from tokenizers import Tokenizer

from builder.tiny_model import recipe, skills

Grid = tuple[int, int, int]  # temporal patches, rows and columns of patches
IGNORED = -100
NEXT_TURN = "\n<|im_start|>user\n"
# A string's letters and its end, a number, a list of numbers.
_JSON_VALUE = re.compile(r': (?:"([^"]*")|(\d+)|(\[[\d, ]*\]))')


class Sequence:
    """Its ids, and for each of them label, branch and position."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._branch = 0
        self._next = 0
        self.ids: list[int] = []
        self.labels: list[int] = []
        self.branch: list[int] = []
        self.positions: list[tuple[int, int, int]] = []

    def begin_branch(self, number: int, position: int) -> None:
        self._branch, self._next = number, position

    def text(self, text: str, *, is_learned: bool = False) -> None:
        for token in self._tokenizer.encode(text, add_special_tokens=False).ids:
            self._append(token, (self._next,) * 3, token if is_learned else IGNORED)
            self._next += 1

    def turn(self, ask: skills.Ask) -> None:
        self.text(f"{ask.question}<|im_end|>\n<|im_start|>assistant\n")
        if ask.thought is not None:
            self.text("<think>\n")
            self.text(f"{ask.thought}\n</think>\n\n", is_learned=True)
        if ask.is_form:
            self.values(f"{ask.answer}<|im_end|>")
        else:
            self.text(f"{ask.answer}<|im_end|>", is_learned=True)

    def values(self, text: str) -> None:
        """JSON of which only the values are learned, with what ends them."""
        spans = [found.span(found.lastindex or 0) for found in _JSON_VALUE.finditer(text)]
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        for token, (begin, end) in zip(encoding.ids, encoding.offsets, strict=True):
            is_value = any(begin < last and end > first for first, last in spans)
            self._append(token, (self._next,) * 3, token if is_value else IGNORED)
            self._next += 1

    def media(self, grid: Grid, times: list[float] | None) -> None:
        """A picture, or a clip as a span for each of its `times`."""
        pad = recipe.special_id("<|video_pad|>" if times else "<|image_pad|>")
        height, width = grid[1] // 2, grid[2] // 2
        for span in range(grid[0]):
            self.text((f"<{times[span]:.1f} seconds>" if times else "") + "<|vision_start|>")
            first = self._next
            for y in range(height):
                for x in range(width):
                    self._append(pad, (first, first + y, first + x), IGNORED)
            self._next = first + max(height, width)
            self.text("<|vision_end|>")

    def _append(self, token: int, position: tuple[int, int, int], label: int) -> None:
        self.ids.append(token)
        self.labels.append(label)
        self.branch.append(self._branch)
        self.positions.append(position)
