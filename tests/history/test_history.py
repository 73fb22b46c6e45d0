"""The bot's memory in all its stores, a real Redis among them, and the path of a message through it."""

import asyncio
import base64
import json
import logging
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis
from PIL import Image

from tests.fakes import FakeEngine, FakeOpener, as_base64
from worker.core.contract import Media, Text
from worker.core.errors import InternalError, MediaCorrupt
from worker.core.settings import Settings, load
from worker.history.history import History, store_of
from worker.history.sqlite import MEMORY, SqliteStore
from worker.history.store import Store, Turn, fitting_turns
from worker.service import Service

ROOT = Path(__file__).parents[2]
Open = Callable[..., Store]


@pytest.fixture(scope="module")
def redis_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A real server that keeps nothing."""
    server = shutil.which("redis-server")
    if server is None:
        pytest.skip("redis-server is not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path_factory.mktemp("redis"))]
    process = subprocess.Popen([server, *options], stdout=subprocess.DEVNULL)
    try:
        with redis.Redis(port=port) as client:
            end = time.monotonic() + 20
            while time.monotonic() < end:
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    time.sleep(0.02)
            yield port
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(params=["memory", "sqlite", "redis"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens one store again and again; the one in memory only once."""
    clock = [1000.0]
    if request.param == "redis":
        port = request.getfixturevalue("redis_port")
        with redis.Redis(port=port) as client:
            client.flushall()
        url = f"redis://127.0.0.1:{port}/0"
    else:
        url = {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path}/deeper/history.db"}[request.param]
    stores: list[Store] = []

    def start(**settings: Any) -> Store:
        stores.append(store_of(Settings(history_url=url, **settings), lambda: clock[0]))
        return stores[-1]

    start.clock, start.url = clock, url  # type: ignore[attr-defined]
    yield start
    for store in stores:
        store.close()


def texts(turns: list[Turn]) -> list[tuple[str, str | None]]:
    return [(turn.text, turn.reply) for turn in turns]


def test_turns_come_back_in_the_order_in_which_they_were_said(opened: Open) -> None:
    store = opened()
    first, nothing = store.add("group:1", Turn(1.0, "first"), {})
    second, before_second = store.add("group:1", Turn(2.0, "second"), {})
    store.add("group:2", Turn(2.5, "elsewhere"), {})
    store.reply("group:1", second, "to the second", 3)
    store.reply("group:1", first, "to the first", 5)
    _, late = store.add("group:1", Turn(1.5, "said between, came late"), {})
    _, all_before = store.add("group:1", Turn(3.0, "third"), {})
    assert (nothing, texts(before_second), texts(late)) == ([], [("first", None)], [("first", "to the first")])
    assert texts(all_before) == [
        ("first", "to the first"),
        ("said between, came late", None),
        ("second", "to the second"),
    ]
    assert (all_before[0].reply_tokens, all_before[2].reply_tokens) == (5, 3)


def test_only_the_last_turns_are_kept_and_a_late_reply_to_one_that_went_is_dropped(opened: Open) -> None:
    store = opened(history_turns=3)
    ids = [store.add("private:1", Turn(float(index), str(index)), {})[0] for index in range(10)]
    store.reply("private:1", ids[0], "too late", 1)
    store.reply("private:1", ids[9], "in time", 1)
    _, before = store.add("private:1", Turn(10.0, "now"), {})
    assert texts(before) == [("7", None), ("8", None), ("9", "in time")]
    if (url := opened.url).startswith("redis"):  # type: ignore[attr-defined]
        with redis.Redis.from_url(url) as client:
            assert {name.partition(b":")[0] for name in client.hkeys("worker-qwen-vl:talk:private:1")} == {
                str(ids[index]).encode() for index in (7, 8, 9)
            } | {str(ids[9] + 1).encode(), b"next"}


def test_a_picture_is_kept_once_for_all_conversations(opened: Open) -> None:
    store = opened()
    for key in ("private:1", "private:2", "private:1"):
        store.add(key, Turn(1.0, "look", 3, ("d1", "d2", "d1"), (16, 17, 16)), {"d1": b"one", "d2": b"two"})
    _, before = store.add("private:1", Turn(2.0, "now"), {})
    assert [(turn.images, turn.image_tokens) for turn in before] == [(("d1", "d2", "d1"), (16, 17, 16))] * 2
    assert store.images(["d2", "d1", "d3"]) == {"d1": b"one", "d2": b"two"}
    if (url := opened.url).startswith("redis"):  # type: ignore[attr-defined]
        with redis.Redis.from_url(url) as client:
            assert len(client.keys("worker-qwen-vl:image:*")) == 2


