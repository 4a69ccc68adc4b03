"""When a writer commits at once, and when it waits for more."""

from __future__ import annotations

import pytest

from agentguard.stores._postgres_pace import Pace


class Hand:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Hand:
    return Hand()


@pytest.fixture
def pace(clock: Hand) -> Pace:
    return Pace(clock)


def test_after_a_slow_commit_those_whose_acts_it_had_are_waited_for(pace: Pace) -> None:
    pace.committed(8, 8, 0.01)
    assert 0 < pace.pause(8) < 0.005
    assert pace.pause(15) > 0
    assert pace.pause(16) == 0


def test_no_longer_than_half_of_what_the_commit_took_and_than_a_hundredth_of_a_second(
    pace: Pace, clock: Hand
) -> None:
    for took, longest in ((0.01, 0.005), (5.0, 0.01)):
        pace.committed(8, 8, took)
        begun = clock.now
        while pause := pace.pause(15):
            clock.now += pause
        assert clock.now - begun == pytest.approx(longest)


@pytest.mark.parametrize(("acts", "left", "took"), [(8, 8, 0.001), (1, 0, 0.1), (1, 7, 0.1)])
def test_a_quick_commit_and_one_of_a_single_act_are_followed_by_the_next_at_once(
    pace: Pace, acts: int, left: int, took: float
) -> None:
    pace.committed(acts, left, took)
    assert pace.pause(left or 1) == 0


def test_who_comes_late_is_not_kept_waiting(pace: Pace, clock: Hand) -> None:
    pace.committed(8, 0, 0.01)
    clock.now += 1
    assert pace.pause(1) == 0


def test_where_nobody_comes_back_soon_it_waits_more_and_more_seldom(pace: Pace, clock: Hand) -> None:
    waited = []
    for turn in range(60):
        pace.committed(8, 3, 0.01)
        while pause := pace.pause(3):
            clock.now += pause
            if turn not in waited:
                waited.append(turn)
    assert waited == [0, 2, 5, 10, 19, 36, 53]


def test_once_they_come_back_it_waits_for_them_each_time(pace: Pace, clock: Hand) -> None:
    for _ in range(3):
        pace.committed(8, 3, 0.01)
        while pause := pace.pause(3):
            clock.now += pause
    for _ in range(8):
        pace.committed(8, 8, 0.01)
        pace.pause(16)
    for _ in range(3):
        pace.committed(8, 8, 0.01)
        assert pace.pause(8) > 0
        assert pace.pause(16) == 0
