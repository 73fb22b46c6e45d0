"""The small files of published checkpoints and of copies of them, in every form in which they are met: what is read
from them is what the library reads, or one line says what is missing."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as HfTokenizer
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.processing_utils import ProcessorMixin
from transformers.utils.chat_template_utils import render_jinja_template

from builder.bake import bake
from builder.published import model
from tests.engine.requests import ask, clip, picture
from tests.models import published
from tests.models.published import TEMPLATES, set_in
from worker.checkpoint import load_plan
from worker.checkpoint.chat_template import ChatTemplate, template_sources
from worker.checkpoint.cpu import multiplies
from worker.checkpoint.load_plan import dtype_of
from worker.checkpoint.locate import Checkpoint
from worker.checkpoint.spec import FamilySpec, read_spec
from worker.checkpoint.tokenizer import Tokenizer, VocabularyTokenizer, read_tokenizer
from worker.core.errors import ModelError
from worker.core.sampling import Sampling
from worker.core.settings import EMBEDDED_MODEL, Settings
from worker.engine.sampling import resolve
from worker.models.families import FAMILIES
from worker.prompt.builder import PromptBuilder

QWEN2_5, QWEN3, QWEN3_5 = "Qwen2.5-VL-7B-Instruct", "Qwen3-VL-8B-Instruct", "Qwen3.5-9B"
QUESTION: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
TOKENIZERS: dict[str, Tokenizer] = {}  # of the originals
TEXT_ONLY = (TEMPLATES / "qwen2_5_text.jinja").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("originals")
    for name in (QWEN2_5, QWEN3, QWEN3_5):
        published.write_small_files(name, root / name)
        TOKENIZERS[name] = read_tokenizer(root / name)
    return root


@pytest.fixture
def folder(originals: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a checkpoint's small files, to be changed."""

    def copied(name: str = QWEN2_5) -> Path:
        return Path(shutil.copytree(originals / name, tmp_path / name))

    return copied


def spec_of(folder: Path, *, reads_tokens: bool = False, **settings: Any) -> FamilySpec:
    """`reads_tokens`: the folder's own, which are not those of the checkpoint that it is a copy of."""
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    tokenizer = None if reads_tokens else TOKENIZERS.get(folder.name)
    return read_spec(Checkpoint(folder, folder.name, "a test"), Settings(**settings), FAMILIES[kind], tokenizer)


def rendered_by_the_library(folder: Path) -> str:
    found, _ = ProcessorMixin.get_processor_dict(folder)
    own = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    chosen = found.get("chat_template") or own
    chosen = chosen["default"] if isinstance(chosen, dict) else chosen
    [text], _ = render_jinja_template([QUESTION], chat_template=chosen, add_generation_prompt=True)
    return str(text)


# Chat templates.


def _named(folder: Path) -> None:
    folder.mkdir()
    (folder / "default.jinja").write_text(_marked("default"))
    (folder / "tool_use.jinja").write_text(_marked("tools"))


def _marked(mark: str) -> str:
    return f"{mark}{{%- for m in messages %}}{{{{ '<|image_pad|>' }}}}{{%- endfor %}}"


