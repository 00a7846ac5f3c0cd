"""What holds for every job: again it does nothing, two are one too many, killed it is finished."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import psycopg
import pytest
from fix_contract import answers, check_is_sql, is_shown, kill_at, sent, statements_of
from fix_servers import Database, Fleet, chosen_versions
from fix_stores import end_sessions

import toolkit
from toolkit_maintenance.job import BUSY, DONE, NOTHING, Report
from toolkit_maintenance.registry import JOBS
from toolkit_maintenance.runner import _session, maintain, run

EVERY = pytest.mark.parametrize("job", JOBS)
LOOKS_AGAIN = ("audit", "verify")  # by hand, whenever it was last


def is_well(report: Report) -> bool:
    return report.status in (DONE, NOTHING)


def is_at_rest(report: Report) -> bool:
    """Whether a run found nothing to do."""
    if report.job in LOOKS_AGAIN:
        return is_well(report) and not report.counts.get("buckets_repaired")
    return is_well(report) and report.status != DONE


@EVERY
def test_a_dry_run_says_what_is_done_and_does_none_of_it(worn_database: Database, job: str) -> None:
    with toolkit.connect(worn_database.dsn) as store:
        before = answers(store)
        dry = run(store, job, is_dry=True)
        assert run(store, job, is_dry=True).planned == dry.planned
        assert all(act.what and act.sql and act.lock for act in dry.planned)
        for text in {text for act in dry.planned for text in act.sql}:
            check_is_sql(worn_database.dsn, text)
        with sent() as statements:
            done = run(store, job)
        assert done.failed == ()
        shown = [text for act in dry.planned for text in act.sql]
        assert [s for s in statements if not is_shown(s, shown)] == []
        assert set(done.done) >= {act.what for act in dry.planned}
        assert bool(done.done) == bool(dry.planned)
        for one, other in zip(before, answers(store), strict=True):
            pd.testing.assert_frame_equal(one, other, check_exact=True)
        assert is_at_rest(run(store, job))


@EVERY
def test_two_at_once_are_one_too_many(worn_database: Database, job: str) -> None:
    with toolkit.connect(worn_database.dsn) as store, _session(store) as other:
        with other.alone(f"job toolkit {job}"):
            report = run(store, job)
            assert report.status == BUSY
            assert str(other.pid) in str(report.skipped[0])
            assert [r.status for r in maintain(store, [job], always=True)] == [BUSY]
        assert is_well(run(store, job))


@EVERY
@pytest.mark.parametrize(
    "kills", [3, pytest.param(10_000, marks=[pytest.mark.soak, pytest.mark.timeout(3_600)])]
)
def test_killed_after_any_statement_the_next_run_finishes(
    worn: str, fleet: Fleet, job: str, kills: int, tell: Callable[[str], None]
) -> None:
    server = fleet.server(chosen_versions()[0])
    copy = server.database(worn)
    with toolkit.connect(copy.dsn) as store:
        before = answers(store)
    count = statements_of(copy.dsn, job)
    server.drop(copy)
    stride = max(1, count // kills)
    for number in range(1 + stride // 2, count, stride):
        copy = server.database(worn)
        kill_at(copy.dsn, job, number)
        with toolkit.connect(copy.dsn) as store:
            for one, other in zip(before, answers(store), strict=True):
                pd.testing.assert_frame_equal(one, other, check_exact=True)
            (report,) = maintain(store, [job], always=True)
            assert is_well(report), (number, report)
            assert is_at_rest(run(store, job))
            for one, other in zip(before, answers(store), strict=True):
                pd.testing.assert_frame_equal(one, other, check_exact=True)
        server.drop(copy)
        tell(f"{job} killed after statement {number} of {count}")


def test_all_of_them_in_turn_change_no_bar_and_come_to_rest(
    worn_database: Database,
) -> None:
    dsn = worn_database.dsn
    with toolkit.connect(dsn) as store, psycopg.connect(dsn, autocommit=True) as sql:
        before = answers(store)
        first = maintain(store, always=True)
        assert [r.job for r in first] == list(JOBS)
        assert all(is_well(r) for r in first), first
        counts = {name: count for r in first for name, count in r.counts.items()}
        assert counts["tables_dropped"] > 0
        assert counts["buckets_repaired"] == 0
        for one, other in zip(before, answers(store), strict=True):
            pd.testing.assert_frame_equal(one, other, check_exact=True)
        # a refresh follows what retention has logged; statistics come late to who vacuums
        maintain(store, ["refresh"], always=True)
        end_sessions(sql)
        maintain(store, ["vacuum"], always=True)
        assert [r for r in maintain(store, always=True) if not is_at_rest(r)] == []
        assert maintain(store) == []
