"""What must not happen: others running as the owner, a poison value, answers of two moments."""

from __future__ import annotations

import numpy as np
import psycopg
import pytest
from fix_servers import Database

import toolkit
from toolkit.dataset import CANDLES
from toolkit.drivers import drive
from toolkit.drivers.inside import InsideDriver
from toolkit.errors import DatabaseError, InputError
from toolkit.query import build_query
from toolkit.reader import Reader

SPAN = ("2024-01-01Z", "2024-01-02Z")


def minutes(count: int = 180, value: float = 1.0) -> dict[str, object]:
    ts = np.datetime64("2024-01-01", "us") + np.arange(count) * np.timedelta64(60, "s")
    return {"ts": ts, "close": np.full(count, value), "volume": np.ones(count)}


@pytest.fixture
def owner(database: Database) -> psycopg.Connection:
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute("SET search_path = toolkit")
        yield connection


def test_a_stranger_cannot_hang_the_log_function_on_a_table_of_theirs(
    database: Database, owner: psycopg.Connection
) -> None:
    """TRAPS 64: it runs with the owner's rights."""
    with psycopg.connect(database.admin_dsn, autocommit=True) as admin:
        admin.execute("DROP ROLE IF EXISTS stranger")
        admin.execute("CREATE ROLE stranger LOGIN")
        admin.execute("GRANT USAGE ON SCHEMA toolkit TO stranger")
        try:
            admin.execute("SET ROLE stranger")
            admin.execute("CREATE TEMP TABLE mine (series_id text, ts timestamptz)")
            for function in ("candles_changed_v1", "candles_truncated_v1"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    admin.execute(
                        "CREATE TRIGGER t AFTER INSERT ON mine REFERENCING NEW TABLE AS new_rows "
                        f"FOR EACH STATEMENT EXECUTE FUNCTION toolkit.{function}()"
                    )
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="right to INSERT"):
                admin.execute(
                    "SELECT toolkit.ensure_partitions('candles', '2024-01-01', '2024-02-01')"
                )
        finally:
            admin.execute("RESET ROLE")
            admin.execute("DROP TABLE IF EXISTS mine")
            admin.execute("DROP OWNED BY stranger")
            admin.execute("DROP ROLE stranger")


@pytest.mark.parametrize("fresh_rungs", [(), ("1h", "1d")])
def test_a_log_restored_from_another_cluster_is_adopted_whatever_rung_was_begun(
    database: Database, owner: psycopg.Connection, fresh_rungs: tuple[str, ...]
) -> None:
    """TRAPS 62: transaction ids start over, and an old cursor "sees" new rows."""
    with toolkit.connect(database.dsn) as store:
        store.write("candles", minutes(), series="a")
        store.refresh("candles")
    owner.execute(
        "UPDATE rollup SET sysid = 42, cursor = '900000000:900000000:' "
        "WHERE relation LIKE 'candles%'"
    )
    owner.execute(
        "UPDATE rollup SET sysid = NULL, cursor = '1:1:' "
        "WHERE relation LIKE 'candles%%' AND step = ANY (%s)",
        (list(fresh_rungs),),
    )
    with toolkit.connect(database.dsn) as store:
        store.write("candles", minutes(value=-7.0), series="a")
        before = store.read("candles", "a", *SPAN, step="1h")
        assert set(before["close"]) == {-7.0}
        store.refresh("candles")
    with toolkit.connect(database.dsn) as store:
        for step in ("5m", "1h", "1d"):
            bars = store.read("candles", "a", *SPAN, step=step, strategy="downsampled")
            assert set(bars["close"]) == {-7.0}


def test_a_read_of_a_rollup_locks_the_points_before_its_snapshot(database: Database) -> None:
    """TRAPS 21: TRUNCATE and DROP are not MVCC-safe, so a partition must not go in mid-read."""
    with toolkit.connect(database.dsn) as store:
        store.write("candles", minutes(), series="a")
        store.refresh("candles")
        roads = store._roads
        query = build_query("candles", "a", *SPAN, step="1h", strategy="downsampled")

        async def locked() -> tuple[int, list[str]]:
            async with roads.driver.transaction() as transaction:
                inside = InsideDriver(roads.driver, transaction)
                reader = Reader(inside, roads.directory, store.settings.limits)
                bars = await reader.read(query)
                rows = await transaction.fetch(
                    b"SELECT c.relname FROM pg_locks l JOIN pg_class c ON c.oid = l.relation "
                    b"WHERE l.pid = pg_backend_pid() AND c.relname = 'candles'"
                )
                return bars.plan.sources["points"], [r[0] for r in rows]

        assert drive(locked()) == (0, ["candles"])


