"""What the tiny model can be asked, in English and Chinese, with the true answer. Knows scenes, not pixels.

A skill is a function from a scene to a question and its answer. To teach the model more, add a function
and its row in `PICTURE_SKILLS`, `CLIP_SKILLS` or `small_talk.TALK`.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from builder.tiny_model.scenes import COLOURS, SHAPES, Background, Clip, Colour, Scene, Shape, Thing
from worker.checkpoint.family import patch_times

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")

COLOUR_ZH: dict[Colour, str] = {
    "red": "红色", "orange": "橙色", "yellow": "黄色", "green": "绿色",
    "blue": "蓝色", "purple": "紫色", "black": "黑色", "white": "白色",
}  # fmt: skip
SHAPE_ZH: dict[Shape, str] = {
    "circle": "圆形", "square": "正方形", "triangle": "三角形", "star": "星形", "cross": "十字", "ring": "圆环",
}  # fmt: skip
PLURAL: dict[Shape, str] = {
    "circle": "circles", "square": "squares", "triangle": "triangles", "star": "stars",
    "cross": "crosses", "ring": "rings",
}  # fmt: skip
PLACES_EN = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
PLACES_ZH = ("左上", "上方", "右上", "左边", "中间", "右边", "左下", "下方", "右下")
DIRECTION_EN = {"left": "to the left", "right": "to the right", "up": "up", "down": "down"}
DIRECTION_ZH = {"left": "向左", "right": "向右", "up": "向上", "down": "向下"}


@dataclass(frozen=True)
class Ask:
    """One question about a picture, a clip or nothing, with the answer that is true. thought: what is thought before
    it. is_form: the answer is JSON that something else writes: only its values are learned."""

    skill: str
    language: Language
    question: str
    answer: str
    thought: str | None = None
    is_form: bool = False


def _pick(rng: random.Random, *choices: str) -> str:
    return rng.choice(choices)


def name(thing: Thing, language: Language) -> str:
    return kind_name(thing.colour, thing.shape, language)


def kind_name(colour: Colour, shape: Shape, language: Language) -> str:
    return f"{colour} {shape}" if language == "en" else COLOUR_ZH[colour] + SHAPE_ZH[shape]


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def caption(scene: Scene, language: Language, rng: random.Random) -> Ask:
    if language == "en":
        question = _pick(
            rng, "What is in the picture?", "Describe the picture.", "What do you see?", "Describe this image.",
            "What is in this image?", "What does the picture show?",
        )  # fmt: skip
    else:
        question = _pick(rng, "图片里有什么？", "描述这张图片。", "你看到了什么？", "图中有什么？", "请描述这幅图。")
    return Ask("caption", language, question, _caption_answer(scene, language))


def _caption_answer(scene: Scene, language: Language) -> str:
    if scene.number is not None:
        return f"The number {scene.number}." if language == "en" else f"数字{scene.number}。"
    if not scene.things:
        return "There is nothing." if language == "en" else "什么都没有。"
    if language == "zh":
        return "，".join(f"{PLACES_ZH[t.cell]}有一个{name(t, 'zh')}" for t in scene.things) + "。"
    parts = [f"{_article(name(t, 'en'))} at the {PLACES_EN[t.cell]}" for t in scene.things]
    text = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    return text[0].upper() + text[1:] + "."


def count(scene: Scene, language: Language, rng: random.Random) -> Ask:
    what = rng.choice(("all", "all", "colour", "shape"))
    chosen = rng.choice(scene.things) if scene.things and rng.random() < 0.75 else None
    if what == "colour":
        colour = chosen.colour if chosen else rng.choice(COLOURS)
        number = sum(thing.colour == colour for thing in scene.things)
        noun = f"{colour} objects" if language == "en" else f"{COLOUR_ZH[colour]}的物体"
    elif what == "shape":
        shape = chosen.shape if chosen else rng.choice(SHAPES)
        number = sum(thing.shape == shape for thing in scene.things)
        noun = PLURAL[shape] if language == "en" else SHAPE_ZH[shape]
    else:
        number = len(scene.things)
        noun = "objects" if language == "en" else "物体"
    if language == "en":
        question = _pick(rng, f"How many {noun} are there?", f"How many {noun} do you see?", f"Count the {noun}.")
    else:
        question = _pick(rng, f"有几个{noun}？", f"图中有多少个{noun}？", f"数一数{noun}。")
    return Ask("count", language, question, str(number))


def number(scene: Scene, language: Language, rng: random.Random) -> Ask:
    if language == "en":
        question = _pick(
            rng,
            "What number is in the picture?",
            "Read the number.",
            "What number is written here?",
            "Which number is it?",
        )
    else:
        question = _pick(rng, "图中的数字是多少？", "读出数字。", "上面写的是什么数字？", "这是什么数字？")
    if scene.number is None:
        return Ask("none", language, question, "There is no number." if language == "en" else "没有数字。")
    return Ask("number", language, question, scene.number)


def locate(scene: Scene, language: Language, rng: random.Random) -> Ask:
    present = [(thing.colour, thing.shape) for thing in scene.things]
    if present and rng.random() < 0.88:
        colour, shape = rng.choice(present)
    else:
        colour, shape = _absent(scene, rng)
    noun = kind_name(colour, shape, language)
    found = [thing for thing in scene.things if (thing.colour, thing.shape) == (colour, shape)]
    if language == "en":
        question = _pick(
            rng, f"Locate the {noun}.", f"Find the {noun} and give its box.",
            f"Where is the {noun}? Answer with a box in JSON.",
            f"Give the bounding box of the {noun}.",
        )  # fmt: skip
    else:
        question = _pick(rng, f"框出{noun}。", f"找到{noun}并给出边界框。", f"给出{noun}的边界框。")
    if not found:
        return Ask("none", language, question, none_answer(language))
    return Ask("boxes", language, question, boxes_json([(thing.box, noun) for thing in found]))


def boxes_json(boxes: list[tuple[tuple[int, int, int, int], str]]) -> str:
    """The family's way to write boxes: a JSON list in a fence, corners in thousandths of the picture."""
    rows = ",\n".join(f'\t{{"bbox_2d": {list(box)}, "label": "{label}"}}' for box, label in boxes)
    return f"```json\n[\n{rows}\n]\n```"


