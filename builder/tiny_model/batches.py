"""Training batches: many pictures of one grid, several questions to each.

The questions about a picture are branches of one sequence: each attends to the picture and to itself, at
positions that begin where the picture ends, so the picture is computed once and every branch is exactly
the prompt that a single question would make.
"""

import random
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from builder.tiny_model import forms, recipe, skills, small_talk
from builder.tiny_model.scenes import Clip, Scene, draw, jpeg, random_clip, random_number, random_scene
from builder.tiny_model.sequences import IGNORED, NEXT_TURN, Grid, Sequence
from builder.tiny_model.skills import CLIP_SKILLS
from worker.checkpoint.tool_prompt import tools_text
from worker.prompt.patches import of_frames
from worker.prompt.sizes import Size, image_size

FACTOR = recipe.PATCH * recipe.MERGE
FINE_DIGIT_WEIGHT = 0.15
SHARE_WITH_SCHEMA = 0.35  # of the batches with answers as JSON
KINDS = ("scenes", "numbers", "clips", "talk", "pairs", "tools")
_SYSTEMS = ("You are a helpful assistant.", "Answer briefly.", "请用中文回答问题。", "You look at pictures.")

Weights = tuple[tuple[skills.PictureSkill, float], ...]
ClipWeights = tuple[tuple[skills.ClipSkill, float], ...]


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
    mix: tuple[float, ...] = (0.46, 0.36, 0.14, 0.04)  # scenes, numbers, clips, talk, pairs, tools
    asks: int = 3  # questions about a scene
    alike: float = 0.0  # share of objects that take their colour or shape from another
    skills: Weights = skills.SCENE_SKILLS
    at_border: bool = True  # see `random_scene`
    clip_skills: ClipWeights = CLIP_SKILLS
    late: bool = False  # see `random_clip`
    follow_ups: float = 0.0  # share of scenes with a conversation of two questions
    compares: float = 0.5  # share of pairs that stand in one message
    pair_asks: int = 3  # questions about the pictures of one message
    pair_tokens: int = 30  # of each picture of a pair, at most
    own_sizes: bool = False  # the pictures of a pair differ in size
    forms: float = 0.0  # share of questions about a scene that are answered as JSON
    thoughts: float = 0.0  # share of questions about a scene that are thought about
    typed: float = 0.0  # share of questions about a picture that are written as people type
    system_prompts: float = 0.0  # share of batches of scenes and numbers with a schema in the system prompt


@dataclass(frozen=True)
class Batch:
    """One step's input.

    patches: (patches, 1536) uint8: the rows' first pictures, then their second ones. grids: (t, h, w) of the first and
    of the second, the same in all rows.
    ids, labels, weights, branch: (rows, length). positions: (3, rows, length).
    """

    patches: np.ndarray | None
    grids: tuple[Grid, ...]
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


@dataclass(frozen=True)
class Row:
    """One sequence: for each picture or clip the turn between it and the next one, if any; then the branches."""

    shown: tuple[skills.Ask | None, ...]
    branches: list[skills.Turns]
    times: list[float] | None = None  # of a clip's pairs of frames
    opening: str = ""  # a system turn of its own
    result: skills.Ask | None = None  # the last picture is a tool's result, and this is the answer behind it


