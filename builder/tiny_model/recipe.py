"""The tiny model's checkpoint folder but for its weights: config, tokenizer, template, preprocessors.

Everything has the form of the Qwen3-VL family; the numbers are smaller.
"""

import json
import random
import shutil
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from builder.tiny_model import skills, small_talk
from builder.tiny_model.scenes import random_clip, random_number, random_scene
from worker.checkpoint.preprocessor import PreprocessorConfig
from worker.core.safe_json import JsonObject

PATCH, MERGE, TEMPORAL = 16, 2, 2
MIN_PIXELS, MAX_PIXELS = 128 * 128, 256 * 256
VIDEO_MIN_PIXELS, VIDEO_MAX_PIXELS = 4096, 8 * 128 * 128
VOCABULARY = 1024
MAX_POSITIONS = 4096

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
PLAIN_ADDED_TOKENS = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>",
)  # fmt: skip
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_FIRST_SPECIAL = VOCABULARY - len(SPECIAL_TOKENS) - len(PLAIN_ADDED_TOKENS)

_GENERAL_TEXT = (
    "You are a helpful assistant. The quick brown fox jumps over the lazy dog. Please answer in one word.",
    "user assistant system tool function name arguments the of and to in is that it for on with as are at this be",
    "have from or one had by not but what all were when we there can an your which their said if do will each about",
    "how up out them then she many some so these would other into has more her two like him see time could no make",
    "我们 你们 他们 这个 那个 什么 怎么 可以 没有 因为 所以 现在 时候 知道 一个 两个 不是 就是 请问 谢谢 图片 视频 问题 回答",  # noqa: E501
    "的 是 不 了 在 有 和 人 这 中 大 为 上 个 到 说 们 子 我 他 你 她 也 就 很 都 好 看 会 对 能 吗 吧 呢",
)

# The tokenizer's corpus stands still: a skill taught later must not change the ids that the weights know.
_CORPUS_SKILLS = (skills.caption, skills.count, skills.locate, skills.is_there, skills.number)


def special_id(token: str) -> int:
    """The id of an added token: they close the vocabulary in the family's order."""
    return _FIRST_SPECIAL + (SPECIAL_TOKENS + PLAIN_ADDED_TOKENS).index(token)


def corpus(rng: random.Random, size: int) -> list[str]:
    """Questions and answers as the model will see them, with a little general text."""
    texts = list(_GENERAL_TEXT) * 8
    for _ in range(size):
        language = rng.choice(skills.LANGUAGES)
        scene = random_scene(rng, 1.0, rng.randint(0, 6), at_border=True)
        asks = [skill(scene, language, rng) for skill in _CORPUS_SKILLS]
        asks += [skills.number(random_number(rng, 1.0, 4), language, rng), small_talk.talk(language, rng)]
        clip = random_clip(rng, 1.0, 4)
        asks += [skills.motion(clip, language, rng), skills.last_time(clip, language, rng)]
        texts += [text for ask in asks for text in (ask.question, ask.answer)]
        texts.append("".join(f"<{at:.1f} seconds>" for at in skills.timestamps(4, clip.fps)))
    return texts


def untrained_tokenizer() -> Tokenizer:
    """The family's way to cut a text, without a vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def train_tokenizer() -> Tokenizer:
    """A byte-level BPE of the family's make: any byte, one digit a token, Qwen's splitting of words."""
    tokenizer = untrained_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=_FIRST_SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(corpus(random.Random(1), 1500), trainer)
    missing = _FIRST_SPECIAL - tokenizer.get_vocab_size()
    if missing:
        raise ValueError(f"the corpus is {missing} merges too poor for the vocabulary")
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.add_tokens(list(PLAIN_ADDED_TOKENS))
    return tokenizer


def model_config() -> JsonObject:
    """`config.json`: about 5.9 million parameters, heads of 64."""
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "image_token_id": special_id("<|image_pad|>"),
        "video_token_id": special_id("<|video_pad|>"),
        "vision_start_token_id": special_id("<|vision_start|>"),
        "vision_end_token_id": special_id("<|vision_end|>"),
        "tie_word_embeddings": True,
        "text_config": {
            "model_type": "qwen3_vl_text",
            "vocab_size": VOCABULARY,
            "hidden_size": 256,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "hidden_act": "silu",
            "max_position_embeddings": MAX_POSITIONS,
            "rms_norm_eps": 1e-6,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "use_cache": True,
            "bos_token_id": special_id("<|endoftext|>"),
            "eos_token_id": special_id("<|im_end|>"),
            "rope_theta": 10000.0,
            "rope_scaling": {"rope_type": "default", "mrope_section": [12, 10, 10], "mrope_interleaved": True},
            "tie_word_embeddings": True,
            "dtype": "float16",
        },
        "vision_config": {
            "model_type": "qwen3_vl_vision",
            "depth": 5,
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_heads": 3,
            "hidden_act": "gelu_pytorch_tanh",
            "in_channels": 3,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": TEMPORAL,
            "out_hidden_size": 256,
            "num_position_embeddings": 256,
            "deepstack_visual_indexes": [2],
            "initializer_range": 0.02,
        },
        "dtype": "float16",
    }


def generation_config() -> JsonObject:
    return {
        "bos_token_id": special_id("<|endoftext|>"),
        "pad_token_id": special_id("<|endoftext|>"),
        "eos_token_id": [special_id("<|im_end|>"), special_id("<|endoftext|>")],
        "do_sample": False,
    }


_PATCHING = {
    "patch_size": PATCH,
    "temporal_patch_size": TEMPORAL,
    "merge_size": MERGE,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Qwen3VLProcessor",
}


PIXEL_RULES = PreprocessorConfig(
    PATCH, MERGE, TEMPORAL, (0.5,) * 3, (0.5,) * 3, MIN_PIXELS, MAX_PIXELS, VIDEO_MIN_PIXELS, VIDEO_MAX_PIXELS,
    video_fps=2.0, caps_frames=False, frame_max_tokens=768,
)  # fmt: skip


def preprocessor_config() -> JsonObject:
    return {
        "size": {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
        **_PATCHING,
        "image_processor_type": "Qwen2VLImageProcessorFast",
    }


def video_preprocessor_config() -> JsonObject:
    return {
        "size": {"shortest_edge": VIDEO_MIN_PIXELS, "longest_edge": VIDEO_MAX_PIXELS},
        **_PATCHING,
        "fps": 2,
        "min_frames": 2,
        "max_frames": 16,
        "cap_pixels_per_frame": False,
        "video_processor_type": "Qwen3VLVideoProcessor",
    }


def tokenizer_config() -> JsonObject:
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "processor_class": "Qwen3VLProcessor",
        "model_max_length": MAX_POSITIONS,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "add_prefix_space": False,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "split_special_tokens": False,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
    }


def write_folder(folder: Path) -> None:
    """Everything but the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    train_tokenizer().save(str(folder / "tokenizer.json"), pretty=False)
    shutil.copy(Path(__file__).with_name("chat_template.jinja"), folder)
    files = {
        "config.json": model_config(),
        "generation_config.json": generation_config(),
        "preprocessor_config.json": preprocessor_config(),
        "video_preprocessor_config.json": video_preprocessor_config(),
        "tokenizer_config.json": tokenizer_config(),
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
