"""The device's time, shared among requests."""

import pytest

from worker.engine.metering import Meter
from worker.engine.sequence import Request


class Clock:
    """A timer that is moved on by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def request() -> Request:
    return Request(prompt=None, max_tokens=1, emit=lambda _: None)  # type: ignore[arg-type]


def test_time_is_shared_by_weight_and_none_is_lost() -> None:
    clock, one, other = Clock(), request(), request()
    meter = Meter(clock)
    clock.now += 50
    meter.begin()
    clock.now += 3
    meter.charge([(one, 2), (other, 1)])
    assert meter.busy_s == pytest.approx(3)
    clock.now += 1
    meter.charge([(other, 1), (other, 1), (one, 2)])
    assert (one.gpu_seconds, other.gpu_seconds) == pytest.approx((2.5, 1.5))
    assert meter.busy_s == pytest.approx(4)


def test_time_that_nobody_can_be_charged_for_is_the_next_ones() -> None:
    clock, one = Clock(), request()
    meter = Meter(clock)
    clock.now += 1
    meter.charge([])
    meter.charge([(one, 0)])
    assert meter.busy_s == 0
    clock.now += 1
    meter.charge([(one, 1)])
    assert one.gpu_seconds == meter.busy_s == pytest.approx(2)


class Device:
    """Works by itself: what it is given is done one after the other, and the host's clock goes on while it is waited
    for."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._ends_at = clock, clock.now

    def work(self, seconds: float) -> None:
        self._ends_at = max(self._ends_at, self._clock.now) + seconds

    def mark(self) -> "Place":
        return Place(self, self._ends_at)

    def wait_until(self, at: float) -> None:
        self._clock.now = max(self._clock.now, at)


class Place:
    def __init__(self, device: Device, at: float) -> None:
        self._device, self._at = device, at

    def seconds_since(self, other: "Place") -> float:
        self._device.wait_until(max(self._at, other._at))
        return self._at - other._at


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_prompt_pays_for_itself_though_a_step_beside_it_is_what_is_waited_for(clock: Clock) -> None:
    device, row, one, other = Device(clock), request(), request(), request()
    meter = Meter(clock, device.mark)
    meter.begin()
    device.work(6)
    meter.launched([(one, 300), (other, 100)])
    device.work(2)
    meter.launched([(other, 64)], is_vision=True)
    device.work(1)
    assert clock.now == 100, "nothing was waited for"
    meter.charge([(row, 1)], meter.mark())
    assert (one.gpu_seconds, other.gpu_seconds, row.gpu_seconds) == pytest.approx((4.5, 3.5, 1.0))
    assert (one.vision_s, other.vision_s) == pytest.approx((0, 2))
    assert meter.busy_s == pytest.approx(9)


def test_what_was_launched_behind_a_step_is_not_waited_for_when_it_is_read(clock: Clock) -> None:
    device, row, prompt = Device(clock), request(), request()
    meter = Meter(clock, device.mark)
    meter.begin()
    device.work(1)
    first = meter.mark()
    device.work(5)
    meter.launched([(prompt, 100)])
    device.work(1)
    second = meter.mark()
    device.wait_until(101)
    meter.charge([(row, 1)], first)
    assert clock.now == 101
    assert (row.gpu_seconds, prompt.gpu_seconds) == pytest.approx((1, 0))
    meter.charge([(row, 1)], second)
    assert (row.gpu_seconds, prompt.gpu_seconds) == pytest.approx((2, 5))
    assert meter.busy_s == pytest.approx(7)


def test_the_wall_time_is_what_is_shared(clock: Clock) -> None:
    """The host's own work between two steps is the steps' as well."""
    device, row, prompt = Device(clock), request(), request()
    meter = Meter(clock, device.mark)
    meter.begin()
    device.work(3)
    meter.launched([(prompt, 100)])
    device.work(1)
    step = meter.mark()
    clock.now += 8
    meter.charge([(row, 1)], step)
    assert (prompt.gpu_seconds, row.gpu_seconds) == pytest.approx((6, 2))


def test_who_has_been_told_its_end_is_charged_nothing_more(clock: Clock) -> None:
    device, ended, row = Device(clock), request(), request()
    meter = Meter(clock, device.mark)
    meter.begin()
    device.work(3)
    meter.launched([(ended, 100)])
    ended.is_cancelled = True
    device.work(1)
    meter.charge([(row, 1)], meter.mark())
    assert (ended.gpu_seconds, row.gpu_seconds) == pytest.approx((0, 4))
    assert meter.busy_s == pytest.approx(4)
    meter.charge([(ended, 1)])
    assert meter.busy_s == pytest.approx(4)
