"""The control rate: deadlines, misses and skips in closed form on a clock of the test's own."""

import pytest

from chunkrl.errors import ChunkRLError
from chunkrl.online.actor.executor import ControlRate


class FakeClock:
    """Time moves only when somebody sleeps, polls or works."""

    def __init__(self, oversleep: float = 0.0, poll: float = 0.0) -> None:
        self.time, self.oversleep, self.poll = 100.0, oversleep, poll
        self.slept: list[float] = []

    def now(self) -> float:
        self.time += self.poll
        return self.time

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds + self.oversleep


def test_late_ticks_do_not_shift_later_deadlines():
    clock = FakeClock(oversleep=0.01)
    rate = ControlRate(10.0, spin_s=0.0, clock=clock)
    rate.start()
    lateness = []
    for _ in range(50):
        clock.time += 0.03  # work
        lateness.append(rate.wait())
    assert lateness == pytest.approx([0.01] * 50)
    assert clock.time == pytest.approx(100.0 + 50 * 0.1 + 0.01)  # no drift: one oversleep, not fifty
    statistics = rate.statistics()
    assert (statistics.num_ticks, statistics.num_missed, statistics.num_skipped) == (50, 0, 0)
    assert statistics.p50_s == statistics.p99_s == pytest.approx(0.01)


def test_spin_absorbs_the_oversleep():
    clock = FakeClock(oversleep=0.0003, poll=1e-5)
    rate = ControlRate(10.0, spin_s=0.0005, clock=clock)
    rate.start()
    for _ in range(20):
        rate.wait()
    assert rate.statistics().max_s <= 2e-5  # the resolution of polling
    assert len(clock.slept) == 20  # one sleep a tick, the rest is polled


def test_work_that_takes_too_long_is_a_miss_and_whole_periods_are_skipped():
    clock = FakeClock()
    rate = ControlRate(10.0, spin_s=0.0, clock=clock)
    rate.start()
    clock.time += 0.14  # past the first deadline, before the second
    assert rate.wait() == pytest.approx(0.04)
    assert rate.wait() == 0.0 and clock.time == pytest.approx(100.2)
    clock.time += 0.35  # to 100.55: deadlines 100.3 and 100.4 go by, 100.5 is taken late
    assert rate.wait() == pytest.approx(0.05)
    assert rate.wait() == pytest.approx(0.0) and clock.time == pytest.approx(100.6)
    statistics = rate.statistics()
    assert (statistics.num_ticks, statistics.num_missed, statistics.num_skipped) == (4, 2, 2)
    assert statistics.max_s == pytest.approx(0.05)


def test_time_between_two_starts_is_no_part_of_the_rate():
    clock = FakeClock()
    rate = ControlRate(20.0, spin_s=0.0, clock=clock)
    assert rate.statistics().rate_hz == 0.0
    for _ in range(3):
        rate.start()
        for _ in range(10):
            rate.wait()
        clock.time += 60.0  # a person resets the scene
    statistics = rate.statistics()
    assert statistics.num_ticks == 30 and statistics.num_missed == 0
    assert statistics.rate_hz == pytest.approx(20.0)


def test_the_system_clock_keeps_count():
    rate = ControlRate(200.0)
    rate.start()
    assert all(rate.wait() >= 0.0 for _ in range(10))
    statistics = rate.statistics()
    assert statistics.num_ticks == 10
    assert 0.0 <= statistics.p50_s <= statistics.p99_s <= statistics.max_s
    assert statistics.rate_hz * rate.period_s <= 1.0 + 1e-9  # ticks are never early


@pytest.mark.parametrize("rate_hz", [0.0, -1.0, float("nan")])
def test_impossible_rates_are_refused(rate_hz):
    with pytest.raises(ChunkRLError, match="control rate"):
        ControlRate(rate_hz)
    with pytest.raises(ChunkRLError, match="spin_s"):
        ControlRate(30.0, spin_s=-0.1)
