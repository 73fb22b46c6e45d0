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
from typing import Any, Protocol
from weakref import WeakValueDictionary

from worker.core.contract import Media, Message, Text, Upload
from worker.core.settings import MIB, Settings

log = logging.getLogger(__name__)
SQLITE = "sqlite:///"
STORE_TIMEOUT_S = 2.0  # for a Redis that does not answer, and for another process's lock on the SQLite file
DOWN_S = 5.0  # after a failure the store is left alone for so long
THREADS = 4
TEMPLATE_TOKENS = 8  # what a chat template writes around a turn, at the most
LARGEST_SHARE = 8  # one message's pictures may take this part of HISTORY_MIB
ROW_BYTES = 256  # what the database needs for a row beside its words


@dataclass(frozen=True)
class Turn:
    """A message and the reply to it. at: seconds since 1970, by the client's clock where it gives one; tokens: of its
    words in a prompt; images: digests of its pictures; image_tokens: of each of them; id: in its store."""

    at: float
    text: str
    tokens: int = 0
    images: tuple[str, ...] = ()
    image_tokens: tuple[int, ...] = ()
    reply: str | None = None
    reply_tokens: int = 0
    id: int = 0


class Store(Protocol):
    """Keeps turns and pictures. Its calls block; any thread may make them, several at once."""

    def add(self, talk: str, turn: Turn, images: Mapping[str, bytes]) -> tuple[int, list[Turn]]:
        """Keep a message: its id, and the turns said before it, in order."""

    def reply(self, talk: str, identity: int, text: str, tokens: int) -> None:
        """Put the reply beside its message, if that is still there."""

    def forget(self, talk: str, identity: int) -> None:
        """Drop a message: it was not answered, and will come again."""

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
        self._down_until = 0.0
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
        self,
        talk: str,
        text: str,
        tokens: int,
        images: Sequence[bytes],
        image_tokens: Sequence[int],
        at: float | None,
    ) -> tuple[int, list[Turn]]:
        """Remember a message: its id, and the turns before it. 0 and none where the store fails. A time that is still
        to come is now."""
        now = self._clock()
        if sum(map(len, images)) > self._settings.history_mib * MIB // LARGEST_SHARE:
            images, image_tokens = (), ()
        digests = tuple(hashlib.sha256(image).hexdigest() for image in images)
        turn = Turn(now if at is None else min(at, now), text, tokens, digests, tuple(image_tokens))
        return await self._ask("add", talk, turn, dict(zip(digests, images, strict=True))) or (0, [])

    async def reply(self, talk: str, identity: int, text: str, tokens: int) -> None:
        """Remember what was replied to a message."""
        if identity:
            await self._ask("reply", talk, identity, text, tokens)

    async def forget(self, talk: str, identity: int) -> None:
        """A message was not answered, and will come again."""
        if identity:
            await self._ask("forget", talk, identity)

    async def messages(self, turns: Sequence[Turn]) -> tuple[Message, ...]:
        """Turns as the model reads them, with the pictures that are still there."""
        digests = [digest for turn in turns for digest in turn.images]
        images = (await self._ask("images", digests) or {}) if digests else {}
        return tuple(message for turn in turns for message in _messages(turn, images))

    def _opened_store(self) -> Store:
        with self._opening:
            if self._store is None:
                self._store = open_store(self._settings, self._clock)
            return self._store

    async def _ask(self, question: str, *arguments: Any) -> Any:
        """What the store says; None where it fails, or has just failed."""

        def ask() -> Any:
            if time.monotonic() < self._down_until:
                return None
            return getattr(self._opened_store(), question)(*arguments)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, ask)
        except Exception as error:  # whatever the store's library raises: the bot answers all the same
            self._down_until = time.monotonic() + DOWN_S
            log.warning("the history cannot be reached, the bot answers without it: %s", type(error).__name__)
            return None