def test_what_is_old_is_forgotten(opened: Open) -> None:
    store = opened(history_ttl_s=60.0)
    store.add("private:1", Turn(1.0, "old", 3, ("d1",), (16,)), {"d1": b"one"})
    if (url := opened.url).startswith("redis"):  # type: ignore[attr-defined]
        with redis.Redis.from_url(url) as client:
            [name] = set(client.hkeys("worker-qwen-vl:talk:private:1")) - {b"next"}
            turn = json.loads(client.hget("worker-qwen-vl:talk:private:1", name))
            client.hset(
                "worker-qwen-vl:talk:private:1", name, json.dumps({**turn, "kept_ms": turn["kept_ms"] - 60_000})
            )
            for key in ("worker-qwen-vl:talk:private:1", "worker-qwen-vl:image:d1"):
                assert 0 < client.pttl(key) <= 60_000
    else:
        opened.clock[0] += 60.0  # type: ignore[attr-defined]
    _, before = store.add("private:1", Turn(2.0, "now"), {})
    assert before == []
    if not url.startswith("redis"):
        assert store.images(["d1"]) == {}


def test_two_workers_share_one_history_and_a_restart_loses_nothing(opened: Open) -> None:
    if opened.url == "memory://":  # type: ignore[attr-defined]
        pytest.skip("memory is one worker's own")
    one, other = opened(), opened()
    turn_id, _ = one.add("group:1", Turn(1.0, "to the one", 3, ("d1",), (16,)), {"d1": b"one"})
    _, before = other.add("group:1", Turn(2.0, "to the other"), {})
    assert texts(before) == [("to the one", None)]
    other.reply("group:1", turn_id, "by the other", 2)
    for store in (one, other):
        store.close()
    again = opened()
    _, before = again.add("group:1", Turn(3.0, "after the restart"), {})
    assert texts(before) == [("to the one", "by the other"), ("to the other", None)]
    assert again.images(["d1"]) == {"d1": b"one"}


WRITER = """
import sys
from worker.history.history import store_of
from worker.history.store import Turn
from worker.core.settings import Settings
store = store_of(Settings(history_url=sys.argv[1], history_turns=1000))
for index in range(100):
    turn_id, _ = store.add("group:1", Turn(float(index), sys.argv[2], 3, ("d1",), (16,)), {"d1": b"picture"})
    store.reply("group:1", turn_id, "yes", 1)
store.close()
"""


@pytest.mark.process
def test_processes_write_into_one_file_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/history.db"
    running = [subprocess.Popen([sys.executable, "-c", WRITER, url, name], cwd=ROOT) for name in ("a", "b", "c")]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    store = store_of(Settings(history_url=url, history_turns=1000))
    _, before = store.add("group:1", Turn(1000.0, "last"), {})
    store.close()
    assert len(before) == 300
    assert {turn.text for turn in before} == {"a", "b", "c"}
    assert all(turn.reply == "yes" for turn in before)


def test_the_database_stays_within_its_size() -> None:
    store = store_of(Settings(history_url="memory://", history_mib=1))
    for index in range(40):
        image = index.to_bytes(2) * 50_000
        store.add(f"private:{index}", Turn(float(index), "look", 3, (str(index),), (16,)), {str(index): image})
    kept = store.images([str(index) for index in range(40)])
    store.close()
    assert "39" in kept and "0" not in kept
    assert 3 <= len(kept) <= 10


def turn(name: str, *images: int, tokens: int = 2) -> Turn:
    digests = tuple(f"{name}{index}" for index in range(len(images)))
    return Turn(float(ord(name)), name, tokens, digests, images, "yes", 5)  # with its template a turn has 15 tokens


def test_bounds_take_the_last_turns_that_have_room() -> None:
    turns = [turn(name) for name in "abcde"]
    assert [one.text for one in fitting_turns(turns, 3, 1000, 10)] == ["c", "d", "e"]
    assert [one.text for one in fitting_turns(turns, 5, 44, 10)] == ["d", "e"]
    assert fitting_turns(turns, 5, -1, 10) == []


