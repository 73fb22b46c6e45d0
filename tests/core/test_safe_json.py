"""Every value that leaves the handler can be read by every JSON parser."""

import json

import pytest

from worker.core.safe_json import safe


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("plain 文字 😀", "plain 文字 😀"),
        ("half \ud83d pair", "half \ufffd pair"),
        (float("nan"), None),
        ([1.5, float("inf"), -float("inf")], [1.5, None, None]),
        ({"a\ud800": ("x", True, None, 3)}, {"a\ufffd": ["x", True, None, 3]}),
    ],
)
def test_values_become_safe(value: object, expected: object) -> None:
    assert safe(value) == expected
    json.dumps(safe(value), allow_nan=False).encode("utf-8")


@pytest.mark.parametrize("value", [b"bytes", {1, 2}, object(), {"deep": [b"x"]}])
def test_what_is_not_json_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        safe(value)
