"""What is dropped by hand stays dropped, and a plan and the counters say where rows came from."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from fix_cache import DAY, DAYS, SECOND_DAY, memory, minutes
from fix_cache_servers import CacheServer
from fix_servers import Database
from fix_sharing import cursor, sharing, spans
from fix_stores import COLOURS, cached, open_store

from toolkit.errors import Unavailable


def test_what_is_forgotten_is_not_found_by_others(
    pair: Any, cache_server: CacheServer, unlogged: psycopg.Connection
) -> None:
    first, second = pair
    first.read("metrics", "a", *DAYS)
    unlogged.execute("UPDATE metrics SET value = 99 WHERE ts = '2024-03-01Z'")
    assert second.read("metrics", "a", *DAY)["value"][0] == 0.0  # nobody has said so
    memory(second).clear()
    assert first.forget("metrics", "a", *DAY) == 1
    assert len(spans(cache_server)) == 6
    assert first.stats()["redis_dropped"] == 1
    assert second.read("metrics", "a", *DAY)["value"][0] == 99.0
    assert len(spans(cache_server)) == 7  # and is shared again


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        (("a",), 7 + 1),
        (("?",), 0),
        (("nobody",), 7 + 7 + 2),
        (("b", *DAY), 7 + 6 + 1),  # with the buckets of four weeks, of which that is a day
        (("b", "2024-02-01Z", "2024-03-02Z"), 7 + 6 + 1),
        ((None, "2024-03-07T23:59Z", "2025-03-02Z"), 6 + 6),
        (("b", "1970-01-01Z", "2024-03-03Z"), 7 + 5 + 1),  # too many to name: looked for
        (("b", "1970-01-01Z", "2024-03-01Z"), 7 + 7 + 1),
        ((), 0),
    ],
    ids=str,
)
def test_exactly_what_is_meant_is_forgotten(
    pair: Any, cache_server: CacheServer, arguments: tuple[Any, ...], left: int
) -> None:
    for series in ("a", "b"):
        pair[0].read("metrics", series, *DAYS)
        pair[0].read("metrics", series, *DAYS, step="1h", strategy="downsampled")
    assert len(spans(cache_server)) == 16
    pair[1].forget("metrics", *arguments)
    assert len(spans(cache_server)) == left
    assert pair[1].stats()["redis_dropped"] == 16 - left


def test_trap_a_fetch_under_way_does_not_bring_back_what_was_forgotten(
    pair: Any, unlogged: psycopg.Connection, database: Database, cache_server: CacheServer
) -> None:
    first, second = pair
    for store in pair:
        store.read("metrics", "a", *SECOND_DAY)
    fetcher = getattr(first, "store", first)._roads.reader.fetcher
    real = type(fetcher).fetch

    async def slow(self: Any, work: Any) -> Any:
        found = await real(self, work)
        if self is fetcher:
            unlogged.execute("UPDATE metrics SET value = 99 WHERE ts = '2024-03-01Z'")
            forgetting = threading.Thread(target=second.forget, args=("metrics", "a", *DAY))
            forgetting.start()  # a thread: a loop that waits cannot run another
            forgetting.join()
        return found

    type(fetcher).fetch = slow
    try:
        assert first.read("metrics", "a", *DAY)["value"][0] == 0.0  # as it was when asked
    finally:
        type(fetcher).fetch = real
    assert first.stats()["redis_refused"] == 1
    assert len(spans(cache_server)) == 1  # the other day is left alone
    with sharing("blocking", database, cache_server) as third:
        assert third.read("metrics", "a", *DAY)["value"][0] == 99.0


@pytest.mark.parametrize("span", [DAY, ("1970-01-01Z", "2030-01-01Z"), ()], ids=len)
def test_trap_no_reader_brings_back_what_was_forgotten_in_the_thick_of_it(
    database: Database, cache_server: CacheServer, unlogged: psycopg.Connection, span: Any
) -> None:
    is_over, failures = threading.Event(), []

    def read_on(store: Any) -> None:
        try:
            while not is_over.is_set():
                memory(store).clear()
                store.read("metrics", "a", *DAY)
        except Exception as error:
            failures.append(error)

    with ExitStack() as stack:
        opened = [
            stack.enter_context(sharing("blocking", database, cache_server)) for _ in range(4)
        ]
        writer, looker, *readers = opened
        writer.write("metrics", minutes(1), series="a")
        threads = [threading.Thread(target=read_on, args=(r,)) for r in readers]
        for thread in threads:
            thread.start()
        try:
            for value in range(1, 40):
                unlogged.execute("UPDATE metrics SET value = %s WHERE ts = '2024-03-01Z'", [value])
                writer.forget("metrics", "a" if span else None, *span)
                for _ in range(3):
                    memory(looker).clear()
                    assert looker.read("metrics", "a", *DAY)["value"][0] == value
        finally:
            is_over.set()
            for thread in threads:
                thread.join()
    assert failures == []
    assert looker.stats()["redis_hits"] > 0


def test_forgetting_all_of_a_dataset_takes_what_nobody_finds_along(
    pair: Any, cache_server: CacheServer
) -> None:
    first, second = pair
    first.read("metrics", "a", *DAYS)
    base, epoch, *rest = spans(cache_server)[0].rsplit(b":", 5)
    cache_server.admin.set(b":".join([base, b"0a", *rest]), b"of another epoch")
    cache_server.admin.set(b":".join([b"tk1:ff", b"0a", *rest]), b"of another database")
    assert first.forget("metrics") == 7
    assert [k.split(b":")[1] for k in spans(cache_server)] == [b"ff"]
    assert epoch not in cursor(cache_server)
    memory(second).clear()
    second.read("metrics", "a", *DAY)
    assert len(spans(cache_server)) == 2


def test_a_name_that_looks_like_a_pattern_is_forgotten_as_a_name(
    pair: Any, cache_server: CacheServer
) -> None:
    pair[0].write("metrics", minutes(1), series="[ab]")
    for series in ("a", "[ab]"):
        pair[0].read("metrics", series, *DAY)
    assert pair[0].forget("metrics", "[ab]") == 2  # it is a pattern, too
    assert spans(cache_server) == []


@pytest.mark.parametrize("colour", COLOURS)
def test_forgetting_says_when_redis_is_out(
    colour: str, database: Database, cache_server: CacheServer
) -> None:
    settings = cached(database.dsn, redis=cache_server.url)
    with open_store(colour, settings) as store:
        store.write("metrics", minutes(1), series="a")
        store.read("metrics", "a", *DAY)
        cache_server.stop()
        try:
            with pytest.raises(Unavailable, match=r"is out \(.*do it again when it is back"):
                store.forget("metrics", "a")
            assert memory(store).held() == []
        finally:
            cache_server.start()


def test_forgetting_says_when_redis_is_lost_half_way(pair: Any, cache_server: CacheServer) -> None:
    first = pair[0]
    first.read("metrics", "a", *DAYS)
    cache_server.admin.mset({f"other:{i}": b"" for i in range(5_000)})
    shelf = getattr(first, "store", first)._roads.cache.shared.shelf
    real, pages = shelf.page, []

    async def page(*arguments: Any) -> Any:
        if pages:
            cache_server.stop()
        pages.append(await real(*arguments))
        return pages[-1]

    shelf.page = page
    try:
        with pytest.raises(Unavailable, match="was not dropped, or not all"):
            first.forget("metrics", "a")
        assert len(pages) == 2
        assert memory(first).held() == []
    finally:
        cache_server.start()


@pytest.mark.parametrize(
    "wrong", [b"10:20:zz|ab|0", b"20:10:|ab|0", b"10:20:5|ab|0", b"0:1:|ab|0", b"\xff"]
)
def test_a_cursor_that_the_database_could_not_read_is_begun_anew(
    pair: Any, cache_server: CacheServer, wrong: bytes
) -> None:
    pair[0].read("metrics", "a", *DAY)
    (key,) = cache_server.admin.scan_iter("tk1:*:cursor")
    cache_server.admin.set(key, wrong)
    memory(pair[1]).clear()
    for _ in range(3):
        assert len(pair[1].read("metrics", "a", *DAY, freshness="strong")) == 1440
        memory(pair[1]).clear()
    assert pair[0].forget("metrics", "a") == 1
    assert pair[0].stats()["redis_dropped"] > 0
    assert cursor(cache_server) != wrong


@pytest.mark.parametrize("act", ["write", "forget"])
def test_a_forked_child_that_changes_something_does_not_wait_for_its_parent(
    database: Database, act: str
) -> None:
    with open_store("blocking", cached(database.dsn)) as store:
        store.write("metrics", minutes(1), series="a")
        store.read("metrics", "a", *DAY)
        with memory(store)._lock:  # as if another thread had been inside
            child = os.fork()
            if not child:
                try:
                    if act == "write":
                        store.write("metrics", {"ts": [DAY[0]], "value": [99.0]}, series="a")
                    else:
                        store.forget("metrics", "a")
                    os._exit(0)
                finally:
                    os._exit(1)
        deadline = time.monotonic() + 20
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                pytest.fail("the child hangs")
            time.sleep(0.01)
        assert ended == (child, 0)


# -- where rows came from -----------------------------------------------------------------------


def test_a_plan_tells_what_others_had_read(pair: Any) -> None:
    first, second = pair
    first.read("metrics", "a", *DAY)
    found = second.read("metrics", "a", *DAY).plan
    assert (found.sources, found.rows) == ({"redis": 1440}, 0)
    assert str(found).endswith("; rows held: 1,440 from redis")
    assert second.read("metrics", "a", *DAY).plan.sources == {"memory": 1440}
    first.read("metrics", "a", *SECOND_DAY)
    mixed = second.read("metrics", "a", DAY[0], "2024-03-04T00:00Z").plan
    assert mixed.sources == {"memory": 1440, "redis": 1440, "points": 1440}
    assert mixed.rows == 1440
    assert str(mixed).endswith("; rows held: 1,440 from memory, 1,440 from redis")


def test_reads_are_counted_and_timed_by_where_they_were_answered_from(pair: Any) -> None:
    first, second = pair
    first.read("metrics", "a", *DAYS)
    for _ in range(5):
        second.read("metrics", "a", *DAYS)
    second.read("metrics", "b", *DAY)
    second.read("metrics", "a", *DAY, step="1h", cache=False)
    stats = second.stats()
    reads = [stats[f"{place}_reads"] for place in ("cache", "redis", "database")]
    assert (reads, stats["reads"]) == ([4, 1, 2], 7)
    assert (stats["rows_touched"], stats["redis_hits"]) == (1440 + 1440, 7)
    assert 0 < stats["cache_read_ms_p50"] <= stats["cache_read_ms_p99"]
    assert stats["cache_read_ms_mean"] < stats["database_read_ms_mean"]
    assert stats["read_ms_p50"] < stats["database_read_ms_p99"] * 1.1


def test_who_waited_for_another_is_counted(
    database: Database, cache_server: CacheServer, sql: psycopg.Connection
) -> None:
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(sharing("blocking", database, cache_server)) for _ in range(2)
        )
        first.write("metrics", minutes(), series="a")
        for store in (first, second):
            store.read("metrics", "a", *SECOND_DAY)
        with sql.transaction():
            sql.execute("LOCK TABLE metrics IN ACCESS EXCLUSIVE MODE")
            asking = [(first, 0), (first, 1), (second, 2)]
            threads = [
                threading.Thread(target=store.read, args=("metrics", "a", *DAY))
                for store, _ in asking
            ]
            for thread, begun in zip(
                threads,
                (
                    lambda: list(cache_server.admin.scan_iter("*:lease:*")),
                    lambda: len(first._roads.driver._running),
                    lambda: second.stats()["redis_waits"],
                ),
                strict=True,
            ):
                thread.start()
                while not begun():
                    thread.join(0.01)
            threads[1].join(0.3)  # nothing tells that it has come to wait
        for thread in threads:
            thread.join()
        assert first.stats()["cache_waits"] == 1
        assert (first.stats()["redis_waits"], second.stats()["redis_waits"]) == (0, 1)
