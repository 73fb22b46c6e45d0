"""What is known of the published checkpoints: sizes, files and sampling, as data for docs/models.md and for tests.

Where each fact was read stands in docs/models.md. Configs are put together here in the layout in which they lie on the
hub: flat or nested, with the names of fields that each release has.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from worker.core.safe_json import JsonObject

CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MEDIA = (
    *("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
WORDS = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>"),
)
REPLIES = ("<tool_response>", "</tool_response>", "<think>", "</think>")
SOUNDS = (
    *("<|audio_start|>", "<|audio_end|>", "<tts_pad>", "<tts_text_bos>", "<tts_text_eod>", "<tts_text_bos_single>"),
    "<|audio_pad|>",
)


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """base: tokens before the added ones. added: in the order of their ids. words: those of them that are not special.
    only_declared: those that stand in tokenizer_config.json alone."""

    base: int
    added: tuple[str, ...]
    words: tuple[str, ...] = ()
    only_declared: tuple[str, ...] = ()

    def id_of(self, token: str) -> int:
        return self.base + self.added.index(token)


QWEN2_VL_WORDS = Vocabulary(base=151_643, added=(*CHATML, *MEDIA))
QWEN2_5_VL_WORDS = Vocabulary(base=151_643, added=(*CHATML, *MEDIA, *WORDS), words=WORDS)
QWEN3_VL_WORDS = Vocabulary(base=151_643, added=(*CHATML, *MEDIA, *WORDS, *REPLIES), words=(*WORDS, *REPLIES))
QWEN3_5_WORDS = Vocabulary(
    base=248_044,
    added=(*CHATML, *MEDIA, *WORDS, *REPLIES, *SOUNDS),
    words=(*WORDS, *REPLIES),
    only_declared=SOUNDS,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class PublishedModel:
    """A checkpoint on the hub. text: hidden, intermediate (of an expert, where there are experts), layers, heads, heads
    of keys and values. tower: depth, hidden, intermediate, heads. experts: how many, and how many a token goes to.
    linear_heads: value heads of its recurrent layers. thinks: its template opens a thought by default; None: it has no
    thoughts. shards: files of weights; None: not known. generation: its sampling in generation_config.json; None: it
    has no such file. dense: the intermediate of a layer without experts. version: of Qwen3.5 and the models that
    followed it. has_few_tower_fields: a config that leaves most of the tower to the family. seen: what was read:
    `files`, its small files; `config`, its config.json; `template`, its chat template and the files of its FP8 copy;
    `sizes`, numbers in reports."""

    name: str
    kind: str
    text: tuple[int, int, int, int, int]
    tower: tuple[int, int, int, int]
    vocabulary_size: int
    context: int
    is_tied: bool
    shards: int | None
    generation: Mapping[str, float] | None
    experts: tuple[int, int] | None = None
    linear_heads: int | None = None
    thinks: bool | None = None
    dense: int | None = None
    version: int = 5
    has_few_tower_fields: bool = False
    seen: Literal["files", "config", "template", "sizes"] = "config"

    @property
    def is_flat(self) -> bool:
        """Whether its config has the text model's fields at the top."""
        return self.kind in ("qwen2_vl", "qwen2_5_vl")

    @property
    def is_recurrent(self) -> bool:
        return self.kind in ("qwen3_5", "qwen3_5_moe")

    @property
    def words(self) -> Vocabulary:
        own = {"qwen2_vl": QWEN2_VL_WORDS, "qwen2_5_vl": QWEN2_5_VL_WORDS}
        return own.get(self.kind, QWEN3_5_WORDS if self.is_recurrent else QWEN3_VL_WORDS)


