"""The project's own migrations: up, down, offline, one at a time, beside readers and writers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from alembic import command
from fix_catalog import count_everything, describe, rows, value
from fix_servers import Database

import toolkit
from toolkit import Settings, migrate
from toolkit.catalog import REVISION
from toolkit.config import load_settings
from toolkit.dataset import CANDLES
from toolkit.ddl import create_dataset
from toolkit.errors import (
    AccessDenied,
    Busy,
    ConfigError,
    ReadOnlyDatabase,
    SchemaError,
    Unavailable,
)

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "schema.sql"
ODD = """we"ird 'näme' {x}:y"""


@contextmanager
def advisory_lock(dsn: str, schema: str = "toolkit") -> Iterator[int]:
    """Hold what a migration holds; yields the holder's process id."""
    with psycopg.connect(dsn, application_name="deploy-7", autocommit=True) as connection:
        key = f"toolkit migrate {schema}"
        connection.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [key])
        yield connection.info.backend_pid


# -- up, down, history --------------------------------------------------------------------------


def test_the_newest_migration_is_the_one_the_code_works_with() -> None:
    assert migrate.head() == REVISION


def test_up_reports_what_was_pending_and_is_then_current(empty_database: Database) -> None:
    before = migrate.status(empty_database.dsn)
    assert before.current is None
    assert [r.id for r in before.pending] == [r.id for r in migrate.history(empty_database.dsn)]
    after = migrate.upgrade(empty_database.dsn)
    assert after.is_current
    assert after.pending == ()
    assert all(r.is_applied for r in migrate.history(empty_database.dsn))


def test_up_where_there_is_nothing_to_do_changes_nothing(database: Database) -> None:
    before = describe(database.dsn)
    migrate.upgrade(database.dsn)
    assert describe(database.dsn) == before


def test_down_leaves_nothing_behind_and_up_again_makes_the_same(empty_database: Database) -> None:
    dsn = empty_database.dsn
    fresh = count_everything(dsn)
    migrate.upgrade(dsn)
    first = describe(dsn)
    rows(dsn, "SELECT toolkit.ensure_partitions('candles', '2020-01-01', '2021-01-01')")
    assert migrate.downgrade(dsn, revision="base").current is None
    assert count_everything(dsn) == fresh
    assert not any(describe(dsn).values())
    migrate.upgrade(dsn)
    assert describe(dsn) == first


def test_each_migration_goes_down_by_itself(database: Database) -> None:
    ids = [r.id for r in migrate.history(database.dsn)]
    steps = []
    for id_ in [*reversed(ids[:-1]), "base"]:
        steps.append(describe(database.dsn))
        migrate.downgrade(database.dsn, revision=id_)
    for id_, there in zip(ids, reversed(steps), strict=True):
        migrate.upgrade(database.dsn, revision=id_)
        assert describe(database.dsn) == there


def test_datasets_of_before_there_were_blocks_get_theirs(empty_database: Database) -> None:
    dsn = empty_database.dsn
    migrate.upgrade(dsn, revision="0002")
    fills = replace(CANDLES, name="fills")
    for statement in create_dataset(fills, "toolkit", blocks=False):
        rows(dsn, statement)
    rows(dsn, "SELECT toolkit.ensure_partitions('fills', '2024-01-01', '2024-02-01')")
    rows(
        dsn,
        "WITH made AS (INSERT INTO toolkit.series (dataset_id, name) "
        "SELECT id, 'A' FROM toolkit.dataset WHERE name = 'fills' RETURNING id) "
        "INSERT INTO toolkit.fills (series_id, ts, close) "
        "SELECT id, timestamptz '2024-01-02' + n * interval '1 minute', n FROM made, "
        "generate_series(0, 999) AS n",
    )
    migrate.upgrade(dsn)
    with toolkit.connect(dsn) as store:
        before = store.read("fills", "A", "2024-01-01Z", "2024-02-01Z")
        assert store.compress("fills", end="2024-02-01Z").points == 1_000
        after = store.read("fills", "A", "2024-01-01Z", "2024-02-01Z")
        assert after.plan.sources == {"points": 0, "blocks": 1_000}
        assert after["close"].tolist() == before["close"].tolist() == list(range(1_000))
    assert value(dsn, "SELECT count(*) FROM toolkit.fills_log") == 0  # moving changes nothing


