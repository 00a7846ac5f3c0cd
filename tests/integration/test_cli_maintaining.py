"""`toolkit maintain` and `toolkit jobs`: what they print, and what they exit with."""

from __future__ import annotations

import json
import re
import subprocess
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from fix_catalog import rows
from fix_cli import Run, on_terminal
from fix_jobs import Register, job
from fix_servers import Database

import toolkit
from toolkit.cli import main, maintaining
from toolkit_maintenance.job import Skip
from toolkit_maintenance.runner import _session


def test_what_is_due_runs_and_what_it_said_is_shown(
    database: Database, run: Run, register: Register
) -> None:
    register(
        job("vacuum", "SELECT 1", Skip("candles", "a gap", is_warning=True)),
        job(
            "reindex",
            Skip("candles", "statistics are too young"),
            *(Skip(f"reindex candles_p202401{d:02}", f"{d} rows", True) for d in (1, 8, 15)),
        ),
    )
    said = run("maintain")
    assert [line.split()[:2] for line in said.stdout.splitlines()[3:5]] == [
        ["vacuum", "done"],
        ["reindex", "skipped"],
    ]
    assert "acts=1" in said.stdout
    assert "vacuum: candles: a gap" in said.stdout
    assert said.stderr == ""
    assert run("maintain").stdout == "nothing is due; toolkit jobs says when something will be\n"
    assert json.loads(run("maintain", "--json").stdout) == {"dry_run": False, "reports": []}
    found = json.loads(run("maintain", "vacuum", "--json").stdout)
    (report,) = found["reports"]
    assert report["started_at"].endswith("Z")
    assert (report["status"], report["done"], report["planned"]) == ("done", ["act 1"], [])
    shown = run("jobs").stdout
    assert "reindex: candles: statistics are too young" in shown
    for lines in (said.stdout, shown):  # partitions in one line, and the job's name once
        line = "\nreindex candles_p20240101: 1 rows (and 2 more like it, to p20240115)\n"
        assert line in lines
    states = json.loads(run("jobs", "--json").stdout)
    assert [(s["job"], s["status"], s["every"], s["failures"]) for s in states] == [
        ("vacuum", "done", "10m", 0),
        ("reindex", "skipped", "1d", 0),
    ]
    assert states[0]["next_at"] > states[0]["success_at"] > ""
    assert states[1]["success_at"] is None


def test_a_dry_run_prints_sql_that_does_the_same(database: Database, run: Run) -> None:
    said = run("maintain", "--dry-run", "partitions").stdout
    assert "-- lock: SHARE UPDATE EXCLUSIVE on candles\n" in said
    assert said.endswith("-- nothing was changed\n")
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute(said.encode())
    assert json.loads(run("maintain", "partitions", "--json").stdout)["reports"][0]["status"] == (
        "nothing"
    )
    assert run("maintain", "--dry-run", "partitions").stdout == "-- partitions: nothing to do\n"


def test_exit_codes_tell_failed_from_busy_and_cron_does_not_mind_busy(
    database: Database, run: Run, register: Register
) -> None:
    register(job("vacuum", "SELECT 1"), job("reindex", "SELECT 1/0"))
    with (
        toolkit.connect(database.dsn) as store,
        _session(store) as other,
        other.alone("job toolkit vacuum"),
    ):
        said = run("maintain", "vacuum", code=4).stdout
        assert f"\nvacuum: runs already: server process {other.pid}" in said
        assert '"busy"' in run("maintain", "vacuum", "--json", code=4).stdout
        said = run("maintain", code=1).stderr
        assert said.startswith("reindex: act 1: division by zero")
        register(job("vacuum", "SELECT 1"))
        run("maintain", code=0)
    run("maintain", "vacuum")
    with psycopg.connect(database.dsn) as connection:
        connection.execute("UPDATE toolkit.job_run SET status = 'running', pid = 1")
    assert "killed" in run("jobs").stdout


def test_time_that_is_over_is_no_failure(database: Database, run: Run, register: Register) -> None:
    register(job("vacuum", "SELECT pg_sleep(1.1)", "SELECT 2"), job("reindex", "SELECT 1"))
    said = json.loads(run("maintain", "--max-runtime", "1s", "--json").stdout)
    assert [(r["status"], r["done"]) for r in said["reports"]] == [("cut", ["act 1"]), ("cut", [])]
    assert rows(database.dsn, "SELECT job, status FROM toolkit.job_run") == [("vacuum", "cut")]


