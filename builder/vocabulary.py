"""Lays a tokenizer's vocabulary out so that a start reads it at once, where it is byte-level BPE as Qwen's is.

python -m builder.vocabulary /models/Qwen3-VL-8B-Instruct

What is written is held to the library's tokenizer first: each token alone, and many joined at random. Where the two
differ, or the tokenizer is of another kind, nothing is written, and the worker reads `tokenizer.json` as it is.
"""

import argparse
import json
import random
import sys
from pathlib import Path

from tokenizers import Tokenizer

from worker.checkpoint.tokenizer import VOCABULARY, VocabularyTokenizer
from worker.core.safe_json import JsonObject

NUM_TEXTS = 2_000
MOST_PARTS = 12
_PLAIN = {"dropout": None, "continuing_subword_prefix": "", "end_of_word_suffix": "", "byte_fallback": False}
_FLAGS = ("single_word", "lstrip", "rstrip")


def lay_out(folder: Path) -> str | None:
    """Write the vocabulary of a checkpoint's `tokenizer.json`; None, or why it cannot be written."""
    body = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    why = why_not(body)
    if why is None:
        data = written(body)
        library = Tokenizer.from_str(json.dumps(body))
        library.encode_special_tokens = True
        why = difference(VocabularyTokenizer(data), library)
        if why is None:
            (folder / VOCABULARY).write_bytes(data)
    return why


def why_not(body: JsonObject) -> str | None:
    """Why a tokenizer is of another kind; None where it is not."""
    model, split = body["model"], body.get("pre_tokenizer") or {}
    last = (split.get("pretokenizers") or [split])[-1]
    vocabulary = model.get("vocab")
    if model.get("type", "BPE") != "BPE" or not isinstance(vocabulary, dict):
        return "its model is not BPE"
    if any(model.get(name) not in (None, value) for name, value in _PLAIN.items()):
        return "its merges have options"
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return "its words are not byte-level"
    if (body.get("decoder") or {}).get("type") != "ByteLevel":
        return "its decoder is not byte-level"
    if any(token[flag] for token in body["added_tokens"] for flag in _FLAGS):
        return "its added tokens have conditions"
    if body.get("truncation") or body.get("padding"):
        return "it truncates or pads"
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        return "its ids have gaps"
    made = [vocabulary.get(left + right, -1) for left, right in _merges(model)]
    if -1 in made or made != sorted(set(made)):
        return "its ids are not in the order of its merges"
    if max((len(left) for left, _ in _merges(model)), default=0) > 255 or any("\n" in token for token in vocabulary):
        return "its tokens are too long, or no letters"
    return None


def _merges(model: JsonObject) -> list[tuple[str, str]]:
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    return [(left, right) for left, right in pairs]


def written(body: JsonObject) -> bytes:
    """See `VocabularyTokenizer`."""
    model = body["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    cuts = bytearray(len(tokens))
    for left, right in _merges(model):
        cuts[model["vocab"][left + right]] = len(left)
    rules = {**body, "added_tokens": [], "post_processor": None, "model": {**model, "vocab": {}, "merges": []}}
    added = [[token["id"], token["content"], token["special"], token["normalized"]] for token in body["added_tokens"]]
    head = json.dumps({"rules": rules, "added": added, "count": len(tokens)})
    return head.encode() + b"\n" + "".join(f"{token}\n" for token in tokens).encode() + bytes(cuts)


def difference(ours: VocabularyTokenizer, library: Tokenizer) -> str | None:
    """A text that the two do not read or write alike; None where there is none. library: with
    `encode_special_tokens`, as ours reads."""
    texts = [ours.decode([token], with_special=True) for token in range(library.get_vocab_size())]
    draw = random.Random(0)
    texts += ["".join(draw.choices(texts, k=draw.randint(2, MOST_PARTS))) for _ in range(NUM_TEXTS)]
    theirs = [encoding.ids for encoding in library.encode_batch_fast(texts, add_special_tokens=False)]
    for text, ids, back in zip(texts, theirs, library.decode_batch(theirs), strict=True):
        found = ours.encode(text)
        if found != ids or ours.decode(found) != back:
            return f"the library reads {text!r} as {ids}, not as {found}"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m builder.vocabulary", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    why = lay_out(parser.parse_args().folder)
    if why is not None:
        sys.exit(f"builder.vocabulary: {why}")


if __name__ == "__main__":
    main()
