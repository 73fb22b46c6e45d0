"""Bytes from an http(s) address, within limits.

The socket factory is the one place that sees where a connection really goes, whatever the name, the notation
or the redirect that led there.
Each fetch has its own session: no cookies, no shared connections, no proxy from the environment.
"""

import asyncio
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from worker.core.errors import MediaFetchFailed, MediaFetchTimeout, MediaTooLarge, MediaUrlForbidden, MediaUrlInvalid
from worker.core.settings import Settings
from worker.core.units import over
from worker.media.content_encoding import unpacking
from worker.media.guard import check_url, is_allowed_address

_REDIRECTS = (301, 302, 303, 307, 308)
_ABSOLUTE = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_PASSING = (408, 425, 429)
DNS_TRIES = 2
ARES_ENODATA, ARES_ENOTFOUND = 1, 4
_CHUNK_BYTES = 64 * 1024
_HEADERS = {"Accept-Encoding": "identity", "User-Agent": "worker-qwen-vl", "Accept": "image/*,video/*;q=0.9,*/*;q=0.5"}


class _DeniedAddressError(OSError):
    """The connection would have gone to an address that is not allowed."""


class _NoSuchHostError(OSError):
    """The name servers say that there is no such name, or no address behind it."""


@dataclass
class _SocketGuard:
    """Makes sockets for allowed addresses only, and remembers that it turned one away."""

    allow_loopback: bool
    has_denied: bool = False

    def make_socket(self, address: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, target = address
        if not is_allowed_address(target[0], allow_loopback=self.allow_loopback):
            self.has_denied = True
            raise _DeniedAddressError("address not allowed")
        return socket.socket(family=family, type=kind, proto=protocol)


class _Names(AbstractResolver):
    """Asks another resolver, one for each event loop, for so many seconds. That one must hold no thread while it waits:
    a few names whose servers are silent would else take all of those that the loop has, from everybody."""

    def __init__(self, make: Callable[[], AbstractResolver], timeout_s: float) -> None:
        self._make, self._timeout_s = make, timeout_s
        self._by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, AbstractResolver] = WeakKeyDictionary()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        if loop not in self._by_loop:
            self._by_loop[loop] = self._make()
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._by_loop[loop].resolve(host, port, family)
        except TimeoutError:
            raise OSError(None, "no name server answered in time") from None
        except OSError as error:
            if _is_unknown_name(error):
                raise _NoSuchHostError(None, "no such host") from None
            raise

    async def close(self) -> None:
        """It serves other fetches."""