_COLD = {"repetition_penalty": 1.0, "temperature": 0.01, "top_p": 0.001, "top_k": 1}
_NEARLY_GREEDY = {"repetition_penalty": 1.05, "temperature": 1e-6}
_INSTRUCT = {"repetition_penalty": 1.0, "temperature": 0.7, "top_p": 0.8, "top_k": 20}
_THINKING = {"repetition_penalty": 1.0, "temperature": 1.0, "top_p": 0.95, "top_k": 20}
_QWEN3_5 = {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
_QWEN3_6 = {"temperature": 1.0, "top_p": 0.95, "top_k": 20}
_SMALL, _LARGE = (24, 1024, 4096, 16), (27, 1152, 4304, 16)


def _qwen2(
    name: str, text: tuple[int, int, int, int, int], vocabulary: int, shards: int, inner: int = 3420, **more: Any
) -> PublishedModel:
    is_older = name.startswith("Qwen2-")
    return PublishedModel(
        name=name,
        kind="qwen2_vl" if is_older else "qwen2_5_vl",
        text=text,
        tower=(32, 1280, 5120 if is_older else inner, 16),
        vocabulary_size=vocabulary,
        context=32_768 if is_older else 128_000,
        shards=shards,
        generation=_COLD if is_older else _NEARLY_GREEDY,
        **{"is_tied": False, **more},
    )


def _qwen3(name: str, text: tuple[int, int, int, int, int], shards: int | None, **more: Any) -> list[PublishedModel]:
    """Instruct, and the same that thinks."""
    is_small = text[0] < 4096 and "experts" not in more
    shape = {
        "kind": "qwen3_vl_moe" if "experts" in more else "qwen3_vl",
        "text": text,
        "tower": _SMALL if is_small else _LARGE,
        "vocabulary_size": 151_936,
        "context": 262_144,
        "is_tied": is_small,
        "shards": shards,
        **more,
    }
    return [
        PublishedModel(name=f"{name}-Instruct", generation=_INSTRUCT, **shape),
        PublishedModel(name=f"{name}-Thinking", generation=_THINKING, thinks=True, **{**shape, "seen": "template"}),
    ]


def _qwen3_5(
    name: str, text: tuple[int, int, int, int, int], linear_heads: int, shards: int | None, **more: Any
) -> PublishedModel:
    return PublishedModel(
        name=name,
        kind="qwen3_5_moe" if "experts" in more else "qwen3_5",
        text=text,
        vocabulary_size=248_320,
        context=262_144,
        linear_heads=linear_heads,
        shards=shards,
        **{"tower": _LARGE, "is_tied": False, "thinks": True, "generation": None, **more},
    )


MODELS: tuple[PublishedModel, ...] = (
    _qwen2("Qwen2-VL-2B-Instruct", (1536, 8960, 28, 12, 2), 151_936, 2, is_tied=True, seen="files"),
    _qwen2("Qwen2-VL-7B-Instruct", (3584, 18944, 28, 28, 4), 152_064, 5, seen="sizes"),
    _qwen2("Qwen2-VL-72B-Instruct", (8192, 29568, 80, 64, 8), 152_064, 38, seen="sizes"),
    _qwen2("Qwen2.5-VL-3B-Instruct", (2048, 11008, 36, 16, 2), 151_936, 2, is_tied=True, seen="files"),
    _qwen2("Qwen2.5-VL-7B-Instruct", (3584, 18944, 28, 28, 4), 152_064, 5, seen="files"),
    _qwen2("Qwen2.5-VL-32B-Instruct", (5120, 27648, 64, 40, 8), 152_064, 18, inner=3456, has_few_tower_fields=True),
    _qwen2("Qwen2.5-VL-72B-Instruct", (8192, 29568, 80, 64, 8), 152_064, 38, inner=3456, seen="sizes"),
    *_qwen3("Qwen3-VL-2B", (2048, 6144, 28, 16, 8), 1, seen="files"),
    *_qwen3("Qwen3-VL-4B", (2560, 9728, 36, 32, 8), 2, seen="files"),
    *_qwen3("Qwen3-VL-8B", (4096, 12288, 36, 32, 8), 4, seen="files"),
    *_qwen3("Qwen3-VL-32B", (5120, 25600, 64, 64, 8), 14),
    *_qwen3("Qwen3-VL-30B-A3B", (2048, 768, 48, 32, 4), 13, experts=(128, 8), dense=6144),
    *_qwen3("Qwen3-VL-235B-A22B", (4096, 1536, 94, 64, 4), None, experts=(128, 8), dense=12288),
    _qwen3_5("Qwen3.5-0.8B", (1024, 3584, 24, 8, 2), 16, 1, tower=(12, 768, 3072, 12), is_tied=True, thinks=False),
    _qwen3_5("Qwen3.5-2B", (2048, 6144, 24, 8, 2), 16, 1, tower=_SMALL, is_tied=True, thinks=False),
    _qwen3_5("Qwen3.5-4B", (2560, 9216, 32, 16, 4), 32, 2, tower=_SMALL, is_tied=True, seen="files"),
    _qwen3_5("Qwen3.5-9B", (4096, 12288, 32, 16, 4), 32, 4, seen="files"),
    _qwen3_5("Qwen3.5-27B", (5120, 17408, 64, 24, 4), 48, 11, generation=_QWEN3_5, seen="files"),
    _qwen3_5("Qwen3.5-35B-A3B", (2048, 512, 40, 16, 2), 32, 14, experts=(256, 8), generation=_QWEN3_6),
    _qwen3_5("Qwen3.5-122B-A10B", (3072, 1024, 48, 32, 2), 64, None, experts=(256, 8), generation=_QWEN3_6),
    _qwen3_5("Qwen3.5-397B-A17B", (4096, 1024, 60, 32, 2), 64, None, experts=(512, 10), generation=_QWEN3_5),
    _qwen3_5("Qwen3.6-27B", (5120, 17408, 64, 24, 4), 48, 15, generation=_QWEN3_6, version=6, seen="files"),
    _qwen3_5("Qwen3.6-35B-A3B", (2048, 512, 40, 16, 2), 32, 26, experts=(256, 8), generation=_QWEN3_6, version=6),
    _qwen3_5("Qwen3.8-27B", (5120, 17408, 64, 24, 4), 48, 18, generation=_QWEN3_6, version=8, seen="files"),
)


_FEW = ("hidden_size", "intermediate_size", "out_hidden_size", "in_chans", "tokens_per_second")


def model(name: str) -> PublishedModel:
    return next(one for one in MODELS if one.name == name)


def config(of: PublishedModel) -> JsonObject:
    """Its config.json, without fields that change nothing."""
    return _flat(of) if of.is_flat else _nested(of)


def _text(of: PublishedModel) -> JsonObject:
    hidden, inner, layers, heads, kv_heads = of.text
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": of.context,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "vocab_size": of.vocabulary_size,
    }


