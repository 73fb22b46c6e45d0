"""What a request becomes: the family's prompt form, counts, positions."""

import random

import numpy as np
import pytest

from tests.engine.requests import ask, clip, picture
from worker.core.contract import ChatRequest, Controls, Kind, Media, Message, Text, Url
from worker.core.opened import Clip, Picture, Source
from worker.core.settings import Settings
from worker.models.loading import LoadedModel
from worker.prompt.builder import PromptBuilder
from worker.prompt.size_policy import SmartResizePolicy


@pytest.fixture(scope="module")
def builder(tiny: LoadedModel) -> PromptBuilder:
    return PromptBuilder(tiny.spec, Settings())


def spelled(tiny: LoadedModel, ids: tuple[int, ...]) -> str:
    """The prompt as text, each run of pads as one pad with its length."""
    text = tiny.spec.tokenizer.decode(ids, with_special=True)
    for pad in ("<|image_pad|>", "<|video_pad|>"):
        for count in range(80, 0, -1):
            text = text.replace(pad * count, f"[{pad[2:7]} {count}]")
    return str(text)


def test_text_is_chatml(tiny: LoadedModel, builder: PromptBuilder) -> None:
    request = ChatRequest(
        messages=(
            Message(role="system", parts=(Text(text="Be brief."),)),
            Message(role="user", parts=(Text(text="Hi"), Text(text=" there"))),
            Message(role="assistant", parts=(Text(text="Hello"),)),
            Message(role="user", parts=(Text(text="再见"),)),
        )
    )
    assert spelled(tiny, builder.build(request, ()).ids) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi there<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\n再见<|im_end|>\n<|im_start|>assistant\n"
    )


def test_pictures_and_clips_stand_where_the_request_has_them(tiny: LoadedModel, builder: PromptBuilder) -> None:
    shown = ask("What?", picture(1, 256, 128), clip(2, num_frames=5, fps=2.0))
    prompt = builder.build(shown.request, shown.media)
    assert spelled(tiny, prompt.ids) == (
        "<|im_start|>user\n<|vision_start|>[image 32]<|vision_end|>"
        "<0.2 seconds><|vision_start|>[video 16]<|vision_end|>"
        "<1.2 seconds><|vision_start|>[video 16]<|vision_end|>"
        "<2.0 seconds><|vision_start|>[video 16]<|vision_end|>"
        "What?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (prompt.image_tokens, prompt.video_tokens) == (32, 48)


def test_the_template_may_be_told_more(tiny: LoadedModel, builder: PromptBuilder) -> None:
    shown = ask("What?", picture(1, 256, 128))
    told = shown.request.model_copy(update={"template": (("add_vision_id", True),)})
    assert "Picture 1: <|vision_start|>" in spelled(tiny, builder.build(told, shown.media).ids)
    assert "Picture" not in spelled(tiny, builder.build(shown.request, shown.media).ids)


def test_a_clip_without_a_rate_has_the_checkpoints(tiny: LoadedModel, builder: PromptBuilder) -> None:
    slow, default = (builder.build(*_shown(fps)).ids for fps in (2.0, None))
    assert slow == default
    assert builder.build(*_shown(4.0)).ids != default


def _shown(fps: float | None) -> tuple[ChatRequest, tuple[object, ...]]:
    shown = ask("What?", clip(2, num_frames=4, fps=fps))
    return shown.request, shown.media


def test_positions_are_those_of_the_family(builder: PromptBuilder) -> None:
    shown = ask("What?", picture(1, 256, 128))
    prompt = builder.build(shown.request, shown.media)
    start = next(at for at in range(len(prompt.ids)) if prompt.ids[at] == prompt.ids[at + 1])
    t, h, w = prompt.positions[:, start : start + 32]
    assert t.unique().tolist() == [start]
    assert (h - start).view(4, 8)[:, 0].tolist() == [0, 1, 2, 3]
    assert (w - start).view(4, 8)[0].tolist() == list(range(8))
    assert prompt.positions[:, start + 32].tolist() == [start + 8] * 3
    assert prompt.delta == 8 - 32


def test_it_says_how_pictures_and_videos_are_seen(builder: PromptBuilder) -> None:
    shown = ask("What?", picture(1, 256, 128), clip(2, num_frames=5, fps=2.0))
    still, moving = builder.build(shown.request, shown.media).media
    assert (still.kind, still.width, still.height, still.tokens, still.times) == ("image", 256, 128, 32, ())
    assert (moving.kind, moving.times) == ("video", (0.0, 0.5, 1.0, 1.5, 2.0))
    assert moving.tokens == 3 * moving.width * moving.height // 32**2


def test_tokens_are_known_from_the_sides_before_anything_is_decoded(tiny: LoadedModel, builder: PromptBuilder) -> None:
    """What is said of a header is what the prompt has, for pictures and clips of any size, controls included."""
    rng = random.Random(7)
    size_policy = SmartResizePolicy(tiny.spec.preprocessor, Settings())
    for _ in range(60):
        height, width = rng.randint(20, 700), rng.randint(20, 700)
        controls = Controls(max_pixels=rng.choice((None, 20_000)), min_pixels=rng.choice((None, 40_000)))
        still = Picture(np.zeros((height, width, 3), np.uint8), controls)
        prompt = builder.build(_about("image"), [still])
        *seen, tokens = size_policy.picture(height, width, controls)
        assert tokens == prompt.image_tokens
        assert (prompt.media[0].height, prompt.media[0].width) == tuple(seen)
        count = rng.randint(1, 6)
        moving = Clip(tuple(np.zeros((count, height // 4 + 8, width // 4 + 8, 3), np.uint8)), 2.0, controls=controls)
        prompt = builder.build(_about("video"), [moving])
        assert size_policy.clip(height // 4 + 8, width // 4 + 8, count, controls)[2] == prompt.video_tokens


def test_a_picture_decoded_at_a_part_of_its_size_is_seen_at_the_size_of_the_whole(builder: PromptBuilder) -> None:
    whole = builder.build(_about("image"), [Picture(np.zeros((451, 803, 3), np.uint8))])
    part = builder.build(_about("image"), [Picture(np.zeros((226, 402, 3), np.uint8), source=Source(451, 803))])
    assert part.media == whole.media
    assert part.ids == whole.ids


def _about(kind: Kind) -> ChatRequest:
    media = Media(kind=kind, source=Url(url="memory:"), where="here")
    return ChatRequest(messages=(Message(role="user", parts=(media, Text(text="?"))),))
