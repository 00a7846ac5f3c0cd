"""The jobs about blocks: old points are compressed, late ones folded in, all of them read."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from fix_stores import minutes

import toolkit
from toolkit import packer, verifier
from toolkit.timegrid import to_datetime
from toolkit_maintenance import looked, runner
from toolkit_maintenance.job import CUT, DONE, FAILED, NOTHING, SKIPPED, Report

RANGE = ("2024-01-01Z", "2024-01-09Z")


def answer(store: toolkit.Store) -> list[Any]:
    cols = store.read("metrics", None, *RANGE, step="1h", cache=False)
    return [cols.ts.tolist(), *(cols[n].tolist() for n in ("value_max", "value_count"))]


@pytest.fixture
def old(blocking: toolkit.Store) -> toolkit.Store:
    """Points of long ago, of a dataset whose policy is to compress such."""
    for series in "abc":
        blocking.write("metrics", minutes(60 * 72), series=series)
    blocking.set_compress_after("metrics", "30d")
    return blocking


@pytest.mark.usefixtures("small_blocks")
def test_compress_is_cut_and_gone_on_with_and_ends(
    old: toolkit.Store, sql: psycopg.Connection
) -> None:
    sql.execute("DELETE FROM metrics WHERE ts >= '2024-01-01 01:00Z'")
    before = answer(old)
    (planned,) = runner.run(old, "compress", is_dry=True).planned
    assert planned.what.startswith("compress metrics_p2024")
    assert "180 points" in planned.why
    assert any("DELETE FROM" in statement for statement in planned.sql)
    assert planned.sql[-2].startswith("VACUUM (TRUNCATE ON")
    assert planned.sql[-1].splitlines()[1].startswith("REINDEX TABLE CONCURRENTLY")
    moved, status, runs = 0, CUT, 0
    while status == CUT:
        report = runner.run(old, "compress", ["metrics"], max_runtime=0.2)
        moved, status, runs = moved + report.counts.get("points_moved", 0), report.status, runs + 1
        assert answer(old) == before
        assert runs < 60
    assert runs > 1
    assert (status in (DONE, NOTHING), moved) == (True, 180)
    assert runner.run(old, "compress").status == NOTHING
    assert not errors(old)  # who has no time left is none
    assert runner.run(old, "compress", ["candles"]).status == SKIPPED  # it has no policy


def errors(store: toolkit.Store) -> list[str]:
    return [name for name in store.stats() if name.startswith("errors_")]


def test_a_partition_whose_space_was_not_given_back_is_given_it_and_nothing_else(
    old: toolkit.Store, sql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:  # as by a run that was killed before
        patch.setattr(packer, "reclaim", kept)
        assert runner.run(old, "compress").counts["points_moved"] == 3 * 60 * 72
    (planned,) = runner.run(old, "compress", is_dry=True).planned
    assert "its space was not given back" in planned.why
    *refreshing, vacuum, reindex = planned.sql
    assert tuple(refreshing) == old.refresh_statements("metrics")
    assert vacuum.splitlines()[1].startswith("VACUUM (TRUNCATE ON")
    assert reindex.splitlines()[1].startswith("REINDEX TABLE CONCURRENTLY")
    report = runner.run(old, "compress")
    assert report.counts["row_bytes_freed"] > 128 << 10
    assert runner.run(old, "compress").status == NOTHING


async def kept(*args: Any, **options: Any) -> int:
    return 0


def test_a_partition_that_cannot_be_compressed_keeps_no_other_back(
    old: toolkit.Store, sql: psycopg.Connection
) -> None:
    for month in (2, 3):
        old.write("metrics", minutes(10, datetime(2024, month, 1, tzinfo=UTC)), series="a")
    first = old.partitions("metrics")[0].name
    sql.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE 'not in here'; END $$"
    )
    sql.execute(
        f"CREATE TRIGGER refuse BEFORE DELETE ON {first} FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    report = runner.run(old, "compress")
    assert (report.status, len(report.failed), len(report.done)) == (FAILED, 1, 2)
    assert f"compress {first}: " in report.failed[0]
    assert report.counts["points_moved"] == 20


def test_late_points_are_folded_in_and_blocks_are_read_once_a_period(
    old: toolkit.Store, sql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert runner.run(old, "recompress").status == NOTHING  # there are no blocks
    assert runner.run(old, "verify").status == NOTHING
    assert runner.run(old, "compress").counts["points_moved"] == 3 * 60 * 72
    late = minutes(30)
    old.write("metrics", {**late, "value": late["value"] + 7}, series="b")
    before = answer(old)
    report = runner.run(old, "recompress")
    assert (report.status, report.counts["points_moved"]) == (DONE, 30)
    assert (runner.run(old, "recompress").status, answer(old)) == (NOTHING, before)

    monkeypatch.setattr(looked, "SERIES", 2)  # an act reads those of two
    assert runner.run(old, "verify", max_runtime=0.0001).status == CUT
    assert len(runner.run(old, "verify", is_dry=True).planned) == 2
    said: list[str] = []

    def stop_at_the_second(text: str) -> None:
        said.append(text)
        if "from 'c'" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.run(old, "verify", say=stop_at_the_second)
    assert "2 series from 'a'" in said[0]
    (report,) = runner.maintain(old, ["verify"])  # goes on there
    assert (report.status, report.counts["points_decoded"]) == (DONE, 60 * 72)
    sql.execute("DELETE FROM job_run")
    assert [r.status for r in runner.maintain(old, ["verify"])] == [NOTHING]
    by_hand = runner.run(old, "verify")  # whenever they were read
    assert (by_hand.status, by_hand.counts["points_decoded"]) == (DONE, 3 * 60 * 72)

    sql.execute("UPDATE looked_at SET at = now() - interval '31 days'")
    old.write("metrics", {**late, "value": late["value"] + 9}, series="a")
    sql.execute("UPDATE metrics_blocks SET value = '\\x00' WHERE series_id = 1")
    report = runner.run(old, "verify")
    assert (report.status, report.counts["points_decoded"]) == (FAILED, 60 * 72)
    assert "damaged block" in report.failed[0]
    assert "'a'" in report.failed[0]
    assert runner.run(old, "verify").status == FAILED  # until it is repaired
    for job in ("refresh", "recompress"):  # these fail, too, and end
        assert runner.run(old, job).status == FAILED


def test_the_audit_job_repairs_and_looks_whenever_it_is_asked_to(
    old: toolkit.Store, sql: psycopg.Connection
) -> None:
    old.refresh("metrics")
    before = answer(old)
    for _ in range(2):
        sql.execute("UPDATE metrics_1h SET value_max = 7 WHERE ts = '2024-01-02 05:00Z'")
        assert answer(old) != before
        report = runner.run(old, "audit", ["metrics"])
        assert (report.status, report.counts["buckets_repaired"]) == (DONE, 3)
        assert answer(old) == before
    assert runner.run(old, "refresh").status == NOTHING


def test_the_audit_job_looks_at_partitions_and_at_buckets_where_none_can_be(
    old: toolkit.Store, sql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    old.refresh("metrics")
    spans = [str(p.span) for p in old.partitions("metrics")]

    def looked_at() -> list[str]:
        planned = runner.run(old, "audit", ["metrics"], is_dry=True).planned
        return [act.what.split(" ", 2)[2].partition("),")[0] + ")" for act in planned]

    assert looked_at() == spans
    sql.execute("INSERT INTO metrics_1h (series_id, ts) VALUES (1, '2024-12-31 05:00Z')")
    (gap,) = set(looked_at()) - set(spans)
    assert gap.startswith(f"[{spans[-1].partition(', ')[2][:-1]},")
    assert runner.run(old, "audit", ["metrics"]).counts["buckets_repaired"] == 1
    assert looked_at() == spans
    # a partition that is made at the start of a gap was not looked at with it
    sql.execute("INSERT INTO metrics_1h (series_id, ts) VALUES (1, '2024-12-31 05:00Z')")
    runner.run(old, "audit")
    often = replace(old.settings.maintenance, audit="30d")
    monkeypatch.setattr(old, "settings", replace(old.settings, maintenance=often))
    sql.execute("DELETE FROM job_run")
    assert [r.status for r in runner.maintain(old, ["audit"])] == [NOTHING]
    end = old.partitions("metrics")[-1].span.end
    made = [to_datetime(end), to_datetime(end + 1)]
    sql.execute("SELECT ensure_partitions('metrics', %s, %s)", made)
    sql.execute("DELETE FROM job_run")
    (report,) = runner.maintain(old, ["audit"])
    (done,) = report.done
    assert str(old.partitions("metrics")[-1].span) in done
    assert old.partitions("metrics")[-1].span.start == end


def series_read(report: Report) -> int:
    return report.counts.get("points_decoded", report.counts.get("points_read", 0)) // (60 * 72)


@pytest.mark.parametrize("job", ["verify", "audit"])
def test_what_reads_everything_ends_in_its_time_and_goes_on_from_there(
    old: toolkit.Store, monkeypatch: pytest.MonkeyPatch, job: str
) -> None:
    """Each part takes as long as there is time: then one more may be read, and no more."""
    runner.run(old, "compress")
    old.refresh("metrics")
    monkeypatch.setattr(looked, "AT_ONCE", 1)
    often = replace(old.settings.maintenance, audit="30d")
    monkeypatch.setattr(old, "settings", replace(old.settings, maintenance=often))
    real = getattr(toolkit.Store, job)

    def slowly(*args: Any, **options: Any) -> Any:
        found = real(*args, **options)
        if found.points:
            time.sleep(0.6)
        return found

    monkeypatch.setattr(toolkit.Store, job, slowly)
    found, statuses = [], []
    while not statuses or statuses[-1] == CUT:
        (report,) = runner.maintain(old, [job], max_runtime=0.6)
        found.append(series_read(report))
        statuses.append(report.status)
        assert len(found) < 9
    assert [n for n in found if n] == [1, 1, 1]  # each series once
    assert set(statuses[:-1]) == {CUT}
    assert runner.maintain(old, [job]) == []


@pytest.mark.usefixtures("small_blocks")
def test_a_read_that_is_cut_amid_blocks_is_not_noted(
    old: toolkit.Store, sql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifier, "_AT_ONCE", 1)
    sql.execute("DELETE FROM metrics WHERE ts >= '2024-01-01 01:00Z'")
    runner.run(old, "compress")

    def wait(text: str) -> None:
        if "blocks" in text:
            time.sleep(1)

    report = runner.run(old, "verify", max_runtime=1, say=wait)
    assert (report.status, report.counts["blocks_read"]) == (CUT, 1)
    assert not errors(old)
    assert sql.execute("SELECT count(*) FROM looked_at").fetchone() == (0,)
