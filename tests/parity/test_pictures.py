"""Pictures: sizes, grids, tokens, ids and pixel values, over sizes, ratios, modes and controls."""

import io
import random
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.fakes import encoded
from tests.media.test_picture_kinds import WIDE
from tests.parity.conftest import note
from tests.parity.reference import FAMILIES, Both, both, our_pixels, prompt, their_picture, their_size
from worker.core.contract import Controls
from worker.prompt.sizes import image_size

LEVEL = 2 / 255  # one of 256 levels, after normalising by a standard deviation of a half
FAR = 16_384


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, folder: Path) -> Both:
    return both(request.param, folder)


def drawn(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture with fine and coarse detail."""
    small = Image.effect_noise((max(1, width // 8), max(1, height // 8)), 80).resize((width, height))
    ramp = Image.linear_gradient("L").resize((width, height)).rotate(90 * (seed % 4)).resize((width, height))
    return Image.merge("RGB", (small, ramp, Image.blend(small, ramp, 0.5)))


def sizes(count: int) -> list[tuple[int, int]]:
    rng = random.Random(5)
    some = [(1, 1), (1, 200), (200, 1), (28, 28), (32, 32), (33, 31), (4096, 3072), (3072, 4096), (640, 480), (7, 900)]
    while len(some) < count:
        height = int(2 ** rng.uniform(0, 12))
        width = int(height * 2 ** rng.uniform(-5, 5))
        if 1 <= width <= 8192 and max(height, width) <= 200 * min(height, width):
            some.append((height, width))
    return some


@pytest.mark.parametrize("size", sizes(150), ids=lambda size: f"{size[0]}x{size[1]}")
def test_sizes_without_controls_are_the_processors(pair: Both, size: tuple[int, int]) -> None:
    height, width = size
    rules = pair.model.spec.preprocessor
    ours = image_size(height, width, rules, FAR)
    processor = pair.processor.image_processor
    patches = processor.get_number_of_image_patches(height, width, {})
    note("tokens of an image, no options", pair.family, abs(ours.height * ours.width // rules.patch**2 - patches))
    assert ours.height * ours.width // rules.patch**2 == patches


@pytest.mark.parametrize("index", range(60))
def test_sizes_with_controls_are_those_of_qwen_vl_utils(pair: Both, index: int) -> None:
    rng = random.Random(index)
    factor = pair.model.spec.preprocessor.factor
    height, width = rng.choice(sizes(80)[10:])
    if index % 3 == 0:
        controls = {"resized_height": rng.randrange(16, 1500), "resized_width": rng.randrange(16, 1500)}
    else:
        least = rng.randrange(4, 300) * factor**2
        controls = {"min_pixels": least, "max_pixels": least + rng.randrange(10, 1500) * factor**2}
    ours = image_size(height, width, pair.model.spec.preprocessor, FAR, Controls(**controls))
    theirs = their_size(pair, Image.new("RGB", (width, height)), controls)
    if "resized_height" in controls and theirs[0] * theirs[1] < pair.model.spec.preprocessor.image_min_pixels:
        return  # they follow whatever is asked for; the checkpoint's own least size holds here (docs/media.md)
    note("size of a picture with controls", pair.family, abs(ours.height - theirs[0]) + abs(ours.width - theirs[1]))
    assert (ours.height, ours.width) == theirs


@pytest.mark.parametrize("index", range(40))
def test_the_size_of_a_call_means_what_it_means_to_the_processor(pair: Both, index: int) -> None:
    rng = random.Random(index)
    rules = pair.model.spec.preprocessor
    height, width = rng.choice(sizes(80)[10:])
    least = rng.randrange(4, 300) * rules.factor**2
    bounds = {"shortest_edge": least, "longest_edge": least + rng.randrange(10, 1500) * rules.factor**2}
    ours = image_size(height, width, rules, FAR, Controls(**bounds))
    image = Image.new("RGB", (width, height))
    theirs = pair.processor.image_processor(images=[image], size=bounds, return_tensors="pt")
    _, rows, columns = theirs["image_grid_thw"][0].tolist()
    assert (ours.height // rules.patch, ours.width // rules.patch) == (rows, columns)


@pytest.mark.parametrize("size", [(480, 640), (333, 517), (1080, 1920), (64, 48), (2000, 300), (1536, 1024)])
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_ids_and_pixels_are_the_processors(pair: Both, size: tuple[int, int], form: str) -> None:
    data = encoded(drawn(size[1], size[0], size[0]), form)
    theirs = their_picture(pair, Image.open(io.BytesIO(data)).convert("RGB"))
    made = prompt(pair.model, "image", data, Controls())
    assert list(made.ids) == theirs["input_ids"][0].tolist()
    note("ids of a prompt with a picture", pair.family, 0)
    assert made.items[0].patches.grid == tuple(theirs["image_grid_thw"][0].tolist())
    ours, pixels = our_pixels(pair.model, made), theirs["pixel_values"]
    far = float((ours - pixels).abs().max())
    is_part = form == "JPEG" and min(size) >= 2 * 1024
    note(
        "pixel values of a picture, in levels of 256",
        pair.family,
        far / (LEVEL * 0.5 / pair.model.spec.preprocessor.std[0]),
    )
    assert is_part or far <= 1.01 * LEVEL * 0.5 / min(pair.model.spec.preprocessor.std)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_modes_are_seen_as_they_are_seen_there(pair: Both, mode: str) -> None:
    image = drawn(300, 200).convert(mode if mode != "LA" else "L")
    if mode == "LA":
        image = Image.merge("LA", (image, Image.linear_gradient("L").resize(image.size)))
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    form = "TIFF" if mode == "CMYK" else "PNG"
    data = encoded(image, "JPEG" if mode == "CMYK" else form)
    source = Image.open(io.BytesIO(data))
    white = Image.new("RGB", source.size, "white")
    if mode in ("RGBA", "LA"):
        white.paste(source.convert("RGBA"), mask=source.convert("RGBA").split()[3])
    expected = white if mode in ("RGBA", "LA") else source.convert("RGB")
    theirs = their_picture(pair, expected)
    ours = our_pixels(pair.model, prompt(pair.model, "image", data, Controls()))
    far = float((ours - theirs["pixel_values"]).abs().max())
    note(
        f"pixel values, mode {mode}, in levels of 256",
        pair.family,
        far / (LEVEL * 0.5 / pair.model.spec.preprocessor.std[0]),
    )
    assert far <= 1.01 * LEVEL * 0.5 / min(pair.model.spec.preprocessor.std)


def test_a_color_profile_is_left_alone_as_there_where_that_is_asked_for(pair: Both) -> None:
    data = encoded(drawn(300, 200), "PNG", icc_profile=WIDE["Display P3"])
    theirs = their_picture(pair, Image.open(io.BytesIO(data)).convert("RGB"))["pixel_values"]
    as_is, shown = (
        our_pixels(pair.model, prompt(pair.model, "image", data, Controls(color=color))) for color in ("as_is", None)
    )
    assert (as_is - theirs).abs().max() <= 1.01 * LEVEL * 0.5 / min(pair.model.spec.preprocessor.std)
    assert (shown - theirs).abs().max() > 0.1


def test_a_picture_is_not_equal_to_another_one(pair: Both) -> None:
    """A control: the distances above are of something."""
    ours = our_pixels(pair.model, prompt(pair.model, "image", encoded(drawn(300, 200), "PNG"), Controls()))
    theirs = their_picture(pair, drawn(300, 200, 1))["pixel_values"]
    assert (ours - theirs).abs().max() > 0.5
    assert torch.isfinite(ours).all()
