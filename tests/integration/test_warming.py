"""What is read often: counted by stores, written down, and read by others before anybody asks."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import psycopg
import pytest
from fix_cache import no_database
from fix_cache_servers import CacheServer
from fix_cli import Run
from fix_servers import Database
from fix_sharing import sharing
from fix_stores import COLOURS, cached, open_store

from toolkit.drivers import drive
from toolkit.popularity import _Count, _params
from toolkit.query import build_query
from toolkit_maintenance import runner
from toolkit_maintenance.job import DONE, NOTHING

END = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(days=2)
START = END - timedelta(days=3)


def fill(store: Any) -> None:
    """Write some days that are over, of two series."""
    count = 60 * 24 * 4
    first = np.datetime64((END - timedelta(days=4)).replace(tzinfo=None), "us")
    frame = {"ts": first + np.arange(count) * np.timedelta64(60, "s"), "value": np.arange(count)}
    for series in ("a", "b"):
        store.write("metrics", frame, series=series)
    store.refresh("metrics")


def ask(store: Any, times: int = 5) -> Any:
    for _ in range(times):
        columns = store.read("metrics", ["a", "b"], START, END, step="1h")
    return columns


def written(store: Any) -> None:
    """Have the counts of a store written, now."""
    roads = getattr(store, "store", store)._roads
    counted, roads.popularity._counted = roads.popularity._counted, {}
    writing = roads.popularity._write(counted)
    if hasattr(store, "run"):
        store.run(writing)
    else:
        drive(writing)


@pytest.mark.parametrize("colour", COLOURS)
def test_what_one_store_was_asked_for_another_remembers_when_it_starts(
    colour: str, database: Database, sql: psycopg.Connection
) -> None:
    with (
        open_store(colour, cached(database.dsn)) as store,
        open_store("blocking", cached(database.dsn)) as other,
    ):
        fill(store)
        assert other.warm().reads == 0  # nobody has asked for anything
        expected = ask(store)
        written(store)
        rows = sql.execute(
            "SELECT name, p.step, reads, width FROM popularity AS p JOIN series AS s "
            "ON s.id = series_id ORDER BY name"
        ).fetchall()
        assert rows == [(n, "1h", 5.0, timedelta(days=3)) for n in "ab"]
        # yesterday's reads count half
        sql.execute("UPDATE popularity SET at = now() - interval '1 day'")
        ask(store)
        written(store)
        assert sql.execute("SELECT round(reads::numeric, 2) FROM popularity").fetchall() == [
            (7.5,),
            (7.5,),
        ]
        report = other.warm("metrics")
        assert (report.reads, report.series, report.rows, report.failed) == (1, 2, 144, 0)
        with no_database(other) as said:
            columns = ask(other, 1)
        assert columns["value_max"].tolist() == expected["value_max"].tolist()
        assert not [s for s in said if b"metrics_1h" in s]
        assert other.warm("candles").reads == 0


def test_the_warm_job_fills_what_is_shared_and_then_has_nothing_to_do(
    database: Database, cache_server: CacheServer, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store("blocking", cached(database.dsn)) as store:
        fill(store)
        expected = ask(store)
        written(store)
        report = runner.run(store, "warm")
        assert report.status == NOTHING
        assert "cache.redis is not set" in report.skipped[0].why
    assert "warm: the shared cache: nothing is shared" in run("maintain", "warm").stdout
    with sharing("blocking", database, cache_server) as store:
        (act,) = runner.run(store, "warm", is_dry=True).planned
        assert "metrics_1h" in act.sql[0]
        assert "%(" not in act.sql[0]
        assert "2 series, 1h" in act.what
        monkeypatch.setenv("TOOLKIT_CACHE_REDIS", cache_server.url)
        (warmed,) = json.loads(run("maintain", "warm", "--json").stdout)["reports"]
        assert (warmed["status"], warmed["counts"]["series_warmed"]) == (DONE, 2)
        report = runner.run(store, "warm")
        assert (report.status, report.skipped) == (NOTHING, ())
        report = runner.run(store, "warm", ["candles"])
        assert report.status == NOTHING
        assert "nothing was read often" in report.skipped[0].why
        assert not store._roads.popularity._counted  # or it would feed itself
    with sharing("blocking", database, cache_server) as fresh:
        columns = ask(fresh, 1)
        assert columns["value_max"].tolist() == expected["value_max"].tolist()
        assert columns.plan.sources.get("redis")
        assert not columns.plan.sources.get("rollup")


@pytest.mark.parametrize("why", ["42501", "42P01", "25006"])
def test_counting_never_fails_a_read_and_is_off_where_it_may_not_be_written(
    why: str, database: Database, sql: psycopg.Connection
) -> None:
    with open_store("blocking", cached(database.dsn)) as store:
        fill(store)
    if why == "42501":
        sql.execute("REVOKE INSERT ON popularity FROM CURRENT_USER")
    elif why == "42P01":
        sql.execute("ALTER TABLE popularity RENAME TO unpopularity")
    else:
        with psycopg.connect(database.admin_dsn, autocommit=True) as admin:
            admin.execute(
                f"ALTER DATABASE {database.name} SET default_transaction_read_only = on".encode()
            )
    with open_store("blocking", cached(database.dsn)) as store:
        popularity = store._roads.popularity
        popularity._due = 0.0
        assert len(ask(store, 3)) == 144  # the first of them begins to write
        store._roads.driver._background.close()  # which has ended here
        # a server that takes no writes now may do so again
        assert popularity.is_off == (why != "25006")
        assert popularity._due > popularity._clock() + (500 if why == "25006" else 0)
        assert len(ask(store, 1)) == 144
        if why != "42P01":
            assert store.warm().reads == 0


def test_a_read_that_is_counted_late_does_not_disturb_who_writes_the_counts_down() -> None:
    one, late = (build_query("metrics", name, START, END, step="1h") for name in "ab")
    counted: dict[Any, Any] = {}

    class Plan:
        @property
        def step(self) -> str:  # another thread, in the midst of it
            counted[late.asked] = counted[one.asked]
            return "1h"

    counted[one.asked] = _Count(one.span, Plan())  # type: ignore[arg-type]  # all that is asked of it
    assert _params(counted, 0.0)["series"] == ["a"]


def test_memory_of_counts_is_bounded(database: Database) -> None:
    with open_store("blocking", cached(database.dsn)) as store:
        fill(store)
        popularity = store._roads.popularity
        for number in range(1_050):
            store.read("metrics", "a", START, END, step="1h", caller=str(number), limit=number + 1)
        assert len(popularity._counted) <= 1_000
