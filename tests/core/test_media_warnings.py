"""What a media report says: codes that stay, sentences with our own numbers."""

from pathlib import Path
from typing import get_args

import pytest

from worker.core import media_warnings
from worker.core.media_warnings import SENTENCES, Code, warning

DOC = Path(__file__).parents[2] / "docs" / "api.md"


def test_every_code_has_a_sentence_and_the_document_shows_all() -> None:
    assert tuple(SENTENCES) == get_args(Code)
    assert list(SENTENCES) == sorted(SENTENCES)
    assert media_warnings.table() in DOC.read_text(encoding="utf-8")


def test_a_warning_has_its_numbers() -> None:
    told = warning("VIDEO_FRAMES_LOST", count=15, total=120)
    assert (told.code, told.message) == (
        "VIDEO_FRAMES_LOST",
        "15 of 120 frames cannot be decoded: the others are used.",
    )
    with pytest.raises(KeyError):
        warning("VIDEO_FRAMES_LOST", count=15)
