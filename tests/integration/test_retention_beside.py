"""The retention job beside other jobs and writers that are in its way, or it in theirs."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from fix_retention import DAY, START, filled, retained
from fix_servers import Database

import toolkit
from toolkit import verifier
from toolkit.config import load_settings
from toolkit_maintenance import compress, runner
from toolkit_maintenance.ground import Ground


@pytest.mark.parametrize("job", ["recompress", "verify"])
def test_who_works_on_what_it_drops_passes_it_over(
    blocking: toolkit.Store, sql: psycopg.Connection, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(blocking)
    blocking.compress("metrics", None, START, START + 21 * DAY)
    late = [START + timedelta(days=n, minutes=1) for n in range(7)]
    blocking.write("metrics", {"ts": late, "value": [1.0] * 7}, series="A")
    dropped: list[str] = []

    def drop(said: str) -> None:
        if " of " in said and not dropped:
            dropped.append(blocking.partitions("metrics")[0].name)
            for table in (dropped[0], dropped[0].replace("metrics_p", "metrics_blocks_p")):
                sql.execute(f"DROP TABLE {table}".encode())

    def late_look(ground: Ground, *args: Any, **how: Any) -> Any:
        if not dropped and job == "recompress":  # between its list of partitions and its look
            drop(" of ")
            ground.direct.fetch(f"SELECT FROM toolkit.{dropped[0]}".encode())
        return looked(ground, *args, **how)

    looked = compress._report
    monkeypatch.setattr(compress, "_report", late_look)
    report = runner.run(blocking, job, ["metrics"], say=drop)
    assert dropped
    assert report.status in ("done", "skipped", "nothing"), report
    assert not report.failed


def test_what_is_not_frozen_for_its_lock_is_not_said_to_be_written(database: Database) -> None:
    settings = load_settings(database.dsn)
    brief = replace(settings.maintenance, lock_timeout=0.2, tries=1)
    with (
        toolkit.connect(replace(settings, maintenance=brief)) as store,
        psycopg.connect(database.dsn) as writer,
    ):
        filled(store)
        writer.execute("LOCK TABLE toolkit.metrics IN ROW EXCLUSIVE MODE")
        report = retained(store, rows="30d")
        assert report.status == "failed"
        assert f"server process {writer.info.backend_pid}" in report.failed[0]
        assert len(report.failed) > 1
        assert all("what was to freeze it did not get to" in said for said in report.failed[1:])


def test_blocks_that_go_while_they_are_verified_are_no_damage(
    blocking: toolkit.Store, sql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifier, "_AT_ONCE", 1)
    filled(blocking)
    blocking.compress("metrics", None, START, START + 28 * DAY)
    tables = [p.name.replace("_p", "_blocks_p") for p in blocking.partitions("metrics") if p.blocks]
    first, second, third, *_ = tables

    def drop(*names: str) -> None:  # the partitions of rows stay
        for name in names:
            sql.execute(f"DROP TABLE IF EXISTS {name}".encode())

    report = blocking.verify("metrics", on_progress=lambda *_: drop(first, second))
    assert (report.damaged, report.blocks) == ((), 1 + 2 * (len(tables) - 2))

    said: list[str] = []

    def say(text: str) -> None:
        if " blocks" in text:
            said.append(text)
            drop(third)

    by_job = runner.run(blocking, "verify", ["metrics"], say=say)
    assert (by_job.status, by_job.failed) == ("done", ())
    assert 0 < by_job.counts["blocks_read"] <= 2 * (len(tables) - 2) - 1
