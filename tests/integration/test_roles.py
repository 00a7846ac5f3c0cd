"""The main road under the three roles: what each may goes, and what it may not changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psycopg
import pytest
from fix_catalog import describe, rows
from fix_replicas import MakeCluster, until
from fix_roles import Cast, cast_on
from fix_servers import ON_ONE_VERSION, WHEEL, Database
from fix_stores import COLOURS, cached, open_store, store_bars
from fix_topologies import DAY, metric, over

import toolkit
from toolkit import migrate
from toolkit.dataset import CANDLES
from toolkit.ddl import create_dataset
from toolkit.errors import DatabaseError
from toolkit_maintenance.job import SUCCESSES
from toolkit_maintenance.runner import maintain, run

SPAN = ("2024-01-01Z", "2024-01-03Z")
COUNT = 2_880
NO_RIGHT = "42501"
AGE = toolkit.bounded(60)


def bars(day: str, count: int, value: float = 1.0) -> dict[str, Any]:
    ts = np.datetime64(day, "us") + np.arange(count) * np.timedelta64(1, "m")
    return {"ts": ts, "close": value + np.arange(count), "volume": np.ones(count)}


@pytest.fixture(params=COLOURS)
def colour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_reader_reads_in_every_way(cast: Cast, colour: str, tmp_path: Path) -> None:
    with cast.store("writer") as writer:
        store_bars(writer, COUNT, "A")
        store_bars(writer, COUNT, "B")
        writer.label("candles", "A", {"venue": "x"})
    with cast.store("maintainer") as maintainer:
        maintainer.refresh("candles")
        maintainer.compress("candles", "B", end="2024-02-01Z")
    with cast.store("reader", colour) as reader:
        assert len(reader.read("candles", ["A", "B"], *SPAN)) == 2 * COUNT
        assert len(reader.read("candles", None, *SPAN, labels={"venue": "x"})) == COUNT
        for strategy in ("direct", "aggregated", "downsampled"):
            found = reader.read("candles", ["A", "B"], *SPAN, step="1h", strategy=strategy)
            assert len(found) == 96
        assert len(reader.read("candles", "A", *SPAN, points=100)) <= 100
        assert len(reader.latest("candles", n=2)) == 4
        assert sum(len(piece) for piece in reader.stream("candles", "B", *SPAN)) == COUNT
        assert len(reader.series("candles")) == 2
        assert "Index" in str(reader.explain("candles", "A", *SPAN, step="1h"))
        assert reader.describe("candles").block_points == COUNT
        assert reader.partitions("candles")
        assert reader.export("candles", tmp_path / "a.parquet", "A", *SPAN).rows == COUNT


@pytest.mark.parametrize("step", [None, "1h"])
def test_a_reader_that_remembers_hears_what_a_writer_changes(
    cast: Cast, colour: str, step: str | None
) -> None:
    with (
        cast.store("writer") as writer,
        open_store(colour, cached(cast.dsn("reader"), keep_log=300)) as reader,
    ):
        store_bars(writer, COUNT, "A")
        before = reader.read("candles", "A", *SPAN, step=step, freshness="strong")
        again = reader.read("candles", "A", *SPAN, step=step, freshness="strong")
        assert again["close"].tolist() == before["close"].tolist()
        writer.write("candles", bars("2024-01-02T23:59", 1, -7.0), series="A")
        after = reader.read("candles", "A", *SPAN, step=step, freshness="strong")
        assert after["close"][-1] == -7.0
        assert reader.stats()["cache_hits"] > 0


def test_a_writer_writes_in_every_way(cast: Cast, colour: str) -> None:
    with cast.store("writer", colour) as writer:
        assert writer.write("candles", bars("2024-01-01", COUNT), series="A").inserted == COUNT
        many = bars("2024-01-01", COUNT, 9.0)
        assert writer.write("candles", many, series="A").updated == COUNT
        assert writer.write("candles", many, series="A", mode="ignore").inserted == 0
        assert writer.write("candles", bars("2031-05-05", 3), series="new", mode="insert").inserted
        assert writer.label("candles", "new", {"venue": "x"}) == {"venue": "x"}
        assert writer.delete("candles", "A", "2024-01-02T23:00Z", "2024-01-03Z") == 60
        filled = writer.backfill("candles", bars("2023-02-01", COUNT), series="A")
        assert filled.inserted == COUNT
        # the same in compressed time: points change, are refused, go
        change = {"ts": ["2023-02-01Z"], "close": [-1.0]}
        assert writer.write("candles", change, series="A").received == 1
        assert writer.delete("candles", "A", "2023-02-02Z", "2023-02-02T00:10Z") == 10
        found = writer.read("candles", "A", "2023-02-01Z", "2023-02-03Z")
        assert (len(found), found["close"][0]) == (COUNT - 10, -1.0)
        # it may write and delete, and so decompress; the space is the maintainer's to give back
        assert writer.decompress("candles", "A").points > 0
        again = writer.read("candles", "A", "2023-02-01Z", "2023-02-03Z")
        assert again["close"].tolist() == found["close"].tolist()


def test_a_maintainer_maintains_and_what_it_makes_is_the_owners(cast: Cast, colour: str) -> None:
    with cast.store("writer") as writer:
        store_bars(writer, COUNT, "A")
        writer.write("candles", bars("2022-03-01", 10), series="A")
    with cast.store("maintainer", colour) as store:
        assert sum(level.written for level in store.refresh("candles").levels) > 0
        assert store.compress("candles", end="2024-02-01Z").points == COUNT + 10
        with cast.store("writer") as writer:
            writer.write("candles", bars("2024-01-01T12:00", 5, -3.0), series="A")
        assert store.recompress("candles", end="2024-02-01Z").points == 5
        assert not store.verify("candles").damaged
        assert store.decompress("candles", "A", *SPAN).points == COUNT
        assert store.set_compress_after("candles", "30d") == "30d"
        assert store.drop_partitions("candles", "2022-01-01Z", "2023-01-01Z")
        store.refresh("candles")
    with cast.store("maintainer") as store:
        first = maintain(store)
        assert [r.status for r in first if r.failed] == []
        assert "privilege" not in str([r.skipped for r in first])
        for report in first:
            assert run(store, report.job).status in (*SUCCESSES, "skipped"), report.job
        assert run(store, "partitions").status == "nothing"
    with cast.store("reader") as reader:
        found = reader.read("candles", "A", *SPAN, step="1h", strategy="downsampled")
        assert (len(found), found["low"].min() <= found["high"].max()) == (48, True)
    assert owners(cast) == [("toolkit",)]


def owners(cast: Cast) -> list[tuple[object, ...]]:
    """Whose the tables and functions of the schema are."""
    return rows(
        cast.database.admin_dsn,
        "SELECT pg_get_userbyid(relowner) FROM pg_class "
        "WHERE relnamespace = 'toolkit'::regnamespace "
        "UNION SELECT pg_get_userbyid(proowner) FROM pg_proc "
        "WHERE pronamespace = 'toolkit'::regnamespace",
    )


Call = Callable[[Any], Any]
READER_MAY_NOT: dict[str, Call] = {
    "write": lambda s: s.write("candles", bars("2024-01-01", 3, 7.0), series="A"),
    "write many": lambda s: s.write("candles", bars("2024-01-01", 2_500, 7.0), series="A"),
    "insert": lambda s: s.write("candles", bars("2024-05-01", 3), series="A", mode="insert"),
    "ignore": lambda s: s.write("candles", bars("2024-05-01", 3), series="A", mode="ignore"),
    "make a series": lambda s: s.write("candles", bars("2024-01-01", 3), series="new"),
    "make a partition": lambda s: s.write("candles", bars("2034-01-01", 3), series="A"),
    "delete": lambda s: s.delete("candles", "A", *SPAN),
    "delete what is compressed": lambda s: s.delete("candles", "A", "2023-01-01Z", "2023-01-02Z"),
    "label": lambda s: s.label("candles", "A", {"venue": "y"}),
    "backfill": lambda s: s.backfill("candles", bars("2023-05-01", 100), series="A"),
    "decompress": lambda s: s.decompress("candles"),
}
NEITHER_MAY: dict[str, Call] = {
    "refresh": lambda s: s.refresh("candles"),
    "compress": lambda s: s.compress("candles", end="2024-02-01Z"),
    "recompress": lambda s: s.recompress("candles", end="2024-02-01Z"),
    "verify": lambda s: s.verify("candles"),
    "drop": lambda s: s.drop_partitions("candles", "2024-01-01Z", "2024-02-01Z"),
    "set a policy": lambda s: s.set_compress_after("candles", "7d"),
}


def everything(cast: Cast) -> list[tuple[object, ...]]:
    """Every row of every table, as a checksum a table, and the tables there are."""
    with psycopg.connect(cast.database.dsn) as connection:
        names = connection.execute(
            "SELECT c.oid::regclass::text FROM pg_class AS c "
            "WHERE relnamespace = 'toolkit'::regnamespace AND relkind = 'r' ORDER BY 1"
        ).fetchall()
        return [
            (name, *connection.execute(
                f"SELECT count(*), sum(hashtextextended(t::text, 0)) FROM {name} AS t".encode()
            ).fetchone())
            for (name,) in names
        ]  # fmt: skip


@pytest.fixture
def stocked(cast: Cast) -> Cast:
    """Rows, blocks, rollups and a change that they have yet to follow."""
    with cast.store("owner") as owner:
        owner.write("candles", bars("2023-01-01", 1_440), series="A")
        owner.compress("candles", end="2023-06-01Z")
        owner.write("candles", bars("2024-01-01", 100), series="A")
    return cast


@pytest.mark.parametrize("role", ["reader", "writer"])
def test_what_a_role_may_not_is_an_error_that_says_so_and_changes_nothing(
    stocked: Cast, colour: str, role: str
) -> None:
    calls = NEITHER_MAY | (READER_MAY_NOT if role == "reader" else {})
    before = everything(stocked)
    for what, call in calls.items():
        with stocked.store(role, colour) as store, pytest.raises(DatabaseError) as caught:
            call(store)
        assert caught.value.sqlstate == NO_RIGHT, what
        assert "permission denied" in str(caught.value) or "needs the right" in str(caught.value)
        assert "toolkit check --grants" in str(caught.value), what
        assert what not in NEITHER_MAY or "--as maintainer" in str(caught.value), what
        assert everything(stocked) == before, what


def test_a_job_of_who_may_not_is_skipped_and_never_well(stocked: Cast) -> None:
    before = everything(stocked)
    for role in ("reader", "writer"):
        with stocked.store(role) as store:
            report = run(store, "partitions")
            assert (report.status, report.done) == ("skipped", ())
            assert "this is a maintainer's" in str(report.skipped[0])
            assert "toolkit check --grants --as maintainer" in str(report.skipped[0])
    assert everything(stocked) == before


def test_what_a_maintainer_or_a_superuser_migrates_is_the_owners(cast: Cast) -> None:
    before = describe(cast.database.dsn)
    for who in (cast.dsn("maintainer"), cast.database.admin_dsn):
        migrate.downgrade(who, revision="0002")
        assert migrate.upgrade(who).is_current
        assert owners(cast) == [("toolkit",)]
    after = describe(cast.database.dsn)
    assert [r[0] for r in after["relations"]] == [r[0] for r in before["relations"]]
    with pytest.raises(DatabaseError, match="must be owner") as caught:
        migrate.downgrade(cast.dsn("writer"), revision="-1")
    assert caught.value.sqlstate == NO_RIGHT
    assert describe(cast.database.dsn) == after


@ON_ONE_VERSION
def test_a_dataset_made_later_is_granted_by_the_next_apply(cast: Cast) -> None:
    later = replace(CANDLES, name="later")
    with psycopg.connect(cast.database.dsn) as connection:
        for statement in create_dataset(later, "toolkit"):
            connection.execute(statement.encode())
    with cast.store("reader") as reader, pytest.raises(DatabaseError, match="table later"):
        reader.latest("later")
    given = cast.grant()
    assert all("later" in statement for statement in given)
    assert cast.grant() == []
    with cast.store("writer") as writer:
        assert writer.write("later", bars("2024-01-01", 3), series="A").inserted == 3
    with cast.store("reader") as reader:
        assert len(reader.latest("later")) == 1


@ON_ONE_VERSION
def test_the_same_over_a_replica(cluster: MakeCluster) -> None:
    servers = cluster(replicas=1)
    admin = urlsplit(servers.admin_dsn("pg1"))._replace(path="/toolkit").geturl()
    with cast_on(Database("toolkit", servers.dsn("pg1"), admin, WHEEL)) as cast:
        servers.wait_replayed()
        ports = {name: urlsplit(servers.dsn(name)).port for name in servers.nodes}

        def addresses(role: str) -> dict[str, str]:
            parts = urlsplit(cast.dsn(role))
            login = parts.netloc.rpartition("@")[0]
            return {
                name: parts._replace(netloc=f"{login}@127.0.0.1:{port}").geturl()
                for name, port in ports.items()
            }

        with over("blocking", servers, dsns=addresses("writer")) as writer:
            writer.write("metrics", metric(0), series="a")
            token = writer.token()
            assert len(writer.read("metrics", "a", *DAY)) == 1
        with over("blocking", servers, dsns=addresses("maintainer")) as maintainer:
            maintainer.refresh("metrics")
            maintainer.compress("metrics", end="2025-01-01Z")
        servers.wait_replayed()
        for colour in COLOURS:
            with over(colour, servers, dsns=addresses("reader")) as reader:
                read = partial(reader.read, "metrics", "a", *DAY)
                until(lambda: read(freshness=AGE).plan.node == "pg2", "a replica is read")  # noqa: B023
                assert len(read(step="1h", strategy="downsampled")) == 1
                assert len(read(freshness=toolkit.after(token))) == 1
                with pytest.raises(DatabaseError, match="toolkit check --grants"):
                    reader.write("metrics", metric(1), series="a")
                assert len(read(freshness="strong")) == 1
