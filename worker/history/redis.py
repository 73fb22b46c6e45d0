"""Conversations in a Redis that several workers share: a hash for each, a string for each picture, all of which expire.

Imported when it is used: a worker without a bot need not wait for the client at its start.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from redis import Redis, RedisError

from worker.history.store import STORE_TIMEOUT_S, Turn, as_store_error

ERRORS = (RedisError, OSError, ValueError, KeyError, TypeError)  # the last three: what is kept there is not ours
_NEXT = "next"  # the field that counts a conversation's ids
_PUT_REPLY = """
if redis.call('hexists', KEYS[1], ARGV[1]) == 1 then redis.call('hset', KEYS[1], ARGV[1] .. ':reply', ARGV[2]) end
"""


class RedisStore:
    """Turns in Redis: a hash for each conversation, a string for each picture, all of which expire."""

    def __init__(self, url: str, max_turns: int, ttl_s: float) -> None:
        limits = {"socket_timeout": STORE_TIMEOUT_S, "socket_connect_timeout": STORE_TIMEOUT_S}
        with as_store_error(*ERRORS):
            self._redis = Redis.from_url(url, **limits)
        self._max_turns, self._ttl_ms = max_turns, max(1, round(ttl_s * 1000))
        self._put_reply = self._redis.register_script(_PUT_REPLY)

    def add(self, key: str, turn: Turn, images: Mapping[str, bytes]) -> tuple[int, list[Turn]]:
        with as_store_error(*ERRORS):
            name = self._hash(key)
            with self._redis.pipeline() as many:
                many.hincrby(name, _NEXT, 1)
                many.pexpire(name, self._ttl_ms)
                many.time()
                turn_id, _, (seconds, micros) = many.execute()
            kept_ms = seconds * 1000 + micros // 1000
            with self._redis.pipeline() as many:
                for digest, image in images.items():
                    many.set(self._image(digest), image, nx=True)
                    many.pexpire(self._image(digest), self._ttl_ms)
                many.hset(name, str(turn_id), json.dumps({"kept_ms": kept_ms, **asdict(turn)}))
                many.pexpire(name, self._ttl_ms)
                many.hgetall(name)
                found: dict[bytes, bytes] = many.execute()[-1]
            turns, stale = self._turns(found, kept_ms - self._ttl_ms, turn_id)
            if stale:
                self._redis.hdel(name, *stale)
            return turn_id, [earlier for earlier in turns if (earlier.at, earlier.id) < (turn.at, turn_id)]

    def reply(self, key: str, turn_id: int, text: str, tokens: int) -> None:
        with as_store_error(*ERRORS):
            self._put_reply(keys=[self._hash(key)], args=[turn_id, json.dumps([text, tokens])])

    def forget(self, key: str, turn_id: int) -> None:
        with as_store_error(*ERRORS):
            self._redis.hdel(self._hash(key), str(turn_id), f"{turn_id}:reply")

    def images(self, digests: Sequence[str]) -> dict[str, bytes]:
        with as_store_error(*ERRORS):
            found = self._redis.mget([self._image(digest) for digest in digests])
            return {digest: data for digest, data in zip(digests, found, strict=True) if isinstance(data, bytes)}

    def close(self) -> None:
        with as_store_error(*ERRORS):
            self._redis.close()

    def _turns(self, found: Mapping[bytes, bytes], oldest_ms: int, newest: int) -> tuple[list[Turn], list[bytes]]:
        """The conversation in order, and the names of what no longer belongs to it."""
        turns = []
        for name, value in found.items():
            if not name.isdigit():
                continue
            fields = json.loads(value)
            if fields.pop("kept_ms") <= oldest_ms:
                continue
            fields |= {part: tuple(fields[part]) for part in ("images", "image_tokens")} | {"id": int(name)}
            if (reply := found.get(name + b":reply")) is not None:
                fields["reply"], fields["reply_tokens"] = json.loads(reply)
            turns.append(Turn(**fields))
        turns.sort(key=lambda turn: (turn.at, turn.id))
        others = [turn for turn in turns if turn.id != newest][-self._max_turns :]
        kept = {str(turn.id).encode() for turn in others} | {str(newest).encode(), _NEXT.encode()}
        return others, [name for name in found if name.partition(b":")[0] not in kept]

    @staticmethod
    def _hash(key: str) -> str:
        return f"worker-qwen-vl:talk:{key}"

    @staticmethod
    def _image(digest: str) -> str:
        return f"worker-qwen-vl:image:{digest}"
