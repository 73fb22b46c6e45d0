"""Which tokens belong to which value of an answer in JSON."""

import math

import pytest

from worker.core.contract import TokenAlternative, TokenLogprob
from worker.parsers.confidence import confidence_of


def tokens(*parts: tuple[str, float]) -> list[TokenLogprob]:
    return [
        TokenLogprob(TokenAlternative(text, text.encode(), math.log(probability)), ()) for text, probability in parts
    ]


def test_the_least_of_its_tokens_counts_for_each_value() -> None:
    said = tokens(
        ("think</think>", 0.1), ('{"', 0.2), ("name", 0.3), ('": "', 0.4), ("A", 0.9), ("nn", 0.5), ('", "', 0.6),
        ("ages", 1.0), ('": [', 1.0), ("12", 0.8), (", ", 1.0), ("7", 0.7), ('], "', 1.0), ("ok", 1.0),
        ('": {"x": ', 1.0), ("true", 0.95), ("}, ", 1.0), ('"empty": "', 1.0), ('"', 0.85), (', "n": ', 1.0),
        ("null", 0.99), ("}", 1.0),
    )  # fmt: skip
    text = "".join(token.chosen.text for token in said).partition("</think>")[2]
    assert confidence_of(text, said) == {
        "name": 0.5, "ages[0]": 0.8, "ages[1]": 0.7, "ok.x": 0.95, "empty": 0.85, "n": 0.99,
    }  # fmt: skip


def test_an_answer_of_one_value_has_one_number() -> None:
    assert confidence_of(" 42\n", tokens((" ", 0.1), ("4", 0.9), ("2", 0.8), ("\n", 0.1))) == {"$": 0.8}


def test_letters_of_several_bytes_are_found() -> None:
    said = tokens(('{"颜色": "', 1.0), ("红", 0.6), ("色", 0.7), ('"}', 0.2))
    assert confidence_of('{"颜色": "红色"}', said) == {"颜色": 0.6}


def test_a_key_with_a_quote_in_it() -> None:
    assert confidence_of('{"a\\"b": 1}', tokens(('{"a\\"b": ', 0.5), ("1", 0.4), ("}", 1.0))) == {'a"b': 0.4}


@pytest.mark.parametrize("text", ["", "no", '{"a": 1', "[1,"])
def test_what_is_no_json_has_none(text: str) -> None:
    assert confidence_of(text, tokens((text or " ", 0.5))) is None


def test_an_empty_object_has_no_fields() -> None:
    assert confidence_of("{}", tokens(("{}", 0.5))) == {}


def test_a_long_name_is_not_repeated_with_each_of_its_values() -> None:
    name = "a" * 300
    text = f'{{"{name}": [{", ".join("1" * 500)}], "b": 2}}'
    assert confidence_of(text, tokens((text, 0.5))) == {"b": 0.5}


def test_places_are_counted_in_bytes_whatever_stands_between() -> None:
    values = [f"{number}-é-红" for number in range(200)]
    said = [("[", 0.5)]
    for number, value in enumerate(values):
        said += [(', "' if number else '"', 0.5), (value, 1 - number / 1000), ('"', 0.5)]
    said.append(("]", 0.5))
    text = "".join(part for part, _ in said)
    found = confidence_of(text, tokens(*said))
    assert found is not None
    assert found == {f"[{number}]": pytest.approx(1 - number / 1000, abs=1e-4) for number in range(200)}