def test_a_store_that_outlives_its_dataset_writes_to_the_new_one(
    database: Database, owner: psycopg.Connection
) -> None:
    from toolkit import ddl

    with toolkit.connect(database.dsn) as store:
        store.write("candles", minutes(3), series="a")
        with owner.transaction():
            for statement in ddl.drop_dataset(CANDLES, "toolkit"):
                owner.execute(statement)
            for statement in ddl.create_dataset(CANDLES, "toolkit"):
                owner.execute(statement)
        report = store.write("candles", minutes(5), series="a")
        assert report.inserted == 5
        assert [s.name for s in store.series("candles")] == ["a"]
    with toolkit.connect(database.dsn) as another:
        assert len(another.read("candles", "a", *SPAN)) == 5


def test_one_value_too_large_to_add_up_stops_neither_refresh_nor_read(database: Database) -> None:
    huge = {"ts": ["2024-01-01T00:00Z", "2024-01-01T00:01Z"], "value": [1.7e308, 1.7e308]}
    large = {"ts": minutes(60)["ts"], "value": np.full(60, 1e291)}
    tiny = {**minutes(2, 1e-300), "volume": np.full(2, 1e-300)}
    with toolkit.connect(database.dsn) as store:
        store.write("metrics", huge, series="a")
        store.write("metrics", {"ts": ["2024-01-01T00:00Z"], "value": [5.0]}, series="b")
        store.write("metrics", large, series="c")
        store.write("candles", tiny | {"high": [1e-300] * 2, "low": [1e-300] * 2}, series="a")
        for _ in range(2):
            for strategy in ("direct", "aggregated", "downsampled"):
                options = {"step": "1h", "strategy": strategy}
                bars = store.read("metrics", ["a", "b"], *SPAN, **options)
                assert bars["value_sum"].tolist() == [np.inf, 5.0]
                assert bars["value_max"].tolist() == [1.7e308, 5.0]
                three = store.read("metrics", ["a", "b", "c"], *SPAN, **options)
                np.testing.assert_allclose(three["value_sum"], [np.inf, 5.0, 6e292], rtol=1e-14)
                assert store.read("candles", "a", *SPAN, **options)["vwap"].tolist() == [0.0]
            assert store.refresh("metrics").pruned >= 0
            store.refresh("candles")
        assert store.read("metrics", "b", *SPAN, step="1h").plan is not None


def test_a_table_in_a_partitions_place_that_is_none_is_named(
    database: Database, owner: psycopg.Connection
) -> None:
    with toolkit.connect(database.dsn) as store:
        store.write("candles", minutes(3), series="a")
        owner.execute("ALTER TABLE candles DETACH PARTITION candles_p20240101")
    with (
        toolkit.connect(database.dsn) as store,
        pytest.raises(DatabaseError, match="candles_p20240101 exists but is no partition"),
    ):
        store.write("candles", minutes(3), series="a")


@pytest.mark.parametrize("size", [1, 3_000])
def test_an_upsert_leaves_alone_the_columns_a_frame_does_not_have(
    database: Database, size: int
) -> None:
    whole = {**minutes(size), "open": np.full(size, 2.0)}
    ts = whole["ts"]
    with toolkit.connect(database.dsn) as store:
        store.write("candles", whole, series="a")
        report = store.write("candles", {"ts": ts, "high": np.full(size, 9.0)}, series="a")
        assert (report.updated, report.inserted) == (size, 0)
        again = store.write("candles", {"ts": ts, "high": np.full(size, 9.0)}, series="a")
        assert again.unchanged == size
        bars = store.read("candles", "a", "2024-01-01Z", "2024-02-01Z")
        assert [set(bars[c]) for c in ("open", "high", "close")] == [{2.0}, {9.0}, {1.0}]
        assert np.isnan(bars["low"]).all()
        with pytest.raises(InputError, match="none of the columns of dataset 'candles'"):
            store.write("candles", {"ts": ts}, series="a")