def _media_ids(of: PublishedModel) -> JsonObject:
    return {
        "vision_start_token_id": of.words.id_of("<|vision_start|>"),
        "vision_end_token_id": of.words.id_of("<|vision_end|>"),
        "image_token_id": of.words.id_of("<|image_pad|>"),
        "video_token_id": of.words.id_of("<|video_pad|>"),
    }


def _flat(of: PublishedModel) -> JsonObject:
    """Qwen2-VL and Qwen2.5-VL: the text model's fields at the top."""
    depth, hidden, inner, heads = of.tower
    tower: JsonObject = {
        "depth": depth,
        "num_heads": heads,
        "in_chans": 3,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
    }
    if of.kind == "qwen2_vl":
        tower |= {"embed_dim": hidden, "mlp_ratio": 4, "hidden_size": of.text[0]}
    else:
        tower |= {
            "hidden_size": hidden,
            "intermediate_size": inner,
            "out_hidden_size": of.text[0],
            "hidden_act": "silu",
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
        }
    rope: JsonObject = {"type": "mrope", "mrope_section": [16, 24, 24]}
    if of.has_few_tower_fields:  # saved by another version of the library than its sisters
        tower = {name: tower[name] for name in _FEW} | {"model_type": of.kind}
        rope |= {"type": "default", "rope_type": "default"}
    classes = {"qwen2_vl": "Qwen2VLForConditionalGeneration", "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration"}
    return {
        "architectures": [classes[of.kind]],
        "model_type": of.kind,
        "bos_token_id": of.words.id_of("<|endoftext|>"),
        "eos_token_id": of.words.id_of("<|im_end|>"),
        "vision_token_id": of.words.id_of("<|vision_pad|>"),
        **_media_ids(of),
        **_text(of),
        "rope_theta": 1e6,
        "rope_scaling": rope,
        "sliding_window": 32_768,
        "use_sliding_window": False,
        "max_window_layers": of.text[2],
        "tie_word_embeddings": of.is_tied,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "vision_config": tower,
    }