def is_there(scene: Scene, language: Language, rng: random.Random) -> Ask:
    unique = [t for t in scene.things if sum((t.colour, t.shape) == (o.colour, o.shape) for o in scene.things) == 1]
    if unique and rng.random() < 0.5:
        thing = rng.choice(unique)
        place = PLACES_EN[thing.cell] if language == "en" else PLACES_ZH[thing.cell]
        answer = f"Yes, at the {place}." if language == "en" else f"有，在{place}。"
        noun = name(thing, language)
        return Ask("place", language, _is_there_question(noun, language, rng), answer)
    noun = kind_name(*_absent(scene, rng), language)
    return Ask("none", language, _is_there_question(noun, language, rng), none_answer(language))


def attribute(scene: Scene, language: Language, rng: random.Random) -> Ask:
    """The colour of the only thing of a shape, or the shape of the only thing of a colour."""
    colours, shapes = Counter(t.colour for t in scene.things), Counter(t.shape for t in scene.things)
    known = [(thing, "color") for thing in scene.things if shapes[thing.shape] == 1]
    known += [(thing, "shape") for thing in scene.things if colours[thing.colour] == 1]
    if not known:
        return count(scene, language, rng)
    thing, wanted = rng.choice(known)
    if wanted == "color":
        if language == "en":
            question = _pick(rng, f"What color is the {thing.shape}?", f"Which color does the {thing.shape} have?")
            return Ask("attribute", language, question, f"{thing.colour.capitalize()}.")
        question = _pick(rng, f"{SHAPE_ZH[thing.shape]}是什么颜色？", f"{SHAPE_ZH[thing.shape]}的颜色是什么？")
        return Ask("attribute", language, question, f"{COLOUR_ZH[thing.colour]}。")
    if language == "en":
        question = _pick(rng, f"What shape is the {thing.colour} object?", f"What is the {thing.colour} object?")
        return Ask("attribute", language, question, f"{_article(thing.shape).capitalize()}.")
    question = _pick(rng, f"{COLOUR_ZH[thing.colour]}的物体是什么形状？", f"{COLOUR_ZH[thing.colour]}的物体是什么？")
    return Ask("attribute", language, question, f"{SHAPE_ZH[thing.shape]}。")


