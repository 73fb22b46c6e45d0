"""Our own model code against transformers': logits, features, positions, templates; and that it can be told apart."""

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from jinja2.exceptions import TemplateError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel
from transformers.utils.chat_template_utils import render_jinja_template

from tests.conftest import DISTANCES
from tests.engine.requests import Shown, ask, clip, picture
from tests.models import checkpoints
from tests.models.checkpoints import NATIVE
from tests.processes import printed
from worker.checkpoint.chat_template import ChatTemplate
from worker.core.contract import Controls
from worker.core.errors import InputInvalid, ModelError
from worker.core.settings import Settings
from worker.models.families import FAMILIES
from worker.models.loading import LoadedModel, load
from worker.models.native import linear
from worker.models.native.attention import causal_attention, causal_mask
from worker.models.native.layers import Tensors
from worker.models.native.runner import NativeRunner, in_passes
from worker.models.native.shapes import why_not
from worker.models.runner import PrefillChunk, Runner, prefilled
from worker.prompt.builder import PromptBuilder
from worker.prompt.patches import Patches
from worker.prompt.positions import positions

ROOT = Path(__file__).parents[2]
NEAR = 1e-4
ROOM = 2**26  # bytes for keys and values
ASKED = {
    "text": ask("Who are you, and what do you see?"),
    "image": ask("What is it?", picture(1, 400, 300)),
    "images of several sizes": ask("Compare.", picture(3, 96, 256), picture(4, 250, 130), picture(5, 64, 64)),
    "frames": ask("What moves?", clip(1, num_frames=5)),
    "image and video": ask("And here?", picture(6, 300, 200), clip(2, num_frames=4)),
    "long": ask("Tell me about it. " * 60, picture(7)),
}


def loaded(folder: Path | None, code: str, **more: Any) -> LoadedModel:
    return load(Settings(device="cpu", model_path=folder, model_code=code, **more))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path | None]:
    root = tmp_path_factory.mktemp("native")
    return {family: checkpoints.write(family, root / family) for family in NATIVE} | {"tiny": None}


@pytest.fixture(scope="module", params=[*NATIVE, "tiny"])
def both(request: pytest.FixtureRequest, folders: dict[str, Path | None]) -> tuple[LoadedModel, LoadedModel]:
    return loaded(folders[request.param], "native"), loaded(folders[request.param], "transformers")


