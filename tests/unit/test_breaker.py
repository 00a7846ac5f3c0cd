"""The breaker: when an outage begins and ends, and how often a server is looked for."""

from __future__ import annotations

from toolkit.drivers.breaker import Breaker


def test_the_first_failure_begins_an_outage_and_others_do_not() -> None:
    breaker = Breaker()
    assert not breaker.is_open
    assert breaker.fail(1.0, 0, "timeout")
    assert breaker.is_open
    assert not breaker.fail(1.0, 0, "timeout")
    assert (breaker.epoch, breaker.reason) == (1, "timeout")


def test_an_outage_lasts_until_the_server_is_found_back() -> None:
    breaker = Breaker()
    breaker.fail(1.0, 0, "connection")
    assert breaker.close(3.5) == 2.5
    assert not breaker.is_open


def test_a_call_from_before_an_outage_does_not_begin_the_next() -> None:
    breaker = Breaker()
    breaker.fail(1.0, 0, "timeout")
    breaker.close(1.04)
    assert not breaker.fail(1.05, 0, "timeout")  # it had been waiting since before
    assert not breaker.is_open
    assert breaker.fail(1.06, 1, "timeout")
    assert breaker.epoch == 2


def test_pauses_double_up_to_the_longest() -> None:
    breaker = Breaker(first=0.1, longest=5.0)
    breaker.fail(0.0, 0, "connection")
    pauses = [round(breaker.pause(1.0), 3) for _ in range(8)]
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_pauses_are_spread_by_chance_between_half_and_whole() -> None:
    def first(roll: float) -> float:
        breaker = Breaker(first=0.1)
        breaker.fail(0.0, 0, "connection")
        return breaker.pause(roll)

    assert [round(first(roll), 3) for roll in (0.0, 0.5, 1.0)] == [0.05, 0.075, 0.1]


def test_a_server_that_flaps_is_looked_for_ever_more_rarely() -> None:
    breaker = Breaker(first=0.1, longest=5.0)
    now, pauses = 0.0, []
    for epoch in range(4):
        breaker.fail(now, epoch, "timeout")
        pauses.append(round(breaker.pause(1.0), 3))
        now += 1.0
        breaker.close(now)
        now += 1.0
    assert pauses == [0.1, 0.2, 0.4, 0.8]


def test_after_a_steady_time_pauses_begin_anew() -> None:
    breaker = Breaker(first=0.1, longest=5.0)
    breaker.fail(0.0, 0, "timeout")
    for _ in range(5):
        breaker.pause(1.0)
    breaker.close(10.0)
    breaker.fail(20.1, 1, "timeout")
    assert breaker.pause(1.0) == 0.1


def test_what_waiting_alone_does_not_heal_is_looked_for_rarely() -> None:
    breaker = Breaker(first=0.1, locked=15.0)
    breaker.fail(0.0, 0, "password", is_locked=True)
    assert breaker.pause(1.0) == 15.0
    assert breaker.learn("connection")
    assert breaker.pause(1.0) < 1.0


def test_a_new_reason_is_told_once() -> None:
    breaker = Breaker()
    breaker.fail(0.0, 0, "connection")
    assert not breaker.learn("connection")
    assert breaker.learn("loading")
    assert not breaker.learn("loading")
    assert breaker.reason == "loading"
