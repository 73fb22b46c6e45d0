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
    assert meter.charge([(one, 2), (other, 1)]) == pytest.approx(3)
    clock.now += 1
    meter.charge([(other, 1), (other, 1), (one, 2)])
    assert (one.gpu_seconds, other.gpu_seconds) == pytest.approx((2.5, 1.5))
    assert meter.busy_s == pytest.approx(4)


def test_time_that_nobody_can_be_charged_for_is_the_next_ones() -> None:
    clock, one = Clock(), request()
    meter = Meter(clock)
    clock.now += 1
    assert meter.charge([]) == 0.0
    assert meter.charge([(one, 0)]) == 0.0
    clock.now += 1
    meter.charge([(one, 1)])
    assert one.gpu_seconds == meter.busy_s == pytest.approx(2)
