"""Partitions: made for writers in any language, bounded in UTC, logged when they are emptied."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import pairwise
from urllib.parse import urlsplit

import psycopg
import pytest
from fix_catalog import rows, value
from fix_servers import Database
from psycopg import errors, sql

import toolkit
from toolkit.errors import DatabaseError, QueryError

ENSURE = "SELECT toolkit.ensure_partitions(%s, %s, %s)"
INSERT = "INSERT INTO toolkit.candles (series_id, ts, close) VALUES (1, %s, 1)"


def bounds(dsn: str, dataset: str = "candles") -> list[tuple[datetime, datetime]]:
    with toolkit.connect(dsn) as store:
        return [
            (
                datetime.fromtimestamp(p.span.start / 1e6, UTC),
                datetime.fromtimestamp(p.span.end / 1e6, UTC),
            )
            for p in store.partitions(dataset)
        ]


def logged(dsn: str, dataset: str = "candles") -> list[tuple[object, ...]]:
    """What the change log holds, in order, and empty it."""
    log = sql.Identifier("toolkit", f"{dataset}_log")
    with psycopg.connect(dsn) as connection:
        connection.execute("SET timezone = 'UTC'")
        query = "SELECT series_id, lo::text, hi::text FROM {} ORDER BY xid, lo"
        found = connection.execute(sql.SQL(query).format(log)).fetchall()
        connection.execute(sql.SQL("TRUNCATE {}").format(log))
        return found


@pytest.fixture
def guest(database: Database) -> Iterator[str]:
    """Another role, which may use the schema and insert candles, and nothing more."""
    name = f"guest_{database.name}"
    role = sql.Identifier(name)
    with psycopg.connect(database.admin_dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'pw'").format(role))
        admin.execute(sql.SQL("GRANT USAGE ON SCHEMA toolkit TO {}").format(role))
        admin.execute(sql.SQL("GRANT INSERT ON toolkit.candles TO {}").format(role))
    parts = urlsplit(database.dsn)
    place = f"{name}:pw@{parts.hostname}:{parts.port}"
    yield parts._replace(netloc=place).geturl()
    with psycopg.connect(database.admin_dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("DROP OWNED BY {}").format(role))
        admin.execute(sql.SQL("DROP ROLE {}").format(role))


# -- ensure_partitions --------------------------------------------------------------------------


def test_ranges_tile_and_a_second_call_makes_none(database: Database) -> None:
    dsn = database.dsn
    assert value(dsn, ENSURE, "candles", "2023-11-15Z", "2024-02-01Z") == 3
    assert value(dsn, ENSURE, "candles", "2023-11-15Z", "2024-02-01Z") == 0
    assert value(dsn, ENSURE, "candles", "2024-01-01Z", "2024-02-01T00:00:00.000001Z") == 1
    made = bounds(dsn)
    assert made[0][0] == datetime(2023, 11, 1, tzinfo=UTC)
    assert made[-1][1] == datetime(2024, 3, 1, tzinfo=UTC)
    assert all(a[1] == b[0] for a, b in pairwise(made))


def test_an_empty_range_needs_no_partition(database: Database) -> None:
    assert value(database.dsn, ENSURE, "candles", "2024-01-01Z", "2024-01-01Z") == 0
    assert value(database.dsn, ENSURE, "candles", "2024-01-02Z", "2024-01-01Z") == 0


@pytest.mark.parametrize("at", ["1960-02-29Z", "1969-12-31T23:59:59.999999Z", "1999-12-31Z"])
@pytest.mark.parametrize("dataset", ["candles", "trades"])
def test_times_before_1970_and_2000_fall_into_their_own_range(
    database: Database, dataset: str, at: str
) -> None:
    moment = datetime.fromisoformat(at.replace("Z", "+00:00") if "T" in at else at[:-1] + "T00Z")
    value(database.dsn, ENSURE, dataset, moment, moment.replace(microsecond=999_999))
    low, high = bounds(database.dsn, dataset)[0]
    assert low <= moment < high


@pytest.mark.parametrize("zone", ["Asia/Kolkata", "America/St_Johns", "UTC"])
def test_bounds_do_not_depend_on_the_session_time_zone(database: Database, zone: str) -> None:
    with psycopg.connect(database.dsn) as connection:
        connection.execute("SELECT set_config('timezone', %s, false)", [zone])
        connection.execute(ENSURE, ["trades", "2024-01-01+00", "2024-01-20+00"])
        shown = connection.execute("SHOW timezone").fetchone()
        assert shown == (zone,)  # and the session keeps its own
    week = [low for low, _ in bounds(database.dsn, "trades")]
    assert all(low.weekday() == 0 and low.hour == low.minute == 0 for low in week)
    assert week[0] == datetime(2024, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("dataset", "low", "high", "said"),
    [
        ("candles", "1203-01-01", "2024-01-01", "outside 1900 to 2100"),
        ("candles", "2024-01-01", "20240-01-01", "outside 1900 to 2100"),
        ("candles", "-infinity", "2024-01-01", "outside 1900 to 2100"),
        ("candles", "2024-01-01", "infinity", "outside 1900 to 2100"),
        ("candles", None, "2024-01-01", "outside 1900 to 2100"),
        ("candles", "2024-01-01", None, "outside 1900 to 2100"),
        ("trades", "1950-01-01", "2050-01-01", "more than 1500 partitions"),
        ("no'such", "2024-01-01", "2024-02-01", "no dataset 'no''such'"),
        (None, "2024-01-01", "2024-02-01", "no dataset"),
    ],
)
def test_garbage_makes_no_partition_and_is_named(
    database: Database, dataset: object, low: object, high: object, said: str
) -> None:
    with pytest.raises(psycopg.Error, match=said):
        value(database.dsn, ENSURE, dataset, low, high)
    assert bounds(database.dsn) == bounds(database.dsn, "trades") == []


def test_a_stray_time_in_a_frame_is_refused_before_any_partition(database: Database) -> None:
    with toolkit.connect(database.dsn) as store:
        for stray in ("1815-06-18Z", "2999-01-01Z"):
            with pytest.raises((toolkit.errors.InputError, QueryError), match=stray[:4]):
                store.write("metrics", {"ts": ["2024-01-01Z", stray], "value": [1, 2]}, series="x")
        assert store.partitions("metrics") == []


def test_many_at_once_make_each_partition_once(database: Database) -> None:
    windows = [(f"20{20 + i % 4}-01-01Z", f"20{21 + i % 4}-06-01Z") for i in range(12)]
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda w: value(database.dsn, ENSURE, "candles", *w), windows))
    found = bounds(database.dsn)
    assert sum(int(str(n)) for n in made) == len(found) == 53
    assert all(a[1] == b[0] for a, b in pairwise(found))


def test_readers_and_writers_go_on_while_partitions_are_added(database: Database) -> None:
    value(database.dsn, ENSURE, "candles", "2024-01-01Z", "2024-02-01Z")
    with psycopg.connect(database.dsn) as long:
        long.execute(INSERT, ["2024-01-05Z"])
        long.execute("SELECT count(*) FROM toolkit.candles")
        with psycopg.connect(database.dsn, autocommit=True) as other:
            other.execute("SET lock_timeout = '1s'")
            assert other.execute(ENSURE, ["candles", "2024-02-01Z", "2024-06-01Z"]).fetchone() == (
                4,
            )
        long.execute(INSERT, ["2024-05-05Z"])


def test_there_is_no_default_partition(database: Database) -> None:
    value(database.dsn, ENSURE, "candles", "2024-01-01Z", "2024-02-01Z")
    with pytest.raises(errors.CheckViolation, match="no partition"):
        rows(database.dsn, INSERT, "2030-01-01Z")


def test_infinite_times_are_refused_by_the_table(database: Database) -> None:
    value(database.dsn, ENSURE, "candles", "2024-01-01Z", "2024-02-01Z")
    for endless in ("infinity", "-infinity"):
        with pytest.raises(errors.CheckViolation):
            rows(database.dsn, INSERT, endless)


# -- who may -------------------------------------------------------------------------------------


def test_a_role_with_usage_and_insert_writes_and_its_change_is_logged(
    database: Database, guest: str
) -> None:
    assert value(guest, ENSURE, "candles", "2024-01-01Z", "2024-02-01Z") == 1
    rows(guest, INSERT, "2024-01-15T10:02Z")
    assert logged(database.dsn) == [(1, "2024-01-15 10:00:00+00", "2024-01-15 10:05:00+00")]


def test_the_functions_that_log_ignore_a_search_path_full_of_traps(
    database: Database, guest: str
) -> None:
    value(database.dsn, ENSURE, "candles", "2024-01-01Z", "2024-02-01Z")
    with psycopg.connect(guest) as connection:
        connection.execute("CREATE TEMPORARY TABLE candles_log (series_id int, lo text, hi text)")
        connection.execute("SET search_path = pg_temp, pg_catalog")
        connection.execute(INSERT, ["2024-01-15T10:02Z"])
        assert connection.execute("SELECT count(*) FROM pg_temp.candles_log").fetchone() == (0,)
    assert len(logged(database.dsn)) == 1


def test_a_guest_may_do_nothing_else(database: Database, guest: str) -> None:
    value(database.dsn, ENSURE, "candles", "2024-01-01Z", "2024-02-01Z")
    for statement in (
        "SELECT * FROM toolkit.candles",
        "INSERT INTO toolkit.candles_p20240101 (series_id, ts) VALUES (1, '2024-01-02Z')",
        "INSERT INTO toolkit.candles_log VALUES (1, now(), now())",
        "SELECT toolkit.add_partitions_v1('candles', '1d', now(), now(), 'x')",
        "TRUNCATE toolkit.candles",
    ):
        with pytest.raises(errors.InsufficientPrivilege):
            rows(guest, statement)


def test_a_guest_reading_through_a_store_is_told_what_is_missing(
    database: Database, guest: str
) -> None:
    with (
        pytest.raises(DatabaseError, match="lacks a privilege"),
        toolkit.connect(guest) as store,
    ):
        store.datasets()


# -- the change log ------------------------------------------------------------------------------

PART = "toolkit.candles_p20240101"


@pytest.fixture
def january(database: Database) -> str:
    """A month with two points, and an empty log."""
    value(database.dsn, ENSURE, "candles", "2024-01-01Z", "2024-02-01Z")
    for at in ("2024-01-02T00:00Z", "2024-01-02T00:05Z"):
        rows(database.dsn, INSERT, at)
    logged(database.dsn)
    return database.dsn


RUN = (1, "2024-01-02 00:00:00+00", "2024-01-02 00:10:00+00")
CELL = (1, "2024-01-02 00:00:00+00", "2024-01-02 00:05:00+00")


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (f"UPDATE {PART} SET close = 2", [RUN]),
        (f"DELETE FROM {PART}", [RUN]),
        (f"TRUNCATE {PART}", [RUN]),
        (f"INSERT INTO {PART} (series_id, ts) VALUES (1, '2024-01-02T00:01Z')", [CELL]),
        ("UPDATE toolkit.candles SET close = 2", [RUN]),
        ("DELETE FROM toolkit.candles", [RUN]),
        ("TRUNCATE toolkit.candles", [RUN]),
        ("INSERT INTO toolkit.candles (series_id, ts) VALUES (1, '2024-01-02T00:01Z')", [CELL]),
        (
            "MERGE INTO toolkit.candles AS t USING (VALUES (1)) AS s (id) "
            "ON t.series_id = s.id AND t.ts = '2024-01-02Z' "
            "WHEN MATCHED THEN UPDATE SET close = 3",
            [CELL],
        ),
        (f"UPDATE {PART} SET series_id = 2 WHERE ts = '2024-01-02Z'", [CELL, (2, *CELL[1:])]),
        ("UPDATE toolkit.candles SET close = 2 WHERE false", []),
    ],
)
def test_a_change_is_logged_once_whatever_table_it_names(
    january: str, statement: str, expected: list[tuple[object, ...]]
) -> None:
    rows(january, statement)
    assert sorted(logged(january)) == expected  # type: ignore[type-var]


def test_copy_into_a_partition_is_logged(january: str) -> None:
    statement = f"COPY {PART} (series_id, ts) FROM STDIN"
    with psycopg.connect(january) as connection, connection.cursor().copy(statement) as copy:
        copy.write("9\t2024-01-31T23:59:59Z\n")
    assert logged(january) == [(9, "2024-01-31 23:55:00+00", "2024-02-01 00:00:00+00")]


def test_what_is_rolled_back_is_not_logged(january: str) -> None:
    with psycopg.connect(january) as connection:
        connection.execute(f"TRUNCATE {PART}")
        connection.rollback()
    assert logged(january) == []


def test_far_points_in_one_statement_do_not_mark_what_lies_between(january: str) -> None:
    value(january, ENSURE, "candles", "2023-10-01Z", "2024-01-01Z")
    rows(
        january,
        "INSERT INTO toolkit.candles (series_id, ts) "
        "VALUES (1, '2023-10-01Z'), (1, '2024-01-01Z'), (1, '2024-01-01T00:05Z')",
    )
    assert logged(january) == [
        (1, "2023-10-01 00:00:00+00", "2023-10-01 00:05:00+00"),
        (1, "2024-01-01 00:00:00+00", "2024-01-01 00:10:00+00"),
    ]


def test_what_bypasses_triggers_is_seen_once_the_log_is_told(
    january: str, database: Database
) -> None:
    """As docs/datasets.md says of logical replication and of partitions attached by hand."""
    with toolkit.connect(january) as store:
        store.write("candles", {"ts": ["2024-01-03Z"], "close": [1.0]}, series="A")
        store.refresh("candles")
        series_id = value(january, "SELECT id FROM toolkit.series WHERE name = 'A'")
        with psycopg.connect(database.admin_dsn) as applied:
            applied.execute("SET session_replication_role = replica")
            applied.execute(
                "UPDATE toolkit.candles SET close = 9 WHERE series_id = %s", [series_id]
            )
        assert logged(january) == []
        told = "INSERT INTO toolkit.candles_log VALUES (%s, '2024-01-03+00', '2024-01-04+00')"
        rows(january, told, series_id)
        days = store.read("candles", "A", "2024-01-01Z", "2024-02-01Z", step="1d")
        assert days["close"].tolist() == [9.0]


def test_dropping_partitions_through_the_store_logs_what_goes(january: str) -> None:
    with toolkit.connect(january) as store:
        assert store.drop_partitions("candles", "2024-01-02Z", "2024-03-01Z") == []
        gone = store.drop_partitions("candles", "2024-01-01Z", "2024-03-01Z")
        assert [p.name for p in gone] == ["candles_p20240101"]
        assert store.partitions("candles") == []
    assert logged(january) == [RUN]


def test_a_dropped_range_is_made_again_by_the_next_write(january: str) -> None:
    with toolkit.connect(january) as store:
        store.write("candles", {"ts": ["2024-01-03Z"], "close": [1.0]}, series="A")
        store.drop_partitions("candles", "2024-01-01Z", "2024-02-01Z")
        store.write("candles", {"ts": ["2024-01-03Z"], "close": [2.0]}, series="A")
        assert len(store.read("candles", "A", "2024-01-01Z", "2024-02-01Z")) == 1


def test_a_range_dropped_by_another_store_is_made_again(january: str) -> None:
    with toolkit.connect(january) as store, toolkit.connect(january) as other:
        store.write("candles", {"ts": ["2024-01-03Z"], "close": [1.0]}, series="A")
        other.drop_partitions("candles", "2024-01-01Z", "2024-02-01Z")
        store.write("candles", {"ts": ["2024-01-03Z"], "close": [2.0]}, series="A")
        assert len(store.read("candles", "A", "2024-01-01Z", "2024-02-01Z")) == 1
