"""The tree of errors is whole, and its documents are true."""

import json
from pathlib import Path

import pytest

from worker.core import error_table, errors, http_errors
from worker.core.errors import WorkerError

DOC = Path(__file__).parents[2] / "docs" / "errors.md"
LEAVES = list(error_table.request_errors())


def test_codes_are_unique() -> None:
    codes = [error.code for error in LEAVES]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("error", LEAVES, ids=lambda error: error.code)
def test_a_code_is_the_name_of_its_class(error: type[WorkerError]) -> None:
    assert error.code.replace("_", "").lower() in (error.__name__.lower(), error.__name__.lower().removesuffix("error"))


@pytest.mark.parametrize("error", LEAVES, ids=lambda error: error.code)
def test_every_error_has_a_status_and_a_text(error: type[WorkerError]) -> None:
    assert 400 <= error.status < 600
    assert error.text
    assert error.text[0].islower()


@pytest.mark.parametrize("error", LEAVES, ids=lambda error: error.code)
def test_every_error_says_what_to_do_in_a_sentence_of_its_own(error: type[WorkerError]) -> None:
    assert vars(error)["remedy"][0].isupper()
    assert error.remedy.endswith(".")


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    trees = f"{errors.__doc__}\n{http_errors.__doc__}"
    drawn = {line.split("─ ")[1].split()[0] for line in trees.splitlines() if "─ " in line}

    def names(error: type[WorkerError]) -> set[str]:
        return {child.__name__ for child in error.__subclasses__()}.union(*map(names, error.__subclasses__()))

    assert drawn == names(WorkerError)


def test_the_document_shows_the_table() -> None:
    assert error_table.table() in DOC.read_text(encoding="utf-8")


def test_a_message_has_place_text_and_detail() -> None:
    error = errors.MediaTooLarge(where="messages[0].content[1]", detail="limit 5 bytes")
    assert str(error) == "messages[0].content[1]: file too large: limit 5 bytes"
    assert json.loads(error.as_json()) == {
        "code": "MEDIA_TOO_LARGE",
        "message": "messages[0].content[1]: file too large: limit 5 bytes",
        "status": 413,
        "retryable": False,
    }


@pytest.mark.parametrize("error", LEAVES, ids=lambda error: error.code)
def test_every_error_is_raised_somewhere(error: type[WorkerError]) -> None:
    root = DOC.parents[1]
    rooms = [
        root / "handler.py",
        *(path for path in (root / "worker").rglob("*.py") if path.name not in ("errors.py", "http_errors.py")),
    ]
    assert any(f"{error.__name__}(" in path.read_text(encoding="utf-8") for path in rooms)


def test_an_error_is_given_its_place_later() -> None:
    error = errors.MediaFetchFailed(detail="HTTP status 503", retryable=True).at("image")
    assert (error.where, error.detail, error.is_retryable) == ("image", "HTTP status 503", True)
