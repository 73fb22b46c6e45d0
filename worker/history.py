"""The bot's conversations: in memory, in an SQLite file, or in a Redis that several workers share.

A conversation is a row of turns, each a message with the reply to it, in the order in which they were said, whatever
order their answers end in. It is bounded by messages, tokens, pictures and age. A picture is kept once, by its content.
Where the store fails, the bot answers without what was said before, and the log says so.
"""

import asyncio
import contextlib
import hashlib
import importlib
import json
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar
from weakref import WeakValueDictionary

from worker.contract import Media, Message, Text, Upload
from worker.settings import MIB, Settings

log = logging.getLogger(__name__)
T = TypeVar("T")
SQLITE = "sqlite:///"
STORE_TIMEOUT_S = 2.0  # for a Redis that does not answer, and for another process's lock on the SQLite file
THREADS = 4


@dataclass(frozen=True)
class Turn:
    """A message and the reply to it. at: seconds since 1970, by the client's clock where it gives one; images: digests
    of its pictures; tokens: of the message in a prompt, and of the reply; id: in its store."""

    at: float
    text: str
    images: tuple[str, ...] = ()
    tokens: int = 0
    reply: str | None = None
    reply_tokens: int = 0
    id: int = 0


class Store(Protocol):
    """Keeps turns and pictures. Its calls block; any thread may make them, several at once."""

    def add(self, talk: str, turn: Turn, images: Mapping[str, bytes]) -> tuple[int, list[Turn]]:
        """Keep a message: its id, and the turns said before it, in order."""

    def reply(self, talk: str, identity: int, text: str, tokens: int) -> None:
        """Put the reply beside its message, if that is still there."""

    def images(self, digests: Sequence[str]) -> dict[str, bytes]:
        """The pictures that are still there."""

    def close(self) -> None: ...


class History:
    """What the bot remembers. Its store is opened at the first message, and a failure of it never fails an answer."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._clock = clock
        self._store: Store | None = None
        self._opening = threading.Lock()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="history")
        self._talks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def close(self) -> None:
        self._threads.shutdown()
        if self._store is not None:
            with contextlib.suppress(Exception):
                self._store.close()

    def in_order(self, talk: str) -> asyncio.Lock:
        """Held while a message is being remembered, so that a later one of the same conversation sees it."""
        return self._talks.setdefault(talk, asyncio.Lock())

    async def add(
        self, talk: str, text: str, images: Sequence[bytes], tokens: int, at: float | None
    ) -> tuple[int, list[Turn]]:
        """Remember a message: its id for `reply`, and the turns before it. 0 and none where the store fails."""
        return await self._ask(self._add, talk, text, images, tokens, at) or (0, [])

    async def reply(self, talk: str, identity: int, text: str, tokens: int) -> None:
        """Remember what was replied to a message."""
        if identity:
            await self._ask(self._opened_store().reply, talk, identity, text, tokens)

    async def messages(self, turns: Sequence[Turn]) -> tuple[Message, ...]:
        """Turns as the model reads them, with the pictures that are still there."""
        digests = [digest for turn in turns for digest in turn.images]
        images = (await self._ask(self._opened_store().images, digests) or {}) if digests else {}
        return tuple(message for turn in turns for message in _messages(turn, images))

    def _add(
        self, talk: str, text: str, images: Sequence[bytes], tokens: int, at: float | None
    ) -> tuple[int, list[Turn]]:
        named = {hashlib.sha256(image).hexdigest(): image for image in images}
        now = self._clock()
        turn = Turn(now if at is None else at, text, tuple(hashlib.sha256(one).hexdigest() for one in images), tokens)
        return self._opened_store().add(talk, turn, named)

    def _opened_store(self) -> Store:
        with self._opening:
            if self._store is None:
                self._store = open_store(self._settings, self._clock)
            return self._store

    async def _ask(self, work: Callable[..., T], *arguments: Any) -> T | None:
        """What the store says; None where it fails."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)
        except Exception as error:  # whatever the store's library raises: the bot answers all the same
            log.warning("the history cannot be reached, the bot answers without it: %s", type(error).__name__)
            return None


def within(turns: Sequence[Turn], max_turns: int, max_tokens: int, max_images: int) -> list[Turn]:
    """The last turns that fit into all three bounds together. A picture is left out before its message is."""
    kept: list[Turn] = []
    for turn in reversed(turns[-max_turns:] if max_turns else []):
        images = turn.images if len(turn.images) <= max_images else ()
        max_tokens -= turn.tokens + turn.reply_tokens
        max_images -= len(images)
        if max_tokens < 0:
            break
        kept.append(replace(turn, images=images))
    return kept[::-1]