class BatchMaker:
    """Draws batches for ever; one instance for each seed."""

    def __init__(self, tokenizer: Tokenizer, seed: int, rows: int) -> None:
        self._tokenizer = tokenizer
        self._rng = random.Random(seed)
        self._rows = rows
        self._shows_schema = False
        self._digits = {tokenizer.token_to_id(digit) for digit in "0123456789"}
        self._comma = {tokenizer.encode(text).ids[0] for text in (",", "],")}

    def make(self, stage: Stage) -> Batch:
        kind = self._rng.choices(KINDS[: len(stage.mix)], stage.mix)[0]
        if kind == "talk":
            rows = [Row((), [(self._plain(),), (self._plain(),)]) for _ in range(self._rows)]
            return self._pack(rows, None, (), False)
        if kind == "clips":
            return self._clips(stage)
        if kind == "pairs":
            return self._pairs(stage)
        if kind == "tools":
            return self._tools(stage)
        return self._pictures(stage, is_numbers=kind == "numbers")

    def _pictures(self, stage: Stage, *, is_numbers: bool) -> Batch:
        rng = self._rng
        width, height = self._grid(stage)
        images, rows = [], []
        if stage.system_prompts and rng.random() < stage.system_prompts:
            return self._with_system_prompts(stage, width, height, is_numbers=is_numbers)
        self._shows_schema = stage.forms > 0 and rng.random() < SHARE_WITH_SCHEMA
        for _ in range(self._rows // (3 if self._shows_schema else 1)):  # a schema is as long as all else
            if is_numbers:
                scene = random_number(rng, width / height, rng.choice(stage.digits))
                branches = self._ask(scene, skills.NUMBER_SKILLS, 2, stage)
            else:
                scene = self._scene(stage, width / height)
                branches = self._ask(scene, stage.skills, stage.asks, stage)
                if stage.follow_ups and rng.random() < stage.follow_ups:
                    branches[-1] = skills.follow_up(scene, rng.choice(skills.LANGUAGES), rng)
            rows.append(Row((None,), branches))
            images.append([self._draw(scene, width, height, stage.real_sizes)])
        pixels = np.concatenate([patches(frames) for frames in images])
        return self._pack(rows, pixels, ((1, height // 16, width // 16),), False)

    def _with_system_prompts(self, stage: Stage, width: int, height: int, *, is_numbers: bool) -> Batch:
        """A schema in the system prompt, as long as all else together, and one question."""
        rng = self._rng
        images, rows = [], []
        for _ in range(self._rows // 4):
            aspect = width / height
            is_number = is_numbers and rng.random() < 0.5
            scene = random_number(rng, aspect, rng.choice(stage.digits)) if is_number else self._scene(stage, aspect)
            system, ask = forms.schema_in_system_prompt(scene, rng.choice(skills.LANGUAGES), rng)
            rows.append(Row((None,), [(ask,)], opening=forms.system_turn(system)))
            images.append([self._draw(scene, width, height, stage.real_sizes)])
        pixels = np.concatenate([patches(frames) for frames in images])
        return self._pack(rows, pixels, ((1, height // 16, width // 16),), False)

    def _pairs(self, stage: Stage) -> Batch:
        """Two pictures, in one message or one after the other."""
        rng = self._rng
        limited = replace(stage, max_tokens=min(stage.max_tokens, stage.pair_tokens))
        first = self._grid(limited)
        sizes = (first, self._grid(limited) if stage.own_sizes else first)
        images: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        rows = []
        for _ in range(self._rows // 2):
            scenes = self._scene(stage, sizes[0][0] / sizes[0][1]), self._scene(stage, sizes[1][0] / sizes[1][1])
            for place, (scene, size) in enumerate(zip(scenes, sizes, strict=True)):
                images[place].append(patches([self._draw(scene, *size, stage.real_sizes)]))
            language = rng.choice(skills.LANGUAGES)
            if rng.random() < stage.compares:
                rows.append(
                    Row((None, None), [(skills.compare(*scenes, language, rng),) for _ in range(stage.pair_asks)])
                )
            else:
                [before] = self._ask(scenes[0], stage.skills, 1)[0]
                branches = [skills.earlier(*scenes, language, rng) for _ in range(2)]
                rows.append(Row((before, None), branches))
        grids = tuple((1, height // 16, width // 16) for width, height in sizes)
        return self._pack(rows, np.concatenate([*images[0], *images[1]]), grids, False)

    def _tools(self, stage: Stage) -> Batch:
        """A number that is read with a tool; or tools that are offered and not needed."""
        rng = self._rng
        limited = replace(stage, max_tokens=min(stage.max_tokens, 36))
        sizes = (self._grid(limited), self._grid(replace(limited, max_tokens=20)))
        is_needed = rng.random() < 0.6
        images: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        rows = []
        for _ in range(self._rows // 3):
            language = rng.choice(skills.LANGUAGES)
            if not is_needed:
                scene = self._scene(stage, sizes[0][0] / sizes[0][1])
                opening = forms.system_turn(tools_text(forms.other_tools(rng)))
                branches = self._ask(scene, stage.skills, 2, stage)
                if rng.random() < 0.3:
                    branches[-1] = (small_talk.small_talk(language, rng),)
                rows.append(Row((None,), branches, opening=opening))
                images[0].append(patches([self._draw(scene, *sizes[0], stage.real_sizes)]))
                continue
            zoom = forms.zoom(rng, sizes[0][0] / sizes[0][1], language)
            answer = skills.Ask("zoom", language, "", str(zoom.scene.number))
            opening = forms.system_turn(tools_text(forms.tools(rng)))
            rows.append(Row((zoom.ask, None), [], opening=opening, result=answer))
            for place, scene in enumerate((zoom.scene, forms.closer(zoom, rng))):
                images[place].append(patches([self._draw(scene, *sizes[place], stage.real_sizes)]))
        grids = tuple((1, height // 16, width // 16) for width, height in sizes[: 2 if is_needed else 1])
        return self._pack(rows, np.concatenate([*images[0], *images[1]]), grids, False)

    def _scene(self, stage: Stage, aspect: float) -> Scene:
        things = self._rng.choice(stage.things)
        return random_scene(self._rng, aspect, things, stage.alike, at_border=stage.at_border)

    def _clips(self, stage: Stage) -> Batch:
        rng = self._rng
        width, height = rng.choice(((128, 128), (96, 128), (128, 96), (160, 96), (96, 160), (192, 64), (96, 96)))
        num_frames = rng.choice(stage.frames)
        images, rows = [], []
        for _ in range(self._rows // 2):
            clip = random_clip(rng, width / height, num_frames, late=stage.late)
            frames = [self._draw(frame, width, height, False) for frame in clip.frames]
            images.append(frames + frames[-1:] * (num_frames % 2))
            rows.append(Row((None,), self._ask(clip, stage.clip_skills, 2), skills.clip_times(clip)))
        grid = (len(images[0]) // 2, height // 16, width // 16)
        return self._pack(rows, np.concatenate([patches(frames) for frames in images]), (grid,), True)

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

    def _ask(
        self,
        shown: Scene | Clip,
        table: tuple,  # type: ignore[type-arg]
        num_asks: int,
        stage: Stage | None = None,
    ) -> list[skills.Turns]:
        rng = self._rng
        asks: list[skills.Ask] = []
        for skill in rng.choices([row[0] for row in table], [row[1] for row in table], k=num_asks):
            ask = skill(shown, rng.choice(skills.LANGUAGES), rng)
            asks.append(self._varied(ask, shown, stage) if stage and isinstance(shown, Scene) else ask)
        if rng.random() < 0.04:
            asks[-1] = small_talk.small_talk(rng.choice(skills.LANGUAGES), rng)
        return [(ask,) for ask in asks]

    def _varied(self, ask: skills.Ask, scene: Scene, stage: Stage) -> skills.Ask:
        """The question as it is; or its answer as JSON, or thought about; in other words."""
        rng, way = self._rng, self._rng.random()
        if way < stage.forms:
            return forms.as_json(scene, ask.language, rng, shows_schema=self._shows_schema)
        if way < stage.forms + stage.thoughts:
            ask = forms.with_thought(ask, scene)
        return forms.as_typed(ask, rng) if rng.random() < stage.typed else ask

    def _plain(self) -> skills.Ask:
        language = self._rng.choice(skills.LANGUAGES)
        make = skills.no_picture if self._rng.random() < 0.15 else small_talk.small_talk
        return make(language, self._rng)

    def _pack(
        self,
        rows: list[Row],
        pixels: np.ndarray | None,
        grids: tuple[Grid, ...],
        is_video: bool,
    ) -> Batch:
        system = self._rng.choice(_SYSTEMS) if self._rng.random() < 0.1 else None
        written = [self._write(row, grids, system) for row in rows]
        length = max(len(row.ids) for row in written)
        ids = np.zeros((len(rows), length), np.int64)
        labels = np.full((len(rows), length), IGNORED, np.int64)
        branch = np.full((len(rows), length), -1, np.int64)
        positions = np.zeros((3, len(rows), length), np.int64)
        weights = np.ones((len(rows), length), np.float32)
        for index, row in enumerate(written):
            ids[index, : len(row.ids)] = row.ids
            labels[index, : len(row.ids)] = row.labels
            branch[index, : len(row.ids)] = row.branch
            positions[:, index, : len(row.ids)] = np.asarray(row.positions).T
            weights[index, self._fine_digits(row.ids)] = FINE_DIGIT_WEIGHT
        return Batch(pixels, grids, is_video, ids, labels, weights, branch, positions)

    def _write(self, row: Row, grids: tuple[Grid, ...], system: str | None) -> Sequence:
        opening = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
        written = Sequence(self._tokenizer)
        written.text((row.opening or opening) + "<|im_start|>user\n")
        for place, (turn, grid) in enumerate(zip(row.shown, grids, strict=True)):
            if row.result is not None and place:
                written.text("<tool_response>\n")
            written.media(grid, row.times)
            if turn:
                written.turn(turn)
                written.text(NEXT_TURN)
        if row.result is not None:
            written.text("\n</tool_response>")
            written.turn(row.result)
        end = written.positions[-1][0] + 1
        for number, turns in enumerate(row.branches, start=1):
            written.begin_branch(number, end)
            for index, turn in enumerate(turns):
                if index:
                    written.text(NEXT_TURN)
                written.turn(turn)
        return written

    def _fine_digits(self, ids: list[int]) -> list[int]:
        """Where the last digits of coordinates with three digits stand: finer than a picture's pixels can tell."""
        is_digit = [token in self._digits for token in ids]
        ends = range(3, len(ids) - 1)
        return [
            at for at in ends if is_digit[at] and is_digit[at - 1] and is_digit[at - 2] and ids[at + 1] in self._comma
        ]


def patches(frames: list[Image.Image]) -> np.ndarray:
    """(t * h * w, 1536) uint8, cut as the worker cuts them; a still is seen twice."""
    pixels = [np.array(frame) for frame in frames] * (2 if len(frames) == 1 else 1)
    height, width = pixels[0].shape[:2]
    return of_frames(pixels, Size(height, width), recipe.PIXEL_RULES).pixels.numpy()


def load_tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))
