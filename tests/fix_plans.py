"""A wide dataset, what a store says to the server, and what the server's plans touch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
import pytest
from fix_servers import Database, Fleet

from toolkit import migrate
from toolkit.dataset import CANDLES
from toolkit.drivers import session
from toolkit.operations import CreateDataset
from toolkit.options import PoolOptions

BARS = replace(CANDLES, name="bars", ladder=("1d",))
DENSE = 20  # series with 100,000 points each, one every 1,577 s, through 60 months
SPARSE = 1_000  # series with 37 points each, one every 30 days from 2021 on
MONTHS = 60

_BUILD = """
INSERT INTO toolkit.series (dataset_id, name, step, labels)
SELECT (SELECT id FROM toolkit.dataset WHERE name = 'bars'), 'dense-' || n,
       interval '1577 seconds', '{"kind": "dense"}'::jsonb FROM generate_series(1, %(dense)s) AS n
UNION ALL
SELECT (SELECT id FROM toolkit.dataset WHERE name = 'bars'), 'sparse-' || n,
       interval '30 days', '{"kind": "sparse"}' FROM generate_series(1, %(sparse)s) AS n;

SELECT toolkit.ensure_partitions('bars', '2019-01-01Z', '2024-01-01Z');

INSERT INTO toolkit.bars (series_id, ts, open, high, low, close, volume)
SELECT s.id, b.start + s.step * n, n, n + 1, n - 1, n + 0.5, 1
FROM toolkit.series AS s
CROSS JOIN LATERAL (
    SELECT CASE WHEN s.name ~ 'dense' THEN timestamptz '2019-01-01Z'
                ELSE timestamptz '2021-01-01Z' END
) AS b (start)
CROSS JOIN LATERAL generate_series(0, CASE WHEN s.name ~ 'dense' THEN 99999 ELSE 36 END) AS n
WHERE s.dataset_id = (SELECT id FROM toolkit.dataset WHERE name = 'bars')
ORDER BY b.start + s.step * n, s.id;
"""
_STOPPED = """
WITH made AS (
    INSERT INTO toolkit.series (dataset_id, name)
    SELECT id, 'stopped' FROM toolkit.dataset WHERE name = 'bars' RETURNING id
)
INSERT INTO toolkit.bars (series_id, ts, close) SELECT id, '2019-03-15Z', 42 FROM made;
"""
# what a year of writing leaves behind: rows that every rollup has followed already
_OLD_LOG = """
INSERT INTO toolkit.bars_log (series_id, lo, hi, xid)
SELECT 1 + n %% 1000, timestamptz '2019-01-01Z' + n * interval '25 minutes',
       timestamptz '2019-01-02Z' + n * interval '25 minutes', '3'::xid8
FROM generate_series(1, 100000) AS n
"""


@pytest.fixture(scope="module")
def wide(fleet: Fleet, server_version: str, template: str) -> Iterator[Database]:
    """Two million rows in 60 monthly partitions, vacuumed, with a fresh daily rollup."""
    import toolkit

    server = fleet.server(server_version)
    database = server.database(template)
    with migrate.connected(database.dsn) as connection:
        from alembic.migration import MigrationContext
        from alembic.operations import Operations

        operations = Operations(MigrationContext.configure(connection))
        operations.invoke(CreateDataset(BARS, "toolkit"))
        connection.commit()
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        values = {"dense": DENSE, "sparse": SPARSE}
        with psycopg.ClientCursor(connection) as cursor:
            cursor.execute(_BUILD, values)
            cursor.execute(_STOPPED)
    with toolkit.connect(database.dsn) as store:
        store.refresh("bars")
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute(_OLD_LOG.replace("%%", "%"))
        connection.execute("ANALYZE toolkit.bars")
        _vacuum(connection)
    yield database
    server.drop(database)


def _vacuum(connection: psycopg.Connection[Any]) -> None:
    """Vacuum until every page is all-visible: the server's own ANALYZE may hold one up."""
    for _ in range(50):
        connection.execute("VACUUM (ANALYZE)")
        row = connection.execute(
            "SELECT count(*) FROM pg_class WHERE relnamespace = 'toolkit'::regnamespace "
            "AND relkind = 'r' AND relallvisible < relpages"
        ).fetchone()
        if row == (0,):
            return
    raise AssertionError("somebody holds an old snapshot in this database")