def _messages(turn: Turn, images: Mapping[str, bytes]) -> Iterator[Message]:
    pictures = tuple(
        Media(kind="image", source=Upload(data=images[digest]), where="history")
        for digest in turn.images
        if digest in images
    )
    yield Message(role="user", parts=(*pictures, Text(text=turn.text)))
    if turn.reply is not None:
        yield Message(role="assistant", parts=(Text(text=turn.reply),))


def open_store(settings: Settings, clock: Callable[[], float] = time.time) -> Store:
    """The store that HISTORY_URL names. Raises what its library does."""
    url = settings.history_url
    if url.startswith(("redis://", "rediss://")):
        return RedisStore(url, settings.history_turns, settings.history_ttl_s)
    path = url.removeprefix(SQLITE) if url.startswith(SQLITE) else ":memory:"
    if path != ":memory:":
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    return SqliteStore(path, settings.history_turns, settings.history_ttl_s, settings.history_mib * MIB, clock)


_SCHEMA = """
CREATE TABLE IF NOT EXISTS turns (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    talk TEXT NOT NULL,
    at REAL NOT NULL,
    kept_at REAL NOT NULL,
    text TEXT NOT NULL,
    tokens INTEGER NOT NULL,
    reply TEXT,
    reply_tokens INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS turns_of_a_talk ON turns (talk, at, id);
CREATE TABLE IF NOT EXISTS images (digest TEXT PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS shows (
    turn INTEGER NOT NULL REFERENCES turns ON DELETE CASCADE,
    place INTEGER NOT NULL,
    digest TEXT NOT NULL REFERENCES images,
    PRIMARY KEY (turn, place)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS shows_of_an_image ON shows (digest);
"""


class SqliteStore:
    """Turns in an SQLite database: a file that several processes may use, or memory."""

    def __init__(self, path: str, max_turns: int, ttl_s: float, max_bytes: int, clock: Callable[[], float]) -> None:
        self._max_turns, self._ttl_s, self._max_bytes, self._clock = max_turns, ttl_s, max_bytes, clock
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, STORE_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.executescript(_SCHEMA)

    def add(self, talk: str, turn: Turn, images: Mapping[str, bytes]) -> tuple[int, list[Turn]]:
        with self._changing() as database:
            database.executemany("INSERT OR IGNORE INTO images VALUES (?, ?)", images.items())
            identity = database.execute(
                "INSERT INTO turns (talk, at, kept_at, text, tokens) VALUES (?, ?, ?, ?, ?)",
                (talk, turn.at, self._clock(), turn.text, turn.tokens),
            ).lastrowid
            assert identity is not None
            shown = [(identity, place, digest) for place, digest in enumerate(turn.images)]
            database.executemany("INSERT INTO shows VALUES (?, ?, ?)", shown)
            self._forget(talk)
            earlier = database.execute(
                "SELECT id, at, text, tokens, reply, reply_tokens FROM turns "
                "WHERE talk = ? AND (at, id) < (?, ?) ORDER BY at, id",
                (talk, turn.at, identity),
            ).fetchall()
            return identity, [self._turn(*row) for row in earlier]

    def reply(self, talk: str, identity: int, text: str, tokens: int) -> None:
        with self._changing() as database:
            given = (text, tokens, identity, talk)
            database.execute("UPDATE turns SET reply = ?, reply_tokens = ? WHERE id = ? AND talk = ?", given)

    def images(self, digests: Sequence[str]) -> dict[str, bytes]:
        marks = ", ".join("?" * len(digests))
        with self._lock:
            found = self._connection.execute(f"SELECT digest, data FROM images WHERE digest IN ({marks})", digests)
            return dict(found.fetchall())

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextlib.contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, which has the database's write lock from its beginning."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise

    def _turn(self, identity: int, at: float, text: str, tokens: int, reply: str | None, reply_tokens: int) -> Turn:
        rows = self._connection.execute("SELECT digest FROM shows WHERE turn = ? ORDER BY place", (identity,))
        return Turn(at, text, tuple(digest for (digest,) in rows), tokens, reply, reply_tokens, identity)

    def _forget(self, talk: str) -> None:
        """Whatever is too old, too many of one conversation, or too large in all: the oldest first."""
        delete, database = "DELETE FROM turns WHERE", self._connection
        database.execute(f"{delete} kept_at <= ?", (self._clock() - self._ttl_s,))
        database.execute(
            f"{delete} talk = ? AND id NOT IN (SELECT id FROM turns WHERE talk = ? ORDER BY at DESC, id DESC LIMIT ?)",
            (talk, talk, self._max_turns + 1),
        )
        while True:
            database.execute("DELETE FROM images WHERE NOT EXISTS (SELECT 1 FROM shows WHERE digest = images.digest)")
            if self._num_bytes() <= self._max_bytes:
                return
            oldest = "SELECT id FROM turns ORDER BY kept_at, id LIMIT (SELECT (count(*) + 7) / 8 FROM turns)"
            if not database.execute(f"{delete} id IN ({oldest})").rowcount:
                return

    def _num_bytes(self) -> int:
        [total] = self._connection.execute(
            "SELECT (SELECT coalesce(sum(length(data)), 0) FROM images)"
            " + (SELECT coalesce(sum(length(CAST(text AS BLOB)) + length(CAST(coalesce(reply, '') AS BLOB))), 0)"
            " FROM turns)"
        ).fetchone()
        return int(total)