PLACES: dict[str, Callable[[Path], Any]] = {
    "chat_template.jinja": lambda f: (f / "chat_template.jinja").write_text(_marked("jinja")),
    "chat_template.json": lambda f: (f / "chat_template.json").write_text(
        json.dumps({"chat_template": _marked("json")})
    ),
    "additional_chat_templates": lambda f: _named(f / "additional_chat_templates"),
    "processor_config.json": lambda f: (f / "processor_config.json").write_text(
        json.dumps({"chat_template": _marked("processor")})
    ),
    "tokenizer_config.json": lambda f: set_in(f / "tokenizer_config.json", chat_template=_marked("tokenizer")),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the library leaves files open
@pytest.mark.parametrize(
    "places",
    [
        ("chat_template.jinja", "tokenizer_config.json"),
        ("chat_template.json", "tokenizer_config.json"),
        ("additional_chat_templates", "tokenizer_config.json"),
        ("additional_chat_templates", "chat_template.jinja"),
        ("chat_template.jinja", "chat_template.json"),
        ("chat_template.json", "processor_config.json", "chat_template.jinja"),
    ],
)
def test_of_several_templates_the_librarys_is_taken(folder: Any, places: tuple[str, ...]) -> None:
    laid = folder()
    (laid / "chat_template.json").unlink()
    for place in places:
        PLACES[place](laid)
    spec = spec_of(laid)
    assert spec.template.render(QUESTION) == rendered_by_the_library(laid)


def test_a_template_may_be_one_of_a_list_with_names(folder: Any) -> None:
    laid = folder()
    (laid / "chat_template.json").unlink()
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": _marked("default")}]
    set_in(laid / "tokenizer_config.json", chat_template=named)
    assert spec_of(laid).template.render(QUESTION).startswith("default")


def test_a_text_only_template_in_the_tokenizers_config_is_not_the_models(folder: Any) -> None:
    """As early Qwen2.5-VL folders were: no `.jinja`, the vision template in chat_template.json."""
    laid = folder()
    set_in(laid / "tokenizer_config.json", chat_template=TEXT_ONLY)
    assert spec_of(laid).template.render(QUESTION) == rendered_by_the_library(laid)
    assert "<|image_pad|>" in spec_of(laid).template.render(QUESTION)


def test_a_text_only_template_alone_is_replaced_by_the_familys_where_that_is_certain(
    folder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    laid = folder()
    whole = spec_of(laid).template.render(QUESTION)
    (laid / "chat_template.json").unlink()
    set_in(laid / "tokenizer_config.json", chat_template=TEXT_ONLY)
    assert spec_of(laid).template.render(QUESTION) == whole
    assert "tokenizer_config.json is for text alone: the family's own is used" in caplog.text
    set_in(laid / "tokenizer_config.json", chat_template=TEXT_ONLY.replace("<|im_end|>", "<|endoftext|>"))
    with pytest.raises(
        ModelError, match=r"the chat template of .*tokenizer_config\.json has no place for images: put the"
    ):
        spec_of(laid)


def test_a_text_only_template_is_refused_where_the_family_has_several(folder: Any) -> None:
    laid = folder(QWEN3)
    (laid / "chat_template.json").unlink()
    set_in(laid / "tokenizer_config.json", chat_template=TEXT_ONLY)
    with pytest.raises(ModelError, match=r"the chat template of .*tokenizer_config\.json has no place for images"):
        spec_of(laid)
    _named(laid / "chat_templates")
    set_in(laid / "tokenizer_config.json", chat_template=None)
    assert spec_of(laid).template.render(QUESTION).startswith("default")
    (laid / "chat_templates" / "default.jinja").unlink()
    with pytest.raises(ModelError, match=r"no chat template: there are tool_use, but no default"):
        spec_of(laid)


def test_a_template_that_cannot_be_parsed_is_named(folder: Any) -> None:
    laid = folder(QWEN3_5)
    (laid / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(ModelError, match=r"chat_template\.jinja cannot be read"):
        spec_of(laid)
    assert [source.file.name for source in template_sources(laid)] == ["chat_template.jinja", "tokenizer_config.json"]
    with pytest.raises(ModelError, match=r"chat_template\.jinja cannot be read"):
        ChatTemplate(laid)


# Tokens.

TEXTS = (
    "Hello <tool_call>{}</tool_call> naïve ज्ञान  don't\r\n\n 123 <think>x</think> <|audio_pad|> <|fim_pad|>",
    "<|im_start|>user\n图片<|im_end|>",
    "สวัสดี e\u0301 \u212b",
)


def _without_tokenizer_json(laid: Path) -> None:
    (laid / "tokenizer.json").unlink()


def _only_older_files(laid: Path) -> None:
    """As before the library wrote `added_tokens_decoder`."""
    config = json.loads((laid / "tokenizer_config.json").read_text())
    decoder = config["added_tokens_decoder"]
    (laid / "added_tokens.json").write_text(json.dumps({one["content"]: int(at) for at, one in decoder.items()}))
    special = [one["content"] for one in decoder.values() if one["special"]]
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "additional_special_tokens": special}
    (laid / "special_tokens_map.json").write_text(json.dumps(names))
    set_in(laid / "tokenizer_config.json", added_tokens_decoder=None, additional_special_tokens=None)
    (laid / "tokenizer.json").unlink()


def _words_declared_special(laid: Path) -> None:
    """A fine-tune whose tokenizer_config.json knows better than tokenizer.json."""
    config = json.loads((laid / "tokenizer_config.json").read_text())
    for token in config["added_tokens_decoder"].values():
        token["special"] = token["special"] or token["content"] == "<tool_call>"
    set_in(laid / "tokenizer_config.json", **config)


def _prepared_for_training(laid: Path) -> None:
    """A tokenizer that was saved after it had padded and cut texts."""
    library = HfTokenizer.from_file(str(laid / "tokenizer.json"))
    library.enable_padding(length=64, pad_id=5, pad_token="<|endoftext|>")
    library.enable_truncation(8)
    library.save(str(laid / "tokenizer.json"))


def _one_token_more(laid: Path) -> None:
    config = json.loads((laid / "tokenizer_config.json").read_text())
    last = max(int(at) for at in config["added_tokens_decoder"])
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": False}
    config["added_tokens_decoder"][str(last + 1)] = {"content": "<|fim_pad|> <", **flags}
    set_in(laid / "tokenizer_config.json", **config)


CHANGES = [
    *(lambda _: None, _without_tokenizer_json, _only_older_files),
    *(_words_declared_special, _prepared_for_training, _one_token_more),
]


@pytest.mark.parametrize(
    ("name", "change"),
    [*((QWEN2_5, change) for change in CHANGES), (QWEN3_5, _without_tokenizer_json), (QWEN3_5, _one_token_more)],
)
def test_the_tokenizer_is_the_librarys_whatever_files_it_is_made_of(
    folder: Any, originals: Path, name: str, change: Callable[[Path], None]
) -> None:
    laid = folder(name)
    change(laid)
    # Of Qwen3.5 the library itself needs tokenizer.json.
    can_read = name != QWEN3_5 or (laid / "tokenizer.json").exists()
    theirs = AutoTokenizer.from_pretrained(laid if can_read else originals / name)
    ours = read_tokenizer(laid)
    of = model(name)
    known = theirs.get_vocab()
    for token in (*of.words.added, "<|fim_pad|> <"):
        assert ours.id_of(token) == known.get(token), token
    assert set(ours.specials) >= {token for token in of.words.added if token not in of.words.words}
    theirs.backend_tokenizer.encode_special_tokens = True
    theirs.backend_tokenizer.no_padding()
    theirs.backend_tokenizer.no_truncation()
    for text in TEXTS:
        assert ours.encode(text) == theirs.backend_tokenizer.encode(text, add_special_tokens=False).ids, text


def test_a_folder_of_older_files_is_baked_into_newer_ones(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(EMBEDDED_MODEL, tmp_path / "older"))
    body = json.loads((folder / "tokenizer.json").read_text())
    (folder / "vocab.json").write_text(json.dumps(body["model"]["vocab"]))
    (folder / "added_tokens.json").write_text(json.dumps({one["content"]: one["id"] for one in body["added_tokens"]}))
    special = [one["content"] for one in body["added_tokens"] if one["special"]]
    (folder / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": special}))
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in body["model"]["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(pairs) + "\n")
    (folder / "tokenizer.json").unlink()
    bake(folder)
    baked = read_tokenizer(folder)
    assert isinstance(baked, VocabularyTokenizer)
    for text in TEXTS:
        assert baked.encode(text) == read_tokenizer(EMBEDDED_MODEL).encode(text)


@pytest.mark.parametrize("damage", [{"x": {"content": "a"}}, {"151643": {"special": True}}, {"151643": None}])
def test_damaged_added_tokens_are_named_with_their_file(folder: Any, damage: dict[str, Any]) -> None:
    laid = folder()
    set_in(laid / "tokenizer_config.json", added_tokens_decoder=damage)
    with pytest.raises(ModelError, match=r"tokenizer_config\.json has invalid added tokens: download it again"):
        read_tokenizer(laid)


def test_without_merges_it_is_said_what_is_missing(folder: Any) -> None:
    laid = folder()
    for name in ("tokenizer.json", "merges.txt"):
        (laid / name).unlink()
    with pytest.raises(ModelError, match=r"has neither tokenizer\.json nor merges\.txt"):
        read_tokenizer(laid)


def test_tokens_that_the_model_has_no_place_for_are_refused(folder: Any) -> None:
    laid = folder()
    set_in(laid / "config.json", vocab_size=151_660)
    with pytest.raises(ModelError, match=r"the token <\|file_sep\|> as 151664, the model has 151660 tokens: resize"):
        spec_of(laid)
    set_in(laid / "config.json", vocab_size=153_713)  # resized the other way, it is served
    assert spec_of(laid).vocabulary_size == 153_713


def test_renamed_tokens_are_those_of_the_config(folder: Any, originals: Path) -> None:
    laid, original = folder(QWEN3), originals / QWEN3
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.json"):
        text = (laid / file).read_text(encoding="utf-8")
        (laid / file).write_text(text.replace("image_pad|", "picture|").replace("vision_start|", "see|"))
    spec = spec_of(laid, reads_tokens=True)
    assert (spec.tokens.image_pad, spec.tokens.start) == ("<|picture|>", "<|see|>")
    assert "<|see|><|picture|><|vision_end|>" in spec.template.render(QUESTION)
    shown = ask("What moves?", picture(1), clip(1))
    prompts = [PromptBuilder(one, Settings()).build(shown.request, shown.media) for one in (spec, spec_of(original))]
    assert prompts[0].ids == prompts[1].ids


def test_a_config_of_another_model_is_told_apart(folder: Any) -> None:
    laid = folder()
    set_in(laid / "config.json", image_token_id=248_056)
    with pytest.raises(ModelError, match=r"config\.json: image_token_id is 248056, which is no added token of the"):
        spec_of(laid)


def test_an_answer_ends_where_the_tokenizer_says_too(folder: Any) -> None:
    """Qwen3.5-9B has no generation_config.json, and its config names the end of a text alone."""
    laid = folder(QWEN3_5)
    assert not (laid / "generation_config.json").exists()
    assert spec_of(laid).eos_ids == {248_044, 248_046}


def test_leftovers_of_other_code_change_nothing(folder: Any) -> None:
    laid = folder()
    plain = spec_of(laid).template.render(QUESTION)
    set_in(laid / "config.json", auto_map={"AutoConfig": "gone.Config"}, _name_or_path="someone/their-model")
    set_in(laid / "tokenizer_config.json", auto_map={"AutoTokenizer": ["gone.Slow", None]})
    assert spec_of(laid).template.render(QUESTION) == plain


# Pixels.


def _both_forms(rules: dict[str, Any]) -> dict[str, Any]:
    return {**rules, "size": {"shortest_edge": 100_000, "longest_edge": 200_000}}


def _edges_alone(rules: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in rules.items() if key not in ("min_pixels", "max_pixels")}
    return {**kept, "size": {"shortest_edge": 4_000, "longest_edge": 200_000}}


def _nothing_for_the_old_form(rules: dict[str, Any]) -> dict[str, Any]:
    return {**_edges_alone(rules), "min_pixels": None, "max_pixels": None}


@pytest.mark.parametrize("form", [lambda rules: rules, _both_forms, _edges_alone, _nothing_for_the_old_form])
def test_limits_of_pixels_mean_what_they_mean_to_the_library(folder: Any, form: Any) -> None:
    laid = folder()
    rules = form(json.loads((laid / "preprocessor_config.json").read_text()))
    (laid / "preprocessor_config.json").write_text(json.dumps(rules))
    size = Qwen2VLImageProcessorPil.from_pretrained(laid).size
    ours = spec_of(laid).preprocessor
    assert (ours.image_min_pixels, ours.image_max_pixels) == (size["shortest_edge"], size["longest_edge"])


@pytest.mark.parametrize("size", [224, [224, 224], "224"])
def test_a_size_of_another_kind_is_not_taken_for_limits(folder: Any, size: Any) -> None:
    laid = folder()
    set_in(laid / "preprocessor_config.json", size=size)
    assert spec_of(laid).preprocessor.image_max_pixels == 12_845_056
    set_in(laid / "preprocessor_config.json", max_pixels=None)  # the family's
    assert spec_of(laid).preprocessor.image_max_pixels == 12_845_056


@pytest.mark.parametrize("name", [QWEN2_5, QWEN3])
def test_what_a_preprocessors_file_does_not_say_is_the_familys(folder: Any, name: str) -> None:
    laid = folder(name)
    whole = spec_of(laid).preprocessor
    short = {"image_processor_type": "Qwen2VLImageProcessorFast", "image_mean": None, "patch_size": [whole.patch] * 2}
    for file in laid.glob("*preprocessor_config.json"):
        file.write_text(json.dumps(short))
    assert spec_of(laid).preprocessor == whole


def test_one_file_for_both_kinds_counts_before_the_others(folder: Any) -> None:
    """As in the library; a copied file of the base model may lie beside."""
    laid = folder(QWEN3)
    image = json.loads((laid / "preprocessor_config.json").read_text())
    image["size"] = {"shortest_edge": 4_096, "longest_edge": 200_000}
    (laid / "processor_config.json").write_text(json.dumps({"image_processor": image}))
    assert spec_of(laid).preprocessor.image_max_pixels == 200_000


@pytest.mark.parametrize("vision", [None, [], "yes"])
def test_a_config_without_its_tower_is_refused(folder: Any, vision: Any) -> None:
    laid = folder(QWEN3)
    set_in(laid / "config.json", vision_config=vision)
    with pytest.raises(ModelError, match="has no vision_config: this copy of the model is text-only"):
        spec_of(laid)


@pytest.mark.parametrize("name", [QWEN2_5, QWEN3, QWEN3_5])
def test_without_its_files_the_pixels_are_the_familys(folder: Any, name: str, caplog: pytest.LogCaptureFixture) -> None:
    laid = folder(name)
    whole = spec_of(laid).preprocessor
    for file in laid.glob("*preprocessor_config.json"):
        file.unlink()
    assert spec_of(laid).preprocessor == whole
    assert "has no preprocessor_config.json: pictures are resized by the family's rules" in caplog.text
    config = json.loads((laid / "config.json").read_text())
    set_in(laid / "config.json", vision_config={**config["vision_config"], "patch_size": 12})
    assert spec_of(laid).preprocessor == replace(whole, patch=12)


def test_one_file_may_hold_the_rules_of_both_kinds(folder: Any) -> None:
    laid = folder(QWEN3)
    whole = spec_of(laid).preprocessor
    image, video = (laid / name for name in ("preprocessor_config.json", "video_preprocessor_config.json"))
    both = {"image_processor": json.loads(image.read_text()), "video_processor": json.loads(video.read_text())}
    (laid / "processor_config.json").write_text(json.dumps(both))
    image.unlink()
    video.unlink()
    assert spec_of(laid).preprocessor == whole


# Sampling.


def test_a_checkpoints_own_sampling_counts_unless_the_card_is_asked_for(
    folder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    laid = folder(QWEN3)
    own, card = (
        resolve(Sampling(seed=1), spec_of(laid, sampling_preset=preset).generation) for preset in ("checkpoint", "card")
    )
    assert (own.temperature, own.top_p, own.top_k, own.presence_penalty) == (0.7, 0.8, 20, 0.0)
    assert card == replace(own, presence_penalty=1.5)
    assert "sampling by the model's card: temperature 0.7, top_p 0.8, top_k 20, presence_penalty 1.5" in caplog.text
    asked = resolve(
        Sampling(seed=1, temperature=0.2, presence_penalty=0), spec_of(laid, sampling_preset="card").generation
    )
    assert (asked.temperature, asked.presence_penalty, asked.top_k) == (0.2, 0.0, 20)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"temperature": None, "top_p": None}, (1.0, 1.0, 20)),
        ({"top_k": -1}, (0.7, 0.8, 0)),
        ({"top_k": 40.0}, (0.7, 0.8, 40)),
        ({"temperature": "0.7"}, (1.0, 0.8, 20)),
        ({"temperature": -1, "top_p": 1.5, "top_k": 0.5}, (1.0, 1.0, 0)),
        ({"temperature": True, "repetition_penalty": 0}, (1.0, 0.8, 20)),
    ],
)
def test_sampling_that_means_nothing_is_left_out(
    folder: Any, written: dict[str, Any], expected: tuple[float, ...], caplog: pytest.LogCaptureFixture
) -> None:
    laid = folder(QWEN3)
    defaults = json.loads((laid / "generation_config.json").read_text()) | written
    (laid / "generation_config.json").write_text(json.dumps(defaults))
    found = resolve(Sampling(), spec_of(laid).generation)
    assert (found.temperature, found.top_p, found.top_k) == expected
    is_told = any(value is not None and value not in (-1, 40.0) for value in written.values())
    assert ("is ignored" in caplog.text) == is_told


@pytest.mark.parametrize("ids", [None, "151645", [151_645, None], []])
def test_an_end_that_is_no_id_is_the_tokenizers(folder: Any, ids: Any) -> None:
    laid = folder(QWEN3)
    defaults = json.loads((laid / "generation_config.json").read_text())
    (laid / "generation_config.json").write_text(json.dumps(defaults | {"eos_token_id": ids}))
    assert spec_of(laid).eos_ids == {151_645}


@pytest.mark.parametrize(
    ("name", "temperature", "presence"),
    [("Qwen3-VL-8B-Thinking", 1.0, 0.0), (QWEN3_5, 1.0, 1.5), ("Qwen3.5-2B", 0.7, 1.5)],
)
def test_the_card_of_a_thinking_checkpoint_is_another(
    folder: Any, name: str, temperature: float, presence: float, tmp_path: Path
) -> None:
    laid = folder(name) if name == QWEN3_5 else published.write_small_files(name, tmp_path / name)
    spec = spec_of(laid, sampling_preset="card")
    found = resolve(Sampling(), spec.generation)
    top_p = 0.8 if name == "Qwen3.5-2B" else 0.95
    assert (found.temperature, found.top_p, found.presence_penalty) == (temperature, top_p, presence)


def test_where_a_card_advises_nothing_the_checkpoints_own_counts(folder: Any) -> None:
    spec = spec_of(folder(), sampling_preset="card")
    found = resolve(Sampling(), spec.generation)
    assert (found.repetition_penalty, found.is_greedy) == (1.05, True)


def test_the_library_reads_the_made_tokenizer_as_it_reads_the_published_one(folder: Any) -> None:
    """A control: the vocabulary of the tests is whole, and all of its tokens are where the published ones are."""
    for name in (QWEN2_5, QWEN3_5):
        library = HfTokenizer.from_file(str(folder(name) / "tokenizer.json"))
        of = model(name)
        assert library.token_to_id("<|image_pad|>") == of.words.id_of("<|image_pad|>")
        assert library.get_vocab_size() == of.words.base + len(of.words.added) - len(of.words.only_declared)


# Dtypes.


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"torch_dtype": "bfloat16"}, "bfloat16"),  # flat, as older checkpoints have it
        ({"text_config": {"dtype": "bfloat16"}}, "bfloat16"),  # as newer ones
        ({"torch_dtype": "bfloat16", "text_config": {"torch_dtype": "float16"}}, "float16"),
        ({"dtype": "float32"}, "float32"),
        ({}, "bfloat16"),
    ],
)
def test_the_dtype_is_the_configs_where_the_processor_multiplies_it(
    tmp_path: Path, config: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    caplog.set_level("INFO")
    (tmp_path / "config.json").write_text(json.dumps(config))
    cpu, own = torch.device("cpu"), getattr(torch, expected)
    assert dtype_of("auto", torch.device("cuda"), tmp_path) == own
    monkeypatch.setattr(load_plan, "multiplies", lambda dtype: dtype == torch.float32)
    assert dtype_of("auto", cpu, tmp_path) == torch.float32
    assert dtype_of("bfloat16", cpu, tmp_path) == torch.bfloat16
    said = f"DTYPE=auto is float32: this CPU has no instructions for {expected}"
    assert (said in caplog.messages) == (expected != "float32")
    monkeypatch.setattr(load_plan, "multiplies", lambda _: True)
    assert dtype_of("auto", cpu, tmp_path) == own


@pytest.mark.parametrize(
    ("machine", "has_avx512_bf16", "has_amx", "takes", "expected"),
    [
        ("x86_64", True, False, True, True),
        ("x86_64", False, True, True, True),
        ("x86_64", False, False, True, False),  # AVX-512 alone: torch would compute it in float32
        ("aarch64", False, False, True, True),
        ("aarch64", False, False, False, False),
    ],
)
def test_which_processors_multiply_bfloat16(
    machine: str, has_avx512_bf16: bool, has_amx: bool, takes: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: has_avx512_bf16)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: has_amx)
    monkeypatch.setattr("torch.ops.mkldnn._is_mkldnn_bf16_supported", lambda: takes)
    assert multiplies(torch.bfloat16) is expected
    assert multiplies(torch.float32)