def within(turns: Sequence[Turn], max_turns: int, max_tokens: int, max_images: int) -> list[Turn]:
    """The last turns that fit into all three bounds together. Of pictures the last are kept; where one is left out, so
    are all before it. Words go only when there is no room for them."""
    kept: list[Turn] = []
    has_pictures = True
    for turn in reversed(turns[-max_turns:]):
        max_tokens -= turn.tokens + turn.reply_tokens + TEMPLATE_TOKENS
        if max_tokens < 0:
            break
        count = 0
        for tokens in reversed(turn.image_tokens):
            has_pictures = has_pictures and max_images > 0 and tokens <= max_tokens
            if not has_pictures:
                break
            count, max_images, max_tokens = count + 1, max_images - 1, max_tokens - tokens
        first = len(turn.images) - count
        kept.append(replace(turn, images=turn.images[first:], image_tokens=turn.image_tokens[first:]))
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


_SCHEMA = f"""
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
CREATE INDEX IF NOT EXISTS turns_by_age ON turns (kept_at, id);
CREATE TABLE IF NOT EXISTS images (digest TEXT PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS shows (
    turn INTEGER NOT NULL REFERENCES turns ON DELETE CASCADE,
    place INTEGER NOT NULL,
    digest TEXT NOT NULL REFERENCES images,
    tokens INTEGER NOT NULL,
    PRIMARY KEY (turn, place)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS shows_of_an_image ON shows (digest);
CREATE TABLE IF NOT EXISTS held (bytes INTEGER NOT NULL);
INSERT INTO held SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM held);
CREATE TRIGGER IF NOT EXISTS turn_came AFTER INSERT ON turns BEGIN
    UPDATE held SET bytes = bytes + {ROW_BYTES} + 2 * length(CAST(new.talk AS BLOB)) + length(CAST(new.text AS BLOB));
END;
CREATE TRIGGER IF NOT EXISTS turn_replied AFTER UPDATE OF reply ON turns BEGIN
    UPDATE held SET bytes = bytes + coalesce(length(CAST(new.reply AS BLOB)), 0)
        - coalesce(length(CAST(old.reply AS BLOB)), 0);
END;
CREATE TRIGGER IF NOT EXISTS turn_went AFTER DELETE ON turns BEGIN
    UPDATE held SET bytes = bytes - {ROW_BYTES} - 2 * length(CAST(old.talk AS BLOB)) - length(CAST(old.text AS BLOB))
        - coalesce(length(CAST(old.reply AS BLOB)), 0);
END;
CREATE TRIGGER IF NOT EXISTS image_came AFTER INSERT ON images BEGIN
    UPDATE held SET bytes = bytes + {ROW_BYTES} + length(new.data);
END;
CREATE TRIGGER IF NOT EXISTS image_went AFTER DELETE ON images BEGIN
    UPDATE held SET bytes = bytes - {ROW_BYTES} - length(old.data);
END;
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
            shown = zip(turn.images, turn.image_tokens, strict=True)
            rows = [(identity, place, digest, tokens) for place, (digest, tokens) in enumerate(shown)]
            database.executemany("INSERT INTO shows VALUES (?, ?, ?, ?)", rows)
            self._tidy(talk, identity)
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

    def forget(self, talk: str, identity: int) -> None:
        with self._changing() as database:
            database.execute("DELETE FROM turns WHERE id = ? AND talk = ?", (identity, talk))
            self._drop_unseen()

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
        rows = self._connection.execute(
            "SELECT digest, tokens FROM shows WHERE turn = ? ORDER BY place", (identity,)
        ).fetchall()
        images, image_tokens = tuple(row[0] for row in rows), tuple(row[1] for row in rows)
        return Turn(at, text, tokens, images, image_tokens, reply, reply_tokens, identity)

    def _tidy(self, talk: str, newest: int) -> None:
        """Drop what is too old, too many of one conversation, or too large in all, the oldest first; never the message
        that has just come."""
        delete, database = "DELETE FROM turns WHERE id != ? AND", self._connection
        count = database.execute(f"{delete} kept_at <= ?", (newest, self._clock() - self._ttl_s)).rowcount
        last = "SELECT id FROM turns WHERE talk = ? AND id != ? ORDER BY at DESC, id DESC LIMIT ?"
        too_many = f"{delete} talk = ? AND id NOT IN ({last})"
        count += database.execute(too_many, (newest, talk, talk, newest, self._max_turns)).rowcount
        if count:
            self._drop_unseen()
        while database.execute("SELECT bytes FROM held").fetchone()[0] > self._max_bytes:
            oldest = "SELECT id FROM turns ORDER BY kept_at, id LIMIT (SELECT (count(*) + 7) / 8 FROM turns)"
            if not database.execute(f"{delete} id IN ({oldest})", (newest,)).rowcount:
                return
            self._drop_unseen()

    def _drop_unseen(self) -> None:
        unseen = "NOT EXISTS (SELECT 1 FROM shows WHERE digest = images.digest)"
        self._connection.execute(f"DELETE FROM images WHERE {unseen}")


_NEXT = "next"  # the field that counts a conversation's ids
_PUT_REPLY = """
if redis.call('hexists', KEYS[1], ARGV[1]) == 1 then redis.call('hset', KEYS[1], ARGV[1] .. ':reply', ARGV[2]) end
"""


class RedisStore:
    """Turns in Redis: a hash for each conversation, a string for each picture, all of which expire."""

    def __init__(self, url: str, max_turns: int, ttl_s: float) -> None:
        # Imported when it is used: workers without a bot need not wait for it at their start.
        redis = importlib.import_module("redis")
        self._redis = redis.Redis.from_url(url, socket_timeout=STORE_TIMEOUT_S, socket_connect_timeout=STORE_TIMEOUT_S)
        self._max_turns, self._ttl_ms = max_turns, max(1, round(ttl_s * 1000))
        self._put_reply = self._redis.register_script(_PUT_REPLY)

    def add(self, talk: str, turn: Turn, images: Mapping[str, bytes]) -> tuple[int, list[Turn]]:
        key = self._key(talk)
        with self._redis.pipeline() as many:
            identity, _, (seconds, micros) = many.hincrby(key, _NEXT, 1).pexpire(key, self._ttl_ms).time().execute()
        kept_ms = seconds * 1000 + micros // 1000
        with self._redis.pipeline() as many:
            for digest, image in images.items():
                many.set(self._image(digest), image, nx=True)
                many.pexpire(self._image(digest), self._ttl_ms)
            many.hset(key, str(identity), json.dumps({"kept_ms": kept_ms, **asdict(turn)}))
            many.pexpire(key, self._ttl_ms)
            many.hgetall(key)
            found: dict[bytes, bytes] = many.execute()[-1]
        turns, stale = self._turns(found, kept_ms - self._ttl_ms, identity)
        if stale:
            self._redis.hdel(key, *stale)
        return identity, [one for one in turns if (one.at, one.id) < (turn.at, identity)]

    def reply(self, talk: str, identity: int, text: str, tokens: int) -> None:
        self._put_reply(keys=[self._key(talk)], args=[identity, json.dumps([text, tokens])])

    def forget(self, talk: str, identity: int) -> None:
        self._redis.hdel(self._key(talk), str(identity), f"{identity}:reply")

    def images(self, digests: Sequence[str]) -> dict[str, bytes]:
        found = self._redis.mget([self._image(digest) for digest in digests])
        return {digest: data for digest, data in zip(digests, found, strict=True) if data is not None}

    def close(self) -> None:
        self._redis.close()

    def _turns(self, found: Mapping[bytes, bytes], oldest_ms: int, newest: int) -> tuple[list[Turn], list[bytes]]:
        """The conversation in order, and the names of what no longer belongs to it."""
        turns = []
        for name, value in found.items():
            if not name.isdigit():
                continue
            given = json.loads(value)
            if given.pop("kept_ms") <= oldest_ms:
                continue
            given |= {part: tuple(given[part]) for part in ("images", "image_tokens")} | {"id": int(name)}
            if (said := found.get(name + b":reply")) is not None:
                given["reply"], given["reply_tokens"] = json.loads(said)
            turns.append(Turn(**given))
        turns.sort(key=lambda turn: (turn.at, turn.id))
        others = [turn for turn in turns if turn.id != newest][-self._max_turns :]
        kept = {str(turn.id).encode() for turn in others} | {str(newest).encode(), _NEXT.encode()}
        return others, [name for name in found if name.partition(b":")[0] not in kept]

    @staticmethod
    def _key(talk: str) -> str:
        return f"worker-qwen-vl:talk:{talk}"

    @staticmethod
    def _image(digest: str) -> str:
        return f"worker-qwen-vl:image:{digest}"