def test_of_pictures_the_last_are_kept_and_none_that_is_older_than_one_left_out() -> None:
    def pictures(*turns: Turn, tokens: int = 1000, images: int = 10) -> list[tuple[str, ...]]:
        return [one.images for one in fitting_turns(turns, 10, tokens, images)]

    turns = (turn("a", 9), turn("b", 9, 9, 9), turn("c", 9))
    assert pictures(*turns, images=3) == [(), ("b1", "b2"), ("c0",)]
    assert pictures(*turns, images=0) == [(), (), ()]
    assert pictures(turn("a", 9), turn("b", *[1280] * 4), tokens=4096) == [(), ("b1", "b2", "b3")]
    assert pictures(turn("a", 9), turn("b", 5000), tokens=4096) == [(), ()]  # the words stay


@pytest.mark.parametrize("url", ["memory://", "redis"])
def test_a_message_that_is_forgotten_and_a_reply_to_it_leave_nothing(url: str, request: pytest.FixtureRequest) -> None:
    if url == "redis":
        url = f"redis://127.0.0.1:{request.getfixturevalue('redis_port')}/1"
    store = store_of(Settings(history_url=url))
    turn_id, _ = store.add("private:1", turn("a", 9), {"a0": b"picture"})
    store.forget("private:1", turn_id)
    store.reply("private:1", turn_id, "too late", 1)
    assert store.add("private:1", turn("b"), {})[1] == []
    store.forget("private:1", turn_id + 1)
    if url.startswith("redis"):
        with redis.Redis.from_url(url) as client:
            client.delete("worker-qwen-vl:talk:private:1")
            store.reply("private:1", turn_id, "after it has expired", 1)
            assert not client.exists("worker-qwen-vl:talk:private:1")
    else:
        assert store.images(["a0"]) == {}
    store.close()


def test_one_large_message_does_not_push_out_everybody_elses() -> None:
    async def run(history: History) -> tuple[list[Turn], list[Turn]]:
        await history.add("private:1", "mine", 1, [], [], None)
        await history.add("private:2", "large", 1, [bytes(2**20)], [16], None)
        _, mine = await history.add("private:1", "and now?", 1, [], [], None)
        _, theirs = await history.add("private:2", "seen?", 1, [], [], None)
        return mine, theirs

    history = History(Settings(history_mib=1))
    mine, [large] = asyncio.run(run(history))
    history.close()
    assert [one.text for one in mine] == ["mine"]
    assert (large.text, large.images) == ("large", ())


def test_a_time_that_is_to_come_is_now() -> None:
    async def run(history: History) -> list[Turn]:
        for text, at in (("one", None), ("two", 1e12), ("three", None)):
            _, before = await history.add("private:1", text, 1, [], [], at)
        return before

    ticks = iter(range(1000, 2000))
    history = History(Settings(), lambda: float(next(ticks)))
    before = asyncio.run(run(history))
    history.close()
    assert [one.text for one in before] == ["one", "two"]


# The path of a message.


class Remembering(FakeEngine):
    """Says how many messages it has seen."""

    async def generate(self, request: Any, media: Any, deadline: Any, *_: Any) -> Any:
        self.pieces = [f"reply {len(request.messages)}"]
        async for event in super().generate(request, media, deadline):
            yield event


def private(content: str, *images: str, user: str = "7", **more: Any) -> dict[str, Any]:
    pictures = [{"data": image, "format": "png"} for image in images]
    body = {"type": "private", "user_id": user, "user_nickname": "Ann", "content": content, "images": pictures, **more}
    return {"route": "/api/chat/private", "body": body}


def group(content: str, nickname: str = "Ann", card: str = "", **more: Any) -> dict[str, Any]:
    body = {"type": "group", "group_id": 5, "group_name": "G", "user_id": 7, "user_nickname": nickname, **more}
    return {"route": "/api/chat/group", "body": {**body, "user_card": card, "content": content, "images": []}}


