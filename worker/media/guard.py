"""Which addresses may be fetched. Pure rules: no network, no clock."""

import ipaddress
import re
from collections.abc import Sequence
from urllib.parse import quote

from yarl import URL

from worker.core.errors import MediaUrlForbidden, MediaUrlInvalid

MAX_URL_CHARS = 8192
_PORTS = (80, 443)
_BAD_CHARACTERS = re.compile(r"[\x00-\x20\x7f\\]")
_AROUND = "\ufeff\u200b\xa0 \t\r\n"
_BREAKS = re.compile(r"[\t\r\n]+")
_HEADER_AFTER_BREAK = re.compile(r"[\r\n][ \t]*[A-Za-z][A-Za-z0-9-]*:[ \t]")
_AUTHORITY_END = re.compile(r"[/?#]")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
_IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

# Reserved or translating networks; several count as global for Python's `is_global`, which alone is not enough.
_DENIED = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4", "168.63.129.16/32",
        "::/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/32", "2001:db8::/32",
        "2002::/16", "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8",
    )
)  # fmt: skip


def check_url(text: str, *, domains: Sequence[str] = (), allow_loopback: bool = False) -> URL:
    """The address, if its form and its domain are allowed. What is asked of its server is, byte for byte, what the text
    says: a signature may be over that. Raises MediaUrlInvalid, MediaUrlForbidden."""
    text = _as_pasted(text)
    if len(text) > MAX_URL_CHARS or _BAD_CHARACTERS.search(text):
        raise MediaUrlInvalid()
    try:
        url = URL(text)
        port, host = url.port, url.host  # the host is decoded here: not every punycode can be
        exact = _exactly(url, text) if host else url
        is_as_judged = (exact.scheme, exact.raw_host, exact.port) == (url.scheme, url.raw_host, port)
    except (ValueError, IndexError):  # yarl 1.24 raises IndexError for brackets before an @
        raise MediaUrlInvalid() from None
    if url.scheme == "file":
        raise MediaUrlInvalid(detail="files are only read from the folders of ALLOWED_MEDIA_PATHS")
    if url.scheme not in ("http", "https") or not host:
        raise MediaUrlInvalid()
    authority = _AUTHORITY_END.split(text.partition("//")[2], maxsplit=1)[0]
    if "%20" in authority:
        raise MediaUrlInvalid()
    if "@" in authority:
        raise MediaUrlInvalid(detail="URLs with a user name or password are refused")
    if port not in _PORTS and not allow_loopback:
        raise MediaUrlForbidden(detail="only the ports 80 and 443 are allowed")
    if domains and not _is_in_domains(url.raw_host or "", domains):
        raise MediaUrlForbidden(detail="its domain is not among the allowed ones")
    if not is_as_judged:
        raise MediaUrlInvalid()
    return exact


def _as_pasted(text: str) -> str:
    """Without what a person's clipboard adds: as browsers do, blanks around it and line ends go, a blank inside is
    %20."""
    text = text.strip(_AROUND)
    if _HEADER_AFTER_BREAK.search(text):
        raise MediaUrlInvalid()
    return _BREAKS.sub("", text).replace(" ", "%20")


def _exactly(url: URL, text: str) -> URL:
    """The same address, with path and query as they are written; only what is not ASCII is encoded."""
    place, _, _ = text.partition("#")
    authority_end = _AUTHORITY_END.search(place, place.index("//") + 2)
    target = "" if authority_end is None else place[authority_end.start() :]
    target = _NOT_ASCII.sub(lambda found: quote(found.group()), target if target.startswith("/") else "/" + target)
    exact = URL(f"{url.scheme}://{url.raw_authority}{target}", encoded=True)
    if exact.raw_path_qs != target:  # a question mark with nothing behind it
        exact._cache["raw_path_qs"] = target  # yarl has no other way to keep it
    return exact


def _is_in_domains(host: str, domains: Sequence[str]) -> bool:
    host = host.rstrip(".").lower()
    return any(host == domain or host.endswith("." + domain) for domain in domains)


def is_allowed_address(address: str, *, allow_loopback: bool = False) -> bool:
    """Whether a connection to this IP address may be made."""
    try:
        ip: _IPAddress = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if ip.is_loopback:
        return allow_loopback
    return ip.is_global and not any(ip in network for network in _DENIED if network.version == ip.version)
