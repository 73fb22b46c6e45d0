"""What the bot remembers: conversations in a store, bounded by messages, tokens, pictures and age.

A conversation is a row of turns, each a message with the reply to it, in the order in which they were said, whatever
order their answers end in. A picture is kept once, by its content. Where the store fails, the bot answers without what
was said before, and the log says so.
"""

import asyncio
import contextlib
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from weakref import WeakValueDictionary

from worker.core.contract import Media, Message, Text, Upload
from worker.core.settings import MIB, Settings
from worker.core.threads import on_thread
from worker.history.sqlite import MEMORY, SqliteStore
from worker.history.store import Store, StoreError, Turn

T = TypeVar("T")
log = logging.getLogger(__name__)
SQLITE = "sqlite:///"
DOWN_S = 5.0  # after a failure the store is left alone for so long
THREADS = 4
LARGEST_SHARE = 8  # one message's pictures may take this part of HISTORY_MIB


class History:
    """What the bot remembers. Its store is opened at the first message, and a failure of it never fails an answer."""

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], float] = time.time,
        open_store: Callable[[Settings, Callable[[], float]], Store] | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._open_store = open_store or store_of
        self._store: Store | None = None
        self._opening = threading.Lock()
        self._down_until = 0.0
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="history")
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def close(self) -> None:
        self._threads.shutdown()
        if self._store is not None:
            with contextlib.suppress(StoreError):
                self._store.close()

    def in_order(self, key: str) -> asyncio.Lock:
        """Held while a message is being remembered, so that a later one of the same conversation sees it."""
        return self._locks.setdefault(key, asyncio.Lock())

    async def add(
        self,
        key: str,
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
        by_digest = dict(zip(digests, images, strict=True))
        return await self._ask(lambda store: store.add(key, turn, by_digest)) or (0, [])

    async def reply(self, key: str, turn_id: int, text: str, tokens: int) -> None:
        """Remember what was replied to a message."""
        if turn_id:
            await self._ask(lambda store: store.reply(key, turn_id, text, tokens))

    async def forget(self, key: str, turn_id: int) -> None:
        """A message was not answered, and will come again."""
        if turn_id:
            await self._ask(lambda store: store.forget(key, turn_id))

    async def messages(self, turns: Sequence[Turn]) -> tuple[Message, ...]:
        """Turns as the model reads them, with the pictures that are still there."""
        digests = [digest for turn in turns for digest in turn.images]
        images = (await self._ask(lambda store: store.images(digests)) or {}) if digests else {}
        return tuple(message for turn in turns for message in _messages(turn, images))

    def _opened_store(self) -> Store:
        with self._opening:
            if self._store is None:
                self._store = self._open_store(self._settings, self._clock)
            return self._store

    async def _ask(self, question: Callable[[Store], T]) -> T | None:
        """What the store says; None where it fails, or has just failed."""

        def ask() -> T | None:
            if time.monotonic() < self._down_until:
                return None
            return question(self._opened_store())

        try:
            return await on_thread(self._threads, ask)
        except StoreError as error:
            self._down_until = time.monotonic() + DOWN_S
            log.warning("the history cannot be reached, the bot answers without it: %s", error)
            return None


def store_of(settings: Settings, clock: Callable[[], float] = time.time) -> Store:
    """The store that HISTORY_URL names. Raises StoreError."""
    url = settings.history_url
    if url.startswith(("redis://", "rediss://")):
        from worker.history.redis import RedisStore

        return RedisStore(url, settings.history_turns, settings.history_ttl_s)
    path = url.removeprefix(SQLITE) if url.startswith(SQLITE) else MEMORY
    return SqliteStore(path, settings.history_turns, settings.history_ttl_s, settings.history_mib * MIB, clock)


def _messages(turn: Turn, images: Mapping[str, bytes]) -> Iterator[Message]:
    pictures = tuple(
        Media(kind="image", source=Upload(data=images[digest]), where="history")
        for digest in turn.images
        if digest in images
    )
    yield Message(role="user", parts=(*pictures, Text(text=turn.text)))
    if turn.reply is not None:
        yield Message(role="assistant", parts=(Text(text=turn.reply),))
