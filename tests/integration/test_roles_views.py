"""The views of performance: what they count, whom they show what, and why they show nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from fix_roles import Cast, cast_on
from fix_servers import SETTINGS, WHEEL, Server, system_bin
from fix_stores import store_bars
from psycopg.rows import dict_row

from toolkit.local import LocalServers

SPAN = ("2024-01-01Z", "2024-01-03Z")
COUNT = 2_880


def seen(cast: Cast, role: str, view: str) -> list[dict[str, Any]]:
    """The rows of a view as a role sees them."""
    with psycopg.connect(cast.dsn(role), autocommit=True, row_factory=dict_row) as connection:
        return connection.execute(f"SELECT * FROM toolkit.{view}".encode()).fetchall()


def performance(cast: Cast, role: str = "reader") -> dict[str, dict[str, Any]]:
    cast.admin("SELECT pg_stat_force_next_flush()")
    return {row["dataset"]: row for row in seen(cast, role, "performance_summary")}


def flushed(cast: Cast, *statements: str) -> None:
    """Run statements as the owner, and let their statistics be seen."""
    with psycopg.connect(cast.database.dsn, autocommit=True) as connection:
        for statement in (*statements, "SELECT pg_stat_force_next_flush()", "SELECT 1"):
            connection.execute(statement.encode())


def test_a_reader_sees_what_each_dataset_costs(cast: Cast) -> None:
    before = performance(cast)
    assert set(before) == {"candles", "trades", "metrics"}
    assert before["trades"]["partitions"] == before["trades"]["row_bytes"] == 0
    with cast.store("owner") as store:
        store_bars(store, COUNT, "A")
        store.write("candles", {"ts": ["2022-01-01Z"], "close": [1.0]}, series="A")
        store.refresh("candles")
    flushed(cast, "UPDATE toolkit.candles SET volume = 5 WHERE ts < '2024-01-01T00:10Z'")
    found = performance(cast)["candles"]
    assert found["partitions"] == found["never_vacuumed"] == found["never_analyzed"] == 2
    assert found["last_vacuum"] is found["oldest_vacuum"] is found["last_analyze"] is None
    assert (found["live_rows"], found["dead_rows"]) == (COUNT + 1, 11)
    assert found["rollup_bytes"] > 0 < found["log_bytes"]
    assert found["row_bytes"] > 100 * COUNT
    assert found["block_bytes"] == 0
    flushed(
        cast,
        "SET enable_indexscan = off; SET enable_bitmapscan = off",
        "SELECT count(*) FROM toolkit.candles WHERE ts >= '2024-01-01'",
        "RESET ALL",
        "SELECT * FROM toolkit.candles WHERE series_id = 1 AND ts = '2024-01-01'",
        "VACUUM (ANALYZE) toolkit.candles_p20220101",
    )
    after = performance(cast)["candles"]
    assert after["table_scans"] > found["table_scans"]
    assert after["index_scans"] > found["index_scans"]
    assert after["hits"] > found["hits"]
    assert 0 < after["hit_percent"] <= 100
    assert after["never_vacuumed"] == after["never_analyzed"] == 1
    assert after["last_vacuum"] == after["oldest_vacuum"]
    flushed(cast, "VACUUM (ANALYZE) toolkit.candles")
    whole = performance(cast)["candles"]
    assert whole["never_vacuumed"] == whole["dead_rows"] == 0
    assert whole["oldest_vacuum"] < whole["last_vacuum"]
    assert whole["oldest_analyze"] < whole["last_analyze"]
    with cast.store("owner") as store:
        store.compress("candles", end="2024-02-01Z")
    packed = performance(cast)["candles"]
    assert packed["block_bytes"] > 0


def test_slow_queries_say_why_they_show_nothing(cast: Cast) -> None:
    for role in ("reader", "owner"):
        assert seen(cast, role, "slow_queries") == []
        (state,) = seen(cast, role, "slow_queries_state")
        assert state["is_available"] is False
        assert "CREATE EXTENSION pg_stat_statements" in state["reason"]
    where = '"el sewhere"'
    cast.admin(f"CREATE SCHEMA {where}", f"CREATE EXTENSION pg_stat_statements SCHEMA {where}")
    for granted, said in (("", "may not read"), ("GRANT USAGE", "shared_preload_libraries")):
        if granted:
            cast.admin(f"{granted} ON SCHEMA {where} TO PUBLIC")
        assert seen(cast, "reader", "slow_queries") == []
        (state,) = seen(cast, "reader", "slow_queries_state")
        assert state["is_available"] is False
        assert said in state["reason"]


@pytest.fixture(scope="module")
def counting_server(run_folder: Path, server_version: str) -> Iterator[Server]:
    """A server that counts statements."""
    pg_bin = None if server_version == WHEEL else system_bin(server_version)
    settings = SETTINGS | {"shared_preload_libraries": "pg_stat_statements"}
    local = LocalServers(
        run_folder, name=f"counting{server_version}", pg_bin=pg_bin, settings=settings
    )
    endpoints = local.up()
    with psycopg.connect(endpoints.admin_dsn, autocommit=True) as admin:
        yield Server(server_version, local, endpoints, admin)
    local.reset()


@pytest.fixture
def counting(counting_server: Server) -> Iterator[Cast]:
    """The roles on a server that counts statements."""
    with cast_on(counting_server.database(counting_server.template())) as cast:
        yield cast


def test_slow_queries_show_each_role_its_own_and_others_to_who_may(counting: Cast) -> None:
    cast = counting
    assert seen(cast, "reader", "slow_queries") == []
    cast.admin("CREATE EXTENSION pg_stat_statements")  # later than the view: nothing to migrate
    with cast.store("writer") as writer:
        store_bars(writer, COUNT, "A")
        for _ in range(3):
            writer.read("candles", "A", *SPAN)
    with psycopg.connect(cast.dsn("writer"), autocommit=True) as other:
        other.execute('SELECT 1, 2, 3, 4 AS "a secret"')  # about nothing of the toolkit
        other.execute("SELECT count(*) FROM toolkit.candles")
    mine = seen(cast, "writer", "slow_queries")
    assert {row["role"] for row in mine} == {cast.names["writer"]}
    reads = [r for r in mine if "timestamptz_send" in r["query"] and r["calls"] == 3]
    assert len(reads) == 1
    assert reads[0]["rows"] == 3
    assert reads[0]["total_ms"] == pytest.approx(3 * reads[0]["mean_ms"])
    assert 0 <= reads[0]["hit_percent"] <= 100
    assert any(r["query"] == "SELECT count(*) FROM toolkit.candles" for r in mine)
    assert "secret" not in str(mine)
    assert [r["total_ms"] for r in mine] == sorted((r["total_ms"] for r in mine), reverse=True)
    (state,) = seen(cast, "reader", "slow_queries_state")
    assert state["is_available"] is True
    assert state["since"] is not None
    assert state["hidden"] > 0
    assert f"GRANT pg_read_all_stats TO {cast.names['reader']}" in state["reason"]
    assert cast.names["writer"] not in str(seen(cast, "reader", "slow_queries"))
    cast.admin(f"GRANT pg_read_all_stats TO {cast.names['maintainer']}")
    with psycopg.connect(cast.database.admin_dsn) as connection:
        counted = str(connection.execute("SELECT query FROM pg_stat_statements").fetchall())
    assert "a secret" in counted
    (state,) = seen(cast, "maintainer", "slow_queries_state")
    assert (state["reason"], state["hidden"]) == (None, 0)
    theirs = seen(cast, "maintainer", "slow_queries")
    assert cast.names["writer"] in {row["role"] for row in theirs}
    assert "secret" not in str(theirs)
    cast.admin("REVOKE ALL ON pg_stat_statements FROM PUBLIC")
    (state,) = seen(cast, "reader", "slow_queries_state")
    assert state["is_available"] is False
    assert "may not read pg_stat_statements" in state["reason"]
    assert seen(cast, "reader", "slow_queries") == []


def test_other_databases_and_schemas_are_not_in_slow_queries(counting: Cast) -> None:
    counting.admin("CREATE EXTENSION pg_stat_statements", "SELECT count(*) FROM toolkit.series")
    counting.admin('SELECT 1, 2 AS "mytoolkit.orders"', 'SELECT 1, 2, 3 AS "toolkits"')
    elsewhere = urlsplit(counting.database.admin_dsn)._replace(path="/postgres").geturl()
    with psycopg.connect(elsewhere) as connection:
        connection.execute('SELECT 1, 2, 3, 4 AS "toolkit.candles"')
    counting.admin(f"GRANT pg_read_all_stats TO {counting.names['reader']}")
    told = {row["query"] for row in seen(counting, "reader", "slow_queries")}
    assert "SELECT count(*) FROM toolkit.series" in told
    with psycopg.connect(counting.database.admin_dsn) as connection:
        counted = str(connection.execute("SELECT query FROM pg_stat_statements").fetchall())
    for alias in ("mytoolkit.orders", "toolkits", "toolkit.candles"):
        assert f'AS "{alias}"' in counted
        assert f'AS "{alias}"' not in str(told)
