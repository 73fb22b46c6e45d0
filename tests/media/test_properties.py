"""Whatever a stranger writes: addresses and base64 end in a value or a coded error, and nothing else."""

import base64
import contextlib
import ipaddress
import re

from hypothesis import example, given, settings
from hypothesis import strategies as st

from worker.core.errors import MediaBase64Invalid, MediaError, MediaTooLarge
from worker.media.guard import check_url, is_allowed_address
from worker.media.inline import decode
from worker.media.sniff import sniff

COUNT = settings(max_examples=300, deadline=None, database=None, derandomize=True)
_HOSTS = st.sampled_from(("a.test", "127.0.0.1", "[::1]", "0x7f.1", "xn--e1afmkfd", "metadata", "1.2.3.4", "ⓛocalhost"))
_PARTS = st.sampled_from(("@", "\\", "#", "?", "/", ":", "%00", "%2f", "..", " ", "\n", "\t", "[", "]", "//", ";", "a"))
ADDRESSES = st.one_of(
    st.text(max_size=80),
    st.builds(
        lambda scheme, pieces: scheme + "".join(pieces),
        st.sampled_from(("http://", "https://", "HTTP:", "file://", "//", "")),
        st.lists(st.one_of(_HOSTS, _PARTS), max_size=8),
    ),
)


@COUNT
@given(ADDRESSES)
@example("https://[a]@b/")
@example("http://a.test\\@127.0.0.1/")
def test_an_address_is_taken_or_refused_and_what_is_taken_has_one_reading(text: str) -> None:
    try:
        url = check_url(text)
    except MediaError:
        return
    assert url.scheme in ("http", "https")
    assert url.port in (80, 443)
    assert url.user is None and url.password is None
    authority = re.split(r"[/?#]", text.partition("//")[2], maxsplit=1)[0]
    assert "@" not in authority and "\\" not in text
    assert check_url(str(url)).host == url.host


@COUNT
@given(ADDRESSES, st.sampled_from(("b.test", "test", "1.2.3.4")))
def test_what_passes_a_list_of_domains_lies_in_them(text: str, domain: str) -> None:
    with contextlib.suppress(MediaError):
        host = (check_url(text, domains=(domain,)).raw_host or "").rstrip(".").lower()
        assert host == domain or host.endswith("." + domain)


@COUNT
@given(st.one_of(st.ip_addresses(), st.ip_addresses(network="::ffff:0:0/96"), st.ip_addresses(network="10.0.0.0/8")))
def test_only_what_everybody_can_reach_is_connected_to(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    inner = getattr(address, "ipv4_mapped", None) or address
    if is_allowed_address(str(address)):
        assert inner.is_global
        assert not inner.is_multicast and not inner.is_private and not inner.is_loopback and not inner.is_link_local


@COUNT
@given(st.binary(min_size=1, max_size=300), st.data())
def test_bytes_survive_every_way_to_write_them(data: bytes, draw: st.DataObject) -> None:
    text = draw.draw(st.sampled_from((base64.b64encode, base64.urlsafe_b64encode)))(data).decode()
    text = text.rstrip("=") if draw.draw(st.booleans()) else text
    for _ in range(draw.draw(st.integers(0, 4))):
        at = draw.draw(st.integers(0, len(text.rstrip("="))))
        text = text[:at] + draw.draw(st.sampled_from((" ", "\n", "\r\n", "\t"))) + text[at:]
    head = draw.draw(st.sampled_from(("", "data:image/png;base64,", "DATA:;BASE64,")))
    assert decode(head + text, 1000) == data


@COUNT
@given(st.text(max_size=200), st.integers(1, 100))
def test_any_text_is_bytes_within_the_limit_or_a_coded_error(text: str, limit: int) -> None:
    with contextlib.suppress(MediaBase64Invalid, MediaTooLarge):
        assert 0 < len(decode(text, limit)) <= limit


@COUNT
@given(st.binary(max_size=400))
def test_any_bytes_have_a_name(data: bytes) -> None:
    assert sniff(data).name
