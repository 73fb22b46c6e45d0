"""What a page in somebody's browser may do with a server without a key: nothing, unless it is the server's own.

A browser sends any page's request to any address, also to this machine's. It says which page asks (`Origin`,
`Sec-Fetch-Site`), and by which name it found the server (`Host`): a name that was pointed at this machine afterwards is
not one of the server's own.
"""

import ipaddress
import logging
import re
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from worker.core.http_errors import ContentTypeUnsupported, HostForbidden, OriginForbidden
from worker.core.settings import Settings, listed

JSON_TYPES = ("application/json",)
FORM_TYPES = ("multipart/form-data", "application/x-www-form-urlencoded")
ANY = "*"
MAX_NAMES_LOGGED = 20
log = logging.getLogger(__name__)
_HOST = re.compile(r"(?:\[(?P<address>[0-9A-Fa-f:.]+)\]|(?P<name>[^\[\]:@/]+))(?::\d*)?")


def cors_origins(settings: Settings, *, has_keys: bool) -> tuple[str, ...]:
    """The origins whose pages may read answers, `*` for any."""
    return tuple(origin.rstrip("/") for origin in listed(settings.cors_origins.lower())) or ((ANY,) if has_keys else ())


class BrowserRules:
    """The rules for requests. has_keys: with keys a page can do nothing without one, and all that stays is
    `ALLOWED_HOSTS` where it is set."""

    def __init__(self, settings: Settings, *, has_keys: bool) -> None:
        self._has_keys = has_keys
        self._origins = cors_origins(settings, has_keys=has_keys)
        named = tuple(name.rstrip("/") for name in listed(settings.allowed_hosts.lower()))
        self._hosts = named or ((ANY,) if has_keys else ())
        self._refused = set[str]()
        self._own = frozenset({"localhost", settings.host.lower()} | set(named))

    def check(self, headers: Headers, *, is_open: bool) -> None:
        """Before a key is looked at. is_open: the path is for everybody, and links may lead to it. Raises
        HostForbidden, OriginForbidden."""
        if ANY not in self._hosts and not self._is_own(headers.get("host", "")):
            self._warn(headers.get("host", ""))
            raise HostForbidden(detail="add the name to ALLOWED_HOSTS")
        if self._has_keys or ANY in self._origins:
            return
        origin = headers.get("origin")
        if origin is not None:
            if not (self._is_same(origin, headers.get("host", "")) or origin.lower() in self._origins):
                raise OriginForbidden(detail="add the origin to CORS_ORIGINS, or set API_KEY")
        elif headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not (
            is_open and headers.get("sec-fetch-mode") == "navigate"
        ):
            raise OriginForbidden(detail="add the origin to CORS_ORIGINS, or set API_KEY")

    def check_type(self, headers: Headers, types: tuple[str, ...]) -> None:
        """A page may send any text to anybody, but JSON only to whom it may talk to. Raises ContentTypeUnsupported."""
        has_body = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
        declared = headers.get("content-type", "").partition(";")[0].strip().lower()
        is_json = types == JSON_TYPES and declared.startswith("application/") and declared.endswith("+json")
        if has_body and not self._has_keys and declared not in types and not is_json:
            raise ContentTypeUnsupported(detail=f"without a key it must be {' or '.join(types)}")

    def _warn(self, host: str) -> None:
        """Once for each name: an operator who has put the server behind a domain sees why nobody gets in."""
        name = _name_of(host)
        if name and name not in self._refused and len(self._refused) < MAX_NAMES_LOGGED:
            self._refused.add(name)
            shown = name[:100].encode("unicode_escape").decode("ascii")
            log.warning("refused a request for %s: a name that is not in ALLOWED_HOSTS", shown)

    def _is_own(self, host: str) -> bool:
        name = _name_of(host)
        if name is None:
            return False
        if name in self._own or name.endswith(".localhost"):
            return True
        if any(own.startswith(ANY + ".") and name.endswith(own[1:]) for own in self._own):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    @staticmethod
    def _is_same(origin: str, host: str) -> bool:
        try:
            parts = urlsplit(origin.lower())
        except ValueError:
            return False
        return parts.scheme in ("http", "https") and bool(parts.netloc) and parts.netloc == host.lower()


def _name_of(host: str) -> str | None:
    """`Host` without its port; an IPv6 address without its brackets. None where it is neither."""
    found = _HOST.fullmatch(host)
    return None if found is None else (found["address"] or found["name"]).lower()
