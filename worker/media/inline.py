"""Bytes from a data URI or bare base64. Knows no formats: what the bytes are is told by `sniff`."""

import base64
import binascii
import re
from collections.abc import Iterator
from urllib.parse import unquote, unquote_to_bytes

from worker.core.errors import MediaBase64Invalid, MediaTooLarge
from worker.core.units import over

_SLICE_CHARS = 2**20  # each step below holds the interpreter's lock: a slice costs about 2 ms, 20 MB would cost 40
_ESCAPES_CHARS = 2**16  # unescaping makes a list of the parts between
_DATA_URI = re.compile(r"data:(?:[^,\"]|\"[^\"]*\"){0,256}?;\s*base64\s*,", re.IGNORECASE)
_AROUND = "\ufeff\u200b\xa0 \t\r\n\f\v\"'`"
_INVISIBLE = re.compile("[\ufeff\u200b\xa0]")
_ENCODED_HEAD = re.compile(r"data:[^,]{0,256}?%2C", re.IGNORECASE)
_MAX_ADDRESS_CHARS = 2300  # of what may look like an address or a path
_BARE_ADDRESS = re.compile(r"(www\.|[\w-]+(\.[\w-]+)+[/:?])\S{0,2000}", re.ASCII)
_LOCAL_PATH = re.compile(r"([A-Za-z]:\\|[~.]{0,2}/)?[^\0\n]{1,300}\.[A-Za-z0-9]{2,4}")  # base64 has no dot
_DROPPED = str.maketrans({**dict.fromkeys(" \t\r\n\f\v"), "-": "+", "_": "/"})


def decode(data: str, max_bytes: int) -> bytes:
    """The bytes. White space, the URL-safe alphabet, percent-encoding and missing padding are accepted.

    Raises MediaTooLarge before decoding, MediaBase64Invalid.
    """
    if data[:1] in _AROUND or data[-1:] in _AROUND:
        data = data.strip(_AROUND)
    if not data.isascii():
        data = _INVISIBLE.sub("", data)
    if (encoded := _ENCODED_HEAD.match(data)) is not None:
        data = unquote(encoded.group()) + data[encoded.end() :]
    head = _DATA_URI.match(data)
    start = head.end() if head else 0
    if data[:5].lower() == "data:" and head is None:
        raise MediaBase64Invalid(detail="a data URI needs ;base64, before its data")
    is_percent_encoded = data.find("%", start) >= 0
    most_chars = max_bytes * 4 if is_percent_encoded else max_bytes * 3 // 2
    if len(data) - start > most_chars + 1024:
        raise MediaTooLarge(detail=over(max_bytes, (len(data) - start) * 3 // 4))
    if is_percent_encoded:
        data = _without_percents(data, start)
        start = 0
    end = len(data.rstrip("= \t\r\n"))
    is_short = len(data) <= _MAX_ADDRESS_CHARS
    if is_short and _BARE_ADDRESS.fullmatch(data):
        raise MediaBase64Invalid(detail="it looks like an address without https:// before it")
    if is_short and _LOCAL_PATH.fullmatch(data):
        raise MediaBase64Invalid(
            detail="it looks like a local path, which is not read: send the file's bytes, or a URL"
        )
    if not data.isascii() or data.find("=", start, end) >= 0:
        raise MediaBase64Invalid()
    try:
        decoded = b"".join(_slices(data, start, end))
    except (binascii.Error, ValueError):
        raise MediaBase64Invalid() from None
    if not decoded:
        raise MediaBase64Invalid(detail="it is empty")
    if len(decoded) > max_bytes:
        raise MediaTooLarge(detail=over(max_bytes, len(decoded)))
    return decoded


def _without_percents(data: str, start: int) -> str:
    """Percent-encoded base64, decoded slice by slice. Raises MediaBase64Invalid."""
    parts, at = [], start
    while at < len(data):
        end = at + _ESCAPES_CHARS
        cut = data.rfind("%", max(at, end - 2), end)  # an escape that the slice would cut in two
        end = cut if cut > at else end
        parts.append(unquote_to_bytes(data[at:end]))
        at = end
    try:
        return b"".join(parts).decode("ascii")
    except UnicodeError:
        raise MediaBase64Invalid() from None


def _slices(data: str, start: int, end: int) -> Iterator[bytes]:
    """The decoded slices; what is left of a slice after its last group of four is prepended to the next."""
    rest = ""
    for at in range(start, end, _SLICE_CHARS):
        part = rest + data[at : min(at + _SLICE_CHARS, end)].translate(_DROPPED)
        whole = len(part) // 4 * 4
        yield base64.b64decode(part[:whole], validate=True)
        rest = part[whole:]
    yield base64.b64decode(rest + "=" * (-len(rest) % 4), validate=True)
