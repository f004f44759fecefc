"""Everybody slows down when a server says so, and speeds up when it stops."""

from __future__ import annotations

from pyfusekit.cache import Pacer


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_without_a_refusal_nobody_waits() -> None:
    pacer = Pacer(Clock())
    assert [pacer.delay() for _ in range(3)] == [0.0, 0.0, 0.0]


def test_after_a_refusal_turns_are_spaced() -> None:
    pacer = Pacer(Clock())
    pacer.slow()
    assert [round(pacer.delay(), 6) for _ in range(3)] == [0.0, Pacer.FIRST, 2 * Pacer.FIRST]


def test_refusals_of_one_moment_count_once_and_later_ones_double_up_to_the_most() -> None:
    clock = Clock()
    pacer = Pacer(clock)
    pacer.slow()
    pacer.slow()
    assert pacer.interval == Pacer.FIRST
    for _ in range(20):
        clock.now += Pacer.SETTLE
        pacer.slow()
    assert pacer.interval == Pacer.MOST


def test_answers_end_the_pacing() -> None:
    pacer = Pacer(Clock())
    pacer.slow()
    for _ in range(100):
        pacer.done()
    assert pacer.interval == 0.0
