"""The cache's second tier on real servers: every method, and what a server may refuse."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fix_cache_servers import CacheServer
from fix_shelf import PATIENT, Client, configured, opened

from toolkit.drivers.shelf_wire import ShelfOptions


@pytest.fixture(params=["blocking", "asyncio"])
def colour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[2, 3], ids=["resp2", "resp3"])
def shelf(
    request: pytest.FixtureRequest, colour: str, cache_server: CacheServer
) -> Iterator[Client]:
    options = ShelfOptions(timeout=2.0, protocol=request.param)
    with opened(colour, cache_server.url, options) as client:
        yield client


# -- what it does -------------------------------------------------------------------------------


def test_look_finds_what_is_there_in_order(shelf: Client, cache_server: CacheServer) -> None:
    cache_server.admin.mset({"cursor": b"c1", "a": b"\x00\xff\r\n", "c": b"x" * 300_000})
    looked = shelf.look("cursor", ["a", "b", "c"])
    assert looked.cursor == b"c1"
    assert looked.values == [b"\x00\xff\r\n", None, b"x" * 300_000]
    assert shelf.look("no cursor", []).cursor is None
    stats = shelf.stats
    assert (stats["hits"], stats["misses"], stats["bytes_in"]) == (2, 1, 300_004)


def test_a_key_of_another_type_reads_as_missing(shelf: Client, cache_server: CacheServer) -> None:
    cache_server.admin.lpush("list", 1)
    cache_server.admin.set("a", b"1")
    assert shelf.look("list", ["list", "a"]).values == [None, b"1"]
    assert shelf.look("list", ["a"]).cursor is None
    assert "errors_wrongtype" not in shelf.stats


def test_put_stores_under_the_cursor_it_was_made_for(
    shelf: Client, cache_server: CacheServer
) -> None:
    items = [("a", b"1", 60_000), ("b", b"\x80" * 400_000, 60_000)]
    assert shelf.put("cursor", b"c1", items) is False  # no cursor: nothing can be trusted
    cache_server.admin.set("cursor", b"c1")
    assert shelf.put("cursor", b"c1", items) is True
    assert shelf.look("cursor", ["a", "b"]).values == [b"1", b"\x80" * 400_000]
    assert 0 < cache_server.admin.pttl("a") <= 60_000
    assert shelf.put("cursor", b"c0", [("a", b"late", 60_000)]) is False
    assert shelf.look("cursor", ["a"]).values == [b"1"]


def test_a_script_the_server_forgot_is_sent_again(shelf: Client, cache_server: CacheServer) -> None:
    cache_server.admin.set("cursor", b"c1")
    for _ in range(2):
        cache_server.admin.script_flush()
        assert shelf.put("cursor", b"c1", [("a", b"1", 60_000)]) is True
        assert shelf.release("lease", "t") is False
    assert shelf.put("cursor", b"c1", [("a", b"2", 60_000)]) is True
    assert not any(name.startswith("errors") for name in shelf.stats)


def test_advance_deletes_and_moves_the_cursor(shelf: Client, cache_server: CacheServer) -> None:
    assert shelf.advance("cursor", None, b"c1", [], 60_000) is True
    assert shelf.advance("cursor", None, b"c2", [], 60_000) is False
    cache_server.admin.mset({"a": 1, "b": 2, "c": 3})
    assert shelf.advance("cursor", b"c1", b"c2", ["a", "b"], 60_000) is True
    assert shelf.look("cursor", ["a", "b", "c"]).values == [None, None, b"3"]
    assert shelf.look("cursor", []).cursor == b"c2"
    assert 0 < cache_server.admin.pttl("cursor") <= 60_000


def test_advance_deletes_even_if_the_cursor_has_moved(
    shelf: Client, cache_server: CacheServer
) -> None:
    cache_server.admin.mset({"cursor": b"c5", "a": 1})
    assert shelf.advance("cursor", b"c1", b"c2", ["a"], 60_000) is False
    assert shelf.look("cursor", ["a"]).values == [None]
    assert shelf.look("cursor", []).cursor == b"c5"


def test_advance_takes_many_thousand_keys(shelf: Client, cache_server: CacheServer) -> None:
    keys = [f"k{i}" for i in range(9_500)]
    cache_server.admin.mset({"cursor": b"c1", "other": 1} | dict.fromkeys(keys, b"v"))
    assert shelf.advance("cursor", b"c1", b"c2", keys, 60_000) is True
    assert cache_server.admin.dbsize() == 2


def test_a_lease_is_taken_once_and_given_back_by_its_owner(
    shelf: Client, cache_server: CacheServer
) -> None:
    assert shelf.lease("lease", "mine", 60_000) is True
    assert shelf.lease("lease", "yours", 60_000) is False
    assert shelf.release("lease", "yours") is False
    assert shelf.release("lease", "mine") is True
    assert shelf.lease("lease", "yours", 60_000) is True
    assert 0 < cache_server.admin.pttl("lease") <= 60_000


@pytest.mark.parametrize("ttl_ms", [None, 3_600_000])
def test_what_does_not_end_is_nobodys_lease(
    shelf: Client, cache_server: CacheServer, ttl_ms: int | None
) -> None:
    cache_server.admin.set("lease", b"of another program", px=ttl_ms)
    assert shelf.lease("lease", "mine", 60_000) is None
    assert shelf.lease("lease", "mine", 60_000) is True
    assert shelf.lease("lease", "yours", 60_000) is False


def test_look_or_lease_leases_only_if_something_is_missing(
    shelf: Client, cache_server: CacheServer
) -> None:
    cache_server.admin.mset({"cursor": b"c1", "a": b"1", "c": b"3"})
    looked, is_leased = shelf.look_or_lease("cursor", ["a", "c"], "lease", "t", 60_000)
    assert (looked.cursor, looked.values, is_leased) == (b"c1", [b"1", b"3"], False)
    assert not cache_server.admin.exists("lease")
    looked, is_leased = shelf.look_or_lease("cursor", ["a", "b", "c"], "lease", "t", 60_000)
    assert (looked.values, is_leased) == ([b"1", None, b"3"], True)
    assert cache_server.admin.get("lease") == b"t"
    assert 0 < cache_server.admin.pttl("lease") <= 60_000
    looked, is_leased = shelf.look_or_lease("cursor", ["b", "c"], "lease", "u", 60_000)
    assert (looked.values, is_leased) == ([None, b"3"], False)
    keys = [f"k{i}" for i in range(2_000)]
    assert shelf.look_or_lease("none", keys, "new", "t", 60_000)[1] is True


def test_scan_and_drop_find_keys_by_pattern_whatever_their_bytes(
    shelf: Client, cache_server: CacheServer
) -> None:
    names = [b"t:\xff%d" % i for i in range(2_500)]
    cache_server.admin.mset(dict.fromkeys(names, b"v") | {"other": b"v"})
    keys = set(shelf.scan("t:*", 100))
    assert len(keys) == 2_500
    assert shelf.drop(sorted(keys)) == 2_500
    assert shelf.drop([]) == 0
    assert shelf.scan("t:*", 100) == []
    assert cache_server.admin.dbsize() == 1


def test_info_says_what_the_server_is(shelf: Client, cache_server: CacheServer) -> None:
    cache_server.admin.set("a", 1)
    facts = shelf.info()
    assert (facts.server, facts.version[:2]) in {("valkey", "9."), ("redis", "7.")}
    assert facts.keys == 1
    assert facts.used_memory > 100_000
    assert (facts.max_memory, facts.policy) == (0, "noeviction")


def test_a_connection_takes_two_round_trips_and_says_its_name(
    shelf: Client, cache_server: CacheServer
) -> None:
    cache_server.admin.config_resetstat()
    shelf.look("cursor", [])
    commands = cache_server.admin.info("commandstats")
    asked = {name.removeprefix("cmdstat_") for name in commands}
    assert asked - {"config|resetstat", "info"} <= {"hello", "client|setname", "mget"}
    assert "toolkit" in {c["name"] for c in cache_server.admin.client_list()}


def test_a_unix_socket_does(colour: str, cache_server: CacheServer) -> None:
    with opened(colour, f"unix://{cache_server.path}?db=1", PATIENT) as client:
        assert client.lease("lease", "t", 60_000) is True
        assert client.info().keys == 1
    assert cache_server.admin.dbsize() == 0


# -- what a server may refuse -------------------------------------------------------------------


def test_a_full_server_still_reads_and_hears_of_invalidations(
    shelf: Client, cache_server: CacheServer, caplog: pytest.LogCaptureFixture
) -> None:
    cache_server.admin.mset({"cursor": b"c1", "a": b"1"})
    with configured(cache_server, maxmemory_policy="noeviction", maxmemory=1):
        assert shelf.put("cursor", b"c1", [("b", b"2", 60_000)]) is None
        assert shelf.lease("lease", "t", 60_000) is None
        assert shelf.put("cursor", b"c0", [("b", b"2", 60_000)]) in (False, None)
        looked, is_leased = shelf.look_or_lease("cursor", ["a", "b"], "lease", "t", 60_000)
        assert (looked.values, is_leased) == ([b"1", None], False)
        assert shelf.advance("cursor", b"c1", b"c2", ["a"], 60_000) is True
        assert not shelf.shelf.is_out
    assert shelf.look("cursor", ["a"]).cursor == b"c2"
    assert shelf.stats["errors_oom"] >= 2
    assert shelf.stats["outages"] == 0
    assert [r.getMessage() for r in caplog.records if "oom" in r.getMessage()] == [
        f"redis at 127.0.0.1:{cache_server.port} refused a command (oom)"
    ]


def test_a_cursor_or_lease_of_another_type_is_an_answer(
    shelf: Client, cache_server: CacheServer
) -> None:
    cache_server.admin.lpush("list", 1)
    cache_server.admin.set("a", 1)
    assert shelf.put("list", b"c1", [("a", b"1", 1_000)]) is None
    assert shelf.advance("list", b"c1", b"c2", ["a"], 1_000) is None
    assert shelf.look("x", ["a"]).values == [None]  # deleting is always right
    assert shelf.release("list", "t") is None
    assert shelf.lease("list", "t", 1_000) is None
    assert shelf.stats["errors_wrongtype"] == 3
    assert shelf.stats["outages"] == 0


def test_a_replica_reads_and_refuses_to_write(shelf: Client, cache_server: CacheServer) -> None:
    cache_server.admin.mset({"cursor": b"c1", "a": b"1"})
    cache_server.admin.replicaof("127.0.0.1", 1)
    try:
        assert shelf.look("cursor", ["a"]).values == [b"1"]
        assert shelf.put("cursor", b"c1", [("a", b"2", 1_000)]) is None
        assert shelf.advance("cursor", b"c1", b"c2", ["a"], 1_000) is None
        looked, is_leased = shelf.look_or_lease("cursor", ["a", "b"], "lease", "t", 1_000)
        assert (looked.cursor, looked.values, is_leased) == (b"c1", [b"1", None], False)
        assert shelf.stats["errors_readonly"] == 2
        assert shelf.stats["outages"] == 0
    finally:
        cache_server.admin.replicaof("NO", "ONE")