class RedisStore:
    """Turns in Redis: a hash for each conversation, a string for each picture, all of which expire."""

    def __init__(self, url: str, max_turns: int, ttl_s: float) -> None:
        # Imported when it is used: workers without a bot need not wait for it at their start.
        redis = importlib.import_module("redis")
        self._redis = redis.Redis.from_url(url, socket_timeout=STORE_TIMEOUT_S, socket_connect_timeout=STORE_TIMEOUT_S)
        self._max_turns, self._ttl_ms = max_turns, max(1, round(ttl_s * 1000))

    def add(self, talk: str, turn: Turn, images: Mapping[str, bytes]) -> tuple[int, list[Turn]]:
        key = self._key(talk)
        identity, (seconds, micros) = self._redis.pipeline().incr("worker-qwen-vl:next").time().execute()
        kept_ms = seconds * 1000 + micros // 1000
        with self._redis.pipeline() as many:
            for digest, image in images.items():
                many.set(self._image(digest), image, nx=True)
                many.pexpire(self._image(digest), self._ttl_ms)
            many.hset(key, str(identity), json.dumps({"kept_ms": kept_ms, **asdict(turn)}))
            many.pexpire(key, self._ttl_ms)
            many.hgetall(key)
            found: dict[bytes, bytes] = many.execute()[-1]
        turns, stale = self._turns(found, kept_ms - self._ttl_ms)
        if stale:
            self._redis.hdel(key, *stale)
        return identity, [one for one in turns if (one.at, one.id) < (turn.at, identity)]

    def reply(self, talk: str, identity: int, text: str, tokens: int) -> None:
        self._redis.hset(self._key(talk), f"{identity}:reply", json.dumps([text, tokens]))

    def images(self, digests: Sequence[str]) -> dict[str, bytes]:
        found = self._redis.mget([self._image(digest) for digest in digests])
        return {digest: data for digest, data in zip(digests, found, strict=True) if data is not None}

    def close(self) -> None:
        self._redis.close()

    def _turns(self, found: Mapping[bytes, bytes], oldest_ms: int) -> tuple[list[Turn], list[bytes]]:
        """The conversation in order, and the names of what no longer belongs to it."""
        turns, stale = [], []
        for name, value in found.items():
            if not name.isdigit():
                continue
            given = json.loads(value)
            if given.pop("kept_ms") <= oldest_ms:
                stale.append(name)
                continue
            given |= {"id": int(name), "images": tuple(given["images"])}
            if (said := found.get(name + b":reply")) is not None:
                given["reply"], given["reply_tokens"] = json.loads(said)
            turns.append(Turn(**given))
        turns.sort(key=lambda turn: (turn.at, turn.id))
        stale += [str(turn.id).encode() for turn in turns[: -self._max_turns - 1]]
        kept = set(found) - set(stale)
        stale += [name for name in kept if not name.isdigit() and name.partition(b":")[0] not in kept]
        return turns[-self._max_turns - 1 :], stale + [name + b":reply" for name in stale if name.isdigit()]

    @staticmethod
    def _key(talk: str) -> str:
        return f"worker-qwen-vl:talk:{talk}"

    @staticmethod
    def _image(digest: str) -> str:
        return f"worker-qwen-vl:image:{digest}"
