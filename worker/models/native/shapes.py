"""The shapes of a model, from its checkpoint's config and its family's layout, and whether our own code can run it."""

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from worker.checkpoint.preprocessor import number
from worker.checkpoint.spec import parts
from worker.core.errors import ModelError
from worker.core.safe_json import JsonObject

ROPE_TYPES = (None, "default", "mrope")
SHALLOW = 2  # one layer of each kind that there is
_NUMBERED = re.compile(r"\.(layers|blocks|deepstack_merger_list)\.(\d+)\.")

AnyTensor = TypeVar("AnyTensor")


@dataclass(frozen=True)
class TextShape:
    """The text model. sections: how many rotary frequencies turn by time, height and width; is_interleaved: they take
    turns, else they lie in blocks. has_qk_norm: queries and keys are normalised head by head; has_bias: their
    projections have biases. is_tied: logits come from the embedding. sparse: layers whose MLP is `experts`, of which
    each token goes to `per_token`."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    theta: float
    sections: tuple[int, int, int]
    is_interleaved: bool
    has_qk_norm: bool
    has_bias: bool
    is_tied: bool
    experts: int
    per_token: int
    expert_intermediate: int
    sparse: frozenset[int]


@dataclass(frozen=True)
class VisionShape:
    """The vision tower. patch, temporal and merge count pixels, frames and patches a side. positions: learned ones, 0
    for none; deep: layers whose features go into the text model's first layers; window: side in pixels within which
    patches see each other, but in the `full` layers, 0 for everywhere."""

    depth: int
    hidden: int
    intermediate: int
    heads: int
    channels: int
    patch: int
    temporal: int
    merge: int
    theta: float
    out: int
    positions: int
    deep: tuple[int, ...]
    window: int
    full: tuple[int, ...]

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a family's layers are where its configs do not say it: the defaults of `TextShape` and `VisionShape`.

    activation: of the vision tower. tower: its sizes by the names of `vision_config`. has_mlp_ratio: in which
    `hidden_size` is the text model's, the tower's own is `embed_dim`, and its MLP is `mlp_ratio` times as wide.
    has_experts: a layer's MLP may be experts.
    """

    sections: tuple[int, int, int]
    is_interleaved: bool
    has_qk_norm: bool
    has_bias: bool
    eps: float
    theta: float
    activation: str
    tower: Mapping[str, Any] = field(default_factory=dict)
    has_mlp_ratio: bool = False
    has_experts: bool = False
    positions: int = 0
    deep: tuple[int, ...] = ()
    window: int = 0
    full: tuple[int, ...] = ()


def why_not(config: JsonObject, layout: Layout) -> str | None:
    """Why our own code cannot run a model of this config; None where it can."""
    text, vision = parts(config)
    rope = _rope(text)
    if rope.get("rope_type", rope.get("type")) not in ROPE_TYPES:
        return "its positions are scaled"
    if text.get("use_sliding_window") and text.get("max_window_layers", 0) < text.get("num_hidden_layers", 1):
        return "its attention has a sliding window"
    if text.get("hidden_act", "silu") != "silu" or (not layout.has_bias and text.get("attention_bias")):
        return "its layers are not those of its family"
    if vision.get("hidden_act", layout.activation) != layout.activation:
        return "its vision tower is not its family's"
    try:
        read(config, layout)
    except ModelError as error:
        return str(error)
    return None


def shallow(
    config: JsonObject, layout: Layout, tensors: Mapping[str, AnyTensor]
) -> tuple[JsonObject, dict[str, AnyTensor]]:
    """The config and the tensors of the model's first layers alone: whatever is made at a first use is made by them.
    Its answers mean nothing. Raises ModelError where the config does not say how many there are."""
    whole, tower = read(config, layout)
    config = copy.deepcopy(config)
    text, vision = parts(config)
    text["num_hidden_layers"] = min(SHALLOW, whole.layers)
    vision["depth"] = min(SHALLOW, tower.depth)
    vision["deepstack_visual_indexes"], vision["fullatt_block_indexes"] = [0] * bool(tower.deep), [vision["depth"] - 1]
    kept = {"layers": text["num_hidden_layers"], "blocks": vision["depth"], "deepstack_merger_list": 1}

    def is_kept(name: str) -> bool:
        found = _NUMBERED.search(f".{name}")
        return found is None or int(found[2]) < kept[found[1]]

    return config, {name: tensor for name, tensor in tensors.items() if is_kept(name)}


