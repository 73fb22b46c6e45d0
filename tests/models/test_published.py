"""Checkpoints as they are published: each layout starts with default settings, makes the library's ids and answers as
its `generate` does, as it lies on the hub and baked."""

import asyncio
import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.processing_utils import ProcessorMixin

from builder.bake import bake
from builder.published import MODELS, config, model
from builder.verify import verify
from tests.engine.requests import Shown, ask, clip, picture
from tests.models import published
from tests.models.published import LAYOUTS, TEMPLATES, conversations, template
from tests.models.test_families import answer, reference
from worker.checkpoint.chat_template import ChatTemplate, TemplateSource
from worker.checkpoint.family_rules import QWEN2_TEMPLATE
from worker.checkpoint.tokenizer import VocabularyTokenizer
from worker.core.contract import ChatRequest, Message, Text
from worker.core.errors import InputInvalid
from worker.core.opened import Picture
from worker.core.settings import Settings
from worker.engine.engine import continuous_engine
from worker.models.families import FAMILIES
from worker.models.loading import LoadedModel, load
from worker.models.native.shapes import why_not
from worker.prompt.builder import PromptBuilder
from worker.prompt.control_tokens import ControlTokens

MAX_TOKENS = 10
RENDERED = json.loads((TEMPLATES / "rendered.json").read_text(encoding="utf-8"))
ALIKE = ("Qwen3-VL-8B-Thinking", "Qwen3.5-35B-A3B", "Qwen3.8-27B")
BAKED = ("Qwen2.5-VL-7B-Instruct",)


def test_the_templates_written_anew_say_what_the_published_ones_say(tmp_path: Path) -> None:
    """`rendered.json` holds a hash of what each published template made of each conversation."""
    ours = {
        "Qwen2-VL and Qwen2.5-VL": QWEN2_TEMPLATE,
        "Qwen2.5-VL, text only": (TEMPLATES / "qwen2_5_text.jinja").read_text(encoding="utf-8"),
        "Qwen3-VL Instruct": template(model("Qwen3-VL-8B-Instruct")),
        "Qwen3-VL Thinking": template(model("Qwen3-VL-8B-Thinking")),
        "Qwen3.5": template(model("Qwen3.5-9B")),
        "Qwen3.5, 0.8B and 2B": template(model("Qwen3.5-2B")),
        "Qwen3.6": template(model("Qwen3.6-27B")),
        "Qwen3.8": template(model("Qwen3.8-27B")),
    }
    assert set(ours) == set(RENDERED)
    for name, text in ours.items():
        written = ChatTemplate(tmp_path, TemplateSource(tmp_path / name, text))
        for case, variables in conversations().items():
            messages = variables.pop("messages")
            try:
                found = hashlib.sha256(written.render(messages, variables).encode()).hexdigest()[:16]
            except InputInvalid:
                found = "refused"
            assert found == RENDERED[name]["rendered"][case], (name, case)


