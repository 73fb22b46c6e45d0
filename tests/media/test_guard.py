"""Addresses that may be fetched, and the many that may not."""

import pytest

from worker.core.errors import MediaUrlForbidden, MediaUrlInvalid
from worker.media.guard import check_url, is_allowed_address

INVALID = [
    "ftp://a.test/x",
    "file:///etc/passwd",
    "gopher://a.test/",
    "javascript:alert(1)",
    "//a.test/x",
    "http:///x",
    "http://",
    "a.test/x.png",
    "",
    "http://user@a.test/",
    "http://user:pass@a.test/",
    "http://@a.test/",
    "http://a.test\\@b.test/",
    "http://a.test/\r\nHost: b.test",
    "http://a. test/x",
    "http://a.test/\ud800",
    "http://[;:%0d%0a]",
    "http://[:]",
    "http:// a.test/x",
    "http://a.test/\x00",
    "http://[::1]@",
    "http://[a]@/",
    "http://a.test:99999/",
    "http://[::1/",
    "http://" + "a" * 9000,
]


@pytest.mark.parametrize("url", INVALID)
def test_what_is_no_plain_http_address_is_invalid(url: str) -> None:
    with pytest.raises(MediaUrlInvalid):
        check_url(url)


@pytest.mark.parametrize("url", ["http://a.test:8080/", "https://a.test:22/", "http://a.test:0/"])
def test_only_the_two_web_ports_are_fetched(url: str) -> None:
    with pytest.raises(MediaUrlForbidden):
        check_url(url)


@pytest.mark.parametrize(
    "url", ["http://a.test/x#@b.test", "https://a.test:443/", "http://a.test:80/?q=1", "https://bücher.test/x"]
)
def test_plain_addresses_pass(url: str) -> None:
    assert check_url(url).scheme in ("http", "https")


TARGETS = [
    "/a%2Fb/%7Euser/it%27s?sig=a%2Fb%3D%3D&x=%27%7e&y=~'",
    "/a/../b//c/./d",
    "/a?",
    "/a?b=?&&c",
    "/%zz?100%",
    "/[a]{b}|^`?x={y}",
    "/a+b%20c?d+e=%2B",
    "/;v=1,2:3@4!$&()*",
]


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_asked_of_the_server_is_what_was_written(target: str) -> None:
    assert check_url("https://a.test" + target).raw_path_qs == target
    assert check_url("https://A.test:443" + target + "#part?x").raw_path_qs == target


@pytest.mark.parametrize(
    ("text", "host", "target"),
    [
        ("  https://a.test/x.png\n", "a.test", "/x.png"),
        ("\ufeffhttps://a.test/x.png\r\n", "a.test", "/x.png"),
        ("https://a.test/long/\n  path.png?a=\r\n\tb", "a.test", "/long/%20%20path.png?a=b"),
        ("https://a.test/my photo.png?a=b c", "a.test", "/my%20photo.png?a=b%20c"),
        ("https://bücher.test/ü?q=é%2F", "xn--bcher-kva.test", "/%C3%BC?q=%C3%A9%2F"),
        ("https://a.test?x=%2F", "a.test", "/?x=%2F"),
        ("https://a.test", "a.test", "/"),
        ("https://a.test#x", "a.test", "/"),
    ],
)
def test_addresses_as_people_paste_them(text: str, host: str, target: str) -> None:
    url = check_url(text)
    assert (url.raw_host, url.raw_path_qs) == (host, target)


@pytest.mark.parametrize("url", ["https://cdn.test/x", "https://a.cdn.test/x", "https://CDN.test./x"])
def test_a_domain_on_the_list_passes_with_its_subdomains(url: str) -> None:
    check_url(url, domains=("cdn.test",))


@pytest.mark.parametrize(
    "url", ["https://evilcdn.test/", "https://cdn.test.evil.test/", "https://сdn.test/", "http://1.1.1.1/"]
)
def test_a_domain_that_is_not_on_the_list_is_forbidden(url: str) -> None:
    with pytest.raises(MediaUrlForbidden):
        check_url(url, domains=("cdn.test",))


INSIDE = [
    "0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "127.9.9.9", "169.254.169.254", "172.16.0.1", "172.31.255.255",
    "192.0.0.1", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1",
    "240.0.0.1", "255.255.255.255", "168.63.129.16",
    "::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::7f00:1", "64:ff9b::7f00:1", "64:ff9b:1::1", "100::1",
    "::ffff:0:127.0.0.1",
    "2001::1", "2001:db8::1", "2002:7f00:1::", "3fff::1", "5f00::1", "fc00::1", "fd12::1", "fe80::1", "fe80::1%eth0",
    "fec0::1", "ff02::1", "nonsense", "",
]  # fmt: skip


@pytest.mark.parametrize("address", INSIDE)
def test_inside_and_reserved_addresses_are_denied(address: str) -> None:
    assert not is_allowed_address(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:1.1.1.1"])
def test_public_addresses_are_allowed(address: str) -> None:
    assert is_allowed_address(address)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_the_loopback_is_open_only_by_its_setting(address: str) -> None:
    assert is_allowed_address(address, allow_loopback=True)
    assert not is_allowed_address(address)


@pytest.mark.parametrize("address", ["10.0.0.1", "169.254.169.254", "192.168.0.1", "::"])
def test_the_loopback_setting_opens_nothing_else(address: str) -> None:
    assert not is_allowed_address(address, allow_loopback=True)