def steps(model: LoadedModel, shown: Shown, runner: Runner | None = None) -> list[torch.Tensor]:
    """Features, then logits: of the prompt's first half, of its second, of two decoded tokens."""
    runner = runner or model.runner
    prompt = PromptBuilder(model.spec, Settings()).build(shown.request, shown.media)
    features = runner.features(prompt.items) if prompt.items else []
    length = len(prompt.ids)
    slots = runner.kv_cache(ROOM)
    seen, cache = dict(enumerate(features)), slots.prefill_cache(length, length + 2)
    logits = [
        runner.prefill([PrefillChunk(prompt, (), part, seen, cache)])[0]
        for part in (slice(0, length // 2), slice(length // 2, length))
    ]
    slots.join(cache, length, length + 2)
    for index, token in enumerate((5, 9)):
        logits.append(runner.decode([token], [length + prompt.delta + index], slots)[0])
        slots.end_step()
    return [*(one.embeds for one in features), *(deep for one in features for deep in one.deep), *logits]


def distance(some: list[torch.Tensor], others: list[torch.Tensor]) -> float:
    return max(float((one.float() - other.float()).abs().max()) for one, other in zip(some, others, strict=True))


@pytest.mark.parametrize("asked", ASKED)
def test_features_and_logits_are_the_librarys(
    both: tuple[LoadedModel, LoadedModel], asked: str, request: pytest.FixtureRequest
) -> None:
    native, library = both
    assert (native.code, library.code) == ("native", "transformers")
    found = distance(steps(native, ASKED[asked]), steps(library, ASKED[asked]))
    DISTANCES[request.node.callspec.params["both"], asked] = found
    assert found < NEAR


@pytest.mark.parametrize("side", [28, 32, 56, 64, 96, 128])
def test_pictures_of_a_few_patches_are_seen_as_the_library_sees_them(
    both: tuple[LoadedModel, LoadedModel], side: int
) -> None:
    native, library = both
    small = replace(picture(1, side, side), controls=Controls(max_pixels=side * side))
    assert distance(steps(native, ask("What?", small)), steps(library, ask("What?", small))) < NEAR


def test_prompts_computed_together_are_as_apart(both: tuple[LoadedModel, LoadedModel]) -> None:
    """Whole ones and second halves, with pictures and without, packed behind each other."""
    native, library = both
    asked = [
        ask("Hi"),
        ask("What is it?", picture(4)),
        ask("Who are you? " * 9),
        ask("And these?", picture(5, 96, 160), picture(4)),
        ask("One more, of middling length."),
        ask("What happens?", clip(1)),
    ]
    build = PromptBuilder(native.spec, Settings()).build
    prompts = [build(shown.request, shown.media) for shown in asked]
    seen = [dict(enumerate(native.runner.features(prompt.items))) if prompt.items else {} for prompt in prompts]
    chunks, expected, caches = [], [], []
    slots, others = native.runner.kv_cache(ROOM), library.runner.kv_cache(ROOM)
    for index, prompt in enumerate(prompts):
        length = len(prompt.ids)
        cache = slots.prefill_cache(length, length)
        start = length // 2 if index % 2 else 0
        if start:
            native.runner.prefill([PrefillChunk(prompt, (), slice(0, start), seen[index], cache)])
        chunks.append(PrefillChunk(prompt, (), slice(start, length), seen[index], cache))
        theirs = dict(enumerate(library.runner.features(prompt.items))) if prompt.items else {}
        alone, logits = prefilled(library.runner, prompt, others, theirs)
        expected.append(logits)
        caches.append(alone)
    assert distance(list(native.runner.prefill(chunks)), expected) < NEAR
    for chunk, alone in zip(chunks, caches, strict=True):
        for one, other in zip(chunk.cache.layers, alone.layers, strict=True):
            assert torch.allclose(one.keys, other.keys, atol=NEAR)
            assert torch.allclose(one.values, other.values, atol=NEAR)


def test_the_library_pads_prompts_that_are_of_like_lengths(both: tuple[LoadedModel, LoadedModel]) -> None:
    _, library = both
    build = PromptBuilder(library.spec, Settings()).build
    prompts = [build(ask(text).request, ()) for text in ("Hi", "Who are you? ", "One more, of middling length.")]
    slots = library.runner.kv_cache(ROOM)
    chunks = [
        PrefillChunk(prompt, (), slice(0, len(prompt.ids)), {}, slots.prefill_cache(len(prompt.ids), 0))
        for prompt in prompts
    ]
    expected = [prefilled(library.runner, prompt, slots)[1] for prompt in prompts]
    assert distance(list(library.runner.prefill(chunks)), expected) < NEAR


def test_several_tokens_in_a_step_are_as_one_after_the_other(both: tuple[LoadedModel, LoadedModel]) -> None:
    """Three rows of two widths, which are fed three tokens, one and two."""
    native, _ = both
    build = PromptBuilder(native.spec, Settings()).build
    fed = [[5, 9, 11], [7], [3, 8]]
    prompts = [build(shown.request, shown.media) for shown in (ask("Hi"), ask("What is it?", picture(4)), ask("Who?"))]
    together, apart = native.runner.kv_cache(ROOM), []
    for prompt, tokens, most in zip(prompts, fed, (90, 900, 90), strict=True):
        alone, length = native.runner.kv_cache(ROOM), len(prompt.ids)
        seen = dict(enumerate(native.runner.features(prompt.items))) if prompt.items else {}
        cache, _ = prefilled(native.runner, prompt, alone, seen)
        for slots in (together, alone):
            slots.join(cache, length, most)
        for index, token in enumerate((*tokens, 6)):
            logits = native.runner.decode([token], [length + prompt.delta + index], alone)[0]
            alone.end_step()
            if index >= len(tokens) - 1:
                apart.append(logits)
    order = (0, 2, 1)  # as the pools have them
    positions = [len(prompts[row].ids) + prompts[row].delta + len(fed[row]) - 1 for row in order]
    newest, before = [fed[row][-1] for row in order], [fed[row][:-1] for row in order]
    first = native.runner.decode(newest, positions, together, before)
    together.end_step()
    second = native.runner.decode([6] * 3, [position + 1 for position in positions], together)
    assert distance(list(first), [apart[2 * row] for row in order]) < NEAR
    assert distance(list(second), [apart[2 * row + 1] for row in order]) < NEAR


# The 2B, the 30B with experts, the 7B and the older 2B model, cut to few layers and experts and a small vocabulary.
REAL = {
    "qwen3_vl": (
        {"hidden_size": 2048, "intermediate_size": 6144, "num_attention_heads": 16, "num_key_value_heads": 8}
        | {"head_dim": 128, "num_hidden_layers": 1, "rope_theta": 5e6}
        | {"rope_parameters": {**checkpoints.INTERLEAVED, "rope_theta": 5e6, "mrope_section": [24, 20, 20]}},
        {"hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "depth": 2, "out_hidden_size": 2048}
        | {"num_position_embeddings": 2304, "deepstack_visual_indexes": [0]},
    ),
    "qwen3_vl_moe": (
        {"hidden_size": 2048, "intermediate_size": 6144, "num_attention_heads": 32, "num_key_value_heads": 4}
        | {"head_dim": 128, "num_hidden_layers": 1, "rope_theta": 5e6}
        | {"num_experts": 16, "num_experts_per_tok": 8, "moe_intermediate_size": 768}
        | {"rope_parameters": {**checkpoints.INTERLEAVED, "rope_theta": 5e6, "mrope_section": [24, 20, 20]}},
        {"hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "depth": 2, "out_hidden_size": 2048}
        | {"num_position_embeddings": 2304, "deepstack_visual_indexes": [0]},
    ),
    "qwen2_5_vl": (
        {"hidden_size": 3584, "intermediate_size": 4736, "num_attention_heads": 28, "num_key_value_heads": 4}
        | {"num_hidden_layers": 1}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}},
        {"hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "depth": 2, "out_hidden_size": 3584},
    ),
    "qwen2_vl": (
        {"hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12, "num_key_value_heads": 2}
        | {"num_hidden_layers": 1}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}},
        {"embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "depth": 2, "hidden_size": 1536},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", REAL)
def test_real_shapes_cut_to_few_layers_are_the_librarys(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, vision = REAL[family]
    own = checkpoints.CONFIGS[family]
    wide = {"text_config": {**own["text_config"], **text}, "vision_config": {**own["vision_config"], **vision}}
    monkeypatch.setitem(checkpoints.CONFIGS, family, wide)
    monkeypatch.setattr(checkpoints, "SPREAD", 0.02)
    folder = checkpoints.write(family, tmp_path / family)
    native, library = loaded(folder, "native"), loaded(folder, "transformers")
    for name, shown in ASKED.items():
        ours, theirs = steps(native, shown), steps(library, shown)
        DISTANCES[f"{family}, real shapes", name] = distance(ours, theirs)
        assert distance(ours, theirs) < NEAR, name
        assert [one.argmax() for one in ours[-3:]] == [one.argmax() for one in theirs[-3:]], name


def divergence(some: list[torch.Tensor], others: list[torch.Tensor]) -> float:
    """Mean over steps of the Kullback-Leibler divergence of the next token."""
    pairs = [(a.float().log_softmax(-1), b.float().log_softmax(-1)) for a, b in zip(some, others, strict=True)]
    return sum(float((a.exp() * (a - b)).sum()) for a, b in pairs) / len(pairs)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", NATIVE)
def test_in_16_bit_it_is_as_near_as_the_librarys_own_attentions_are_to_each_other(
    folders: dict[str, Path | None], family: str, dtype: str
) -> None:
    """And as near to float32 as they are. In the middle of all prompts where there are experts: a token that goes to
    another one is a jump, which either may make."""
    folder = folders[family]
    of_all = median if "moe" in family else sum
    models = {
        "exact": loaded(folder, "transformers"),
        "own": loaded(folder, "native", dtype=dtype),
        "sdpa": loaded(folder, "transformers", dtype=dtype),
        "eager": loaded(folder, "transformers", dtype=dtype, attention="eager"),
    }
    each: dict[tuple[str, str], list[float]] = defaultdict(list)
    for shown in ASKED.values():
        last = {name: steps(model, shown)[-4:] for name, model in models.items()}
        for pair in (("sdpa", "own"), ("sdpa", "eager"), ("exact", "own"), ("exact", "sdpa"), ("exact", "eager")):
            each[pair].append(divergence(last[pair[0]], last[pair[1]]))
    far = {pair: float(of_all(found)) for pair, found in each.items()}
    assert far["sdpa", "own"] <= far["sdpa", "eager"] + 1e-5
    assert far["exact", "own"] <= max(far["exact", "sdpa"], far["exact", "eager"]) + 1e-5


# Configs and files as others may write them.


def _ties(config: dict[str, Any]) -> None:
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True


def _turn_experts(tensors: dict[str, torch.Tensor]) -> None:
    for name in tensors:
        if ".experts." in name:
            tensors[name] = tensors[name].transpose(1, 2).contiguous()


def _without(part: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if part in name]:
            del tensors[name]

    return change


def _as_they_are(_: dict[str, Any]) -> None:
    pass


WRITTEN: dict[str, tuple[tuple[str, ...], Callable[[dict[str, Any]], Any], Callable[[dict[str, Any]], None]]] = {
    "positions scaled by the older name": (
        NATIVE,
        lambda config: config["text_config"].update(
            rope_scaling={**config["text_config"]["rope_parameters"], "rope_type": "linear", "factor": 4.0}
        ),
        _as_they_are,
    ),
    "tied, with a head of its own in the file": (NATIVE, _ties, _as_they_are),
    "tied, without one": (NATIVE, _ties, _without("lm_head")),
    "another base of the tower's angles": (
        NATIVE,
        lambda config: config["vision_config"].update(rope_parameters={"rope_type": "default", "rope_theta": 500.0}),
        _as_they_are,
    ),
    "no epsilon": (NATIVE, lambda config: config["text_config"].pop("rms_norm_eps", None), _as_they_are),
    "no base of the angles": (
        NATIVE,
        lambda config: config["text_config"]["rope_parameters"].pop("rope_theta"),
        _as_they_are,
    ),
    "no deep layers": (
        ("qwen3_vl",),
        lambda config: config["vision_config"].update(deepstack_visual_indexes=[]),
        _without("deepstack"),
    ),
}


@pytest.mark.parametrize("written", WRITTEN)
def test_what_others_write_means_what_it_means_to_the_library(
    folders: dict[str, Path | None], written: str, tmp_path: Path
) -> None:
    families, configure, change = WRITTEN[written]
    for family in families:
        folder = folders[family]
        assert folder is not None
        other = changed(folder, tmp_path / family, change)
        config = json.loads((other / "config.json").read_text())
        configure(config)
        (other / "config.json").write_text(json.dumps(config))
        ours, theirs = (steps(loaded(other, code), ASKED["image and video"]) for code in ("auto", "transformers"))
        assert distance(ours, theirs) < NEAR, family


@pytest.mark.parametrize("inner", [32, 64])
def test_experts_are_taken_either_way_round(inner: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = checkpoints.CONFIGS["qwen3_vl_moe"]
    sized = {**own, "text_config": {**own["text_config"], "moe_intermediate_size": inner, "hidden_size": 64}}
    monkeypatch.setitem(checkpoints.CONFIGS, "qwen3_vl_moe", sized)
    folder = checkpoints.write("qwen3_vl_moe", tmp_path / "own")
    turned = changed(folder, tmp_path / "turned", _turn_experts)
    shown = ASKED["image"]
    assert distance(steps(loaded(turned, "native"), shown), steps(loaded(folder, "native"), shown)) < NEAR


# Each of these must be seen: a test that they pass is no test.


def changed(folder: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """The checkpoint with other tensors."""
    target.mkdir()
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (target / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


@pytest.mark.parametrize("family", NATIVE)
def test_a_changed_tensor_is_seen_wherever_it_is(folders: dict[str, Path | None], family: str) -> None:
    folder = folders[family]
    assert folder is not None
    whole, code = loaded(folder, "native"), FAMILIES[family].native
    assert code is not None
    shown = ask("What is it?", picture(1, 400, 300), clip(1, num_frames=4))
    right = steps(whole, shown)
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    for name, tensor in sorted(tensors.items()):
        other = tensors | {name: tensor + 0.1 * torch.randn(tensor.shape)}
        runner = NativeRunner(code, config, other, whole.spec.preprocessor, torch.device("cpu"))
        assert distance(steps(whole, shown, runner), right) > NEAR, name


@pytest.mark.parametrize("family", NATIVE)
def test_swapped_sections_of_the_positions_are_seen(folders: dict[str, Path | None], family: str) -> None:
    model = loaded(folders[family], "native")
    shown = ask("What is it?", picture(1, 400, 300))
    right = steps(model, shown)
    text = model.runner.text  # type: ignore[attr-defined]
    axes = text.axes
    text.axes = torch.where(axes == 1, 2, torch.where(axes == 2, 1, axes))
    assert distance(steps(model, shown), right) > NEAR


def test_a_skipped_deep_layer_is_seen(folders: dict[str, Path | None]) -> None:
    model = loaded(folders["qwen3_vl"], "native")
    shown = ask("What is it?", picture(1, 400, 300))
    right = steps(model, shown)[-4:]
    see = model.runner.features
    blind = lambda items: [replace(one, deep=(one.deep[0], torch.zeros_like(one.deep[1]))) for one in see(items)]  # noqa: E731
    model.runner.features = blind  # type: ignore[method-assign]
    assert distance(steps(model, shown)[-4:], right) > NEAR


def test_windows_matter_where_there_are_some(folders: dict[str, Path | None]) -> None:
    model = loaded(folders["qwen2_5_vl"], "native")
    shown = ask("What is it?", picture(1, 400, 300))
    right = steps(model, shown)
    tower = model.runner.tower  # type: ignore[attr-defined]
    tower.shape = replace(tower.shape, full=tuple(range(9)))
    assert distance(steps(model, shown), right) > NEAR


def test_experts_lie_either_way_in_a_checkpoint(folders: dict[str, Path | None], tmp_path: Path) -> None:
    folder = folders["qwen3_vl_moe"]
    assert folder is not None

    def turn(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            if ".experts." in name:
                tensors[name] = tensors[name].transpose(1, 2).contiguous()

    turned = loaded(changed(folder, tmp_path / "turned", turn), "native")
    assert distance(steps(turned, ASKED["image"]), steps(loaded(folder, "native"), ASKED["image"])) < NEAR


# Tensors by name.


@pytest.mark.parametrize("family", NATIVE)
def test_names_of_older_checkpoints_are_known(folders: dict[str, Path | None], family: str, tmp_path: Path) -> None:
    folder = folders[family]
    assert folder is not None

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            old = name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
            tensors[old] = tensors.pop(name)

    old = loaded(changed(folder, tmp_path / "old", rename), "native")
    assert distance(steps(old, ASKED["image"]), steps(loaded(folder, "native"), ASKED["image"])) < NEAR


@pytest.mark.parametrize("has_onednn", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 16, 33, 130])
def test_products_are_torchs_with_either_library(
    rows: int, dtype: torch.dtype, has_onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert linear.HAS_ONEDNN, "torch's builds for the CPU have it"
    monkeypatch.setattr(linear, "HAS_ONEDNN", has_onednn)
    torch.manual_seed(rows)
    weight, bias = torch.randn(48, 64).to(dtype), torch.randn(48).to(dtype)
    residual, wide = torch.randn(rows, 48).to(dtype), torch.randn(rows, 96).to(dtype)
    near = 1e-5 if dtype == torch.float32 else 0.15
    for x in (wide[:, 16:80], wide[:, 16:80].contiguous()):  # the first lies in memory with gaps
        for own in (None, bias):
            part, expected = linear.Linear(weight, own), torch.nn.functional.linear(x, weight, own)
            assert isinstance(part.products, linear.OneDnn) == (has_onednn and dtype == torch.float32)
            torch.testing.assert_close(part(x), expected, atol=near, rtol=near)
            torch.testing.assert_close(part.onto(residual, x), residual + expected, atol=near, rtol=near)


def test_products_are_of_few_numbers_of_rows() -> None:
    """Each keeps memory, for each shape of a weight."""
    sizes = {rows: rows + linear.padding(rows) for rows in range(1, 4097)}
    assert len(set(sizes.values())) == 32
    assert all(rows <= size < 2 * rows or rows == 1 for rows, size in sizes.items())
    assert all(size <= rows * 5 / 4 for rows, size in sizes.items() if rows > 128)
    assert all(linear.padding(size) == 0 for size in sizes.values())


def test_what_is_missing_left_over_or_of_another_shape_is_named() -> None:
    tensors = Tensors(
        {"visual.a": torch.zeros(2, 3), "model.b": torch.zeros(2), "model.rotary.inv_freq": torch.ones(1)}
    )
    with pytest.raises(ModelError, match=r"the tensor model\.visual\.a has the shape \(2, 3\) instead of \(3, 2\)"):
        tensors.take("model.visual.a", 3, 2)
    with pytest.raises(ModelError, match=r"the tensor nothing is missing"):
        tensors.take("nothing", 1)
    with pytest.raises(ModelError, match=r"1 tensors are not part of the model, for example model\.language_model\.b"):
        tensors.close()
    tensors.take("model.language_model.b", 2)
    tensors.close()


def test_a_tied_head_needs_no_memory_but_what_it_is_multiplied_by() -> None:
    """In the file's dtype it is the embedding; in another, embeddings stay in the file."""
    same = load(Settings(device="cpu", model_code="native", dtype="float16"))
    text = same.runner.text  # type: ignore[attr-defined]
    assert text.head.products.weight is text.embedding
    wider = load(Settings(device="cpu", model_code="native", dtype="float32"))
    text = wider.runner.text  # type: ignore[attr-defined]
    assert (text.embedding.dtype, text.head.products.weight.dtype) == (torch.float16, torch.float32)
    assert torch.equal(text.head.products.weight, text.embedding.float())
    assert text.embed(torch.tensor([3])).dtype == torch.float32


# Whose code.


@pytest.mark.parametrize(
    ("config", "why"),
    [
        *(({"model_type": family, **checkpoints.CONFIGS[family]}, None) for family in NATIVE),
        ({"model_type": "qwen3_vl", "text_config": {"rope_scaling": {"rope_type": "yarn"}}}, "positions are scaled"),
        ({"model_type": "qwen3_vl"}, "has no"),
        (
            {"model_type": "qwen3_vl", "text_config": {"rope_parameters": {"a": 1}, "rope_scaling": {"type": "yarn"}}},
            "scaled",
        ),
        ({"model_type": "qwen2_5_vl", "use_sliding_window": True}, "sliding window"),
        ({"model_type": "qwen3_vl", "text_config": {"hidden_act": "gelu"}}, "not those of its family"),
        ({"model_type": "qwen3_vl", "vision_config": {"hidden_act": "silu"}}, "not its family's"),
    ],
)
def test_what_it_cannot_run_it_leaves_to_the_library(config: dict[str, Any], why: str | None) -> None:
    family = FAMILIES[config["model_type"]]
    assert family.native is not None
    found = why_not(config, family.native.layout)
    assert (found is None) if why is None else (found is not None and why in found)


def test_model_code_is_chosen_by_what_is_there_and_by_the_setting(
    folders: dict[str, Path | None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert loaded(folders["qwen3_vl"], "auto").code == "native"
    assert "with native model code" in caplog.text
    assert loaded(folders["qwen3_vl"], "auto", attention="eager").code == "transformers"
    assert "transformers runs this model: ATTENTION is eager" in caplog.text
    other = checkpoints.write("qwen3_5", tmp_path / "other")
    assert loaded(other, "auto").code == "transformers"
    with pytest.raises(ModelError, match="MODEL_CODE=native cannot run this model: the model type"):
        loaded(other, "native")


ANSWER = """
import asyncio, sys
from contextlib import aclosing
from worker.startup import boot
begun = boot.begin()
from worker.core.settings import current
from worker.startup.build import start
serving = start(current(), timeline=begun.timeline, loaded=begun.loaded)

async def run():
    asked = {"prompt": "What is in the picture?", "image": sys.argv[1], "max_tokens": 8}
    async with aclosing(serving.service.answer(asked, "1")) as outputs:
        return [output async for output in outputs]

[reply] = asyncio.run(run())
assert reply["usage"]["image_tokens"], reply
serving.close()
wanted = ("transformers", "accelerate", "torchvision", "pandas", "scipy", "sympy", "redis", "fastapi", "matplotlib",
    "llguidance")
print([name for name in wanted if name in sys.modules])
"""


def test_an_answer_needs_no_transformers_nor_anything_else_that_is_not_used() -> None:
    picture_of = json.loads((ROOT / "test_input.json").read_text(encoding="utf-8"))["input"]["image"]
    assert printed(ANSWER, picture_of) == "[]"


# Positions and templates.


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("family", NATIVE)
def test_positions_are_the_librarys(folders: dict[str, Path | None], family: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    config = AutoConfig.from_pretrained(folders[family])
    kinds, images, videos, intervals = [0] * number(0, 3), [], [], []
    is_timed = family.startswith("qwen3")
    for _ in range(number(1, 5)):
        t, h, w = number(1, 4), 2 * number(1, 6), 2 * number(1, 6)
        if number(0, 1):
            images.append((1, h, w))
            kinds += [1] * (h * w // 4)
        else:
            videos.append((t, h, w))
            intervals.append(number(1, 9) / 4)
            for _ in range(t):
                kinds += [2] * (h * w // 4) + ([0] if is_timed else [])
        kinds += [0] * number(1, 4)
    made = {"qwen2_vl": Qwen2VLModel, "qwen2_5_vl": Qwen2_5_VLModel}.get(family, Qwen3VLModel)
    model = made.__new__(made)
    torch.nn.Module.__init__(model)
    model.config = config
    rate = getattr(config.vision_config, "tokens_per_second", None)
    more = {} if rate is None else {"second_per_grid_ts": intervals}
    spaces = [1.0] * len(videos) if rate is None else [rate * one for one in intervals]
    expected, delta = model.get_rope_index(
        torch.zeros(1, len(kinds), dtype=torch.long),
        mm_token_type_ids=torch.tensor([kinds]),
        image_grid_thw=torch.tensor(images) if images else None,
        video_grid_thw=torch.tensor(videos) if videos else None,
        **more,
    )
    found, own_delta = positions(torch.tensor(kinds), images, videos, 2, None if is_timed else spaces)
    assert torch.equal(found, expected[:, 0])
    assert own_delta == int(delta)


TEMPLATES = (
    "{%- for m in messages %}{{ m.role }}: {{ m.content | tojson }}\n{%- endfor %}{{ bos_token }}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "  {% if add_generation_prompt %}\n  {{ dict(a=1) | tojson(indent=1) }}\n  {% endif %}\n{{ told }}",
    "{% for m in messages %}{% generation %}{{ m.role }}{% endgeneration %}{% continue %}!{% endfor %}",
    "{% macro show(x) %}<{{ x }}>{% endmacro %}{{ show('é<&>') }}{{ ['b', 'a'] | sort | join(',') }}",
    "{{ strftime_now('') }}{% if not tools %}{{ '<|im_start|>' ~ messages[0].role }}{% endif %}",
)


@pytest.mark.parametrize("text", TEMPLATES)
def test_templates_render_as_the_library_renders_them(text: str, tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(text, encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": {"content": "<s>"}}', encoding="utf-8")
    messages = [{"role": "user", "content": "é <b>"}, {"role": "assistant", "content": [{"type": "text", "text": "x"}]}]
    [expected], _ = render_jinja_template(
        [messages], chat_template=text, add_generation_prompt=True, bos_token="<s>", told="yes"
    )
    assert ChatTemplate(tmp_path).render(messages, {"told": "yes"}) == expected


@pytest.mark.parametrize(
    "text",
    [
        "{{ messages.__class__.__mro__ }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ namespace(__init__=1) }}",
        "{{ dict.__globals__.x }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception('no') }}",
    ],
)
def test_a_template_has_no_way_out_of_its_sandbox(text: str, tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(text, encoding="utf-8")
    template = ChatTemplate(tmp_path)
    with pytest.raises(InputInvalid) as refused:
        template.render([{"role": "user", "content": "x"}])
    assert isinstance(refused.value.__context__, TemplateError)  # a SecurityError is one


# Attention behind a past.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [(4, 2), (4, 4), (6, 1)])
@pytest.mark.parametrize(("past", "count"), [(0, 1), (0, 70), (5, 1), (5, 7), (1, 64), (300, 64), (130, 200)])
def test_a_chunk_sees_its_past_and_itself_up_to_each_token(
    past: int, count: int, heads: tuple[int, int], dtype: torch.dtype
) -> None:
    torch.manual_seed(past + count)
    query = torch.randn(heads[0], count, 16).to(dtype)
    keys, values = (torch.randn(heads[1], past + count, 16).to(dtype) for _ in range(2))
    every_keys, every_values = (part.double().repeat_interleave(heads[0] // heads[1], 0) for part in (keys, values))
    scores = query.double() @ every_keys.transpose(1, 2) * 0.3
    hidden = ~torch.ones(count, past + count, dtype=torch.bool).tril(past)
    expected = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ every_values
    found = causal_attention(query, keys, values, 0.3, causal_mask(count, past, query.device))
    assert found.dtype == dtype
    assert (found.double() - expected).abs().max() < (1e-5 if dtype == torch.float32 else 0.03)


def test_passes_of_the_vision_tower_are_bounded_and_show_every_frame_once() -> None:
    """Whatever comes before: a frame that is larger than a pass is one by itself."""
    grids = [(1, 160, 120), (1, 100, 100), (3, 40, 40), (2, 160, 120), (9, 40, 40), (1, 2, 2)]
    shown = [Patches(torch.full((t * h * w, 1), index), (t, h, w), 1) for index, (t, h, w) in enumerate(grids)]
    passes = list(in_passes(shown, 16_384))
    sizes = [sum(len(each.pixels) for each in group) for group in passes]
    assert all(
        size <= 16_384 or (len(group) == 1 and group[0].grid[0] == 1) for size, group in zip(sizes, passes, strict=True)
    )
    seen = torch.cat([each.pixels for group in passes for each in group])
    assert torch.equal(seen, torch.cat([each.pixels for each in shown]))
    assert all(len(each.pixels) == each.grid[0] * each.patches_a_frame for group in passes for each in group)
    assert len(passes) <= 8