@dataclass(frozen=True)
class Laid:
    """A folder as published, as this worker serves it and as the library reads it."""

    name: str
    folder: Path
    served: LoadedModel
    library: LoadedModel
    tokenizer: Any
    images: Any


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Layouts, less those that are like others but for their template or experts; `--all-models`: every checkpoint."""
    if "laid" in metafunc.fixturenames:
        few = [name for name in LAYOUTS if name not in ALIKE]
        names = [of.name for of in MODELS] if metafunc.config.getoption("--all-models") else few
        metafunc.parametrize("laid", names, indirect=True, scope="module")


def in_float32(folder: Path, **more: str) -> Settings:
    """Answers are compared, and in bfloat16, the default on CPUs that multiply it, they are equal only by chance."""
    return Settings(device="cpu", dtype="float32", model_path=folder, **more)


@pytest.fixture(scope="module")
def laid(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laid]:
    name = request.param
    folder = published.write(name, tmp_path_factory.mktemp("published") / name)
    served = load(in_float32(folder))
    is_own = served.code == "transformers"
    yield Laid(
        name,
        folder,
        served,
        served if is_own else load(in_float32(folder, model_code="transformers")),
        AutoTokenizer.from_pretrained(folder),
        Qwen2VLImageProcessorPil.from_pretrained(folder),
    )
    shutil.rmtree(folder)


def test_it_starts_with_default_settings(laid: Laid) -> None:
    native = FAMILIES[model(laid.name).kind].native
    served = load(Settings(device="cpu", model_path=laid.folder))
    assert served.code == ("transformers" if native is None else "native")
    spec, of = served.spec, model(laid.name)
    ends = {of.words.id_of(token) for token in ("<|im_end|>", "<|endoftext|>")}
    assert spec.eos_ids == ends
    assert spec.max_model_len == of.context
    assert spec.generation.get("temperature") == (of.generation or {}).get("temperature")
    assert spec.template.opens_thought is bool(of.thinks)


TURNS = [
    ("system", "Be brief."),
    ("user", "What's in it?", picture(2, 300, 200)),
    ("assistant", "<think>\nwell\n</think>\n\nThings."),
    ("user", "And in these: naïve ज्ञान 12345?", picture(3, 90, 160), picture(4, 640, 480)),
]


def shown(turns: list[tuple[Any, ...]], **variables: Any) -> Shown:
    """A conversation: of each turn the role, the words, and the pictures before them."""
    messages, media = [], []
    for role, words, *pictures in turns:
        [message] = ask(words, *pictures).request.messages
        messages.append(Message(role=role, parts=message.parts))
        media += pictures
    return Shown(ChatRequest(messages=tuple(messages), template=tuple(variables.items())), tuple(media))


PROMPTS: dict[str, Shown] = {
    "text": shown([("user", "Who are you? 你好 <tool_call> don't\r\n\r\n  x")]),
    "a picture": shown([("user", "What?", picture(1))]),
    "two pictures": shown([("user", "Compare.", picture(1, 500, 70), picture(5, 33, 900))]),
    "several turns": shown(TURNS),
    "numbered pictures": shown(TURNS, add_vision_id=True),
    "with a thought": shown([("user", "Why?")], enable_thinking=True),
    "without a thought": shown([("user", "Why?")], enable_thinking=False),
}


def library_ids(laid: Laid, one: Shown) -> list[int]:
    """By the library's own tokenizer, processor of pictures, and choice of a template among the folder's files."""
    messages: list[dict[str, Any]] = []
    for message in one.request.messages:
        content = [
            {"type": "text", "text": part.text} if isinstance(part, Text) else {"type": "image"}
            for part in message.parts
        ]
        messages.append({"role": message.role, "content": content})
    found, _ = ProcessorMixin.get_processor_dict(laid.folder)
    chosen = found.get("chat_template") or laid.tokenizer.chat_template
    text = laid.tokenizer.apply_chat_template(
        messages, chat_template=chosen, tokenize=False, add_generation_prompt=True, **dict(one.request.template)
    )
    seen = [Image.fromarray(media.rgb) for media in one.media if isinstance(media, Picture)]
    grids = laid.images(images=seen, return_tensors="pt")["image_grid_thw"].tolist() if seen else []
    pieces = text.split("<|image_pad|>")
    pads = ["<|image_pad|>" * (t * h * w // 4) for t, h, w in grids]
    whole = pieces[0] + "".join(pad + piece for pad, piece in zip(pads, pieces[1:], strict=True))
    ids: list[int] = laid.tokenizer(whole, add_special_tokens=False)["input_ids"]
    return ids


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_has_the_librarys_ids(laid: Laid, prompt: str) -> None:
    one = PROMPTS[prompt]
    unlimited = Settings(max_image_tokens=16_384)
    made = PromptBuilder(laid.served.spec, unlimited).build(one.request, one.media)
    assert list(made.ids) == library_ids(laid, one)


def test_words_of_every_branch_of_the_template_have_the_librarys_ids(laid: Laid) -> None:
    """Tools, their calls and results, and thoughts: whatever the template writes."""
    spec = laid.served.spec
    control = ControlTokens(spec.tokenizer.specials)
    texts = set()
    for case, variables in conversations().items():
        if "tool" in case or "thought" in case:
            messages = variables.pop("messages")
            texts |= {spec.template.render(messages, variables)}
    assert len(texts) >= 6
    for text in texts:
        ids: list[int] = []
        for piece, is_control in control.split(text, "\ue000"):
            ids += [spec.tokenizer.id_of(piece) or 0] if is_control else spec.tokenizer.encode(piece)
        assert ids == laid.tokenizer(text, add_special_tokens=False)["input_ids"]


# `generate` is not told of the checkpoint's own repetition penalty.
GREEDY = {"max_tokens": MAX_TOKENS, "temperature": 0, "repetition_penalty": 1.0, "logprobs": 0}
ASKED = [
    ask("Who are you?", **GREEDY),
    ask("What?", picture(1, 640, 480), **GREEDY),
    ask("Compare.", picture(2), picture(3, 288, 196), **GREEDY),
    ask("What moves?", clip(4, 5), **GREEDY),
]


def answers(of: LoadedModel) -> list[tuple[bytes, ...]]:
    async def run() -> list[tuple[bytes, ...]]:
        return list(await asyncio.gather(*(answer(engine, one) for one in ASKED)))

    engine = continuous_engine(of, Settings(device="cpu"))
    engine.start()
    try:
        return asyncio.run(run())
    finally:
        engine.close()


def test_it_answers_as_the_librarys_generate(laid: Laid) -> None:
    expected = [reference(laid.library, one)[:MAX_TOKENS] for one in ASKED]
    assert answers(laid.served) == expected
    assert len(set(expected)) >= len(expected) - 1, "the answers depend on nothing"


def test_it_is_verified_and_baked_and_answers_the_same(
    laid: Laid, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    assert "config.json" in verify(laid.folder)
    if laid.name not in BAKED and not request.config.getoption("--all-models"):
        return
    folder = tmp_path / laid.name
    shutil.copytree(laid.folder, folder)
    bake(folder)
    baked = load(in_float32(folder))
    assert isinstance(baked.spec.tokenizer, VocabularyTokenizer)
    for one in PROMPTS.values():
        ids = [PromptBuilder(of.spec, Settings()).build(one.request, one.media).ids for of in (baked, laid.served)]
        assert ids[0] == ids[1]
    assert answers(baked) == answers(laid.served)


@pytest.mark.parametrize("of", MODELS, ids=lambda of: of.name)
def test_every_size_is_run_by_native_code_where_its_family_has_some(of: Any) -> None:
    native = FAMILIES[of.kind].native
    assert (native is None) == of.is_recurrent
    if native is not None:
        assert why_not(config(of), native.layout) is None