class Bot:
    """A service of its own, and the outputs of one message after another."""

    def __init__(
        self,
        engine: FakeEngine | None = None,
        opener: FakeOpener | None = None,
        history: History | None = None,
        **settings: str,
    ) -> None:
        self.engine = engine or Remembering()
        self.opener = opener or FakeOpener()
        self.service = Service(self.engine, self.opener, load(settings), history=history)

    def __enter__(self) -> "Bot":
        return self

    def __exit__(self, *_: object) -> None:
        self.service.history.close()

    async def hears(self, body: dict[str, Any]) -> Any:
        [output] = [output async for output in self.service.answer(body, "job")]
        return output

    def says(self, body: dict[str, Any]) -> Any:
        return asyncio.run(self.hears(body))

    def seen(self) -> list[tuple[str, str, int]]:
        """Role, words and number of pictures of each message that the model saw last."""
        return [
            (
                message.role,
                "".join(part.text for part in message.parts if isinstance(part, Text)),
                sum(isinstance(part, Media) for part in message.parts),
            )
            for message in self.engine.asked[-1].messages
        ]


RED = as_base64(Image.new("RGB", (8, 8), "red"))


def test_a_later_message_is_answered_in_the_light_of_earlier_ones_and_their_pictures() -> None:
    with Bot() as bot:
        assert bot.says(private("Look", RED)) == {"status": "success", "reply": "reply 1"}
        assert bot.says(private("And now?")) == {"status": "success", "reply": "reply 3"}
        assert bot.seen() == [("user", "Look", 1), ("assistant", "reply 1", 0), ("user", "And now?", 0)]
        bot.says(private("Who are you?", user="8"))
        assert bot.seen() == [("user", "Who are you?", 0)]


def test_the_same_user_of_another_caller_or_salt_is_another_conversation() -> None:
    with Bot() as bot:
        for body in (private("One"), {**private("Two"), "cache_salt": "a"}, private("Three", cache_salt="b")):
            bot.says(body)
            assert len(bot.seen()) == 1
        bot.says({**private("Four"), "cache_salt": "a"})
        assert [text for _, text, _ in bot.seen()] == ["Two", "reply 1", "Four"]


def test_in_a_group_the_model_sees_who_said_what() -> None:
    with Bot(BOT_PROMPT="Be brief.") as bot:
        bot.says(group("hello", nickname="Ann", card=" Ann\nof art "))
        bot.says(group("hi", nickname="Bob"))
        bot.says(group("hm", nickname=" ", group_name=None))
    assert [text for _, text, _ in bot.seen()] == [
        "Be brief.",
        "Ann of art: hello",
        "reply 2",
        "Bob: hi",
        "reply 4",
        "7: hm",
    ]


def test_a_message_that_is_not_for_the_bot_is_remembered_all_the_same() -> None:
    with Bot(GROUP_REPLY="mention", BOT_NAME="Robo") as bot:
        quiet = {"status": "success", "should_reply": False, "reply": ""}
        assert bot.says(group("the meeting is at nine", nickname="Robo's friend")) == quiet
        assert bot.says(group("robo, when is it?")) == {"status": "success", "should_reply": True, "reply": "reply 2"}
        assert [text for _, text, _ in bot.seen()] == [
            "Robo's friend: the meeting is at nine",
            "Ann: robo, when is it?",
        ]
        assert bot.says(private("when?"))["reply"] == "reply 1"


def test_what_cannot_be_opened_or_answered_is_not_remembered() -> None:
    """It is told, and comes again; and it must not be there twice then."""
    with Bot() as bot:
        bot.opener.error = MediaCorrupt(where="images[0].data")
        assert json.loads(bot.says(private("look", RED))["error"])["code"] == "MEDIA_CORRUPT"
        bot.opener.error = None
        bot.engine.error = InternalError()
        assert "error" in bot.says(private("first"))
        bot.engine.error = None
        bot.says(private("second"))
    assert bot.seen() == [("user", "second", 0)]


def test_a_message_that_is_too_long_is_refused_and_does_not_cut_the_history() -> None:
    with Bot() as bot:
        bot.says(private("first"))
        bot.engine.max_model_len = 1000 + 9
        assert json.loads(bot.says(private("long"))["error"])["code"] == "PROMPT_TOO_LONG"
        bot.engine.max_model_len = 4096
        bot.says(private("second"))
    assert [text for role, text, _ in bot.seen() if role == "user"] == ["first", "second"]


def test_the_whole_prompt_has_room_for_the_answer_with_the_system_message_and_all() -> None:
    with Bot(BOT_PROMPT="Be brief.") as bot:
        bot.engine.max_model_len = 1000 + 77
        for index in range(30):
            assert "reply" in bot.says(private(str(index)))
            assert asyncio.run(bot.engine.count_tokens(bot.engine.asked[-1], ())).prompt_tokens <= 77
        assert len(bot.engine.asked[-1].messages) > 3


