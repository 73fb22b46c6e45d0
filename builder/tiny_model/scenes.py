"""Generated pictures and clips whose content is known exactly. Knows nothing about questions or models."""

import io
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = Literal["red", "orange", "yellow", "green", "blue", "purple", "black", "white"]
Shape = Literal["circle", "square", "triangle", "star", "cross", "ring"]
Direction = Literal["left", "right", "up", "down"]

RGB: dict[Colour, tuple[int, int, int]] = {
    "red": (215, 25, 30),
    "orange": (250, 140, 10),
    "yellow": (245, 225, 30),
    "green": (25, 150, 50),
    "blue": (25, 70, 215),
    "purple": (135, 35, 165),
    "black": (12, 12, 12),
    "white": (250, 250, 250),
}
COLOURS: tuple[Colour, ...] = tuple(RGB)
SHAPES: tuple[Shape, ...] = ("circle", "square", "triangle", "star", "cross", "ring")
DIRECTIONS: tuple[Direction, ...] = ("left", "right", "up", "down")

_STEP: dict[Direction, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_OVERSAMPLE = 2
DIGIT_WIDTH = 0.8  # of a digit's height, in Pillow's own font, spacing included


@dataclass(frozen=True)
class Thing:
    """One drawn object: centre and half side as fractions of the picture's width and height."""

    colour: Colour
    shape: Shape
    x: float
    y: float
    half_w: float
    half_h: float

    @property
    def cell(self) -> int:
        """Place on the 3 x 3 grid, 0 at the top left, in reading order."""
        return min(2, int(self.y * 3)) * 3 + min(2, int(self.x * 3))

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x1, y1, x2, y2 in thousandths of the picture, as the Qwen3-VL family writes boxes."""
        corners = (self.x - self.half_w, self.y - self.half_h, self.x + self.half_w, self.y + self.half_h)
        x1, y1, x2, y2 = (min(1000, max(0, round(1000 * corner))) for corner in corners)
        return x1, y1, x2, y2


@dataclass(frozen=True)
class Background:
    """Flat or graded ground with optional stripes and noise."""

    first: tuple[int, int, int]
    second: tuple[int, int, int]
    angle: float
    stripe_px: int
    noise: float


@dataclass(frozen=True)
class Scene:
    """What a picture shows. A number, when present, is written at `number_at` (fractions of the sides)."""

    background: Background
    things: tuple[Thing, ...] = ()
    number: str | None = None
    number_colour: Colour = "black"
    number_at: tuple[float, float] = (0.5, 0.5)
    number_height: float = 0.3


@dataclass(frozen=True)
class Clip:
    """Frames of one scene, one second / fps apart; `mover` is the moving object or None.

    begin: the first frame's time in seconds. start: the first frame in which `mover` has moved.
    """

    frames: tuple[Scene, ...]
    fps: float
    mover: Thing | None
    direction: Direction | None
    begin: float = 0.0
    start: int = 1


def luminance(rgb: tuple[int, int, int]) -> float:
    return 0.3 * rgb[0] + 0.59 * rgb[1] + 0.11 * rgb[2]


def random_background(rng: random.Random) -> Background:
    """A ground of low saturation, so that every colour of the palette can stand on some of them."""

    def shade(level: int) -> tuple[int, int, int]:
        return tuple(min(255, max(0, level + rng.randint(-18, 18))) for _ in range(3))  # type: ignore[return-value]

    level = rng.choice((rng.randint(40, 100), rng.randint(100, 170), rng.randint(170, 235), rng.randint(170, 235)))
    second = shade(level + rng.choice((0, 0, rng.randint(-30, 30))))
    stripe = rng.choice((0, 0, 0, rng.randint(4, 24)))
    return Background(shade(level), second, rng.uniform(0, math.tau), stripe, rng.choice((0, 0, rng.uniform(2, 12))))


def visible_colours(background: Background) -> list[Colour]:
    """The colours that stand out from this ground; greys need a distance in luminance."""
    ground = (luminance(background.first) + luminance(background.second)) / 2
    return [
        colour
        for colour in COLOURS
        if abs(luminance(RGB[colour]) - ground) > (75 if colour in ("black", "white") else 40)
    ]


def random_scene(
    rng: random.Random, aspect: float, num_things: int, alike: float = 0.0, *, at_border: bool = False
) -> Scene:
    """Up to `num_things` objects that do not touch; `aspect` is width / height.

    `alike` is the share of later objects that take their colour or their shape from one before. `at_border`: large
    objects in the outer thirds begin exactly one hundredth from the border, as a model would learn by heart.

    Centres stay away from the borders between the nine places, so that every place has one true name.
    """
    background = random_background(rng)
    colours = visible_colours(background)
    things: list[Thing] = []
    biggest = {0: 0.0, 1: 0.3, 2: 0.24, 3: 0.2}.get(num_things, 0.17)
    for _ in range(num_things * 30):
        if len(things) == num_things:
            break
        half = rng.uniform(0.1 if num_things > 3 else 0.12, biggest)
        half_w, half_h = (half / aspect, half) if aspect >= 1 else (half, half * aspect)
        if aspect not in (0, 1) and num_things <= 3:  # a long picture leaves room for larger objects
            grow = min(1.3, max(aspect, 1 / aspect) ** 0.5)
            half_w, half_h = half_w * grow, half_h * grow
        column, row = rng.randrange(3), rng.randrange(3)
        x, y = _place(rng, column, half_w, at_border), _place(rng, row, half_h, at_border)
        thing = Thing(rng.choice(colours), rng.choice(SHAPES), x, y, half_w, half_h)
        if things and alike and rng.random() < alike:
            other = rng.choice(things)
            thing = replace(thing, colour=other.colour) if rng.random() < 0.5 else replace(thing, shape=other.shape)
        if thing.cell == row * 3 + column and _is_clear_of_lines(thing) and not any(_touch(thing, o) for o in things):
            things.append(thing)
    things.sort(key=lambda thing: thing.cell)
    return Scene(background, tuple(things))


def _place(rng: random.Random, third: int, half: float, at_border: bool) -> float:
    """Where the middle of an object lies along one axis: well inside a third, the whole object in the picture."""
    if at_border:
        return min(max((third + rng.uniform(0.25, 0.75)) / 3, half + 0.01), 0.99 - half)
    low, high = max((third + 0.25) / 3, half + 0.01), min((third + 0.75) / 3, 0.99 - half)
    if low < high:
        return rng.uniform(low, high)
    return rng.uniform(low, low + 0.04) if third < 2 else rng.uniform(high - 0.04, high)


def _is_clear_of_lines(thing: Thing) -> bool:
    return all(abs(value * 3 - line) > 0.17 for value in (thing.x, thing.y) for line in (1, 2))


def _touch(a: Thing, b: Thing) -> bool:
    if a.cell == b.cell:
        return True
    return abs(a.x - b.x) < a.half_w + b.half_w + 0.02 and abs(a.y - b.y) < a.half_h + b.half_h + 0.02


def random_number(rng: random.Random, aspect: float, num_digits: int) -> Scene:
    """A number of `num_digits` digits, as large as fits or down to a third of that."""
    background = random_background(rng)
    number = "".join(rng.choice("0123456789") for _ in range(num_digits))
    fitting = min(0.8, 0.9 * aspect / (DIGIT_WIDTH * num_digits))
    height = fitting * rng.uniform(0.5, 1.0)
    half_w, half_h = height * DIGIT_WIDTH * num_digits / aspect / 2, height / 2
    at = (_between(rng, half_w), _between(rng, half_h))
    return Scene(background, (), number, rng.choice(visible_colours(background)), at, height)


def _between(rng: random.Random, half: float) -> float:
    return rng.uniform(half + 0.03, 0.97 - half) if half < 0.47 else 0.5


def random_clip(rng: random.Random, aspect: float, num_frames: int, *, late: bool = False) -> Clip:
    """One object moves in a straight line (or nothing does), others stand still.

    late: it may rest first, and the clip may be a part of a longer film, at any rate.
    """
    fps = rng.choice((1.0, 2.0, 2.0, 2.0, 4.0))
    begin, start = 0.0, 1
    if late:
        fps = rng.choice((fps, rng.uniform(0.5, 5.0)))
        begin = rng.choice((0.0, 0.0, rng.uniform(0.0, 20.0), rng.uniform(0.0, 200.0)))
        start = rng.randint(1, num_frames - 2)
    still = random_scene(rng, aspect, rng.choice((1, 1, 2)), at_border=True)
    while not still.things:
        still = random_scene(rng, aspect, 1, at_border=True)
    mover = rng.choice(still.things)
    others = tuple(thing for thing in still.things if thing is not mover)
    if rng.random() < 0.15:
        return Clip((still,) * num_frames, fps, None, None, begin)
    direction = rng.choice(DIRECTIONS)
    step_x, step_y = _STEP[direction]
    half_w, half_h = mover.half_w * 0.8, mover.half_h * 0.8
    room_x, room_y = 0.98 - 2 * half_w, 0.98 - 2 * half_h
    span = rng.uniform(0.55, 1.0)
    path_x, path_y = room_x * span * step_x, room_y * span * step_y
    start_x = _start(rng, half_w, path_x) if step_x else mover.x
    start_y = _start(rng, half_h, path_y) if step_y else mover.y
    frames = []
    for index in range(num_frames):
        part = max(0, index - start + 1) / (num_frames - start)
        moved = replace(mover, x=start_x + path_x * part, y=start_y + path_y * part, half_w=half_w, half_h=half_h)
        frames.append(replace(still, things=(*others, moved)))
    return Clip(tuple(frames), fps, mover, direction, begin, start)


def _start(rng: random.Random, half: float, path: float) -> float:
    low, high = half + 0.01, 0.99 - half
    return rng.uniform(low, high - path) if path > 0 else rng.uniform(low - path, high)


def draw(scene: Scene, width: int, height: int, rng: random.Random) -> Image.Image:
    """The scene as an RGB picture of this size, noise included."""
    scale = _OVERSAMPLE if max(width, height) < 300 else 1
    image = Image.fromarray(_ground(scene.background, width, height)).resize(
        (width * scale, height * scale), Image.Resampling.BILINEAR
    )
    pen = ImageDraw.Draw(image)
    for thing in scene.things:
        _draw_thing(pen, thing, width * scale, height * scale)
    if scene.number is not None:
        _draw_number(pen, scene, width * scale, height * scale)
    image = image.resize((width, height), Image.Resampling.BOX)
    if scene.background.noise:
        noise = np.random.default_rng(rng.getrandbits(32)).standard_normal((height, width, 1), dtype=np.float32)
        pixels = np.asarray(image, dtype=np.float32) + noise * scene.background.noise
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return image


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """The picture after a trip through JPEG at this quality."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def _ground(background: Background, width: int, height: int) -> np.ndarray:
    xs = np.linspace(-0.5, 0.5, width, dtype=np.float32)
    ys = np.linspace(-0.5, 0.5, height, dtype=np.float32)
    mix = (math.cos(background.angle) * xs[None, :] + math.sin(background.angle) * ys[:, None] + 0.5).clip(0, 1)
    first, second = np.asarray(background.first, np.float32), np.asarray(background.second, np.float32)
    ground = first + mix[..., None] * (second - first)
    if background.stripe_px:
        stripes = (np.arange(width)[None, :] + np.arange(height)[:, None]) // background.stripe_px % 2
        ground += (stripes[..., None] * 10 - 5).astype(np.float32)
    pixels: np.ndarray = np.clip(ground, 0, 255).astype(np.uint8)
    return pixels


def _draw_thing(pen: ImageDraw.ImageDraw, thing: Thing, width: int, height: int) -> None:
    half_w, half_h = thing.half_w * width, thing.half_h * height
    x, y = thing.x * width, thing.y * height
    box = (x - half_w, y - half_h, x + half_w, y + half_h)
    fill = RGB[thing.colour]
    match thing.shape:
        case "circle":
            pen.ellipse(box, fill=fill)
        case "square":
            pen.rectangle(box, fill=fill)
        case "ring":
            pen.ellipse(box, outline=fill, width=max(2, round(half_h * 0.42)))
        case "triangle" | "star" | "cross":
            pen.polygon([(x + px * half_w, y + py * half_h) for px, py in _OUTLINES[thing.shape]], fill=fill)


def _star() -> list[tuple[float, float]]:
    """Five points, stretched to touch all four sides of the box."""
    corners = []
    for index in range(10):
        radius = 1.0 if index % 2 == 0 else 0.42
        angle = math.tau * index / 10 - math.tau / 4
        corners.append((radius * math.cos(angle) / 0.951, (radius * math.sin(angle) + 0.0955) / 0.9045))
    return corners


_ARM = 0.36
_OUTLINES: dict[str, Sequence[tuple[float, float]]] = {
    "triangle": ((0, -1), (1, 1), (-1, 1)),
    "star": _star(),
    "cross": (
        (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
        (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM),
    ),
}  # fmt: skip


def _draw_number(pen: ImageDraw.ImageDraw, scene: Scene, width: int, height: int) -> None:
    assert scene.number is not None
    digit_height = scene.number_height * height
    font = ImageFont.load_default(digit_height / 0.72)  # digits are 0.72 em high in Pillow's own font
    at = (scene.number_at[0] * width, scene.number_at[1] * height)
    pen.text(
        at, scene.number, font=font, fill=RGB[scene.number_colour], anchor="mm", stroke_width=round(digit_height / 40),
        stroke_fill=RGB[scene.number_colour],
    )  # fmt: skip