def none_answer(language: Language) -> str:
    return "There is none." if language == "en" else "没有。"


def _is_there_question(noun: str, language: Language, rng: random.Random) -> str:
    if language == "en":
        return _pick(
            rng, f"Is there {_article(noun)}?", f"Do you see {_article(noun)}?", f"Can you see {_article(noun)}?"
        )
    return _pick(rng, f"有{noun}吗？", f"图中有没有{noun}？", f"你看到{noun}了吗？")


def _absent(scene: Scene, rng: random.Random) -> tuple[Colour, Shape]:
    """A kind that the scene lacks, often one that shares a colour or a shape with what is there."""
    present = {(thing.colour, thing.shape) for thing in scene.things}
    while True:
        colour, shape = rng.choice(COLOURS), rng.choice(SHAPES)
        if scene.things and rng.random() < 0.6:
            near = rng.choice(scene.things)
            colour, shape = (near.colour, shape) if rng.random() < 0.5 else (colour, near.shape)
        if (colour, shape) not in present:
            return colour, shape


def motion(clip: Clip, language: Language, rng: random.Random) -> Ask:
    if language == "en":
        question = _pick(
            rng, "What moves, and where?", "What is moving?", "What happens in the clip?", "Describe the video."
        )
        answer = "Nothing moves."
        if clip.mover and clip.direction:
            answer = f"The {name(clip.mover, 'en')} moves {DIRECTION_EN[clip.direction]}."
    else:
        question = _pick(rng, "什么在动？往哪里动？", "视频里发生了什么？", "什么东西在移动？", "描述这段视频。")
        answer = "没有东西在动。"
        if clip.mover and clip.direction:
            answer = f"{name(clip.mover, 'zh')}{DIRECTION_ZH[clip.direction]}移动。"
    return Ask("motion", language, question, answer)


def last_time(clip: Clip, language: Language, rng: random.Random) -> Ask:
    """The time written before the last pair of frames: read from the prompt, not seen in the pixels."""
    at = f"{clip_times(clip)[-1]:.1f}"
    if language == "en":
        question = _pick(rng, "When does the clip end?", "At what time is the last picture of the clip?")
        return Ask("time", language, question, f"At {at} seconds.")
    return Ask("time", language, _pick(rng, "视频什么时候结束？", "最后一帧在第几秒？"), f"在第{at}秒。")


def when(clip: Clip, language: Language, rng: random.Random) -> Ask:
    """The time before the first pair of frames that shows the movement: seen, and then read from the prompt."""
    at = f"{clip_times(clip)[clip.start // 2]:.1f}"
    if clip.mover is None or clip.direction is None:
        question = _pick(rng, "What moves where, and when?", "What starts to move, and when?")
        if language == "zh":
            question = _pick(rng, "什么东西什么时候往哪里动？", "什么东西从第几秒开始动？")
        return Ask("when", language, question, "Nothing moves." if language == "en" else "没有东西在动。")
    moves, noun = rng.random() < 0.6, name(clip.mover, language)
    if language == "en":
        if moves:
            question = _pick(rng, "What moves where, and when?", "What starts to move, and when?")
            answer = f"The {noun} moves {DIRECTION_EN[clip.direction]} from {at} seconds."
            return Ask("when", language, question, answer)
        question = _pick(rng, f"When does the {noun} start to move?", f"From when on does the {noun} move?")
        return Ask("when", language, question, f"At {at} seconds.")
    if moves:
        question = _pick(rng, "什么东西什么时候往哪里动？", "什么东西从第几秒开始动？")
        return Ask("when", language, question, f"{noun}从第{at}秒起{DIRECTION_ZH[clip.direction]}移动。")
    question = _pick(rng, f"{noun}什么时候开始动？", f"{noun}从第几秒开始移动？")
    return Ask("when", language, question, f"在第{at}秒。")


