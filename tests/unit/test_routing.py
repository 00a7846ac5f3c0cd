"""Which node answers: what is known of nodes, and what is chosen from it."""

from __future__ import annotations

from random import Random

import pytest
from fix_health import SYSID, a_shard, primary, replica

from toolkit_routing import (
    Chooser,
    Ejection,
    Health,
    Load,
    Position,
    Role,
    Sample,
    Want,
    route,
)


def chosen(
    health: Health,
    loads: dict[str, Load],
    want: Want,
    now: float = 1.5,
    tried: frozenset[str] | set[str] = frozenset(),
) -> str | None:
    found = route(health, loads, Chooser(random=Random(1)), want, now, tried)
    return found.name if found is not None else None


# -- lag: each is classified as it is -----------------------------------------------------------


def test_an_idle_primary_does_not_make_its_replicas_old() -> None:
    health, loads = a_shard(1)
    for second in range(2, 3_600):
        health.saw("a", primary(float(second), 1_000))
        health.saw("b", replica(second + 0.1, 1_000))
    lag = health.lag("b", 3_599.2)
    assert lag.bytes == 0
    assert lag.seconds == pytest.approx(0.2)
    assert chosen(health, loads, Want(max_age=1.0), 3_599.2) == "b"


def test_the_first_write_after_an_idle_hour_is_not_an_hour_of_lag() -> None:
    health, _ = a_shard(1)
    health.saw("a", primary(3_600.0, 1_000))
    health.saw("a", primary(3_600.5, 5_000))
    health.saw("b", replica(3_600.6, 1_000))
    lag = health.lag("b", 3_600.7)
    assert lag.bytes == 4_000
    assert lag.seconds == pytest.approx(0.7)


@pytest.mark.parametrize("cause", [{"receiver": False}, {"is_paused": True}])
def test_a_replica_that_stands_still_grows_old(cause: dict[str, bool]) -> None:
    health, loads = a_shard(1)
    for second in range(2, 10):
        health.saw("a", primary(float(second), 1_000 * second))
        health.saw("b", replica(second + 0.1, 1_000, **cause))
    lag = health.lag("b", 9.5)
    assert (lag.bytes, lag.seconds) == (8_000, 8.5)
    assert (lag.receiver, lag.is_paused) == (cause.get("receiver"), cause.get("is_paused"))
    assert chosen(health, loads, Want(max_age=1.0), 9.5) == "a"
    assert chosen(health, loads, Want(max_age=60.0, is_strict=True), 9.5) == "b"


def test_what_is_not_known_is_not_fresh() -> None:
    health = Health(["a", "b", "c", "d"])
    health.saw("b", replica(0.5, 1_000))  # nobody knows what the primary had then
    assert health.lag("b", 1.0).seconds is None
    health.saw("a", primary(1.0, 1_000))
    health.saw("c", replica(1.1, 1_000, timeline=None))  # nor whose log this one follows
    health.saw("d", Sample(1.1, 1.2, True, SYSID, 1, None))  # Aurora: no position
    loads = {n: Load(n) for n in "abcd"}
    for name in "cd":
        assert health.lag(name, 1.2).seconds is None
        assert chosen(health, loads, Want(max_age=9.0), 1.2, {"b"}) == "a"


def test_a_cascading_replica_is_judged_by_the_primary() -> None:
    health, _ = a_shard(2)
    health.saw("a", primary(2.0, 2_000))
    health.saw("b", replica(2.1, 2_000))
    health.saw("c", replica(2.1, 1_500, receiver=True))  # streams from b
    assert health.lag("c", 2.5).bytes == 500
    assert health.lag("c", 2.5).seconds == 1.5


# -- roles ----------------------------------------------------------------------------------------


def test_a_promoted_replica_takes_over_and_the_old_primary_is_fenced() -> None:
    health, loads = a_shard(2)
    change = health.saw("b", primary(2.0, 1_500, timeline=2))
    assert change.cut == ("a",)
    assert health.primary is not None
    assert health.primary.name == "b"
    health.saw("a", primary(2.1, 9_000))  # it is back, and takes writes
    assert health.nodes["a"].role is Role.FENCED
    assert health.primary.name == "b"
    assert chosen(health, loads, Want(is_primary=True), 2.2) == "b"
    assert chosen(health, loads, Want(is_primary=True), 2.2, {"b"}) is None


