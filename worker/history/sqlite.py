"""Conversations in an SQLite database: a file that several processes may use, or memory."""

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from worker.history.store import STORE_TIMEOUT_S, Turn, as_store_error

MEMORY = ":memory:"
ERRORS = (sqlite3.Error, OSError, ValueError, OverflowError)  # the last two: what cannot be stored
ROW_BYTES = 256  # what the database needs for a row beside its words

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
        with as_store_error(*ERRORS):
            if path != MEMORY:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, STORE_TIMEOUT_S, isolation_level=None, check_same_thread=False)
            for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
                self._connection.execute(f"PRAGMA {pragma}")
            self._connection.executescript(_SCHEMA)

    def add(self, key: str, turn: Turn, images: Mapping[str, bytes]) -> tuple[int, list[Turn]]:
        with self._changing() as database:
            database.executemany("INSERT OR IGNORE INTO images VALUES (?, ?)", images.items())
            turn_id = database.execute(
                "INSERT INTO turns (talk, at, kept_at, text, tokens) VALUES (?, ?, ?, ?, ?)",
                (key, turn.at, self._clock(), turn.text, turn.tokens),
            ).lastrowid
            assert turn_id is not None
            shown = zip(turn.images, turn.image_tokens, strict=True)
            rows = [(turn_id, place, digest, tokens) for place, (digest, tokens) in enumerate(shown)]
            database.executemany("INSERT INTO shows VALUES (?, ?, ?, ?)", rows)
            self._tidy(key, turn_id)
            earlier = database.execute(
                "SELECT id, at, text, tokens, reply, reply_tokens FROM turns "
                "WHERE talk = ? AND (at, id) < (?, ?) ORDER BY at, id",
                (key, turn.at, turn_id),
            ).fetchall()
            return turn_id, [self._turn(*row) for row in earlier]

    def reply(self, key: str, turn_id: int, text: str, tokens: int) -> None:
        with self._changing() as database:
            values = (text, tokens, turn_id, key)
            database.execute("UPDATE turns SET reply = ?, reply_tokens = ? WHERE id = ? AND talk = ?", values)

    def forget(self, key: str, turn_id: int) -> None:
        with self._changing() as database:
            database.execute("DELETE FROM turns WHERE id = ? AND talk = ?", (turn_id, key))
            self._drop_unseen()

    def images(self, digests: Sequence[str]) -> dict[str, bytes]:
        marks = ", ".join("?" * len(digests))
        with self._lock, as_store_error(*ERRORS):
            found = self._connection.execute(f"SELECT digest, data FROM images WHERE digest IN ({marks})", digests)
            return dict(found.fetchall())

    def close(self) -> None:
        with self._lock, as_store_error(*ERRORS):
            self._connection.close()

    @contextlib.contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, which has the database's write lock from its beginning."""
        with self._lock, as_store_error(*ERRORS):
            self._connection.execute("BEGIN IMMEDIATE")
            with contextlib.ExitStack() as undo:
                undo.callback(self._connection.execute, "ROLLBACK")
                yield self._connection
                self._connection.execute("COMMIT")
                undo.pop_all()

    def _turn(self, turn_id: int, at: float, text: str, tokens: int, reply: str | None, reply_tokens: int) -> Turn:
        rows = self._connection.execute(
            "SELECT digest, tokens FROM shows WHERE turn = ? ORDER BY place", (turn_id,)
        ).fetchall()
        images, image_tokens = tuple(row[0] for row in rows), tuple(row[1] for row in rows)
        return Turn(at, text, tokens, images, image_tokens, reply, reply_tokens, turn_id)

    def _tidy(self, key: str, newest: int) -> None:
        """Drop what is too old, too many of one conversation, or too large in all, the oldest first; never the message
        that has just come."""
        delete, database = "DELETE FROM turns WHERE id != ? AND", self._connection
        count = database.execute(f"{delete} kept_at <= ?", (newest, self._clock() - self._ttl_s)).rowcount
        last = "SELECT id FROM turns WHERE talk = ? AND id != ? ORDER BY at DESC, id DESC LIMIT ?"
        too_many = f"{delete} talk = ? AND id NOT IN ({last})"
        count += database.execute(too_many, (newest, key, key, newest, self._max_turns)).rowcount
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
