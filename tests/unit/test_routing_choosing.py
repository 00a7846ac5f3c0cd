"""Whose turn it is among the nodes that may answer: by weight, load, region, and what they have."""

from __future__ import annotations

from random import Random

import pytest
from fix_health import SYSID, a_shard, primary, replica
from hypothesis import given
from hypothesis import strategies as st

from toolkit_routing import Chooser, Health, Load, Position, Want, route


def test_a_node_that_is_asked_for_first_is_one_that_may_have_come_far_enough() -> None:
    health, loads = a_shard(1)
    found = route(health, loads, Chooser(), Want(Position(SYSID, 1, 1_500), 9.0), 1.5)
    assert found is not None
    assert (found.name, found.confirm) == ("b", 1_500)
    health.replayed("b", 1_500)
    found = route(health, loads, Chooser(), Want(Position(SYSID, 1, 1_500), 9.0), 1.5)
    assert found is not None
    assert (found.name, found.confirm) == ("b", None)


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=6), st.integers(0, 2**32))
def test_turns_are_taken_by_weight(weights: list[float], seed: int) -> None:
    loads = [Load(str(n), weight=w) for n, w in enumerate(weights)]
    chooser = Chooser(small="round-robin", random=Random(seed))
    counts = dict.fromkeys((load.name for load in loads), 0)
    for _ in range(1_000):
        counts[chooser.pick(loads, "small", 0.0).name] += 1
    for load in loads:
        share = load.weight / sum(weights)
        assert abs(counts[load.name] - 1_000 * share) <= len(loads)


def test_a_slow_node_gets_little_and_a_recovered_one_gets_its_share_again() -> None:
    loads = {n: Load(n) for n in "abc"}
    chooser, now = Chooser(random=Random(3)), 0.0

    def served(times: dict[str, float], calls: int) -> dict[str, int]:
        nonlocal now
        counts = dict.fromkeys("abc", 0)
        for _ in range(calls):
            one = chooser.pick(list(loads.values()), "small", now)
            counts[one.name] += 1
            now += 0.01
            one.done(now, times[one.name])
        return counts

    even = dict.fromkeys("abc", 0.002)
    assert min(served(even, 600).values()) > 120
    served(even | {"c": 0.5}, 30)
    assert served(even | {"c": 0.5}, 600)["c"] < 30
    served(even, 12_000)  # two minutes
    assert served(even, 600)["c"] > 60


def test_fewest_on_their_way_by_weight() -> None:
    a, b = Load("a", weight=2.0, inflight=3), Load("b", inflight=2)
    chooser = Chooser(small="least-connections", random=Random(0))
    assert chooser.pick([a, b], "small", 0.0) is a
    a.inflight = 5
    assert chooser.pick([a, b], "small", 0.0) is b


def test_our_region_first_until_it_is_full() -> None:
    near, far = Load("near", region="x"), Load("far", region="y")
    chooser = Chooser(region="x", full=2, random=Random(0))
    assert {chooser.pick([near, far], "small", 0.0).name for _ in range(20)} == {"near"}
    near.inflight = 2
    assert {chooser.pick([near, far], "small", 0.0).name for _ in range(20)} == {"far"}
    far.inflight = 2
    assert {chooser.pick([near, far], "bulk", 0.0).name for _ in range(40)} == {"near", "far"}


def test_a_choice_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="bulk: 'fastest' is no choice"):
        Chooser(bulk="fastest")


@given(st.data())
def test_a_read_is_never_sent_to_a_node_that_is_older_than_it_may_be(data: st.DataObject) -> None:
    """Random life of a shard; what a node really had at a time is kept beside it."""
    health = Health(["p", "q", "r"])
    loads = {"p": Load("p"), "q": Load("q"), "r": Load("r")}
    now, lsn = 0.0, 1_000
    written = [(0.0, lsn)]  # what the primary had, at all times
    reached = {"q": lsn, "r": lsn}
    for _ in range(data.draw(st.integers(5, 40))):
        now += data.draw(st.floats(0.01, 0.7))
        act = data.draw(st.sampled_from(["write", "replay", "look", "silent", "read"]))
        if act == "write":
            lsn += data.draw(st.integers(1, 500))
            written.append((now, lsn))
        elif act == "replay":
            name = data.draw(st.sampled_from("qr"))
            reached[name] = data.draw(st.integers(reached[name], lsn))
        elif act == "look":
            for name in data.draw(st.permutations("pqr"))[: data.draw(st.integers(1, 3))]:
                seen = primary(now, lsn) if name == "p" else replica(now, reached[name])
                health.saw(name, seen)
        elif act == "silent":
            health.silent(data.draw(st.sampled_from("pqr")), now - 0.5, now, "no answer")
        else:
            age = data.draw(st.floats(0.0, 3.0))
            at = data.draw(st.one_of(st.none(), st.integers(900, lsn)))
            own = Position(SYSID, 1, at) if at is not None else None
            want = Want(own, age, is_strict=True)
            found = route(health, loads, Chooser(random=Random(0)), want, now)
            if found is None or found.name == "p":
                continue
            had = reached[found.name]
            assert had >= max(w for t, w in written if t <= now - age or t == 0.0)
            assert found.confirm == at if at is not None and had < at else True