def test_nothing_of_an_old_timeline_is_believed_on_a_new_one() -> None:
    health, loads = a_shard(2)
    health.saw("c", replica(1.9, 5_000))  # ahead of who is promoted, on what is lost now
    health.saw("b", primary(2.0, 1_500, timeline=2))
    health.saw("c", replica(2.1, 5_000))
    assert chosen(health, loads, Want(Position(SYSID, 2, 1_600), 9.0), 2.2) == "b"
    assert chosen(health, loads, Want(max_age=9.0), 2.2) == "b"
    health.saw("c", replica(2.3, 1_700, timeline=2))
    assert chosen(health, loads, Want(Position(SYSID, 2, 1_600), 9.0), 2.4) == "c"


def test_a_token_of_a_timeline_before_goes_to_the_primary() -> None:
    health, loads = a_shard()
    health.saw("a", primary(1.2, 1_000, timeline=2))
    found = route(health, loads, Chooser(), Want(Position(SYSID, 1, 10), 9.0), 1.5)
    assert found is not None
    assert (found.name, found.reason) == ("a", "the token is of another timeline")


def test_a_replica_that_heard_of_a_newer_timeline_fences_the_primary() -> None:
    health, _ = a_shard(1)
    health.saw("b", replica(2.0, 1_500, timeline=2))  # its primary is none of ours
    health.saw("a", primary(2.1, 9_000))
    assert health.primary is None
    assert health.nodes["a"].role is Role.FENCED


def test_two_that_take_writes_on_one_timeline_are_named_and_the_second_is_left_alone() -> None:
    health, _ = a_shard(1)
    health.saw("b", primary(2.0, 1_100))
    assert health.clash == ("a", "b")
    assert health.primary is not None
    assert health.primary.name == "a"
    health.saw("b", replica(3.0, 1_100))
    health.saw("a", primary(3.1, 1_200))
    assert health.clash == ()


def test_a_node_of_another_cluster_is_never_chosen() -> None:
    health, loads = a_shard(1)
    health.saw("b", Sample(2.0, 2.1, True, 42, 1, 1_000))
    assert health.nodes["b"].role is Role.FOREIGN
    assert chosen(health, loads, Want(max_age=99.0), 2.2) == "a"


def test_a_primary_that_refused_a_write_takes_none_until_a_look_says_so() -> None:
    health, loads = a_shard(1)
    assert health.read_only("a", 0.5).cut == ()  # the last look is younger than that call
    assert health.read_only("a", 1.2).cut == ("a",)
    assert health.read_only("a", 1.2).cut == ()
    assert health.nodes["a"].is_read_only
    assert chosen(health, loads, Want(is_primary=True)) == "a"  # it still has every commit
    health.saw("a", primary(1.5, 1_000))
    assert not health.nodes["a"].is_read_only
    health.saw("a", replica(2.0, 1_000))
    assert health.nodes["a"].role is Role.REPLICA
    assert health.primary is None


def test_whose_cluster_it_is_the_declared_primary_says_even_if_it_answers_last() -> None:
    health = Health(["a", "b", "c"])
    health.saw("b", primary(1.0, 1_000, sysid=42))
    health.saw("c", replica(1.0, 900))
    assert (health.sysid, health.primary) == (None, None)
    health.saw("a", primary(1.1, 1_000))
    assert health.primary is health.nodes["a"]
    assert [n.role for n in health.nodes.values()] == [Role.PRIMARY, Role.FOREIGN, Role.REPLICA]
    away = Health(["a", "b"])
    away.saw("b", primary(1.0, 1_000))
    away.silent("a", 1.0, 1.5, "no answer")
    assert away.primary is away.nodes["b"]


