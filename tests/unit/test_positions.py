"""Positions, tokens and topologies: what they say, and what cannot be."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.reading import later
from toolkit_routing import (
    NOWHERE,
    Node,
    Position,
    Shard,
    Token,
    Topology,
    TopologyError,
    settled,
)

SYSID = 7_001


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8),
        st.builds(
            Position, st.integers(0, 2**64 - 1), st.integers(1, 2**31), st.integers(0, 2**64 - 1)
        ),
        max_size=3,
    )
)
def test_tokens_read_back_what_they_say(positions: dict[str, Position]) -> None:
    token = Token(positions)
    assert Token.parse(str(token)) == token
    assert str(token).isascii()
    assert not set(str(token)) & set(' ;\r\n"')


def test_the_later_timeline_counts_and_an_unsettled_write_is_not_forgotten() -> None:
    one, two = Position(SYSID, 1, 900), Position(SYSID, 2, 100)
    assert later(one, two) == two
    assert later(None, one) == one
    unsettled = later(Position(0, 1, NOWHERE), two)
    assert unsettled is not None
    assert (unsettled.timeline, unsettled.lsn) == (2, NOWHERE)


@pytest.mark.parametrize("text", ["main", "main=1-2", "main=1-2-3", "x=1-1-0/0;", "main=g-1-0/0"])
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no token; give what store.token\(\) returned"):
        Token.parse(text)


def test_a_position_just_past_a_page_is_where_its_last_record_ends() -> None:
    segment = 16 * 1024 * 1024
    assert settled(segment + 40) == segment
    assert settled(3 * 8_192 + 24) == 3 * 8_192
    assert settled(segment + 24) == segment + 24  # inside the long header: nothing ends there
    for lsn in (8_192, 8_200, 8_216 + 1, segment + 41):
        assert settled(lsn) == lsn


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (lambda: Topology(()), "shards"),
        (lambda: Topology.of("host=a", ""), "dsn"),
        (lambda: Node("", "host=a"), "name"),
        (lambda: Node("a", "host=a", weight=-1.0), "weight"),
        (
            lambda: Topology((Shard("s", Node("a", "host=a"), (Node("a", "host=b"),)),)),
            r"shards\[0\].replicas\[0\].name: 'a' is shards\[0\].primary.name, too",
        ),
        (
            lambda: Topology((Shard("s", Node("a", "host=a")), Shard("s", Node("b", "host=b")))),
            r"shards\[1\].name",
        ),
    ],
    ids=itertools.count(),
)
def test_a_topology_that_cannot_be_names_the_entry(make, where) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TopologyError, match=where):
        make()


def test_no_password_is_shown() -> None:
    shown = repr(Topology.of("host=a password=secret", "host=b password=secret"))
    assert "secret" not in shown