def read(config: JsonObject, layout: Layout) -> tuple[TextShape, VisionShape]:
    """The shapes of a model that our own code knows. Raises ModelError where the config does not say them."""
    text, vision = parts(config)
    try:
        return _text(config, text, layout), _vision(vision, layout)
    except KeyError as error:
        raise ModelError(f"the checkpoint's config.json has no {error}") from None
    except (TypeError, ValueError):
        raise ModelError("the checkpoint's config.json has invalid numbers") from None


def _text(config: JsonObject, text: JsonObject, layout: Layout) -> TextShape:
    rope = _rope(text)
    time, height, width = rope.get("mrope_section") or layout.sections
    experts = layout.has_experts
    return TextShape(
        vocabulary=text["vocab_size"],
        hidden=text["hidden_size"],
        intermediate=text["intermediate_size"],
        layers=text["num_hidden_layers"],
        heads=text["num_attention_heads"],
        kv_heads=text.get("num_key_value_heads") or text["num_attention_heads"],
        head_dim=text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"],
        eps=float(text.get("rms_norm_eps", layout.eps)),
        theta=float(rope.get("rope_theta") or text.get("rope_theta") or layout.theta),
        sections=(time, height, width),
        is_interleaved=layout.is_interleaved,
        has_qk_norm=layout.has_qk_norm,
        has_bias=layout.has_bias,
        is_tied=bool(config.get("tie_word_embeddings") or text.get("tie_word_embeddings")),
        experts=(text.get("num_experts") or text["num_local_experts"]) if experts else 0,
        per_token=text["num_experts_per_tok"] if experts else 0,
        expert_intermediate=text["moe_intermediate_size"] if experts else 0,
        sparse=_sparse(text) if experts else frozenset(),
    )


def _vision(vision: JsonObject, layout: Layout) -> VisionShape:
    if not vision:
        raise ModelError("the checkpoint's config.json has no vision_config: it is text-only")
    vision = {**layout.tower, **vision}
    if layout.has_mlp_ratio:
        own, out = vision["embed_dim"], vision["hidden_size"]
        inner = int(own * vision["mlp_ratio"])
        vision |= {"hidden_size": own, "intermediate_size": inner, "out_hidden_size": out}
    return VisionShape(
        depth=vision["depth"],
        hidden=vision["hidden_size"],
        intermediate=vision["intermediate_size"],
        heads=vision["num_heads"],
        channels=vision["in_channels"] if "in_channels" in vision else vision.get("in_chans", 3),
        patch=number(vision["patch_size"]),
        temporal=number(vision["temporal_patch_size"]),
        merge=vision["spatial_merge_size"],
        theta=_rope(vision).get("rope_theta") or 10000.0,
        out=vision["out_hidden_size"],
        positions=layout.positions and vision.get("num_position_embeddings", layout.positions),
        deep=layout.deep and tuple(vision.get("deepstack_visual_indexes", layout.deep)),
        window=layout.window and vision.get("window_size", layout.window),
        full=layout.full and tuple(vision.get("fullatt_block_indexes", layout.full)),
    )


def _sparse(text: JsonObject) -> frozenset[int]:
    """The layers with experts."""
    dense, step = text.get("mlp_only_layers") or (), text.get("decoder_sparse_step", 1)
    return frozenset(
        layer for layer in range(text["num_hidden_layers"]) if layer not in dense and (layer + 1) % step == 0
    )


def _rope(text: JsonObject) -> JsonObject:
    """The older name takes precedence over the newer, as it does in the library."""
    return text.get("rope_scaling") or text.get("rope_parameters") or {}