def timestamps(num_frames: int, fps: float, begin: float = 0.0) -> list[float]:
    """The times in seconds that the prompt shows for a clip: one for each pair of frames."""
    return patch_times([begin + index / fps for index in range(num_frames)], temporal=2)


def clip_times(clip: Clip) -> list[float]:
    return timestamps(len(clip.frames), clip.fps, clip.begin)


def compare(first: Scene, second: Scene, language: Language, rng: random.Random) -> Ask:
    """Two pictures of one message: which has more, which shows it, what is in one of them."""
    what = rng.choice(("more", "more", "shows", "shows", "inside"))
    if what == "inside":
        index = rng.randrange(2)
        return in_picture(index, rng.choice((caption, count))((first, second)[index], language, rng), "compare")
    if what == "more":
        more = len(first.things) - len(second.things)
        if language == "en":
            question = _pick(rng, "Which picture has more objects?", "Which picture shows more objects?")
            answer = "The first." if more > 0 else "The second." if more < 0 else "Both have the same number."
        else:
            question = _pick(rng, "哪张图片的物体更多？", "哪张图里的物体多？")
            answer = "第一张。" if more > 0 else "第二张。" if more < 0 else "一样多。"
        return Ask("compare", language, question, answer)
    colour, shape = _absent(Scene(first.background, first.things + second.things), rng)
    if rng.random() < 0.85 and (things := rng.choice((first, second)).things):
        chosen = rng.choice(things)
        colour, shape = chosen.colour, chosen.shape
    kind = rng.choice(("both", "shape"))
    shown = [
        any(thing.shape == shape and (kind == "shape" or thing.colour == colour) for thing in scene.things)
        for scene in (first, second)
    ]
    if language == "en":
        noun = shape if kind == "shape" else kind_name(colour, shape, "en")
        question = _pick(rng, f"Which picture shows {_article(noun)}?", f"In which picture is there {_article(noun)}?")
    else:
        noun = SHAPE_ZH[shape] if kind == "shape" else kind_name(colour, shape, "zh")
        question = _pick(rng, f"哪张图片里有{noun}？", f"{noun}在哪张图里？")
    return Ask("compare", language, question, _WHICH[language][shown[0], shown[1]])


_WHICH: dict[Language, dict[tuple[bool, bool], str]] = {
    "en": {(True, False): "The first.", (False, True): "The second.",
           (True, True): "Both.", (False, False): "Neither."},
    "zh": {(True, False): "第一张。", (False, True): "第二张。",
           (True, True): "两张都有。", (False, False): "都没有。"},
}  # fmt: skip


def in_picture(index: int, ask: Ask, skill: str) -> Ask:
    """The same question about the first (0) or second (1) picture of several."""
    place = (("In the first picture: ", "In the second picture: "), ("第一张图片：", "第二张图片："))
    return Ask(skill, ask.language, place[ask.language == "zh"][index] + ask.question, ask.answer)


Turns = tuple[Ask, ...]  # of one conversation, in order


