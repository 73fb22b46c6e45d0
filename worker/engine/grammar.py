"""Constrained decoding: grammars as masks over the next token, by llguidance.

Imported when the first request has a constraint: a start does not wait for it. Constraints are compiled on the threads
that prepare prompts, without the interpreter's lock, and cached by their content.
"""

import json
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper, regex_to_lark
from llguidance.gbnf_to_lark import GbnfToLarkError, any_to_lark

from worker.checkpoint.tokenizer import Tokenizer
from worker.core.errors import GrammarTooComplex, InputInvalid
from worker.core.sampling import Constraint

MAX_KEPT = 32
MAX_STEP_S = 0.05  # of the processor's time for one mask: the answers beside it wait for it
BITS = 32  # of a word of a mask
# What a stranger's grammar may cost: milliseconds of compiling beyond these end in an error. A mask is bounded too,
# since the answers beside it wait for it. The numbers were found by `benchmarks.structured`.
_LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,
    max_grammar_size=500_000,
    step_lexer_fuel=100_000,
    step_max_items=5_000,
    max_items_in_row=2_000,
    max_lexer_states=10_000,
    verbose_errors=False,
)
# Nothing is loosened. One blank stands behind a comma and a colon, as these models write it: where any number may
# stand, some write blanks for ever, and where none or one may, the text behind a name is not known ahead.
_STRICT: dict[str, bool | str] = {
    "lenient": False,
    "coerce_one_of": False,
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
_QUIET = 0  # the library's log level
# For rules that a caller has written. Where a greedy rule takes the characters that the next one needs, as in
# `/-+/ "-|"`, only the same character can follow, for ever, and the library's search for text that is certain never
# returns.
NO_FORCING = '%llguidance { "no_forcing": true }'

Mask = npt.NDArray[np.int32]

# What the library says of a grammar that it does not take, and what a caller is told. The first that is found counts.
_REASONS = (
    ("look-around", "look-ahead and look-behind are not supported"),
    ("lookarounds", r"look-around, \b and \B are not supported"),
    ("backreferences", "backreferences are not supported"),
    ("oneOf", "oneOf is only supported where no two alternatives overlap: write anyOf"),
    ("not disjoint", "patternProperties are only supported where no two patterns overlap"),
    ("Unsatisfiable", "the schema allows no value at all"),
    ("not present in a registry", "$ref is only supported within the schema, as #/$defs/name; $schema names a draft"),
    ("Anchor", "$ref to an anchor is not supported: write #/$defs/name"),
    ("too many digits", "multipleOf has too many digits"),
    ("Invalid type", "an unknown type is named"),
    ("Expected positive", "a keyword has a value of the wrong type"),
    ("NoExtension", "it allows no answer that ends"),
    ("Token range", "it names a token that is not there"),
    ("unknown name", "a rule is named that is not defined"),
    ("regex parse error", "not a regular expression that is supported"),
)
_TOO_COMPLEX = ("limit", "fuel", "too large", "too complex", "too many", "too big", "max is", "symbols.len")


class Grammar:
    """A compiled grammar, for any number of answers."""

    def __init__(self, matcher: LLMatcher, num_words: int) -> None:
        self._matcher, self._num_words = matcher, num_words

    def begin(self) -> "GrammarState":
        return GrammarState(self._matcher.deep_copy(), self._num_words)


class GrammarState:
    """Where one answer is in its grammar. One thread at a time uses it."""

    def __init__(self, matcher: LLMatcher, num_words: int) -> None:
        self._matcher = matcher
        self._mask: Mask = np.zeros(num_words, np.int32)
        self._is_ready = self._is_slow = False

    def prepare(self) -> None:
        """Compute the mask of the next token, where that is not done yet; the interpreter's lock is not held."""
        if not self._is_ready:
            began = time.thread_time()
            self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
            self._is_slow = self._is_slow or time.thread_time() - began > MAX_STEP_S
            self._is_ready = True

    @property
    def mask(self) -> Mask:
        """(words,) int32, a bit for each token that may be next, the lowest first."""
        self.prepare()
        return self._mask

    def following(self) -> list[int]:
        """The tokens of the text that comes next whatever is chosen, written as the tokenizer writes it; empty where
        the next character is open. The interpreter's lock is held."""
        began = time.thread_time()
        tokens: list[int] = self._matcher.compute_ff_tokens()
        self._is_slow = self._is_slow or time.thread_time() - began > MAX_STEP_S
        return tokens

    def allows_other_than(self, tokens: Iterable[int]) -> bool:
        """Whether a token that is none of these may be next."""
        rest = self.mask.copy()
        bits = rest.view(np.uint32)
        for token in tokens:
            bits[token // BITS] &= np.uint32(~(1 << token % BITS) & 0xFFFFFFFF)
        return bool(rest.any())

    def accept(self, token: int) -> None:
        """Take it as the next token. Raises GrammarTooComplex."""
        self._is_ready = False
        self._matcher.consume_token(token)
        if error := self.error:
            raise GrammarTooComplex(reason=_first_line(error))

    @property
    def error(self) -> str:
        """What ended it: a mask or tokens that went beyond the limits. Empty where nothing did."""
        if self._is_slow:
            return f"too complex: what can follow took more than {MAX_STEP_S} s to find"
        return self._matcher.get_error() if self._matcher.is_error() else ""

    @property
    def is_complete(self) -> bool:
        """Whether the answer is complete and nothing can follow."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()


class GrammarCompiler:
    """Compiles constraints for one tokenizer. Safe to use from many threads. vocabulary_size: of the model's logits."""

    def __init__(self, tokenizer: Tokenizer, vocabulary_size: int, eos_ids: Iterable[int]) -> None:
        self._num_words = -(-vocabulary_size // BITS)
        self._tokens = LLTokenizer(
            TokenizerWrapper(_Vocabulary(tokenizer, vocabulary_size, min(eos_ids))),
            n_vocab=vocabulary_size,
            eos_token=sorted(eos_ids),
        )
        self._kept: OrderedDict[tuple[str, str, str | None], Grammar] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, constraint: Constraint) -> Grammar:
        """Raises InputInvalid, GrammarTooComplex."""
        key = constraint.kind, constraint.text, constraint.whitespace
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        try:
            matcher = LLMatcher(self._tokens, _source(constraint), log_level=_QUIET, limits=_LIMITS)
        except ValueError as error:  # numbers beyond 64 bits, halves of characters
            detail = "has a number or a character that cannot be compiled"
            raise InputInvalid(where=constraint.where, detail=detail, reason=_first_line(str(error))) from None
        if matcher.is_error():
            raise _refusal(constraint, matcher.get_error())
        grammar = Grammar(matcher, self._num_words)
        first = grammar.begin()
        first.prepare()
        if first.error:
            raise _refusal(constraint, first.error)
        with self._lock:
            self._kept[key] = grammar
            if len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return grammar


class _Vocabulary:
    """A tokenizer as the library asks for one. Added tokens are special: none may stand within a string."""

    def __init__(self, tokenizer: Tokenizer, size: int, eos_token_id: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = eos_token_id
        self.bos_token_id = None
        added = tokenizer.added
        self.tokens = [
            added[token].content.encode() if token in added else tokenizer.bytes_of(token) for token in range(size)
        ]
        self.special_token_ids = [token for token in added if token < size]
        self._of_byte = {token[0]: index for index, token in enumerate(self.tokens) if len(token) == 1}
        contents = sorted((token.content for token in added.values()), key=len, reverse=True)
        self._added = re.compile("|".join(map(re.escape, contents)) or r"(?!)")

    def __call__(self, text: str) -> list[int]:
        """The tokens of a text that a grammar prescribes: an added token in it is its letters."""
        ids: list[int] = []
        at = 0
        for found in self._added.finditer(text):
            ids += self._exactly(text[at : found.start() + 1])
            at = found.start() + 1
        return ids + self._exactly(text[at:])

    def _exactly(self, text: str) -> list[int]:
        """A tokenizer may normalise characters; what a grammar prescribes is written as it is."""
        ids = self._tokenizer.encode(text)
        if b"".join(map(self._tokenizer.bytes_of, ids)) == text.encode():
            return ids
        if len(text) > 1:
            return [token for character in text for token in self._exactly(character)]
        return [self._of_byte[byte] for byte in text.encode()]


def json_options(whitespace: str | None) -> dict[str, bool | str]:
    """How the library compiles a schema. whitespace: see `core.sampling.Constraint`."""
    if whitespace is None:
        return dict(_STRICT)
    flexible: dict[str, bool | str] = {"whitespace_flexible": True, "whitespace_pattern": whitespace}
    return {**_STRICT, "item_separator": ",", "key_separator": ":", **flexible}


def json_rule(schema: dict[str, Any], whitespace: str | None = None) -> str:
    """The right side of a Lark rule for JSON of this schema."""
    return f"%json {json.dumps({**schema, 'x-guidance': json_options(whitespace)}, ensure_ascii=False)}"


def _source(constraint: Constraint) -> str:
    """A constraint in the library's own terms. Raises InputInvalid."""
    match constraint.kind:
        case "json_schema":
            schema = json.loads(constraint.text)
            if has_callers_rules(constraint):
                return LLMatcher.grammar_from_lark(f"start: {json_rule(schema, constraint.whitespace)}\n{NO_FORCING}")
            return LLMatcher.grammar_from_json_schema({**schema, "x-guidance": json_options(None)})
        case "regex":
            return LLMatcher.grammar_from_regex(_unanchored(constraint.text))
        case "choice":
            return LLMatcher.grammar_from_lark(f"start: {choice_rule(json.loads(constraint.text))}")
        case "grammar":
            return LLMatcher.grammar_from_lark(f"{lark_of(constraint)}\n{NO_FORCING}")
        case "rules":
            return LLMatcher.grammar_from_lark(constraint.text)


def has_callers_rules(constraint: Constraint) -> bool:
    """Whether a caller has written rules that stand beside others, and not a schema, a list or one expression alone."""
    return constraint.kind == "grammar" or constraint.whitespace is not None


def choice_rule(choices: Iterable[str]) -> str:
    """The right side of a Lark rule for one of these texts."""
    return " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)


def regex_rule(pattern: str) -> str:
    """The right side of a Lark rule for a text that a regular expression matches whole."""
    return f"/{regex_to_lark(_unanchored(pattern), '')}/"


def _unanchored(pattern: str) -> str:
    """The whole answer is matched: what says so again is left out."""
    pattern = pattern.removeprefix("^")
    is_anchored = pattern.endswith("$") and not (len(pattern) - len(pattern[:-1].rstrip("\\")) - 1) % 2
    return pattern[:-1] if is_anchored else pattern


def lark_of(constraint: Constraint) -> str:
    """GBNF, as llama.cpp and vLLM take it, is translated. Raises InputInvalid."""
    if "::=" not in constraint.text:
        return constraint.text
    try:
        return any_to_lark(constraint.text)
    except (GbnfToLarkError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise InputInvalid(where=constraint.where, detail="not a GBNF grammar that is supported") from None


def _refusal(constraint: Constraint, said: str) -> InputInvalid | GrammarTooComplex:
    """Why a constraint is not taken, in our own words; the library's repeat the caller's."""
    for sign, told in _REASONS:
        if sign in said:
            return InputInvalid(where=constraint.where, detail=told, reason=_first_line(said))
    if any(sign in said for sign in _TOO_COMPLEX):
        return GrammarTooComplex(where=constraint.where, reason=_first_line(said))
    place = re.search(r"at (\d+)\((\d+)\)", said)
    detail = "the grammar cannot be compiled" + (f": line {place[1]}, column {place[2]}" if place else "")
    return InputInvalid(where=constraint.where, detail=detail, reason=_first_line(said))


def _first_line(said: str) -> str:
    return said.partition("\n")[0][:200]
