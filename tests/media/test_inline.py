"""Base64 in all the shapes in which it comes."""

import base64
import tracemalloc
from urllib.parse import quote

import pytest

from worker.core.errors import MediaBase64Invalid, MediaTooLarge
from worker.media.inline import decode

DATA = bytes(range(256)) * 20
TEXT = base64.b64encode(DATA).decode()


@pytest.mark.parametrize(
    "form",
    [
        TEXT,
        TEXT.rstrip("="),
        base64.urlsafe_b64encode(DATA).decode(),
        "\n".join(TEXT[at : at + 76] for at in range(0, len(TEXT), 76)),
        f"  {TEXT}\r\n",
        f"data:image/png;base64,{TEXT}",
        f"data:video/mp4;charset=x;base64,{TEXT}",
        f"DATA:;BASE64,{TEXT}",
        f"data:image/png;name=a%20b.png;charset=utf-8;base64,{TEXT}",
        f'data:image/png;name="a, b.png";base64,{TEXT}',
        f"\ufeff data:image/png; base64 , {TEXT}\n",
        "data:image/png;base64," + quote(TEXT, safe=""),
        "data:image/png;base64," + quote("\r\n".join(TEXT[at : at + 76] for at in range(0, len(TEXT), 76)), safe=""),
        quote(base64.urlsafe_b64encode(DATA).decode(), safe=""),
        "data:image/png;base64,\ufeff" + TEXT,
        f'"{TEXT}"',
        "\xa0" + TEXT[:50] + "\xa0" + TEXT[50:] + "\f",
        "data:image/png%3Bbase64%2C" + TEXT,
        "data:image/png;base64,\n\t" + " ".join(TEXT[at : at + 8] for at in range(0, len(TEXT), 8)),
    ],
)
def test_these_forms_are_read(form: str) -> None:
    assert decode(form, 10_000) == DATA


@pytest.mark.parametrize(
    "form",
    [
        "",
        "====",
        "data:image/png;base64,",
        "data:image/png,AAAA",
        "data:",
        "/etc/passwd!",
        "not base64 at all…",
        "A",
        "AA==AA",
        "\x00\x01",
        "%zz%41",
        "AAAA%E9",
        "\ufeff",
    ],
)
def test_these_are_not_base64(form: str) -> None:
    with pytest.raises(MediaBase64Invalid):
        decode(form, 10_000)


def test_what_is_too_large_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(MediaTooLarge):
        decode("!" * 20_000, 10_000)


def test_what_is_just_too_large_is_refused() -> None:
    decode(base64.b64encode(b"x" * 10_000).decode(), 10_000)
    with pytest.raises(MediaTooLarge):
        decode(base64.b64encode(b"x" * 10_001).decode(), 10_000)


def test_slices_join_without_a_seam() -> None:
    data = bytes(3_000_017)
    assert decode(base64.b64encode(data).decode(), 4_000_000) == data


def test_long_texts_of_escapes_and_dots_take_no_more_than_themselves() -> None:
    for text, error in (
        ("%%%" * 300_000, MediaBase64Invalid),
        ("a." * 300_000, MediaBase64Invalid),
        ("%4" * 300_000, MediaBase64Invalid),
    ):
        tracemalloc.start()
        with pytest.raises(error):
            decode(text, 2_000_000)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 18_000_000
    data = b"".join(b"%%%02X" % ord(letter) for letter in TEXT).decode() * 200  # escapes across the slices
    with pytest.raises(MediaBase64Invalid):
        decode(data, 10_000_000)
    whole = base64.b64encode(DATA * 300).decode()
    assert decode("".join(f"%{ord(letter):02X}" for letter in whole), 2_000_000) == DATA * 300


@pytest.mark.parametrize("text", ["www.example.org/a.png", "example.org/pictures/a.jpg?b=c", "cdn.example.org:443/x"])
def test_an_address_without_its_scheme_is_told_so(text: str) -> None:
    with pytest.raises(MediaBase64Invalid, match="https://"):
        decode(text, 10_000)
