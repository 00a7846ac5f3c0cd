"""Retention: points go, and every answer that a rollup knew stays what it was."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import psycopg
import pytest
from fix_cli import Run
from fix_replicas import MakeCluster, until
from fix_retention import (
    DAY,
    END,
    NOW,
    START,
    TIMES,
    TWIN,
    answers,
    filled,
    mark_of,
    retained,
    same,
)
from fix_servers import Database
from fix_stores import cached, create
from fix_topologies import over

import toolkit
from toolkit import Retention, migrate, refresher
from toolkit.dataset import METRICS
from toolkit.errors import (
    DatabaseError,
    InputError,
    QueryError,
    SchemaError,
    ToolkitError,
)
from toolkit_maintenance import runner


def test_every_bar_stays_when_its_points_go(
    blocking: toolkit.Store, database: Database, sql: psycopg.Connection, run: Run
) -> None:
    filled(blocking)
    asked, said = ("query", "metrics", "A", f"{START:%Y-%m-%d}", "now"), "may be gone: retention"
    assert said not in run(*asked).stderr
    before, native = answers(blocking), blocking.read("metrics", "A", START, END)
    bars = blocking.latest("metrics", "A", n=60, step="1d").to_pandas()
    streamed = [p.to_pandas() for p in blocking.stream("metrics", "A", START, END, step="1h")]
    with (
        toolkit.connect(database.dsn) as unaware,
        toolkit.connect(cached(database.dsn, max_age=0.0)) as remembers,
    ):
        for other in (unaware, remembers):  # they know of no mark, nor that they should look
            same(before, answers(other))
        report = retained(blocking, rows="30d")
        assert report.status == "done", report
        assert report.counts["marks_moved"] == 1
        mark = mark_of(sql)
        assert NOW - 38 * DAY < mark <= NOW - 30 * DAY
        for other in (unaware, remembers, blocking):
            assert same(before, answers(other))
            left = other.read("metrics", "A", START, END)
            assert left.ts[0] == np.datetime64(mark.replace(tzinfo=None))
            assert len(left) == int((native.ts >= left.ts[0]).sum())
    assert f"points before {mark:%Y-%m-%d} {said}" in run(*asked).stderr
    assert said in run(*asked, "--step", "23m").stderr
    assert said not in run(*asked, "--step", "1h").stderr
    assert said not in run(*asked[:3], f"{mark:%Y-%m-%d}", "now").stderr
    assert said in run("datasets", "show", "metrics").stdout
    shown = json.loads(run("datasets", "show", "metrics", "--json").stdout)
    assert datetime.fromisoformat(shown["frozen_before"]) == mark
    assert runner.run(blocking, "retention").status == "nothing"
    assert bars.equals(blocking.latest("metrics", "A", n=60, step="1d").to_pandas())
    again = [p.to_pandas() for p in blocking.stream("metrics", "A", START, END, step="1h")]
    assert sum(map(len, again)) == sum(map(len, streamed)) == len(before[2]) // 2
    auto = blocking.read("metrics", "A", START, END, step="auto")
    assert str(auto.plan.grid.step) == "1d"  # type: ignore[union-attr]
    assert len(auto) == 70
    picture = blocking.read("metrics", "A", START, END, points=300)
    assert picture.ts[0] < left.ts[0]
    # late changes after the mark count, as ever; with a refresh and without
    blocking.write("metrics", {"ts": [mark], "value": [1e6]}, series="A")
    for _ in range(2):
        found = blocking.read("metrics", "A", START, END, step="1d", columns=["value_max"])
        assert found["value_max"].max() == 1e6
        assert len(found) == 70
        blocking.refresh("metrics")
    blocking.delete("metrics", "A", mark, mark + timedelta(minutes=20))
    blocking.refresh("metrics")
    later = [f[f.ts < mark.replace(tzinfo=f.ts.dt.tz)] for f in (before[6], answers(blocking)[6])]
    assert len(later[0])
    assert later[0].equals(later[1])


def test_a_read_that_cannot_be_as_before_says_so(
    blocking: toolkit.Store, sql: psycopg.Connection
) -> None:
    filled(blocking)
    assert retained(blocking, rows="30d").status == "done"
    for strategy in ("direct", "aggregated"):
        with pytest.raises(QueryError, match=r"before .* may be gone, and only rollups know"):
            blocking.read("metrics", "A", START, END, step="1h", strategy=strategy)
    cut = START + timedelta(minutes=10)
    with pytest.raises(QueryError, match=r"start at .*00:10Z or .*00:15Z"):
        blocking.read("metrics", "A", cut + timedelta(minutes=1), END, step="1h")
    both = r"start at .*00:10Z or .*00:15Z, end at .*01:00Z or .*01:05Z"
    minute = timedelta(minutes=1)
    with pytest.raises(QueryError, match=both):
        blocking.read("metrics", "A", cut + minute, cut + 51 * minute, step="1h")
    whole = blocking.read("metrics", "A", cut, END, step="1h")  # two 5m buckets fewer
    assert str(whole.plan.rollup.grid.step) == "5m"  # type: ignore[union-attr]
    # what rollups never knew is made of what there is
    mark = np.datetime64(mark_of(sql).replace(tzinfo=None))
    where = blocking.read("metrics", "A", START, END, step="1h", where={"value": (">", -100)})
    assert where.ts[0] == mark
    assert blocking.read("metrics", "A", cut, END).ts[0] == mark


def test_nothing_is_written_before_the_mark(
    blocking: toolkit.Store, database: Database, sql: psycopg.Connection
) -> None:
    filled(blocking)
    with toolkit.connect(database.dsn) as unaware:
        unaware.read("metrics", "A", START, END)
        assert retained(blocking, rows="30d").status == "done"
        mark = mark_of(sql)
        one = {"ts": [mark - DAY], "value": [7.0]}
        for store in (unaware, blocking):
            for write in (store.write, store.backfill):
                with pytest.raises((InputError, DatabaseError), match=r"before .*retention"):
                    write("metrics", one, series="A")
            with pytest.raises(InputError, match="are frozen"):
                store.delete("metrics", "A", START, mark + DAY)
    with pytest.raises(psycopg.Error, match="no partition of metrics is made before"):
        sql.execute("SELECT ensure_partitions('metrics', %s, %s)", [START, START + DAY])
    spans = "SELECT ensure_partitions('metrics', %s, %s)"
    assert sql.execute(spans, [mark - DAY, mark + DAY]).fetchone() == (0,)
    # a partition that is there still, as between the freezing and the dropping
    sql.execute("UPDATE dataset SET frozen_before = frozen_before + interval '1 day'")
    part = sql.execute("SELECT tableoid::regclass::text FROM metrics LIMIT 1").fetchone()[0]
    for text in (
        "INSERT INTO metrics VALUES (1, %s + interval '1 s', 5)",
        f"INSERT INTO {part} VALUES (1, %s + interval '1 s', 5)",
        "UPDATE metrics SET value = 5 WHERE ts = %s",
        "DELETE FROM metrics WHERE ts = %s",
    ):
        with pytest.raises(psycopg.Error, match=r"points of metrics before .* are frozen"):
            sql.execute(text, [mark])
    assert blocking.write("metrics", {"ts": [mark + DAY], "value": [7.0]}, series="A").updated


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_a_transaction_that_began_before_the_mark_moved_writes_nothing_before_it(
    blocking: toolkit.Store, database: Database, sql: psycopg.Connection, level: str
) -> None:
    late = [START + timedelta(minutes=1)]
    blocking.write("metrics", {"ts": [START, END], "value": [1.0, 1.0]}, series="A")
    with psycopg.connect(database.dsn) as writer:
        writer.execute(f"BEGIN ISOLATION LEVEL {level}")
        writer.execute("SELECT frozen_before FROM toolkit.dataset")
        sql.execute("UPDATE dataset SET frozen_before = %s", [START + DAY])
        with pytest.raises(psycopg.Error) as refused:
            writer.execute("INSERT INTO toolkit.metrics SELECT 1, %s, 5", late)
        assert refused.value.sqlstate == ("55000" if level == "READ COMMITTED" else "40001")
        writer.rollback()
        # tried again, it is told why; and after the mark it may
        writer.execute(f"BEGIN ISOLATION LEVEL {level}")
        after = [END + timedelta(microseconds=1)]
        writer.execute("INSERT INTO toolkit.metrics SELECT 1, %s, 5", after)
        with pytest.raises(psycopg.Error, match="are frozen"):
            writer.execute("INSERT INTO toolkit.metrics SELECT 1, %s, 5", late)


def test_the_mark_costs_a_writer_no_look_at_what_it_has_logged(
    blocking: toolkit.Store, sql: psycopg.Connection
) -> None:
    blocking.write("metrics", {"ts": [START, END], "value": [1.0, 1.0]}, series="A")
    sql.execute("UPDATE dataset SET frozen_before = %s", [START + DAY])
    read = "SELECT seq_tup_read + coalesce(idx_tup_fetch, 0), n_tup_ins FROM"
    with sql.transaction():
        for n in range(1, 20):
            sql.execute("INSERT INTO metrics SELECT 1, %s, 5", [END + timedelta(seconds=n)])
        of_log = f"{read} pg_stat_xact_user_tables WHERE relname = 'metrics_log'"
        assert sql.execute(of_log).fetchone() == (0, 19)


def test_an_audit_that_points_go_beside_finds_nothing_wrong(
    blocking: toolkit.Store, database: Database, sql: psycopg.Connection
) -> None:
    filled(blocking)
    reports: list[str] = []

    def drop(found: toolkit.AuditReport) -> None:
        if not reports:
            with toolkit.connect(database.dsn) as other:
                reports.append(retained(other, rows="30d").status)
                other.refresh("metrics")  # which follows what it told the log of

    audited = blocking.audit("metrics", on_progress=drop)
    assert reports == ["done"]
    assert (audited.wrong, audited.named) == (0, ())
    assert audited.points > 2 * 29 * 72


def test_replicas_answer_as_before(cluster: MakeCluster) -> None:
    servers = cluster(replicas=1)
    with over("blocking", servers) as store:
        filled(store)
        servers.wait_replayed()
        before = answers(store)
        until(lambda: store.read("metrics", "A", START, END).plan.node == "pg2", "it is read from")
        servers.pause_replay("pg2")  # it knows of no mark, and has the points
        assert retained(store, rows="30d").status == "done"
        assert same(before, answers(store))
        old = store.read("metrics", "A", START, END, step="1d", freshness=toolkit.bounded(600))
        assert len(old) == 70
        servers.resume_replay("pg2")
        servers.wait_replayed()
        until(lambda: store.read("metrics", "A", START, END).plan.node == "pg2", "it is back")
        assert same(before, answers(store))
        assert len(store.read("metrics", "A", START, END)) < len(TIMES) - 30 * 72


@pytest.mark.parametrize(
    "seed", [0, *[pytest.param(n, marks=pytest.mark.soak) for n in range(1, 20)]]
)
def test_any_history_leaves_the_bars_of_a_twin_that_keeps_all(
    database: Database, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(seed)
    monkeypatch.setattr(refresher, "SLICE", timedelta(hours=30))  # so that the newest go before
    create(database, TWIN)
    with toolkit.connect(cached(database.dsn, max_age=0.0)) as store:
        filled(store, "metrics", "twins")
        ages, oldest = (60, 50, 30, 15) if seed else (50, 20), START
        for age in ages:
            for _ in range(6 if seed else 4):
                move = random.integers(6)
                at = oldest + (END - oldest) * random.random()
                for dataset in ("metrics", "twins"):
                    if move <= 1:
                        few = [at + timedelta(minutes=m) for m in range(0, 400, 50)]
                        store.write(dataset, {"ts": few, "value": np.arange(8.0)}, series="A")
                    elif move == 2:
                        store.delete(dataset, "B", at, at + timedelta(hours=30))
                    elif move == 3:
                        monkeypatch.setattr(refresher, "HEAD", datetime.now(UTC) - at)
                        store.refresh(dataset, max_runtime=1e-9 if random.random() < 0.5 else None)
                    elif move == 4:
                        assert store.audit(dataset).wrong == 0
                    elif dataset == "metrics":
                        store.compress(dataset, None, oldest, at)
            store.refresh("metrics")
            assert store.audit("metrics").wrong == 0
            ages_of = {"rows": f"{age}d", "blocks": f"{age}d"}
            assert retained(store, **ages_of).status in ("done", "nothing")
            with psycopg.connect(database.dsn, options="-c search_path=toolkit") as sql:
                oldest = mark_of(sql)
            assert same(answers(store), answers(store, "twins"))
            assert same(
                [store.read(d, None, oldest, END).to_pandas() for d in ("metrics",)],
                [store.read(d, None, oldest, END).to_pandas() for d in ("twins",)],
            )


def test_a_mark_is_an_edge_of_every_rollup_and_kept_by_stores_where_no_trigger_is(
    database: Database, sql: psycopg.Connection
) -> None:
    weeks = replace(TWIN, ladder=("1h", "1d", "1w"), partition="1M", changelog="writer")
    bare = replace(METRICS, name="bare", aggregates=(), ladder=())
    create(database, weeks, bare)
    text = "SELECT frozen_before FROM dataset WHERE name = %s"
    with toolkit.connect(database.dsn) as store, toolkit.connect(database.dsn) as unaware:
        start = (NOW - 200 * DAY).replace(minute=0, second=0, microsecond=0)
        ts = [start + timedelta(hours=6 * n) for n in range(800)]
        for name in ("twins", "bare"):
            unaware.write(name, {"ts": ts, "value": np.arange(800.0)}, series="A")
            store.set_retention(name, Retention(rows="45d"))
        assert runner.run(store, "retention", ["twins"]).status == "skipped"
        store.refresh("twins")
        steps = ("1d", "1w", "2w")
        low = start - timedelta(days=start.weekday(), hours=start.hour)

        def bars(one: toolkit.Store) -> list[Any]:
            return [one.read("twins", "A", low, NOW, step=s).to_pandas() for s in steps]

        before = bars(store)
        for name in ("twins", "bare"):
            assert runner.run(store, "retention", [name]).status == "done"
            assert runner.run(store, "retention", [name]).status == "nothing"
        for one in (unaware, store):
            assert same(before, bars(one))
        mark = sql.execute(text, ["twins"]).fetchone()[0].astimezone(UTC)
        assert (mark.weekday(), mark.hour) == (0, 0)
        first = store.read("twins", "A", start, NOW).ts[0].astype(object).replace(tzinfo=UTC)
        # its month ends inside a week, or with one: then the first of six hours may come later
        assert first < mark + timedelta(hours=6)
        assert first.replace(day=1) > start
        # between the freezing and the dropping, a store that has not heard of it
        sql.execute("UPDATE dataset SET frozen_before = frozen_before + interval '14 days'")
        late = mark + DAY + timedelta(minutes=1)  # no point of ours
        with pytest.raises(InputError, match="are frozen"):
            unaware.write("twins", {"ts": [late], "value": [7.0]}, series="A")
        assert not len(unaware.read("twins", "A", late, late + timedelta(seconds=1)))
        assert sql.execute(text, ["bare"]).fetchone()[0] > NOW - 90 * DAY
        with pytest.raises(Exception, match="there is no way back but a backup"):
            migrate.downgrade(database.dsn, revision="0004")


def test_an_age_is_checked() -> None:
    with pytest.raises(SchemaError, match=r"retain rows: .*'soon'"):
        Retention(rows="soon")
    with pytest.raises(ToolkitError, match="unknown rollup '7m'"):
        replace(METRICS, retain=Retention("30d", rollups={"7m": "1y"}))
    kept = replace(METRICS, retain=Retention("30d", rollups={"5m": "1y"}))
    assert toolkit.Dataset.from_mapping(kept.to_mapping()) == kept
    assert "retain" not in METRICS.to_mapping()
