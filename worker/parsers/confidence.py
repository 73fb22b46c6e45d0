"""How probable the model found each value of an answer in JSON: the least of its tokens' probabilities. Uncalibrated:
a number to sort and to check answers by, not the share of those that are right."""

import json
import math
import re
from collections.abc import Iterator, Sequence

from worker.core.contract import TokenLogprob

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null|[{}\[\],:]', re.DOTALL)
MAX_FIELDS = 1000
MAX_PATH_CHARS = 256  # a field with a longer path is left out


def confidence_of(text: str, tokens: Sequence[TokenLogprob]) -> dict[str, float] | None:
    """By each value's path, `items[0].price`, `$` for an answer that is one value. None where the text is no JSON.
    tokens: of the answer, and of what stood before it."""
    body = text.strip()
    try:
        json.loads(body, strict=False)
    except (ValueError, RecursionError):
        return None
    raw = b"".join(token.chosen.bytes for token in tokens)
    begin = raw.rfind(body.encode())
    if begin < 0:
        return None
    logprobs = _by_byte(tokens)[begin:]
    found: dict[str, float] = {}
    char, byte = 0, 0
    for path, start, end in _values(body):
        if len(found) == MAX_FIELDS:
            break
        first = byte + len(body[char:start].encode())
        char, byte = end, first + len(body[start:end].encode())
        if len(path) <= MAX_PATH_CHARS:
            found[path] = round(math.exp(min(logprobs[first:byte])), 4)
    return found


def _by_byte(tokens: Sequence[TokenLogprob]) -> list[float]:
    """Of each byte the log-probability of the token that it belongs to."""
    return [min(0.0, token.chosen.logprob) for token in tokens for _ in token.chosen.bytes]


def _values(body: str) -> Iterator[tuple[str, int, int]]:
    """Path and place of each value that is no list and no object. Strings without their quotes, unless empty."""
    stack: list[str | int] = []
    expects_key = False
    for match in _TOKEN.finditer(body):
        sign = match.group()
        if sign in "{[":
            stack.append("" if sign == "{" else 0)
            expects_key = sign == "{"
        elif sign in "}]":
            stack.pop()
            expects_key = False
        elif sign == ",":
            top = stack[-1]
            if isinstance(top, int):
                stack[-1] = top + 1
            else:
                expects_key = True
        elif sign == ":":
            expects_key = False
        elif expects_key:
            stack[-1] = str(json.loads(sign, strict=False))
        else:
            is_text = sign[0] == '"' and len(sign) > 2
            yield _path(stack), match.start() + is_text, match.end() - is_text


def _path(stack: Sequence[str | int]) -> str:
    path = ""
    for step in stack:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    return path or "$"