def test_a_call_from_before_the_last_look_says_nothing_about_now() -> None:
    health, _ = a_shard(1)
    assert health.refused("b", 1.5, "connection lost", began=1.0).cut == ()
    assert health.nodes["b"].is_up
    assert health.refused("b", 1.5, "connection lost", began=1.2).cut == ("b",)


# -- servers that do not tell how far their log has come -----------------------------------------


def untold(at: float, *, is_replica: bool) -> Sample:
    return Sample(at, at + 0.01, is_replica, None, None, None)


def test_untold_replicas_are_read_from_max_age_after_a_write_and_never_for_more() -> None:
    health, loads = Health(["a", "b"]), {n: Load(n) for n in "ab"}
    health.saw("a", untold(1.0, is_replica=False))
    health.saw("b", untold(1.0, is_replica=True))
    assert chosen(health, loads, Want(max_age=1.0)) == "b"
    assert chosen(health, loads, Want(max_age=1.0, wrote_at=10.0), 10.9) == "a"
    assert chosen(health, loads, Want(max_age=1.0, wrote_at=10.0), 11.0) == "b"
    for strict in (Want(max_age=60.0, is_strict=True), Want(Position(SYSID, 1, 5), 1.0)):
        found = route(health, loads, Chooser(), strict, 11.0)
        assert found is not None
        assert found.name == "a"
    assert found.reason == "the replicas do not tell how far they have come"


def test_of_two_untold_ones_who_began_to_take_writes_last_is_the_primary() -> None:
    health = Health(["a", "b"])
    health.saw("a", untold(1.0, is_replica=False))
    health.saw("b", untold(1.0, is_replica=True))
    assert health.saw("b", untold(2.0, is_replica=False)).cut == ("a",)
    assert health.primary is health.nodes["b"]
    health.saw("a", untold(2.1, is_replica=False))
    assert health.primary is health.nodes["b"]
    assert health.nodes["a"].role is Role.FENCED
    health.saw("a", untold(3.0, is_replica=True))
    assert health.nodes["a"].role is Role.REPLICA


# -- out ------------------------------------------------------------------------------------------


def test_silence_is_down_after_a_while_and_refusal_at_once() -> None:
    health, loads = a_shard(2)
    assert health.silent("b", 2.0, 2.5, "no answer").cut == ()
    assert health.silent("b", 2.5, 3.0, "no answer").cut == ()
    assert health.nodes["b"].is_up
    assert health.silent("b", 3.0, 3.5, "no answer").cut == ("b",)
    assert health.refused("c", 3.7, "connection refused").cut == ("c",)
    assert chosen(health, loads, Want(max_age=9.0), 3.8) == "a"
    health.saw("c", replica(4.0, 1_000))
    assert chosen(health, loads, Want(max_age=9.0), 4.1) == "c"


def test_without_a_primary_reads_of_a_session_go_on_and_strict_ones_wait() -> None:
    health, loads = a_shard(1)
    health.refused("a", 2.0, "killed")
    own = Position(SYSID, 1, 900)
    assert chosen(health, loads, Want(own, 1.0), 60.0) == "b"
    assert chosen(health, loads, Want(None, 1.0, is_strict=True), 60.0) is None
    lost = route(health, loads, Chooser(), Want(Position(SYSID, 1, 1_100), 1.0), 60.0)
    assert lost is not None
    assert lost.confirm == 1_100  # it may have come that far since


def test_a_node_that_was_down_is_where_it_says_and_not_where_it_was() -> None:
    health, loads = a_shard(1)
    own = Want(Position(SYSID, 1, 1_000), 9.0)
    assert chosen(health, loads, own, 2.0) == "b"
    health.refused("b", 2.0, "killed")
    health.replayed("b", 1_000)  # somebody had asked it before
    health.saw("b", replica(3.0, 900))
    assert health.lag("b", 3.1).bytes == 100
    assert chosen(health, loads, own, 3.1) == "a"
    assert chosen(health, loads, Want(max_age=9.0), 3.1) == "a"


