"""A small soak: every job of a mixed load accounted for, with failing calls and a stop in the middle."""

import pytest

from benchmarks.soak import soak

pytestmark = pytest.mark.network


def test_no_job_is_lost_hung_or_wrong() -> None:
    outcome = soak(200, num_stops=1)
    assert outcome.num_bad == 0, outcome.ended
    assert sum(many for ended in outcome.ended.values() for many in ended.values()) == 200
    assert outcome.ended["words"].keys() == {"answered"}
    assert outcome.ended["bad input"].keys() == {"coded error"}
    assert [life.exit_status for life in outcome.lives] == [0, 0]
