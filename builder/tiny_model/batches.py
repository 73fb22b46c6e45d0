"""Training batches: many pictures of one grid, several questions to each.

The questions about a picture are branches of one sequence: each attends to the picture and to itself, at
positions that begin where the picture ends, so the picture is computed once and every branch is exactly
the prompt that a single question would make.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from builder.tiny_model import recipe, skills
from builder.tiny_model.scenes import Clip, Scene, draw, jpeg, random_clip, random_number, random_scene
from worker.engine.pixels import of_frames
from worker.engine.sizes import Size, image_size

FACTOR = recipe.PATCH * recipe.MERGE
IGNORED = -100
FINE_DIGIT_WEIGHT = 0.15
_SYSTEMS = ("You are a helpful assistant.", "Answer briefly.", "请用中文回答问题。", "You look at pictures.")

Weights = tuple[tuple[skills.PictureSkill, float], ...]


@dataclass(frozen=True)
class Stage:
    """How hard the pictures of one part of the training are, and what is asked about them."""

    name: str
    steps: int
    max_tokens: int
    things: tuple[int, ...]
    digits: tuple[int, ...]
    frames: tuple[int, ...]
    real_sizes: bool
    mix: tuple[float, float, float, float] = (0.46, 0.36, 0.14, 0.04)  # scenes, numbers, clips, talk
    asks: int = 3  # questions about a scene
    alike: float = 0.0  # share of objects that take their colour or shape from another
    skills: Weights = skills.SCENE_SKILLS
    at_border: bool = True  # see `random_scene`


@dataclass(frozen=True)
class Batch:
    """One step's input.

    patches: (rows * t * h * w, 1536) uint8. ids, labels, weights, branch: (rows, length).
    positions: (3, rows, length).
    """

    patches: np.ndarray | None
    grid: tuple[int, int, int]
    is_video: bool
    ids: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    branch: np.ndarray
    positions: np.ndarray


def random_size(rng: random.Random) -> tuple[int, int]:
    """Width and height of a picture as a user might send it: 96 to 640 a side, at most 3 : 1."""
    while True:
        width, height = rng.randint(96, 640), rng.randint(96, 640)
        if max(width, height) <= 3 * min(width, height):
            return width, height


def _sizes_by_grid() -> dict[tuple[int, int], list[tuple[int, int]]]:
    rng = random.Random(0)
    sizes: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for _ in range(20_000):
        size = random_size(rng)
        fitted = image_size(size[1], size[0], recipe.PIXEL_RULES, recipe.MAX_PIXELS)
        sizes.setdefault((fitted.width, fitted.height), []).append(size)
    return sizes


_SIZES = _sizes_by_grid()
_GRIDS = [grid for grid, sizes in _SIZES.items() for _ in sizes]


class BatchMaker:
    """Draws batches for ever; one instance for each seed."""

    def __init__(self, tokenizer: Tokenizer, seed: int, rows: int) -> None:
        self._tokenizer = tokenizer
        self._rng = random.Random(seed)
        self._rows = rows
        self._digits = {tokenizer.token_to_id(digit) for digit in "0123456789"}
        self._comma = {tokenizer.encode(text).ids[0] for text in (",", "],")}

    def make(self, stage: Stage) -> Batch:
        kind = self._rng.choices(("scenes", "numbers", "clips", "talk"), stage.mix)[0]
        if kind == "talk":
            return self._pack([[self._plain(), self._plain()] for _ in range(self._rows)], None, (0, 0, 0), False)
        if kind == "clips":
            return self._clips(stage)
        return self._pictures(stage, is_numbers=kind == "numbers")

    def _pictures(self, stage: Stage, *, is_numbers: bool) -> Batch:
        rng = self._rng
        width, height = self._grid(stage)
        images, asks = [], []
        for _ in range(self._rows):
            if is_numbers:
                scene = random_number(rng, width / height, rng.choice(stage.digits))
                asks.append(self._ask(scene, skills.NUMBER_SKILLS, 2))
            else:
                scene = random_scene(
                    rng, width / height, rng.choice(stage.things), stage.alike, at_border=stage.at_border
                )
                asks.append(self._ask(scene, stage.skills, stage.asks))
            images.append([self._draw(scene, width, height, stage.real_sizes)])
        return self._pack(asks, np.stack([patches(frames) for frames in images]), (1, height // 16, width // 16), False)

    def _clips(self, stage: Stage) -> Batch:
        rng = self._rng
        width, height = rng.choice(((128, 128), (96, 128), (128, 96), (160, 96), (96, 160), (192, 64), (96, 96)))
        num_frames = rng.choice(stage.frames)
        images, asks, times = [], [], []
        for _ in range(self._rows // 2):
            clip = random_clip(rng, width / height, num_frames)
            frames = [self._draw(frame, width, height, False) for frame in clip.frames]
            images.append(frames + frames[-1:] * (num_frames % 2))
            times.append(skills.timestamps(num_frames, clip.fps))
            asks.append(self._ask(clip, skills.CLIP_SKILLS, 2))
        grid = (len(images[0]) // 2, height // 16, width // 16)
        return self._pack(asks, np.stack([patches(frames) for frames in images]), grid, True, times)

    def _grid(self, stage: Stage) -> tuple[int, int]:
        while True:
            width, height = self._rng.choice(_GRIDS if stage.real_sizes else tuple(_SIZES))
            if width * height <= stage.max_tokens * FACTOR * FACTOR:
                return width, height

    def _draw(self, scene: Scene, width: int, height: int, is_real_size: bool) -> Image.Image:
        rng = self._rng
        if not is_real_size:
            image = draw(scene, width, height, rng)
            return jpeg(image, rng.randint(40, 95)) if rng.random() < 0.2 else image
        image = draw(scene, *rng.choice(_SIZES[width, height]), rng)
        if rng.random() < 0.5:
            image = jpeg(image, rng.randint(30, 95))
        return image.resize((width, height), Image.Resampling.BICUBIC)

    def _ask(self, shown: Scene | Clip, table: tuple, num_asks: int) -> list[skills.Ask]:  # type: ignore[type-arg]
        rng = self._rng
        asks = []
        for skill in rng.choices([row[0] for row in table], [row[1] for row in table], k=num_asks):
            asks.append(skill(shown, rng.choice(skills.LANGUAGES), rng))
        if rng.random() < 0.04:
            asks[-1] = skills.talk(rng.choice(skills.LANGUAGES), rng)
        return asks

    def _plain(self) -> skills.Ask:
        language = self._rng.choice(skills.LANGUAGES)
        make = skills.no_picture if self._rng.random() < 0.15 else skills.talk
        return make(language, self._rng)

    def _pack(
        self,
        asks: list[list[skills.Ask]],
        pixels: np.ndarray | None,
        grid: tuple[int, int, int],
        is_video: bool,
        times: list[list[float]] | None = None,
    ) -> Batch:
        system = self._rng.choice(_SYSTEMS) if self._rng.random() < 0.1 else None
        rows = [self._row(row, grid, system, times[index] if times else None) for index, row in enumerate(asks)]
        length = max(len(row[0]) for row in rows)
        ids = np.zeros((len(rows), length), np.int64)
        labels = np.full((len(rows), length), IGNORED, np.int64)
        branch = np.full((len(rows), length), -1, np.int64)
        positions = np.zeros((3, len(rows), length), np.int64)
        weights = np.ones((len(rows), length), np.float32)
        for index, (row_ids, row_labels, row_branch, row_positions) in enumerate(rows):
            ids[index, : len(row_ids)] = row_ids
            labels[index, : len(row_ids)] = row_labels
            branch[index, : len(row_ids)] = row_branch
            positions[:, index, : len(row_ids)] = np.asarray(row_positions).T
            weights[index, self._fine_digits(row_ids)] = FINE_DIGIT_WEIGHT
        flat = None if pixels is None else pixels.reshape(-1, pixels.shape[-1])
        return Batch(flat, grid, is_video, ids, labels, weights, branch, positions)

    def _row(
        self, asks: list[skills.Ask], grid: tuple[int, int, int], system: str | None, times: list[float] | None
    ) -> tuple[list[int], list[int], list[int], list[tuple[int, int, int]]]:
        opening = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
        ids = self._ids(opening + "<|im_start|>user\n")
        positions = [(index,) * 3 for index in range(len(ids))]
        for span in range(grid[0]):
            before = (f"<{times[span]:.1f} seconds>" if times else "") + "<|vision_start|>"
            self._text(ids, positions, before)
            first = positions[-1][0] + 1
            height, width = grid[1] // 2, grid[2] // 2
            pad = recipe.special_id("<|video_pad|>" if times else "<|image_pad|>")
            ids += [pad] * (height * width)
            positions += [(first, first + y, first + x) for y in range(height) for x in range(width)]
            after = first + max(height, width)
            ids.append(recipe.special_id("<|vision_end|>"))
            positions.append((after,) * 3)
        labels, branch, end = [IGNORED] * len(ids), [0] * len(ids), positions[-1][0] + 1
        for number, ask in enumerate(asks, start=1):
            question = self._ids(f"{ask.question}<|im_end|>\n<|im_start|>assistant\n")
            answer = self._ids(f"{ask.answer}<|im_end|>")
            ids += question + answer
            labels += [IGNORED] * len(question) + answer
            branch += [number] * (len(question) + len(answer))
            positions += [(end + index,) * 3 for index in range(len(question) + len(answer))]
        return ids, labels, branch, positions

    def _text(self, ids: list[int], positions: list[tuple[int, int, int]], text: str) -> None:
        for token in self._ids(text):
            ids.append(token)
            positions.append((positions[-1][0] + 1,) * 3)

    def _fine_digits(self, ids: list[int]) -> list[int]:
        """Where the last digits of coordinates with three digits stand: finer than a picture's pixels can tell."""
        is_digit = [token in self._digits for token in ids]
        ends = range(3, len(ids) - 1)
        return [
            at for at in ends if is_digit[at] and is_digit[at - 1] and is_digit[at - 2] and ids[at + 1] in self._comma
        ]

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids


def patches(frames: list[Image.Image]) -> np.ndarray:
    """(t * h * w, 1536) uint8, cut as the worker cuts them; a still is seen twice."""
    pixels = [np.array(frame) for frame in frames] * (2 if len(frames) == 1 else 1)
    height, width = pixels[0].shape[:2]
    return of_frames(pixels, Size(height, width), recipe.PIXEL_RULES).pixels.numpy()


def load_tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))