def test_a_node_that_has_been_restarted_between_two_looks_is_where_it_says() -> None:
    health, loads = a_shard(1)
    own = Want(Position(SYSID, 1, 1_000), 9.0)
    health.saw("b", replica(2.0, 900))
    assert chosen(health, loads, own, 2.1) == "b"  # an answer that overtook another
    health.saw("b", replica(3.0, 900, is_anew=True))
    assert health.lag("b", 3.1).bytes == 100
    assert chosen(health, loads, own, 3.1) == "a"


def test_a_server_that_is_full_is_there() -> None:
    health, loads = a_shard(1)
    for at in (2.0, 4.0, 6.0):
        assert health.full("b", at, at + 0.1, "too many clients").cut == ()
    assert chosen(health, loads, Want(max_age=9.0), 6.2) == "b"
    assert health.refused("b", 7.0, "killed").cut == ("b",)
    health.full("b", 8.0, 8.1, "too many clients")
    assert not health.nodes["b"].is_up


def test_a_position_of_a_newer_timeline_waits_for_who_has_it() -> None:
    health, loads = a_shard(1)
    assert route(health, loads, Chooser(), Want(Position(SYSID, 2, 1), 9.0), 2.0) is None
    health.saw("b", primary(2.5, 1_100, timeline=2))
    assert chosen(health, loads, Want(Position(SYSID, 2, 1), 9.0), 3.0) == "b"


def test_a_node_without_weight_is_read_from_where_no_other_will_do() -> None:
    health, loads = a_shard(2)
    loads["b"].weight = 0.0
    assert chosen(health, loads, Want(max_age=9.0), 2.0) == "c"
    health.refused("c", 2.0, "killed")
    assert chosen(health, loads, Want(max_age=9.0), 2.1) == "a"
    health.refused("a", 2.0, "killed")
    assert chosen(health, loads, Want(max_age=9.0), 2.1) == "b"


def test_while_the_primary_does_not_answer_its_last_answer_is_now() -> None:
    health, loads = a_shard(1)  # b is as of 1.0
    assert chosen(health, loads, Want(max_age=1.0), 2.5) == "a"
    health.silent("a", 1.9, 2.4, "no answer")
    assert not health.is_heard
    assert health.primary is health.nodes["a"]
    assert chosen(health, loads, Want(max_age=1.0), 2.5) == "b"
    assert chosen(health, loads, Want(max_age=0.8), 2.5) == "a"
    assert chosen(health, loads, Want(max_age=1.0, is_strict=True), 2.5) == "a"
    health.saw("a", primary(2.6, 1_000))
    assert health.is_heard


def test_without_a_primary_the_replicas_that_are_foremost_are_read() -> None:
    health, loads = a_shard(3)
    for name, lsn in (("a", 0), ("b", 2_000), ("c", 1_500), ("d", 2_400)):
        health.saw(name, primary(2.0, 2_000) if name == "a" else replica(2.1, lsn))
    health.refused("a", 2.2, "killed")
    want = Want(max_age=1.0)
    assert {chosen(health, loads, want, 9.0 + n) for n in range(30)} <= {"b", "d"}
    health.refused("b", 2.3, "killed, too")
    assert chosen(health, loads, want, 9.0) == "d"
    assert chosen(health, loads, want, 9.0, {"d"}) == "c"


def test_failures_eject_a_node_for_a_while_but_never_most_of_them() -> None:
    health, loads = a_shard(3)
    ejection = Ejection(failures=3, first=1.0, most=0.5)
    for name, often in (("b", 3), ("c", 3), ("d", 9)):
        left_alone = [ejection.failed(loads[name], loads, 2.0) for _ in range(often)]
        assert any(left_alone) == (name != "d")  # b and c are half of the four
    assert {chosen(health, loads, Want(max_age=9.0), 2.5) for _ in range(9)} == {"d"}
    picked = {chosen(health, loads, Want(max_age=9.0), 3.5, {"d"}) for _ in range(40)}
    assert picked == {"b", "c"} or picked <= {"b", "c"}
    assert ejection.failed(loads["b"], loads, 3.5)  # the first call after the pause decides
    assert loads["b"].ejected_until == 5.5