def _nested(of: PublishedModel) -> JsonObject:
    """Qwen3-VL and later: a config for each of text and tower."""
    depth, hidden, inner, heads = of.tower
    is_recurrent, is_moe = of.is_recurrent, of.experts is not None
    text = {**_text(of), "model_type": f"{of.kind}_text", "dtype": "bfloat16", "head_dim": 128, "attention_bias": False}
    if is_recurrent:
        text |= _recurrent(of)
    else:
        rope = {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"}
        text |= {"rope_scaling": rope, "rope_theta": 5_000_000, "eos_token_id": of.words.id_of("<|im_end|>")}
    if of.experts is not None:
        text |= {"num_experts": of.experts[0], "num_experts_per_tok": of.experts[1]}
        text |= {"moe_intermediate_size": of.text[1], "mlp_only_layers": []}
        if is_recurrent:
            text |= {"shared_expert_intermediate_size": of.text[1]}
            del text["intermediate_size"]
        else:
            text |= {"intermediate_size": of.dense, "decoder_sparse_step": 1, "norm_topk_prob": True}
    if of.is_tied:
        text["tie_word_embeddings"] = True
    deep = [] if is_recurrent else [5, 11, 17] if depth == 24 else [8, 16, 24]
    name = ("Qwen3_5" if is_recurrent else "Qwen3VL") + ("Moe" if is_moe else "")
    return {
        "architectures": [f"{name}ForConditionalGeneration"],
        "model_type": of.kind,
        **_media_ids(of),
        "tie_word_embeddings": of.is_tied,
        "transformers_version": "4.57.0.dev0",
        "text_config": text,
        "vision_config": {
            "model_type": of.kind,
            "deepstack_visual_indexes": deep,
            "depth": depth,
            "hidden_size": hidden,
            "intermediate_size": inner,
            "num_heads": heads,
            "out_hidden_size": of.text[0],
            "hidden_act": "gelu_pytorch_tanh",
            "in_channels": 3,
            "num_position_embeddings": 2304,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    }


def _recurrent(of: PublishedModel) -> JsonObject:
    kinds = ["linear_attention", "linear_attention", "linear_attention", "full_attention"]
    more: JsonObject = {"bos_token_id": of.words.id_of("<|endoftext|>"), "pad_token_id": None}
    return {
        "head_dim": 256,
        "eos_token_id": of.words.id_of("<|endoftext|>"),
        "full_attention_interval": 4,
        "layer_types": kinds * (of.text[2] // 4),
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": of.linear_heads,
        "mamba_ssm_dtype": "float32",
        "mtp_num_hidden_layers": 1,
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": [11, 11, 10],
            "rope_type": "default",
            "rope_theta": 10_000_000,
            "partial_rotary_factor": 0.25,
        },
        **(more if of.version > 5 else {}),
    }


def generation(of: PublishedModel) -> JsonObject | None:
    """Its generation_config.json."""
    if of.generation is None:
        return None
    begin, end = (of.words.id_of(token) for token in ("<|endoftext|>", "<|im_end|>"))
    ids = {"bos_token_id": begin, "pad_token_id": begin, "eos_token_id": [end, begin]}
    return {**ids, "do_sample": True, **of.generation}


def preprocessors(of: PublishedModel) -> dict[str, JsonObject]:
    """The files that say how pictures and videos become patches, by their names."""
    if of.is_flat:
        is_older = of.kind == "qwen2_vl"
        rules = {
            "min_pixels": 3136,
            "max_pixels": 12_845_056,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2VLProcessor" if is_older else "Qwen2_5_VLProcessor",
        }
        return {"preprocessor_config.json": rules}
    rules = {
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "processor_class": "Qwen3VLProcessor",
    }
    image = {"size": {"longest_edge": 16_777_216, "shortest_edge": 65_536}, **rules}
    video = {"size": {"longest_edge": 25_165_824, "shortest_edge": 4_096}, **rules}
    return {
        "preprocessor_config.json": {**image, "image_processor_type": "Qwen2VLImageProcessorFast"},
        "video_preprocessor_config.json": {**video, "video_processor_type": "Qwen3VLVideoProcessor"},
    }
