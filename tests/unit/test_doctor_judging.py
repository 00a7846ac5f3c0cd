"""What the doctor makes of rows, without a server: chains of blockers, units, what is too much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fix_servers import PROJECT

from toolkit.config import load_settings
from toolkit.errors import ConfigError
from toolkit_maintenance.doctor.check import Answers, Facts, Thresholds
from toolkit_maintenance.doctor.finding import Finding, for_administrator
from toolkit_maintenance.doctor.machine import Machine, read_size
from toolkit_maintenance.doctor.queries import judge_slow
from toolkit_maintenance.doctor.questions import QUESTIONS
from toolkit_maintenance.doctor.registry import CHECKS
from toolkit_maintenance.doctor.servers import judge_checkpoints, judge_lag, judge_slots
from toolkit_maintenance.doctor.sessions import (
    judge_blockers,
    judge_connections,
    judge_transactions,
    judge_wraparound,
)
from toolkit_maintenance.doctor.settings import Setting, judge_setting, remarks, written
from toolkit_maintenance.doctor.tables import judge_bloat

NOW = datetime(2024, 1, 1, tzinfo=UTC)
FACTS = Facts(NOW, 180_000, "ana", "shop", False, True, None, False, "public")


def answers(sees_all: bool = True, **rows: Sequence[Sequence[Any]]) -> Answers:
    told = {question: {"primary": [tuple(r) for r in found]} for question, found in rows.items()}
    facts = {"primary": replace(FACTS, sees_all=sees_all)}
    return Answers(load_settings("dbname=shop", environ={}), (), "primary", facts, told)


def session(pid: int, *, waits: float = 0.0, behind: Sequence[int] = (), **of: Any) -> list[Any]:
    told: dict[str, Any] = {"state": "active", "seconds": 1.0, "still": 1.0} | of
    times = [told["state"], told["seconds"], told["still"], waits or None]
    return [pid, "ana", f"app{pid}", None, *times, None, list(behind), "SELECT"]


def test_who_is_ended_is_the_head_of_a_chain_and_not_who_waits_himself() -> None:
    chain = [session(1), session(2, waits=9, behind=[1]), session(3, waits=8, behind=[2])]
    seen = judge_blockers(answers(sessions=chain))
    assert seen.status == "warn"
    assert seen.fix == ("SELECT pg_terminate_backend(1)",)
    circle = [session(1, waits=400, behind=[2]), session(2, waits=400, behind=[1])]
    seen = judge_blockers(answers(sessions=circle))
    assert seen.status == "crit"
    assert len(seen.fix) in (1, 2)
    assert judge_blockers(answers(sessions=[session(1, waits=1, behind=[2])])).status == "ok"
    prepared = judge_blockers(answers(sessions=[session(1, waits=9, behind=[0])]))
    assert (prepared.status, prepared.fix) == ("warn", ())
    assert "pg_prepared_xacts" in prepared.reason


@pytest.mark.parametrize(
    ("of", "status"),
    [
        ({"seconds": 299.0}, "ok"),
        ({"seconds": 300.0}, "warn"),
        ({"seconds": 3600.0}, "crit"),
        ({"state": "idle in transaction", "still": 60.0}, "warn"),
        ({"state": "idle in transaction (aborted)", "still": 61.0}, "warn"),
        ({"state": "idle", "seconds": None, "still": 9_999.0}, "ok"),
        ({"state": None, "seconds": None, "still": None}, "ok"),
    ],
)
def test_long_transactions(of: dict[str, Any], status: str) -> None:
    rows = [session(1, **of)]
    assert judge_transactions(answers(sessions=rows)).status == status
    blind = judge_transactions(answers(False, sessions=rows)).status
    assert blind == ("unknown" if status == "ok" else status)


def test_connections_warn_before_the_last_one_is_taken() -> None:
    told = {n: judge_connections(answers(connections=[(n, 100)])).status for n in (79, 80, 95)}
    assert told == {79: "ok", 80: "warn", 95: "crit"}


def test_what_is_to_be_pasted_says_whom_it_locks_out_and_none_is_against_its_own_reason() -> None:
    rows = [("note", "note", 100 << 20, 1 << 20)]
    (fix,) = judge_bloat(answers(bloat=rows, index_sizes=[])).fix
    warning, statement = fix.split("\n")
    assert warning.startswith('-- locks "toolkit"."note": ACCESS EXCLUSIVE')
    assert statement == 'VACUUM (FULL, ANALYZE) "toolkit"."note"'
    crowded = judge_connections(answers(connections=[(95, 100)]))
    assert "cost less than more connections" in crowded.reason
    assert crowded.fix == ()


def test_the_index_of_an_emptied_partition_is_bloat_and_of_rows_nobody_counted_is_unknown() -> None:
    def seen(pages: int, rows: float) -> Finding:
        bound = "FOR VALUES FROM ('2023-01-01 00:00:00+00') TO ('2023-02-01 00:00:00+00')"
        index = (1, "candles_p20230101_pkey", "candles_pkey", 2, "candles_p20230101", "candles")
        figures = (pages, 90, rows, None, None, None)  # without statistics: there are no rows
        row = (*index, bound, "btree", False, True, 0, 64 << 20, *figures, True, True)
        return judge_bloat(answers(bloat=[], index_sizes=[row]))

    emptied = seen(0, 0.0)  # a vacuum cuts the table, and leaves its index as it was
    assert emptied.fix == ('REINDEX INDEX CONCURRENTLY "toolkit"."candles_p20230101_pkey"',)
    assert "the job reindex makes indexes anew" in emptied.reason
    assert seen(8_000, 0.0).status == "unknown"


def test_wraparound_counts_multixacts_too() -> None:
    million = 1_000_000
    rows = [("database", "shop", "shop", 9, 600 * million), ("database", "x", "x", 9, 9)]
    seen = judge_wraparound(answers(ages=rows))
    assert (seen.status, seen.fix) == ("warn", ("VACUUM (FREEZE)",))
    rows.append(("table", "candles", "candles_p1", 1_300 * million, 1))
    seen = judge_wraparound(answers(ages=rows))
    assert (seen.status, seen.fix) == ("crit", ('VACUUM (FREEZE) "toolkit"."candles"',))


def test_checkpoints_that_somebody_asked_for_are_no_fault() -> None:
    def seen(timed: int, requested: int, written: float, apart: float = 0.0) -> Finding:
        log = (1 << 30, float(1 << 29), written, NOW + timedelta(seconds=apart))
        return judge_checkpoints(answers(checkpoints=[(timed, requested, NOW, *log)]))

    gb = float(1 << 30)
    assert seen(2, 3, 90 * gb).status == "unknown"  # too few to tell
    assert seen(60, 50, 90 * gb).status == "ok"
    asked = seen(20, 80, 4 * gb)
    assert asked.status == "ok"
    assert "at most 8 because the log was full; others were asked for" in asked.reason
    full = seen(20, 80, 30 * gb)
    assert (full.status, full.evidence["log_full"]) == ("warn", 60)
    assert "up to 60 of them" in full.reason
    apart = seen(20, 80, 30 * gb, apart=90.0)
    assert (apart.status, apart.evidence["log_full"]) == ("unknown", None)
    # what is not counted since the same time tells nothing of those that were requested
    assert seen(60, 50, 0, apart=90.0).reason == "60 of 110 checkpoints came by the clock"
    # and whoever wants another setting says so once
    rows = [("max_wal_size", "1024", "MB", "sighup", False, "1024")]
    advised = judge_setting("max_wal_size", answers(settings=rows))
    assert for_administrator([full, advised]) == advised.fix
    assert advised.fix[1] == full.fix[1] == "SELECT pg_reload_conf()"
    # the larger of two, in whatever order and unit
    larger = replace(full, fix=("ALTER SYSTEM SET \"max_wal_size\" = '6144MB'", advised.fix[1]))
    assert for_administrator([larger, advised]) == larger.fix
    assert for_administrator([advised, larger]) == larger.fix


def test_what_no_setting_mends_is_named_where_settings_are_written() -> None:
    seen = Finding("settings-autovacuum", "warn", "metrics_p20240101: autovacuum is off")
    assert written([seen], "alter") == ""
    (said,) = remarks([seen], "alter")
    assert seen.reason in said
    assert "toolkit doctor --only settings-autovacuum" in said
    assert remarks([replace(seen, status="ok")], "alter") == [
        "nothing is advised for the settings that could be judged"
    ]


def test_slots_are_judged_by_what_they_keep() -> None:
    def status(*slot: Any) -> str:
        return judge_slots(answers(slots=[("s", "physical", *slot, None)])).status

    assert status(True, 1 << 20, "reserved") == "ok"
    assert status(False, None, None) == "ok"  # never used: keeps nothing
    assert status(False, 1 << 20, "reserved") == "warn"
    assert status(True, 2 << 30, "extended") == "warn"
    assert status(False, 11 << 30, "extended") == "crit"
    assert status(False, None, "lost") == "crit"


def test_lag_that_is_not_known_is_unknown() -> None:
    assert judge_lag(answers(lag=[("r", None, None, ())])).status == "unknown"
    assert judge_lag(answers(lag=[("r", 100 << 20, None, ())])).status == "warn"
    assert judge_lag(answers(lag=[("r", 100 << 20, 0.1, ())])).status == "ok"  # much, but young
    assert judge_lag(answers(lag=[("r", 0, 11.0, ())])).status == "warn"


def test_a_snapshot_of_before_a_reset_is_not_compared_with() -> None:
    limits = Thresholds()
    then = NOW - timedelta(hours=1)
    rows = [(7, 20, 2_000.0, 20, 0, 0, "SELECT 1"), (8, 9, 90_000.0, 9, 0, 0, "VACUUM candles")]
    kept = {"7": [10, 100.0]}
    both = {"statements": rows, "statements_since": [(then, 0)]}
    seen = judge_slow(answers(**both, snapshot=[(NOW, then, kept)]))
    assert seen.objects[0].figures["shift"] == 19.0
    assert seen.evidence["count"] == 1  # a vacuum takes its time
    assert seen.objects[0].figures["mean_ms"] < limits.slow_s * 1000
    seen = judge_slow(answers(**both, snapshot=[(NOW, NOW, kept)]))
    assert seen.status == "unknown"


@pytest.mark.parametrize(
    ("setting", "value", "shown", "counted"),
    [
        (Setting("a", "16384", "8kB", "postmaster", False, None), 128 << 20, "128MB", "16384"),
        (Setting("b", "4096", "kB", "user", False, None), 1536 << 10, "1536kB", "1536"),
        (Setting("c", "300", "s", "sighup", False, None), 900.0, "15min", "900"),
        (Setting("d", "-1", "ms", "superuser", False, None), 0.25, "250ms", "250"),
        (Setting("d", "64", "8kB", "postmaster", False, None), -1, "-1", "-1"),
        (Setting("e", "4", "", "user", False, None), 1.1, "1.1", "1.1"),
    ],
)
def test_values_are_shown_with_units_and_counted_in_their_own(
    setting: Setting, value: float, shown: str, counted: str
) -> None:
    assert setting.shown(value) == shown
    assert setting.counted(value) == counted


def test_every_check_is_on_its_page_and_its_id_is_there_once() -> None:
    page = (PROJECT / "docs" / "doctor.md").read_text()
    ids = [check.id for check in CHECKS]
    assert len(set(ids)) == len(ids)
    for check in CHECKS:
        key = check.id.removeprefix("settings-")
        assert f"`{check.id}`" in page or f"`{key}`" in page
        assert {*check.asks, *check.may_ask} <= set(QUESTIONS)


def test_a_machine_that_cannot_be_is_refused() -> None:
    for wrong in ({"ram": 1}, {"cpus": 0}, {"storage": "tape"}, {"workload": "play"}):
        with pytest.raises(ConfigError):
            Machine(**wrong)
    for text in ("", "16", "GB", "-1GB", "1 parsec"):
        with pytest.raises(ConfigError, match="16GB"):
            read_size(text)