def test_going_back_to_before_blocks_is_refused_while_they_hold_points(database: Database) -> None:
    with toolkit.connect(database.dsn) as store:
        store.write("trades", {"ts": ["2024-01-01Z"], "price": [1.0], "size": [1]}, series="X")
        store.compress("trades", end="2024-02-01Z")
        migrate.downgrade(database.dsn, revision="0003")
        there = describe(database.dsn)
        with pytest.raises(SchemaError, match=r"trades lie in blocks.*toolkit decompress"):
            migrate.downgrade(database.dsn, revision="0002")
        assert describe(database.dsn) == there
        migrate.upgrade(database.dsn)
        store.decompress("trades")
    migrate.downgrade(database.dsn, revision="0002")
    assert value(database.dsn, "SELECT count(*) FROM toolkit.trades") == 1


def test_an_unknown_revision_is_named(database: Database) -> None:
    with pytest.raises(SchemaError, match="'0815'"):
        migrate.upgrade(database.dsn, revision="0815")


def test_the_role_needs_nothing_but_its_schema(database: Database) -> None:
    is_super, may_create = rows(
        database.dsn,
        "SELECT rolsuper, has_database_privilege(current_database(), 'CREATE') "
        "FROM pg_roles WHERE rolname = current_user",
    )[0]
    assert (is_super, may_create) == (False, False)
    others = value(
        database.dsn,
        "SELECT count(*) FROM pg_class WHERE relowner = current_user::regrole "
        "AND relnamespace NOT IN ('toolkit'::regnamespace, 'pg_toast'::regnamespace)",
    )
    assert others == 0


def test_a_schema_of_another_name_is_made_and_used(empty_database: Database) -> None:
    admin = empty_database.admin_dsn
    migrate.upgrade(admin, schema=ODD)
    assert migrate.status(admin, schema=ODD).is_current
    settings = replace(load_settings(admin), schema=ODD)
    ts = ["2024-01-31T23:59Z", "2024-02-01T00:00Z"]
    with toolkit.Store(settings) as store:
        store.write("trades", {"ts": ts, "price": [1.0, 2.0], "size": [1, 1]}, series="X")
        store.refresh("trades")
        day = store.read("trades", "X", "2024-01-01Z", "2025-01-01Z", step="1d")
        assert day["close"].tolist() == [1.0, 2.0]
        assert store.drop_partitions("trades", "2024-01-01Z", "2024-12-01Z")
        assert len(store.read("trades", "X", "2024-01-01Z", "2025-01-01Z", step="1d")) == 0
    assert not any(describe(admin).values())
    migrate.downgrade(admin, schema=ODD, revision="base")
    assert not any(describe(admin, ODD).values())


@pytest.mark.parametrize("name", ["", "pg_mine", "50%", "x" * 64, "nul\0"])
def test_a_schema_name_that_cannot_work_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="not a usable schema name"):
        load_settings("host=nowhere", environ={}, flags={"database.schema": name})


# -- offline ------------------------------------------------------------------------------------


def test_offline_sql_makes_the_same_schema(empty_database: Database, database: Database) -> None:
    with psycopg.connect(empty_database.dsn, autocommit=True) as connection:
        connection.execute(migrate.sql())
    assert describe(empty_database.dsn) == describe(database.dsn)
    for query in (
        "SELECT name, spec FROM toolkit.dataset ORDER BY id",
        "SELECT step, relation, width, cursor::text FROM toolkit.rollup ORDER BY id",
        "SELECT * FROM toolkit.toolkit_version",
    ):
        assert rows(empty_database.dsn, query) == rows(database.dsn, query)


def test_offline_sql_makes_a_schema_that_is_not_there(empty_database: Database) -> None:
    with psycopg.connect(empty_database.admin_dsn, autocommit=True) as connection:
        connection.execute(migrate.sql(schema=ODD))
    assert migrate.status(empty_database.admin_dsn, schema=ODD).is_current


def test_offline_sql_of_a_part_goes_on_from_there(empty_database: Database) -> None:
    migrate.upgrade(empty_database.dsn, revision="0001")
    with psycopg.connect(empty_database.dsn, autocommit=True) as connection:
        connection.execute(migrate.sql(revision="0001:head"))
    assert migrate.status(empty_database.dsn).is_current


def test_released_migrations_print_the_same_sql_as_ever() -> None:
    # CONTRIBUTING.md says how to regenerate it; the diff may only add lines at the end
    assert migrate.sql() == GOLDEN.read_text("utf-8")


# -- autogenerate -------------------------------------------------------------------------------


def check_autogenerate(dsn: str) -> None:
    config = migrate._config("toolkit")
    with migrate.connected(dsn) as connection:
        config.attributes["connection"] = connection
        command.check(config)