@dataclass(slots=True)
class Spy:
    """Every statement that psycopg sends while it watches, with its parameters.

    What sets up a new connection of the pool is not counted: that happens beside the reads.
    """

    said: list[tuple[str, Any]] = field(default_factory=list)
    connections: list[psycopg.Connection[Any]] = field(default_factory=list)

    def hear(self, cursor: psycopg.Cursor[Any], query: Any, params: Any) -> None:
        text = query.decode() if isinstance(query, bytes) else str(query)
        if "set_config('timezone'" in text:
            return
        self.said.append((text, params))
        self.connections.append(cursor.connection)

    def forget(self) -> None:
        self.said.clear()
        self.connections.clear()

    def of(self, table: str) -> list[tuple[str, Any]]:
        """The statements that name a table."""
        return [(text, params) for text, params in self.said if f'"{table}"' in text]


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    """What goes to the server from here on."""
    spy = Spy()
    real = psycopg.Cursor.execute

    def execute(self: Any, query: Any, params: Any = None, **options: Any) -> Any:
        spy.hear(self, query, params)
        return real(self, query, params, **options)

    monkeypatch.setattr(psycopg.Cursor, "execute", execute)
    return spy


@dataclass(frozen=True, slots=True)
class Plan:
    """PostgreSQL's plan of one statement, as it was executed."""

    nodes: tuple[dict[str, Any], ...]
    planning_ms: float
    locks: int

    def scans(self, prefix: str) -> list[dict[str, Any]]:
        """The scans of a table or its partitions, executed or not."""
        return [n for n in self.nodes if str(n.get("Relation Name", "")).startswith(prefix)]

    def executed(self, prefix: str) -> set[str]:
        """The tables that were really read."""
        return {n["Relation Name"] for n in self.scans(prefix) if n["Actual Loops"]}

    def planned(self, prefix: str) -> set[str]:
        """The tables that the plan reckons with."""
        return {n["Relation Name"] for n in self.scans(prefix)}

    def rows(self, prefix: str) -> int:
        """Index entries or rows that the scans returned."""
        return round(sum(n["Actual Rows"] * n["Actual Loops"] for n in self.scans(prefix)))

    def heap_fetches(self) -> dict[str, int]:
        """The tables that index-only scans had to look into, and how often."""
        return {n["Relation Name"]: n["Heap Fetches"] for n in self.nodes if n.get("Heap Fetches")}

    def pages(self) -> int:
        """Pages looked at, in memory or not."""
        top = self.nodes[0]
        return int(top["Shared Hit Blocks"] + top["Shared Read Blocks"])

    def kinds(self, prefix: str) -> set[str]:
        return {n["Node Type"] for n in self.scans(prefix)}


@dataclass(frozen=True, slots=True)
class Examiner:
    """Explains statements on a connection that is set up as a store's."""

    connection: psycopg.Connection[Any]

    def explain(self, statement: str, params: Any, *, analyze: bool = True) -> Plan:
        """Run the statement and return its plan; planning time is the best of several."""
        options = "ANALYZE, BUFFERS, FORMAT JSON" if analyze else "FORMAT JSON"
        text = f"EXPLAIN ({options}) {statement}"
        best = None
        for _ in range(8 if analyze else 1):
            top = self.connection.execute(text, params).fetchone()[0][0]
            if best is None or top.get("Planning Time", 0) < best.get("Planning Time", 0):
                best = top
        assert best is not None, json.dumps(params, default=str)
        return Plan(
            tuple(_walk(best["Plan"])),
            best.get("Planning Time", 0.0),
            self.locks(statement, params),
        )

    def locks(self, statement: str, params: Any) -> int:
        """Count the relations locked by running the statement."""
        with self.connection.transaction(force_rollback=True):
            self.connection.execute(statement, params)
            return self.count_locks()

    def locked(self, statement: str, params: Any, prefix: str) -> set[str]:
        """Name the tables called like ``prefix`` that running the statement locks."""
        with self.connection.transaction(force_rollback=True):
            self.connection.execute(statement, params)
            rows = self.connection.execute(
                "SELECT c.relname FROM pg_locks l JOIN pg_class c ON c.oid = l.relation "
                "WHERE l.pid = pg_backend_pid() AND c.relkind = 'r' AND starts_with(c.relname, %s)",
                (prefix,),
            ).fetchall()
        return {row[0] for row in rows}

    def count_locks(self) -> int:
        row = self.connection.execute(
            "SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() "
            "AND locktype = 'relation' AND relation::regclass::text !~ '^pg_'"
        ).fetchone()
        return int(row[0])


@pytest.fixture
def examiner(wide: Database) -> Iterator[Examiner]:
    """A connection as a store's own, to ask for plans."""
    with psycopg.connect(wide.dsn, autocommit=True) as connection:
        connection.execute(*session.prepare(PoolOptions(), connection.info.backend_pid))
        yield Examiner(connection)


def _walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _walk(child)
