"""The refresh job and the audit: rollups brought up to now in pieces, counted anew, repaired."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result
from fix_contract import check_is_sql, is_shown, sent
from fix_servers import Database
from fix_stores import T0, minutes, store_bars

import toolkit
from toolkit import refresher
from toolkit.cli import main
from toolkit.drivers import session
from toolkit.errors import SchemaError, UnknownName
from toolkit_maintenance import runner
from toolkit_maintenance.job import CUT, DONE, NOTHING


def unfollowed(store: Any, dataset: str = "metrics") -> int:
    return sum(level.log_rows for level in store.pending(dataset))


def test_a_dry_run_says_what_has_changed_and_how_it_is_refreshed(
    blocking: toolkit.Store,
) -> None:
    blocking.write("metrics", minutes(180), series="a")
    report = runner.run(blocking, "refresh", is_dry=True)
    (act,) = report.planned
    assert act.what == "refresh metrics"
    assert "5m: 36 buckets (ranges: 1, series: 1) in about 1 slice" in act.why
    assert any("INSERT INTO" in text for text in act.sql)
    assert unfollowed(blocking) > 0
    done = runner.run(blocking, "refresh")
    assert done.status == DONE
    assert done.counts["buckets_written"] == 36 + 3 + 1
    assert unfollowed(blocking) == 0
    assert runner.run(blocking, "refresh").status == NOTHING
    assert runner.run(blocking, "refresh", is_dry=True).planned == ()


def test_a_refresh_that_is_cut_between_slices_is_gone_on_with(
    blocking: toolkit.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refresher, "SLICE", timedelta(seconds=1))
    for series in "abcdef":
        blocking.write("metrics", minutes(60), series=series)
    # however little time there is, a slice is done
    first = blocking.refresh("metrics", max_runtime=1e-9)
    assert (first.is_cut, sum(level.computed for level in first.levels)) == (True, 12)
    before = unfollowed(blocking)
    runs, computed = 0, 12
    status = CUT
    while status == CUT:
        report = runner.run(blocking, "refresh", max_runtime=0.15)
        status, runs = report.status, runs + 1
        computed += report.counts.get("buckets_computed", 0)
        assert runs < 60
    assert status == DONE
    assert 0 == unfollowed(blocking) < before
    whole = blocking.read("metrics", None, "2024-01-01Z", "2024-01-02Z", step="5m", cache=False)
    assert (len(whole), whole.plan.sources["points"]) == (72, 0)
    assert computed == 6 * (12 + 1 + 1)  # each bucket once, in however many runs


def test_a_refresh_of_one_dataset_leaves_the_others(blocking: toolkit.Store) -> None:
    blocking.write("metrics", minutes(10), series="a")
    store_bars(blocking, 10)
    assert runner.run(blocking, "refresh", ["candles"]).status == DONE
    assert (unfollowed(blocking, "candles"), unfollowed(blocking) > 0) == (0, True)
    with pytest.raises(UnknownName, match="unknown dataset"):
        runner.run(blocking, "refresh", ["nosuch"])


def test_a_dataset_whose_refresh_fails_keeps_no_other_back(
    blocking: toolkit.Store, sql: psycopg.Connection
) -> None:
    store_bars(blocking, 10)  # has less to do, and is first
    blocking.write("metrics", minutes(1_000), series="a")
    sql.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE 'not in here' USING ERRCODE = TG_ARGV[0]; END $$"
    )
    for code, status in (("P0001", "failed"), ("42501", "skipped")):
        sql.execute(
            "CREATE OR REPLACE TRIGGER refuse BEFORE INSERT ON candles_5m "
            f"FOR EACH ROW EXECUTE FUNCTION refuse('{code}')"
        )
        blocking.write("metrics", minutes(1_000), series=code)
        report = runner.run(blocking, "refresh")
        assert (report.status, report.done) == (status, ("refresh metrics",))
        assert (unfollowed(blocking), unfollowed(blocking, "candles") > 0) == (0, True)


def test_a_level_whose_state_is_gone_ends_a_refresh(
    blocking: toolkit.Store, sql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refresher, "SLICE", timedelta(minutes=30))
    for series in "ab":
        for day in range(3):
            blocking.write("metrics", minutes(120, T0 + timedelta(days=day)), series=series)

    # nothing is ahead of the finer level: then nothing goes ahead here, either
    heads: list[str] = []

    def forget(step: str, buckets: int) -> None:
        heads.extend([step] if not heads or heads[-1] != step else [])
        sql.execute("DELETE FROM rollup_head")

    assert not blocking.refresh("metrics", forget).is_cut
    assert heads == ["5m", "1h", "1d"]
    assert blocking.audit("metrics").wrong == 0
    blocking.write("metrics", minutes(120), series="c")

    def drop(step: str, buckets: int) -> None:
        assert step == "5m", "a coarser level goes on without its state"
        sql.execute("DELETE FROM rollup WHERE relation = 'metrics_1h'")

    for _ in range(2):  # while it runs, and before
        with pytest.raises(SchemaError, match="rollup has no row of metrics_1h any more"):
            blocking.refresh("metrics", drop)


def test_a_look_through_much_that_is_not_the_newest_is_cut(
    blocking: toolkit.Store, sql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocking.write("metrics", minutes(10), series="a")
    sql.execute(
        "INSERT INTO metrics_log (series_id, lo, hi) SELECT 1, t, t + interval '1 day' "
        "FROM generate_series(timestamptz '2020-01-01Z', '2022-01-01Z', '20 minutes') AS t"
    )
    looks: list[int] = []
    monkeypatch.setattr(refresher, "_GRACE_S", 0.0)
    report = blocking.refresh("metrics", lambda step, n: looks.append(n), max_runtime=1e-9)
    assert (report.is_cut, looks) == (True, [0])


@pytest.fixture
def corrupt(store: Any, sql: psycopg.Connection) -> Any:
    """A refreshed dataset, half of it blocks, of which three rollup rows were changed by hand."""
    for series in "ab":
        store.write("metrics", minutes(60 * 48), series=series)
    store.compress("metrics", end="2024-01-02Z")
    store.refresh("metrics")
    assert store.audit("metrics").wrong == 0
    (hourly,) = sql.execute(
        "SELECT r.relation FROM rollup r JOIN dataset d ON d.id = dataset_id "
        "WHERE d.name = 'metrics' AND r.step = '1h'"
    ).fetchone()  # type: ignore[misc]
    cells = {
        "wrong": "UPDATE {} SET {} = 7777 WHERE ts = '2024-01-01 05:00Z' AND series_id = 1",
        "missing": "DELETE FROM {} WHERE ts = '2024-01-02 07:00Z' AND series_id = 2",
        "extra": "INSERT INTO {0} SELECT * FROM {0} WHERE false",
    }
    columns = sql.execute(
        "SELECT column_name FROM information_schema.columns WHERE table_name = %s "
        "AND column_name NOT IN ('series_id', 'ts') ORDER BY ordinal_position",
        [hourly],
    ).fetchall()
    names = ", ".join(f'"{c[0]}"' for c in columns)
    highest = next(c[0] for c in columns if "max" in c[0])
    sql.execute(cells["wrong"].format(f'"{hourly}"', f'"{highest}"'))
    sql.execute(cells["missing"].format(f'"{hourly}"'))
    sql.execute(
        f'INSERT INTO "{hourly}" (series_id, ts, {names}) SELECT series_id, '
        f"'2024-05-05 00:00Z', {names} FROM \"{hourly}\" LIMIT 1"
    )
    return store


def test_an_audit_finds_and_repairs_what_was_changed_by_hand(corrupt: Any) -> None:
    found = corrupt.audit("metrics", repair=False)
    assert sorted(w.problem for w in found.named) == ["extra", "missing", "wrong"]
    assert {str(w) for w in found.named} >= {"'a', 1h at 2024-01-01T05:00Z: wrong"}
    assert not found.repaired
    assert corrupt.audit("metrics", repair=False).wrong == 3
    again = corrupt.audit("metrics")
    assert (again.wrong, again.repaired) == (3, True)
    clean = corrupt.audit("metrics")
    assert (clean.wrong, clean.points) == (0, 2 * 60 * 48)
    # what is changed and not followed yet is no fault
    corrupt.write("metrics", {**minutes(60), "value": minutes(60)["value"] + 5}, series="a")
    assert corrupt.audit("metrics").wrong == 0


def test_where_there_is_much_to_follow_the_newest_comes_first(
    blocking: toolkit.Store,
    database: Database,
    sql: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refresher, "SLICE", timedelta(minutes=30))
    monkeypatch.setattr(refresher, "HEAD", datetime.now(UTC) - T0 - timedelta(days=1.5))
    for series in "ab":
        for day in range(3):
            blocking.write("metrics", minutes(120, T0 + timedelta(days=day)), series=series)

    def touched(day: int) -> int:
        at = T0 + timedelta(days=day)
        days = (at, at + timedelta(days=1))
        found = 0
        for step in ("5m", "1h", "1d"):
            cols = blocking.read("metrics", None, *days, step=step, strategy="downsampled")
            direct = blocking.read("metrics", None, *days, step=step, strategy="direct")
            assert cols["value_sum"] == pytest.approx(direct["value_sum"])
            found += cols.plan.sources["points"]
        return found

    before = [touched(day) for day in range(3)]
    assert before == [720, 720, 720]
    while touched(2):  # the first runs are all about the last day, on every level
        assert blocking.refresh("metrics", max_runtime=1e-9).is_cut
        assert touched(0) == 720
    # it has changed again: it is followed once more before the others are
    blocking.write(
        "metrics", {**minutes(5, T0 + timedelta(days=2)), "value": [9.0] * 5}, series="a"
    )
    assert touched(2) > 0
    while touched(2):
        assert blocking.refresh("metrics", max_runtime=1e-9).is_cut
    assert touched(0) > 0
    shown = blocking.refresh_statements("metrics")
    for text in shown:
        check_is_sql(database.dsn, text)
    with sent() as statements:
        assert not blocking.refresh("metrics").is_cut
    assert any("UPDATE" in s and "rollup_head" in s for s in statements)
    assert [s for s in statements if not is_shown(s, shown)] == []
    assert [touched(day) for day in range(3)] == [0, 0, 0]
    assert blocking.audit("metrics").wrong == 0
    # in another cluster transaction ids start over: a cursor from before would see what is to come
    sql.execute("UPDATE rollup SET sysid = 1")
    with toolkit.connect(database.dsn) as other:
        shown = other.refresh_statements("metrics")
    with sent() as statements:
        blocking.refresh("metrics")
    assert any("pg_current_xact_id()" in s for s in statements)
    assert [s for s in statements if not is_shown(s, shown)] == []
    assert sql.execute("SELECT count(*) FROM rollup_head").fetchone() == (0,)
    assert blocking.audit("metrics").wrong == 0


def test_a_repair_that_is_interrupted_is_done_by_the_next_refresh(
    blocking: toolkit.Store, sql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocking.write("metrics", minutes(600), series="a")
    blocking.refresh("metrics")
    sql.execute("DELETE FROM metrics_1h WHERE ts = '2024-01-01 03:00Z'")

    def killed(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(refresher.Refresher, "refresh", killed)
        with pytest.raises(KeyboardInterrupt):
            blocking.audit("metrics")
    assert blocking.audit("metrics").wrong == 0  # it is known to have changed
    assert runner.run(blocking, "refresh").counts["buckets_written"] == 1
    rows = sql.execute("SELECT count(*) FROM metrics_1h").fetchone()
    assert rows == (10,)


def test_an_audit_repairs_no_longer_than_its_time(
    blocking: toolkit.Store, sql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocking.write("metrics", minutes(60), series="a")
    blocking.refresh("metrics")
    sql.execute("UPDATE metrics_5m SET value_max = 7777")
    for series in "bcdef":
        blocking.write("metrics", minutes(60), series=series)
    monkeypatch.setattr(refresher, "SLICE", timedelta(seconds=1))
    report = blocking.audit(
        "metrics", "a", max_runtime=0.3, on_progress=lambda report: time.sleep(0.3)
    )
    assert (report.wrong, report.repaired) == (12, False)
    assert unfollowed(blocking) > 0
    blocking.refresh("metrics")
    assert blocking.audit("metrics").wrong == 0


def test_the_command_plans_runs_audits_and_is_alone(
    blocking: toolkit.Store, database: Database
) -> None:
    blocking.write("metrics", minutes(60), series="a")

    def run(*words: str) -> Result:
        return CliRunner().invoke(main, ["--dsn", database.dsn, "refresh", *words])

    said = run("--dry-run")
    assert (said.exit_code, "5m: 12 buckets" in said.stdout) == (0, True)
    assert "INSERT INTO" in said.stdout
    assert "IS DISTINCT FROM" in run("--dry-run", "--audit").stdout
    with psycopg.connect(database.dsn) as other:
        other.execute(*session.try_alone("job toolkit refresh"))
        said = run()
        assert (said.exit_code, "runs already" in said.stderr) == (4, True)
    said = run("--max-runtime", "10m")
    assert (said.exit_code, "refresh: done" in said.stdout) == (0, True)
    found = json.loads(run("metrics", "--audit", "--json").stdout)
    assert (found["job"], found["counts"]["buckets_counted"]) == ("audit", 12 + 1 + 1)
    said = run("--max-runtime", "soon")
    assert (said.exit_code > 0, "soon" in said.stderr) == (True, True)
