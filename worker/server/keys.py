"""Keys of the HTTP server, and whose they are: from the settings and from a file that may change while it serves."""

import hashlib
import ipaddress
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from starlette.datastructures import Headers

from worker.core.errors import SettingError
from worker.core.http_errors import KeyInvalid, TooManyWrongKeys
from worker.core.settings import Settings

log = logging.getLogger(__name__)
MAX_FILE_BYTES = 2**20
LOOK_S = 1.0  # between two looks at the file
MINUTE_S = 60.0
MAX_ADDRESSES = 10_000  # with wrong keys; those of the longest ago are forgotten


def _name_of(owner: str) -> str:
    """A caller's name, which tells nothing of the key."""
    return hashlib.blake2b(owner.encode(), digest_size=16).hexdigest()


def read_keys(path: Path) -> list[tuple[str, str]]:
    """Each key of a file with the name of who has it, or with itself. Blank lines and those that begin with # are no
    keys. Raises SettingError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise SettingError(f"API_KEY_FILE cannot be read: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise SettingError(f"API_KEY_FILE has more than {MAX_FILE_BYTES} bytes")
    lines = [line.split(maxsplit=1) for line in data.decode("utf-8", "surrogateescape").splitlines()]
    keys = [(words[0], f"name {words[1].strip()}" if words[1:] else words[0]) for words in lines if words]
    keys = [(key, owner) for key, owner in keys if not key.startswith("#")]
    if not keys:
        raise SettingError("API_KEY_FILE has no key in it")
    return keys


@dataclass
class _Address:
    """What an address did. wrong_at: when its wrong keys of the last minute came; used: digests of valid keys."""

    wrong_at: list[float] = field(default_factory=list)
    used: set[bytes] = field(default_factory=set)


class Keys:
    """The keys that are valid now. Raises SettingError where the file has none at the start.

    Keys are looked up by a digest with a secret of this process: the time tells nothing of them, however many they are.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._fixed, self._path = settings.keys, settings.api_key_file
        self._max_wrong, self._clock = settings.max_wrong_keys, clock
        self._knows_proxies = bool(settings.trusted_proxies)
        self._secret = os.urandom(32)
        self._addresses: OrderedDict[str, _Address] = OrderedDict()
        self._look_at = clock() + LOOK_S
        self._seen = None if self._path is None else _state_of(self._path)
        self._callers: dict[bytes, str] = {}
        self.num_callers = 0
        self._set(() if self._path is None else read_keys(self._path))

    @property
    def are_required(self) -> bool:
        return bool(self._callers)

    def _set(self, from_file: Sequence[tuple[str, str]]) -> None:
        """Each key with its caller; nameless where there is but one."""
        owners = {key: key for key in self._fixed} | dict(from_file)
        self.num_callers = len(set(owners.values()))
        self._callers = {
            self._digest(key.encode("utf-8", "surrogateescape")): "" if self.num_callers == 1 else _name_of(owner)
            for key, owner in owners.items()
        }

    def _digest(self, key: bytes) -> bytes:
        return hashlib.blake2b(key, key=self._secret, digest_size=32).digest()

    def _look(self) -> None:
        """Read the file again where it has changed. What cannot be read leaves the keys as they are."""
        now = self._clock()
        if self._path is None or now < self._look_at:
            return
        self._look_at = now + LOOK_S
        state = _state_of(self._path)
        if state == self._seen:
            return
        self._seen = state
        try:
            self._set(read_keys(self._path))
        except SettingError as error:
            log.error("the keys stay as they are: %s", error)
            return
        log.info("the keys were read again", extra={"keys": len(self._callers)})

    def caller(self, headers: Headers, address: str) -> str:
        """Whose key a request has. Raises KeyInvalid, TooManyWrongKeys."""
        self._look()
        given = _given(headers)
        if given is None:
            raise KeyInvalid(detail="send it as Authorization: Bearer <key>")
        digest = self._digest(given)
        caller = self._callers.get(digest)
        network, is_shared = _network(address), not (self._knows_proxies or _is_global(address))
        known, now = self._addresses.get(network), self._clock()
        if known is not None:
            known.wrong_at = [at for at in known.wrong_at if at > now - MINUTE_S]
            is_limited = len(known.wrong_at) >= self._max_wrong
            is_welcome = caller is not None and (is_shared or digest in known.used)
            if is_limited and not is_welcome:
                raise TooManyWrongKeys(wait_s=max(1, round(known.wrong_at[0] + MINUTE_S - now)))
        if caller is not None:
            self._remember(network).used.add(digest)
            return caller
        wrong_at = self._remember(network).wrong_at
        wrong_at.append(now)
        if len(wrong_at) == self._max_wrong:
            log.warning("%d wrong keys in a minute from %s", self._max_wrong, network)
        raise KeyInvalid()

    def _remember(self, network: str) -> _Address:
        address = self._addresses.setdefault(network, _Address())
        self._addresses.move_to_end(network)
        while len(self._addresses) > MAX_ADDRESSES:
            self._addresses.popitem(last=False)
        address.used &= self._callers.keys()
        return address


def _state_of(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def _given(headers: Headers) -> bytes | None:
    """The key of a request; None where there is none."""
    given = headers.get("x-api-key")
    if given is None:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return None
    return given.strip().encode("latin-1")


def _network(address: str) -> str:
    """Who counts as one address: whoever has an IPv6 address has a /64 of them."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))


def _is_global(address: str) -> bool:
    """Whether it is one client's: an address inside of a network may be a proxy's that nobody has named, for many."""
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False