def test_autogenerate_proposes_nothing_on_a_fresh_schema(database: Database) -> None:
    check_autogenerate(database.dsn)


def test_autogenerate_proposes_nothing_with_hundreds_of_partitions(database: Database) -> None:
    dsn = database.dsn
    rows(dsn, "SELECT toolkit.ensure_partitions('candles', '2015-01-01', '2024-01-01')")
    rows(dsn, "SELECT toolkit.ensure_partitions('trades', '2022-01-01', '2024-01-01')")
    rows(dsn, "SELECT toolkit.ensure_partitions('metrics', '2022-06-01', '2024-01-01')")
    year = "SELECT toolkit.add_partitions_v1('candles_1h', '1y', '2015-01-01', '2024-01-01', NULL)"
    rows(dsn, year)
    made = value(dsn, "SELECT count(*) FROM pg_class WHERE relispartition AND relkind = 'r'")
    assert made > 300
    check_autogenerate(dsn)


def test_autogenerate_sees_a_table_that_is_not_ours(database: Database) -> None:
    rows(database.dsn, "CREATE TABLE toolkit.stray (id integer PRIMARY KEY)")
    with pytest.raises(Exception, match="stray"):
        check_autogenerate(database.dsn)


def test_alembic_itself_migrates_from_a_checkout(
    empty_database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from alembic.config import main

    monkeypatch.setenv("TOOLKIT_DSN", empty_database.dsn)
    monkeypatch.delenv("TOOLKIT_CONFIG", raising=False)
    ini = str(GOLDEN.parents[2] / "alembic.ini")
    main(["-c", ini, "upgrade", "head"])
    assert migrate.status(empty_database.dsn).is_current
    main(["-c", ini, "downgrade", "base"])
    assert migrate.status(empty_database.dsn).current is None
    capsys.readouterr()


# -- one at a time ------------------------------------------------------------------------------


def test_two_at_once_both_end_well(empty_database: Database) -> None:
    with ThreadPoolExecutor(4) as pool:
        ends = list(pool.map(lambda _: migrate.upgrade(empty_database.dsn), range(4)))
    assert all(end.is_current for end in ends)


def test_the_holder_of_the_lock_is_named_at_the_deadline(empty_database: Database) -> None:
    with advisory_lock(empty_database.dsn) as pid:
        with pytest.raises(Busy) as caught:
            migrate.upgrade(empty_database.dsn, deadline_s=0.3)
        for part in (f"process {pid}", "deploy-7", "user toolkit", "127.0.0.1"):
            assert part in str(caught.value)
    assert caught.value.exit_code == 4
    assert caught.value.retryable
    assert migrate.upgrade(empty_database.dsn).is_current


def test_another_schema_can_be_migrated_meanwhile(empty_database: Database) -> None:
    with advisory_lock(empty_database.dsn, "toolkit"):
        assert migrate.upgrade(empty_database.admin_dsn, schema="other", deadline_s=0.3).is_current


def test_a_lock_that_is_taken_is_waited_for_briefly_and_tried_again(
    empty_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "_LOCK_TIMEOUT", "50ms")
    migrate.upgrade(empty_database.dsn, revision="0001")
    said: list[str] = []
    with psycopg.connect(empty_database.dsn) as holder:
        holder.execute("LOCK TABLE toolkit.dataset IN ACCESS EXCLUSIVE MODE")

        def heard(text: str) -> None:
            said.append(text)
            if len(said) == 2:
                holder.rollback()

        assert migrate.upgrade(empty_database.dsn, on_progress=heard).is_current
    assert len(said) >= 2
    assert "a lock is taken" in said[0]


def test_a_lock_that_stays_taken_ends_in_busy_with_nothing_half_done(
    empty_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "_LOCK_TIMEOUT", "20ms")
    monkeypatch.setattr(migrate, "_TRIES", 2)
    migrate.upgrade(empty_database.dsn, revision="0001")
    before = describe(empty_database.dsn)
    with psycopg.connect(empty_database.dsn) as holder:
        holder.execute("LOCK TABLE toolkit.dataset IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(Busy, match="lock"):
            migrate.upgrade(empty_database.dsn)
    assert describe(empty_database.dsn) == before
    assert migrate.status(empty_database.dsn).current == "0001"


def test_readers_and_writers_of_a_service_go_on_while_it_migrates(database: Database) -> None:
    """A long transaction that has read and written everything, and a store under load."""
    dsn, stop, failures = database.dsn, threading.Event(), []

    def load() -> None:
        with toolkit.connect(dsn) as store:
            n = 0
            while not stop.is_set():
                n += 1
                try:
                    frame = {"ts": [f"2024-01-01T00:{n % 60:02}Z"], "value": [float(n)]}
                    store.write("metrics", frame, series="cpu")
                    store.read("metrics", "cpu", "2024-01-01Z", "2024-01-02Z", step="5m")
                    store.latest("metrics")
                except Exception as error:  # any at all is a failure of the promise
                    failures.append(error)

    with toolkit.connect(dsn) as store, psycopg.connect(dsn) as long:
        store.write("metrics", {"ts": ["2024-01-01Z"], "value": [0.0]}, series="cpu")
        long.execute("SELECT * FROM toolkit.metrics, toolkit.dataset, toolkit.series")
        long.execute("INSERT INTO toolkit.series (dataset_id, name) VALUES (1, 'mine')")
        long.execute("UPDATE toolkit.metrics SET value = 7")
        worker = threading.Thread(target=load)
        worker.start()
        try:
            for n in range(3):
                migrate.upgrade(dsn)
                add_dataset(dsn, f"extra{n}")
        finally:
            stop.set()
            # the long transaction holds the row that the load wants to change
            long.commit()
            worker.join()
        assert {"extra0", "extra1", "extra2"} <= {d.name for d in store.datasets()}
    assert failures == []


def add_dataset(dsn: str, name: str) -> None:
    """Run op.create_dataset as a service's migration does."""
    from alembic.migration import MigrationContext
    from alembic.operations import Operations

    import toolkit.operations
    from toolkit import Aggregate, Column

    assert toolkit.operations
    with migrate.connected(dsn) as connection:
        operations = Operations(MigrationContext.configure(connection))
        operations.create_dataset(  # type: ignore[attr-defined]
            name, columns=[Column("price")], aggregates=[Aggregate("price", "last", "price")]
        )
        connection.commit()


# -- what a store says of a schema that does not fit --------------------------------------------


def open_store(database: Database, **changes: object) -> None:
    settings = replace(load_settings(database.dsn), **changes)  # type: ignore[arg-type]
    with toolkit.Store(settings):
        pass


def test_a_database_that_is_not_migrated_says_so(empty_database: Database) -> None:
    with pytest.raises(SchemaError, match=r"not migrated; run: toolkit migrate up"):
        open_store(empty_database)


def test_a_schema_that_does_not_exist_says_so(database: Database) -> None:
    with pytest.raises(SchemaError, match=r"'nowhere' .*not migrated"):
        open_store(database, schema="nowhere")


def test_a_database_behind_says_both_revisions(empty_database: Database) -> None:
    migrate.upgrade(empty_database.dsn, revision="0001")
    with pytest.raises(SchemaError, match=rf"0001, this version needs {REVISION}; run: toolkit"):
        open_store(empty_database)


def test_a_database_ahead_asks_for_a_newer_package(database: Database) -> None:
    rows(database.dsn, "UPDATE toolkit.toolkit_version SET version_num = '9999'")
    with pytest.raises(SchemaError, match="9999, newer than this version knows"):
        open_store(database)
    open_store(database, allow_newer_schema=True)
    for act in (migrate.upgrade, lambda dsn: migrate.downgrade(dsn, revision="base")):
        with pytest.raises(SchemaError, match="upgrade the package"):
            act(database.dsn)


def test_a_server_that_is_down_or_refuses_us_is_told_apart(database: Database) -> None:
    with pytest.raises(Unavailable, match="cannot be reached") as caught:
        migrate.upgrade("host=127.0.0.1 port=1 dbname=x")
    assert caught.value.exit_code == 3
    wrong = database.dsn.replace("toolkit:", "toolkit:not", 1)
    with pytest.raises(AccessDenied, match="password authentication failed"):
        migrate.upgrade(wrong)
    settings: Settings = load_settings(wrong)
    with pytest.raises(AccessDenied), toolkit.Store(settings):
        pass


def test_a_read_only_server_takes_neither_migration_nor_points(
    database: Database, empty_database: Database
) -> None:
    for one in (database, empty_database):
        rows(one.admin_dsn, f"ALTER DATABASE {one.name} SET default_transaction_read_only = on")
    with pytest.raises(ReadOnlyDatabase, match="read-only"):
        migrate.upgrade(empty_database.dsn)
    assert migrate.status(database.dsn).is_current
    with toolkit.connect(database.dsn) as store:
        with pytest.raises(ReadOnlyDatabase, match="read-only"):
            store.write("metrics", {"ts": ["2024-01-01Z"], "value": [1.0]}, series="x")
        assert store.latest("metrics").names == ()
