"""The timer of a run's speed, on a clock that the test moves."""

import pytest

from isoflop.train import progress


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(progress.time, "perf_counter", lambda: Clock.now)
    return Clock


def test_the_first_steps_and_pauses_are_not_timed(clock):
    timer = progress.Timer(0, untimed=4, tokens_per_step=10)
    timer.start()
    clock.now += 8  # four steps of two seconds: they compile
    assert timer.tick(4) == 2000 and timer.tokens_per_s == 0
    assert timer.tick(4) == 2000, "a line logged at that very step shows the speed of the steps before it"
    clock.now += 3  # six steps of half a second
    assert timer.tick(10) == 500
    clock.now += 1
    with timer.paused(12):
        clock.now += 1000
    clock.now += 1
    assert timer.tick(14) == 500
    assert (timer.tokens, timer.seconds, timer.tokens_per_s) == (100, 5.0, 20.0)
    assert timer.startup_excess_s == 8 - 4 * 0.5


def test_a_resumed_run_goes_on_with_what_was_timed(clock):
    timer = progress.Timer(20, 4, 10, tokens=100, seconds=5.0)
    clock.now += 50
    timer.tick(24)
    clock.now += 5
    timer.tick(34)
    assert (timer.tokens, timer.seconds) == (200, 10.0)


def test_a_run_of_one_step_is_timed(clock):
    timer = progress.Timer(0, untimed=0, tokens_per_step=10)
    clock.now += 2
    timer.tick(1)
    assert timer.tokens_per_s == 5.0 and timer.startup_excess_s == 0.0
