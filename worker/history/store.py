"""Where conversations are kept: the protocol of a store, and the turns that fit into a prompt."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

STORE_TIMEOUT_S = 2.0  # for a Redis that does not answer, and for another process's lock on the SQLite file
TEMPLATE_TOKENS = 8  # what a chat template writes around a turn, at the most


class StoreError(Exception):
    """The store failed; the message is the name of its library's error."""


@contextmanager
def as_store_error(*errors: type[Exception]) -> Iterator[None]:
    """What a store's library raises inside, as a StoreError."""
    try:
        yield
    except errors as error:
        raise StoreError(type(error).__name__) from error


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
    """Keeps turns and pictures. Its calls block and raise StoreError; any thread may make them, several at once."""

    def add(self, key: str, turn: Turn, images: Mapping[str, bytes]) -> tuple[int, list[Turn]]:
        """Keep a message of the conversation `key`: its id, and the turns said before it, in order."""
        ...

    def reply(self, key: str, turn_id: int, text: str, tokens: int) -> None:
        """Put the reply beside its message, if that is still there."""
        ...

    def forget(self, key: str, turn_id: int) -> None:
        """Drop a message: it was not answered, and will come again."""
        ...

    def images(self, digests: Sequence[str]) -> dict[str, bytes]:
        """The pictures that are still there."""
        ...

    def close(self) -> None: ...


def fitting_turns(turns: Sequence[Turn], max_turns: int, max_tokens: int, max_images: int) -> list[Turn]:
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