@pytest.mark.parametrize(
    "body",
    [
        private("  "),
        private("x", type="group"),
        private("x", other=1),
        private("x", timestamp=-1),
        private("x", user=" "),
        private("x", user_id=10**30),
        {"route": "/api/chat/private", "body": {**private("x")["body"], "images": [{"data": RED, "format": "tiff"}]}},
        {"route": "/api/chat/group", "body": private("x", type="group")["body"]},
    ],
)
def test_a_body_that_is_not_the_dialects_is_refused(body: dict[str, Any]) -> None:
    with Bot() as bot:
        assert json.loads(bot.says(body)["error"])["code"] == "INPUT_INVALID"


def test_messages_of_one_group_that_come_at_once_keep_their_order() -> None:
    class Slow(FakeOpener):
        """The first message's picture takes longest to open."""

        async def open(self, items: Any) -> Any:
            for _ in range(20 if items else 0):
                await asyncio.sleep(0)
            return await super().open(items)

    async def all_at_once(bot: Bot) -> None:
        await asyncio.gather(bot.hears(private("0", RED)), *(bot.hears(private(str(index))) for index in range(1, 8)))
        await bot.hears(private("last"))

    with Bot(opener=Slow()) as bot:
        asyncio.run(all_at_once(bot))
    said = [text for role, text, _ in bot.seen() if role == "user"]
    assert said == [*map(str, range(8)), "last"]
    assert [role for role, _, _ in bot.seen()] == ["user", "assistant"] * 8 + ["user"]


def test_tokens_turns_and_pictures_are_bounded() -> None:
    with Bot(HISTORY_TOKENS="60", HISTORY_IMAGES="1") as bot:
        for index in range(6):
            bot.says(private(str(index), RED))
        # a message has 10 tokens, a picture 16, a reply 3, and what the template adds is taken for 8
        assert [(text, count) for role, text, count in bot.seen() if role == "user"] == [("3", 0), ("4", 1), ("5", 1)]
        bot.engine.max_model_len = 1000 + 26 + 37
        bot.says(private("6", RED))
        assert [text for role, text, _ in bot.seen() if role == "user"] == ["5", "6"]


def test_messages_that_are_for_others_open_no_earlier_pictures() -> None:
    with Bot(GROUP_REPLY="mention") as bot:
        picture = group("look")
        picture["body"]["images"] = [{"data": RED, "format": "png"}]
        bot.says(picture)
        bot.opener.opened.clear()
        bot.says(group("nothing to see"))
        assert bot.opener.opened == []
        bot.says(group("Qwen?"))
        assert len(bot.opener.opened) == 1


def test_without_its_redis_the_bot_answers_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Bot(HISTORY_URL=f"redis://127.0.0.1:{port}/0") as bot, caplog.at_level(logging.WARNING):
        assert bot.says(private("x", RED))["reply"] == "reply 1"
        assert bot.says(private("y"))["reply"] == "reply 1"
    # once: for some seconds it is not asked again, so that nobody waits for it
    assert [record.message for record in caplog.records] == [
        "the history cannot be reached, the bot answers without it: ConnectionError"
    ]


def test_a_file_that_is_no_database_does_not_fail_the_bot(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "x.db").write_bytes(b"not a database" * 100)
    with Bot(HISTORY_URL=f"sqlite:///{tmp_path}/x.db") as bot:
        assert bot.says(private("x"))["reply"] == "reply 1"
    assert "the history cannot be reached" in caplog.text


def test_pictures_that_went_are_left_out() -> None:
    class Forgetful(SqliteStore):
        """Has lost all pictures."""

        def images(self, digests: Sequence[str]) -> dict[str, bytes]:
            return {}

    def opened(_: Settings, clock: Callable[[], float]) -> Store:
        return Forgetful(MEMORY, 20, 3600.0, 2**20, clock)

    with Bot(history=History(Settings(), open_store=opened)) as bot:
        bot.says(private("look", base64.b64encode(b"x").decode()))
        bot.says(private("and?"))
    assert bot.seen()[0] == ("user", "look", 0)


def test_a_history_that_was_not_used_has_opened_nothing(tmp_path: Path) -> None:
    history = History(Settings(history_url=f"sqlite:///{tmp_path}/x/h.db"))
    history.close()
    assert not (tmp_path / "x").exists()