class Fetcher:
    """Fetches addresses under the settings' limits. `make_resolver` is for tests that need names of their own."""

    def __init__(self, settings: Settings, make_resolver: Callable[[], AbstractResolver] | None = None) -> None:
        self._settings = settings
        self._names = _Names(make_resolver or self._resolver, settings.connect_timeout_s)

    def _resolver(self) -> AbstractResolver:
        return aiohttp.AsyncResolver(timeout=self._settings.connect_timeout_s / DNS_TRIES, tries=DNS_TRIES)

    async def fetch(
        self,
        address: str,
        max_bytes: int,
        timeout_s: float,
        take: Callable[[int], None],
        expect: Callable[[int], None] = lambda _: None,
    ) -> bytes:
        """The body behind the address, at most `max_bytes`; `take` hears of every chunk's size and may raise, `expect`
        of the length that the other side announces, which no body exceeds.

        Raises MediaUrl…, MediaFetch…, MediaTooLarge.
        """
        doorman = _SocketGuard(self._settings.media_allow_loopback)
        url = self._check(address)
        try:
            async with asyncio.timeout(timeout_s), self._session(doorman) as session:
                for _ in range(self._settings.max_redirects + 1):
                    found = await self._get(session, url, max_bytes, take, expect)
                    if isinstance(found, bytes):
                        return found
                    url = self._check(found)
        except TimeoutError as error:
            raise MediaFetchTimeout(detail=f"limit {timeout_s:g} s", reason=_reason(url, error)) from None
        except aiohttp.ClientConnectorError as error:
            if doorman.has_denied:
                raise MediaUrlForbidden(detail="only public addresses are fetched") from None
            if isinstance(error.os_error, _NoSuchHostError):
                raise MediaFetchFailed(detail="there is no such host", reason=_reason(url, error)) from None
            raise MediaFetchFailed(
                detail="no connection to the host", retryable=True, reason=_reason(url, error)
            ) from None
        except (aiohttp.InvalidURL, UnicodeError):
            raise MediaUrlInvalid() from None
        except (aiohttp.ClientError, OSError) as error:
            raise MediaFetchFailed(retryable=True, reason=_reason(url, error)) from None
        raise MediaFetchFailed(detail=f"more than {self._settings.max_redirects} redirects")

    def _check(self, address: str) -> URL:
        return check_url(
            address, domains=self._settings.allowed_domains, allow_loopback=self._settings.media_allow_loopback
        )

    def _session(self, doorman: _SocketGuard) -> aiohttp.ClientSession:
        limits = self._settings
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                socket_factory=doorman.make_socket, resolver=self._names, use_dns_cache=False, limit=1
            ),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=limits.connect_timeout_s, sock_read=limits.read_timeout_s
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            max_line_size=8190,
            max_field_size=8190,
        )

    async def _get(
        self,
        session: aiohttp.ClientSession,
        url: URL,
        max_bytes: int,
        take: Callable[[int], None],
        expect: Callable[[int], None],
    ) -> bytes | str:
        """The body, or the address that a redirect names."""
        async with session.get(url, headers=_HEADERS, allow_redirects=False) as response:
            if response.status in _REDIRECTS:
                return _redirected(url, _location(response))
            if response.status in _PASSING or response.status >= 500:
                raise MediaFetchFailed(detail=f"its server answered with status {response.status}", retryable=True)
            if response.status != 200:
                raise MediaFetchFailed(detail=f"its server answered with status {response.status}")
            decode = unpacking(response.headers.getall("Content-Encoding", []))
            if (response.content_length or 0) > max_bytes:
                raise MediaTooLarge(detail=over(max_bytes, response.content_length))
            if response.content_length is not None and decode is None:
                expect(response.content_length)
            body, num_received = bytearray(), 0
            async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                num_received += len(chunk)
                if num_received > max_bytes:
                    raise MediaTooLarge(detail=over(max_bytes))
                for part in (chunk,) if decode is None else decode.fed(chunk):
                    if decode is not None:
                        await asyncio.sleep(0)  # a small chunk may become many parts: others come in between
                    take(len(part))
                    body += part
                    if len(body) > max_bytes:
                        raise MediaTooLarge(detail=over(max_bytes))
            if decode is not None:
                decode.end()
            return bytes(body)


def _is_unknown_name(error: OSError) -> bool:
    """By c-ares, whose error aiohttp's resolver has as its cause, or by the system's resolver."""
    if isinstance(error, socket.gaierror):
        return error.errno in (socket.EAI_NONAME, socket.EAI_NODATA)
    cause = error.__cause__
    return bool(cause is not None and cause.args and cause.args[0] in (ARES_ENODATA, ARES_ENOTFOUND))


def _reason(url: URL, error: Exception) -> str:
    """Why a fetch failed, for the log: the host and the kind of error; the rest of an address may be a secret."""
    cause = getattr(error, "os_error", error)
    number = getattr(cause, "errno", None)
    return f"{url.scheme}://{url.host}: {type(cause).__name__}{'' if number is None else f' {number}'}"


def _location(response: aiohttp.ClientResponse) -> str:
    """Raises MediaFetchFailed."""
    location = response.headers.get("Location")
    if not location:
        raise MediaFetchFailed(detail="a redirect without a valid Location")
    return location


def _redirected(url: URL, location: str) -> str:
    """The address that a redirect names, whole, as it writes it: only a path that climbs is worked out. Raises
    MediaFetchFailed."""
    if _ABSOLUTE.match(location):
        return location
    origin, path = f"{url.scheme}://{url.raw_authority}", url.raw_path_qs.partition("?")[0]
    if location.startswith("//"):
        return f"{url.scheme}:{location}"
    if location.startswith("/"):
        return origin + location
    if location.startswith("?"):
        return origin + path + location
    if not {".", ".."} & set(location.partition("?")[0].split("/")):
        return origin + path[: path.rfind("/") + 1] + location
    try:
        return str(url.join(URL(location, encoded=True)))
    except (ValueError, IndexError):
        raise MediaFetchFailed(detail="a redirect without a valid Location") from None
