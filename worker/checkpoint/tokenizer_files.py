"""The library's tokenizer from a checkpoint's files: `tokenizer.json`, or the older `vocab.json` and `merges.txt`; and
its added tokens from wherever they are declared."""

import logging
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from worker.checkpoint.locate import read_json
from worker.core.errors import ModelError
from worker.core.safe_json import JsonObject

log = logging.getLogger(__name__)
OLDER_FILES = ("vocab.json", "merges.txt")
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_LISTS = ("additional_special_tokens", "extra_special_tokens")

# How text is cut into words, by the beginning of a config's `model_type`: what `tokenizer.json` says of itself. Newer
# models keep combining marks with the letters before them.
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN3_5_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_WORDS = {"qwen3_5": _QWEN3_5_WORDS, "qwen": _QWEN2_WORDS}


def library_tokenizer(folder: Path) -> Tokenizer:
    """With all added tokens, those of `tokenizer_config.json` before those of the other files. Raises ModelError, and
    the library's own exceptions where a file is damaged."""
    file = folder / "tokenizer.json"
    library: Tokenizer = Tokenizer.from_file(str(file)) if file.is_file() else _from_older_files(folder)
    library.no_padding()  # how texts were prepared for training is no prompt's concern
    library.no_truncation()
    known: dict[int, AddedToken] = library.get_added_tokens_decoder()
    for wanted, token in _declared(folder):
        identity: int | None = library.token_to_id(token.content)
        if identity is not None and known.get(identity) == token:
            continue
        library.add_tokens([token])
        found = library.token_to_id(token.content)
        if wanted is not None and found != wanted:
            log.warning("%s is declared as token %d in %s, and is %d", token.content, wanted, folder, found)
    known = library.get_added_tokens_decoder()
    for name in _specials(folder):
        identity = library.token_to_id(name)
        if identity is None or identity not in known or not known[identity].special:
            library.add_special_tokens([AddedToken(name, special=True, normalized=False)])
    return library


def _from_older_files(folder: Path) -> Tokenizer:
    for name in OLDER_FILES:
        if not (folder / name).is_file():
            raise ModelError(f"{folder} has neither tokenizer.json nor {name}")
    kind = str(read_json(folder / "config.json").get("model_type"))
    words = next((pattern for start, pattern in _WORDS.items() if kind.startswith(start)), None)
    if words is None:
        raise ModelError(f"{folder} has no tokenizer.json, and a {kind} cannot be built from other files")
    vocabulary, merges = (str(folder / name) for name in OLDER_FILES)
    library = Tokenizer(BPE.from_file(vocabulary, merges))
    library.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(words), "isolated")
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    library.decoder = decoders.ByteLevel()
    return library


def _declared(folder: Path) -> Iterator[tuple[int | None, AddedToken]]:
    """Added tokens beside the tokenizer's own file, in the order of their ids."""
    config = read_json(folder / "tokenizer_config.json")
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        try:
            declared = sorted((int(wanted), _token(token)) for wanted, token in decoder.items())
        except (ValueError, KeyError, TypeError):
            raise ModelError(
                f"{folder / 'tokenizer_config.json'} has invalid added tokens: download it again"
            ) from None
        yield from declared
        return
    if (folder / "tokenizer.json").is_file():
        return
    specials = set(_specials(folder))
    for content, wanted in sorted(read_json(folder / "added_tokens.json").items(), key=lambda entry: int(entry[1])):
        is_special = content in specials
        yield wanted, AddedToken(content, special=is_special, normalized=not is_special)


def _token(token: JsonObject | str) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token)
    flags = {flag: token[flag] for flag in _FLAGS if flag in token}
    return AddedToken(token["content"], **flags)


def _specials(folder: Path) -> list[str]:
    """The contents of the tokens that the files call special, by a name or in a list."""
    found: dict[str, None] = {}
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        content = read_json(folder / file)
        listed = [content.get(name) for name in _NAMED]
        for name in _LISTS:
            several = content.get(name) or []
            listed += list(several.values()) if isinstance(several, dict) else several
        for token in listed:
            content_of = token.get("content") if isinstance(token, dict) else token
            if isinstance(content_of, str) and content_of:
                found[content_of] = None
    return list(found)