def follow_up(scene: Scene, language: Language, rng: random.Random) -> Turns:
    """A question about one object, and one about "it": known only from the first answer's object."""
    shapes, colours = Counter(t.shape for t in scene.things), Counter(t.colour for t in scene.things)
    known = [(thing, "color") for thing in scene.things if shapes[thing.shape] == 1]
    known += [(thing, "shape") for thing in scene.things if colours[thing.colour] == 1]
    if not known or rng.random() < 0.2:
        second = rng.choice((caption, count, is_there))(scene, language, rng)
        return count(scene, language, rng), Ask("follow-up", language, second.question, second.answer)
    thing, wanted = rng.choice(known)
    place = PLACES_EN[thing.cell] if language == "en" else PLACES_ZH[thing.cell]
    where = (
        Ask("follow-up", language, _pick(rng, "Where is it?", "And where is it?"), f"At the {place}.")
        if language == "en"
        else Ask("follow-up", language, _pick(rng, "它在哪里？", "在什么位置？"), f"在{place}。")
    )
    if wanted == "color" and language == "en":
        question, answer = f"What color is the {thing.shape}?", f"{thing.colour.capitalize()}."
    elif wanted == "color":
        question, answer = f"{SHAPE_ZH[thing.shape]}是什么颜色？", f"{COLOUR_ZH[thing.colour]}。"
    elif language == "en":
        question, answer = f"What shape is the {thing.colour} object?", f"{_article(thing.shape).capitalize()}."
    else:
        question, answer = f"{COLOUR_ZH[thing.colour]}的物体是什么形状？", f"{SHAPE_ZH[thing.shape]}。"
    return Ask("attribute", language, question, answer), where


def earlier(first: Scene, second: Scene, language: Language, rng: random.Random) -> Turns:
    """A question about the newest of two pictures, then one about the picture sent before it."""
    skill = rng.choice((caption, count, is_there))
    about = in_picture(0, skill(first, language, rng), "earlier")
    return rng.choice((caption, count, is_there))(second, language, rng), about


PictureSkill = Callable[[Scene, Language, random.Random], Ask]
ClipSkill = Callable[[Clip, Language, random.Random], Ask]

SCENE_SKILLS: tuple[tuple[PictureSkill, float], ...] = (
    (caption, 1.0), (count, 1.0), (locate, 2.0), (is_there, 0.8), (number, 0.1),
)  # fmt: skip
PICKING_SKILLS: tuple[tuple[PictureSkill, float], ...] = (
    (caption, 0.2), (count, 1.0), (locate, 0.4), (is_there, 2.0), (attribute, 1.5),
)  # fmt: skip
ALL_SCENE_SKILLS: tuple[tuple[PictureSkill, float], ...] = (
    (caption, 0.8), (count, 1.0), (locate, 1.6), (is_there, 1.0), (number, 0.1), (attribute, 0.6),
)  # fmt: skip
BOX_SKILLS: tuple[tuple[PictureSkill, float], ...] = (
    (caption, 0.7), (count, 0.9), (locate, 3.2), (is_there, 0.5), (number, 0.1), (attribute, 0.2),
)  # fmt: skip
FORM_SKILLS: tuple[tuple[PictureSkill, float], ...] = (
    (caption, 1.1), (count, 1.3), (locate, 2.4), (is_there, 0.5), (number, 0.1), (attribute, 0.4),
)  # fmt: skip
SYSTEM_PROMPT_SKILLS: tuple[tuple[PictureSkill, float], ...] = (
    (caption, 0.9), (count, 1.3), (locate, 3.2), (is_there, 0.4), (number, 0.1), (attribute, 0.3),
)  # fmt: skip
NUMBER_SKILLS: tuple[tuple[PictureSkill, float], ...] = ((number, 1.0), (caption, 0.35), (is_there, 0.1))
CLIP_SKILLS: tuple[tuple[ClipSkill, float], ...] = ((motion, 1.0), (last_time, 0.35))
TIMED_CLIP_SKILLS: tuple[tuple[ClipSkill, float], ...] = ((when, 1.6), (motion, 0.6), (last_time, 0.2))

_NO_SCENE = Scene(Background((0, 0, 0), (0, 0, 0), 0.0, 0, 0.0))


def no_picture(language: Language, rng: random.Random) -> Ask:
    """A question about a picture when none was sent."""
    asked = caption(_NO_SCENE, language, rng)
    answer = "There is no picture." if language == "en" else "没有图片。"
    return Ask("none", language, asked.question, answer)