def test_what_ran_is_never_to_come_whatever_the_clock_here_says(
    database: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Behind(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return datetime.now(tz) - timedelta(minutes=9)

    with psycopg.connect(database.dsn) as connection:
        connection.execute(
            "INSERT INTO toolkit.job_run (job, targets, status, started_at, ended_at, said) "
            "VALUES ('vacuum', '{}', 'done', now() - interval '190 s', now(), '{}')"
        )
    monkeypatch.setattr(maintaining, "datetime", Behind)
    (line,) = [li for li in run("jobs").stdout.splitlines() if "vacuum" in li]
    assert line.count("3 min ago") == 2
    assert "in 6 min" in line


def test_names_and_times_are_whole_on_a_narrow_terminal(database: Database) -> None:
    with psycopg.connect(database.dsn) as connection:
        connection.execute(
            "INSERT INTO toolkit.job_run (job, targets, status, started_at, ended_at, said) "
            "SELECT job, '{}', status, now() - ago, now() - ago + took, said FROM (VALUES"
            " ('partitions', 'done', interval '59 min', interval '50 s', '{}'::text[]),"
            " ('recompress', 'skipped', '23 h', '58 min', ARRAY["
            "  'make 4 partitions of trades for [2026-11-16T00:00Z, 2026-12-14T00:00Z): too long "
            "a sentence for one line: settings-checkpoint_completion_target']),"
            " ('recompress', 'done', '960 h', '99 min', '{}'),"
            " ('compress', 'killed', '40 s', '0 s', '{}')) AS r (job, status, ago, took, said)"
        )
    lines = on_terminal(database.dsn, 80, "jobs")
    shown = "\n".join(lines)
    assert max(map(len, lines)) <= 80
    found = [re.split("  +", line.strip()) for line in lines]
    assert ["partitions", "1h", "59 min ago", "done", "50.0 s", "59 min ago"] in [
        words[:6] for words in found
    ]
    day = (datetime.now(UTC) - timedelta(days=40)).date().isoformat()
    assert ["recompress", "1d", "23 h ago", "skipped", "99 min", day] in [w[:6] for w in found]
    assert ["audit", "by hand", "never"] in found
    for whole in ("2026-11-16T00:00Z,", " settings-checkpoint_completion_target"):
        assert whole in shown
    assert shown.count("partitions ") == 2  # in one table, and in what was said
    # what is too much for a line stands below, by its name again
    lines = on_terminal(database.dsn, 80, "stats")
    assert max(map(len, lines)) <= 80
    found = [line.split() for line in lines]
    assert [words[0] for words in found if words].count("candles") == 2
    assert "unfollowed" in " ".join(lines)
    assert any(words[-1:] == ["never"] for words in found)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["maintain", "vacum"], 2, "unknown job 'vacum'"),
        (["maintain", "--max-runtime", "soon"], 2, "'soon' is no time: write 90s, 10m or 1h"),
        (["maintain", "--print-cron", "vacum"], 2, "unknown job 'vacum'"),
        (["maintain", "--print-cron", "--print-systemd"], 2, "give one of the two"),
        (["metrics", "--rules", "--dashboard"], 2, "each stand alone"),
        (["metrics", "--rules", "--textfile", "x"], 2, "each stand alone"),
    ],
)
def test_bad_usage_is_a_sentence(run: Run, arguments: list[str], code: int, said: str) -> None:
    result = CliRunner().invoke(main, arguments) if "--print-cron" in arguments else None
    result = result or run(*arguments, code=code)
    assert result.exit_code == code
    assert said in result.stderr


def test_units_are_printed_without_a_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "my toolkit.toml"
    lines = ("[database]", 'dsn = "postgresql://me:hush@db/x"', "[maintenance]", 'refresh = ""')
    config.write_text("\n".join([*lines, 'partitions = "10m"', ""]))
    monkeypatch.chdir(tmp_path)
    said = CliRunner().invoke(main, ["--config", config.name, "maintain", "--print-cron"])
    line = said.stdout.splitlines()[-1]
    assert "/10 * * * * " in line
    assert f"--config '{config}' maintain --max-runtime 1h >/dev/null" in line
    assert said.stderr == ""
    monkeypatch.setenv("TOOLKIT_DSN", "postgresql://me:hush@db/x")
    bare = CliRunner().invoke(main, ["maintain", "--print-cron", "verify"])
    assert "this is for the local servers" in bare.stderr
    assert "hush" not in bare.output
    monkeypatch.delenv("TOOLKIT_DSN")
    monkeypatch.setenv("TOOLKIT_CONFIG", str(config))
    flags = ["maintain", "--print-systemd", "--max-runtime", "5m", "--json"]
    units = json.loads(CliRunner().invoke(main, flags).stdout)
    assert f'--config "{config}" maintain --max-runtime 5m' in units["toolkit-maintain.service"]
    assert "RuntimeMaxSec=360" in units["toolkit-maintain.service"]
    whole = CliRunner().invoke(main, flags[:-1]).stdout
    assert "# /etc/systemd/system/toolkit-maintain.timer\n[Unit]" in whole
    assert "hush" not in said.stdout + whole
    refused = CliRunner().invoke(main, ["--dsn", "postgresql://me:hush@db/x", *flags[:2]])
    assert refused.exit_code == 2
    assert "for others to read" in refused.stderr
    # what cron is given is a command that a shell finds
    program = line.split(None, 5)[5].split(" --config")[0]
    done = subprocess.run(["sh", "-c", f"{program} --help"], capture_output=True, check=False)
    assert done.returncode == 0
