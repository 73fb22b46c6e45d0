"""Slots, bytes and tokens of callers, without a server; and the table of connections."""

import logging
import resource

import pytest

from worker.core.errors import QueueFull
from worker.core.http_errors import RateLimited
from worker.core.settings import load
from worker.server.connections import Connections, room_for_connections
from worker.server.slots import Slots


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def slots(num_callers: int = 1, clock: Clock | None = None, num_connections: int = 1000, **values: str) -> Slots:
    return Slots(load(values), num_connections, num_callers=lambda: num_callers, clock=clock or Clock())


def test_a_slot_is_one_of_an_upload_and_then_one_of_a_request() -> None:
    of_all = slots(MAX_REQUESTS="2")
    uploads = [of_all.enter("", uses_tokens=True) for _ in range(4)]  # more than may run
    uploads[0].run()
    uploads[1].run()
    with pytest.raises(QueueFull, match="limit 2 "):
        uploads[2].run()
    uploads[0].leave()
    uploads[0].leave()
    uploads[2].run()
    for slot in uploads:
        slot.leave()


def test_the_oldest_upload_makes_room_unless_it_has_just_begun() -> None:
    clock = Clock()
    of_all = slots(clock=clock, num_connections=8)
    assert of_all.max_uploads == 3
    uploads = [of_all.enter("", uses_tokens=True) for _ in range(3)]
    with pytest.raises(QueueFull, match="3 uploads are in progress"):
        of_all.enter("", uses_tokens=True)
    clock.now += 2
    evicted: list[int] = []
    for number, upload in enumerate(uploads):
        upload.on_evict = lambda number=number: evicted.append(number)  # type: ignore[misc]
    uploads[0].run()  # no upload any more
    of_all.enter("", uses_tokens=True)
    assert evicted == []
    of_all.enter("", uses_tokens=True)
    assert (evicted, uploads[1].is_evicted) == ([1], True)
    uploads[1].leave()
    of_all.enter("", uses_tokens=True)
    assert evicted == [1, 2]


def test_who_uploads_most_loses_one() -> None:
    clock = Clock()
    of_all = slots(num_callers=3, clock=clock, num_connections=16)  # 6, and 3 of one
    crowd = [of_all.enter("a", uses_tokens=True) for _ in range(3)]
    others = [
        of_all.enter("b", uses_tokens=True),
        of_all.enter("b", uses_tokens=True),
        of_all.enter("c", uses_tokens=True),
    ]
    clock.now += 2
    of_all.enter("c", uses_tokens=True)
    assert [slot.is_evicted for slot in crowd] == [True, False, False]
    of_all.enter("a", uses_tokens=True)
    assert [slot.is_evicted for slot in crowd] == [True, True, False]
    assert not any(slot.is_evicted for slot in others)


def test_one_of_several_keys_has_half() -> None:
    alone, among = slots(MAX_REQUESTS="4"), slots(num_callers=2, MAX_REQUESTS="4")
    for _ in range(4):
        alone.enter("", uses_tokens=True).run()
    for _ in range(2):
        among.enter("a", uses_tokens=True).run()
    with pytest.raises(QueueFull, match="for this key"):
        among.enter("a", uses_tokens=True).run()
    among.enter("b", uses_tokens=True).run()


def test_bytes_of_bodies_come_back() -> None:
    of_all = slots(num_callers=2, MAX_BODIES_BYTES="100")
    first = of_all.enter("a", uses_tokens=True)
    first.hold(50)
    with pytest.raises(QueueFull, match="bodies of this key take 50 bytes"):
        first.hold(1)
    other = of_all.enter("b", uses_tokens=True)
    other.hold(50)
    third = of_all.enter("c", uses_tokens=True)
    with pytest.raises(QueueFull, match="bodies take 100 bytes"):
        third.hold(1)
    first.leave()
    third.hold(50)


def test_tokens_of_a_minute_come_back_as_time_passes_and_debts_are_paid() -> None:
    clock = Clock()
    of_all = slots(clock=clock, TOKENS_PER_MINUTE="60")
    of_all.spend("a", 59)
    of_all.enter("a", uses_tokens=True)
    of_all.spend("a", 100)  # more than there were: known when the answer has ended
    with pytest.raises(RateLimited) as refused:
        of_all.enter("a", uses_tokens=True)
    assert refused.value.wait_s == 100
    of_all.enter("a", uses_tokens=False)
    of_all.enter("b", uses_tokens=True)
    clock.now += 99
    with pytest.raises(RateLimited):
        of_all.enter("a", uses_tokens=True)
    clock.now += 1
    of_all.enter("a", uses_tokens=True)
    clock.now += 10_000
    of_all.spend("a", 61)  # what was not used in an hour is not saved up
    with pytest.raises(RateLimited):
        of_all.enter("a", uses_tokens=True)


def test_some_connections_never_have_a_request_on_them(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert slots(num_connections=128).limit == 48
    assert caplog.messages == ["128 connections leave room for 48 requests at once"]
    assert slots(num_connections=1).limit == 1
    assert slots(num_connections=10_000).limit == 512


class Connected:
    def __init__(self, address: str = "192.0.2.1") -> None:
        self.address, self.is_evicted = address, False

    def evict(self) -> None:
        self.is_evicted = True


def test_whoever_waits_longest_gives_way() -> None:
    table = Connections(3)
    first, second, third, fourth, fifth = (Connected() for _ in range(5))
    assert all(map(table.add, (first, second, third)))
    table.mark_active(first)
    table.mark_active(second)
    table.mark_idle(second)  # again, so it has waited less long than the third
    assert table.add(fourth)
    assert [each.is_evicted for each in (first, second, third)] == [False, False, True]
    table.mark_active(second)
    table.mark_active(fourth)
    assert not table.add(fifth)
    assert len(table) == 3
    table.remove(first)
    table.remove(first)
    assert table.add(fifth)


def test_whoever_has_most_idle_connections_loses_one() -> None:
    table = Connections(4)
    honest, *crowd = Connected("192.0.2.1"), *(Connected("192.0.2.2") for _ in range(3))
    assert all(map(table.add, (honest, *crowd)))
    for _ in range(10):
        assert table.add(Connected("192.0.2.2"))
    assert all(each.is_evicted for each in crowd)
    assert not honest.is_evicted
    assert len(table) == 4


def test_connections_are_fewer_than_descriptors(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    limits = [256, 256]
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: limits.__setitem__(slice(None), wanted))
    with caplog.at_level(logging.WARNING):
        assert room_for_connections(1024) == 128
    assert caplog.messages == ["256 descriptors leave room for 128 connections, not 1024"]
    limits[:] = [64, 64]
    assert room_for_connections(1024) == 32
    limits[:] = [1024, 1_048_576]
    assert room_for_connections(1024) == 1024
    assert limits == [1152, 1_048_576]
    limits[:] = [20_000, 20_000]
    assert room_for_connections(1024) == 1024
