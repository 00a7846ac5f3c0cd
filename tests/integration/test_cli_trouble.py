"""The command line when the database or the user stands in the way: a sentence and an exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from fix_cli import COMMAND, Run, in_pieces, interrupted, write_bars
from fix_servers import Database, give_up
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import toolkit
from toolkit.catalog import VERSION_TABLE
from toolkit.cli import main
from toolkit.errors import DatabaseError
from toolkit.local.account import choose_account

DELETE = ("delete", "candles", "BTC-USD", "2024-01-02", "2024-01-03")
LATE = "NEW.close >= 15000"
TOOLKIT = (sys.executable, "-c", COMMAND)


@pytest.fixture
def bars(tmp_path: Path) -> Path:
    return write_bars(tmp_path / "bars.csv", 20_000)


def load(path: Path, *options: str) -> tuple[str, ...]:
    return ("load", str(path), "--dataset", "candles", "--series", "BTC-USD", *options)


def admin(database: Database, statement: str) -> list[Any]:
    with psycopg.connect(database.admin_dsn, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def other(dsn: str, **parts: Any) -> str:
    """The same conninfo with other parts."""
    return make_conninfo(dsn, **parts)


# -- the schema ---------------------------------------------------------------------------------


def test_schema_goes_up_and_down(empty_database: Database, run: Run) -> None:
    dsn = empty_database.dsn
    before = json.loads(run("migrate", "status", "--json", dsn=dsn, code=1).stdout)
    assert (before["current"], before["is_current"]) == (None, False)
    assert [r["id"] for r in before["pending"]][:3] == ["0001", "0002", "0003"]
    assert "missing: 0001" in run("migrate", "status", dsn=dsn, code=1).stdout
    assert "is at 0001; missing: 0002" in run("migrate", "up", "0001", dsn=dsn).stdout
    applied = json.loads(run("migrate", "history", "--json", dsn=dsn).stdout)
    assert [r["is_applied"] for r in applied][:2] == [True, False]
    assert "the newest" in run("migrate", "up", dsn=dsn).stdout
    assert "the newest" in run("migrate", "status", dsn=dsn).stdout
    assert "nothing was done" in run("migrate", "down", dsn=dsn, code=1, input="n\n").stderr
    run("migrate", "down", "--yes", dsn=dsn)
    base = run("migrate", "down", "base", "--yes", "--json", dsn=dsn)
    assert json.loads(base.stdout)["current"] is None
    assert "is at nothing" in run("migrate", "status", dsn=dsn, code=1).stdout


def test_offline_sql_makes_what_migrate_makes(empty_database: Database, run: Run) -> None:
    text = run("migrate", "sql", dsn=empty_database.dsn).stdout
    with psycopg.connect(empty_database.dsn, autocommit=True) as connection:
        connection.execute(text.encode())
    assert "the newest" in run("migrate", "status", dsn=empty_database.dsn).stdout


def test_unknown_revision_is_a_sentence(run: Run) -> None:
    assert "9999" in run("migrate", "up", "9999", code=1).stderr


def test_migration_that_somebody_else_runs_is_exit_code_4(database: Database, run: Run) -> None:
    with psycopg.connect(database.dsn) as connection:
        connection.execute(
            "SELECT pg_advisory_lock(hashtextextended('toolkit migrate toolkit', 0))"
        )
        result = run("migrate", "up", "--wait", "0", code=4)
    assert "another migration" in result.stderr
    assert "server process" in result.stderr


def test_proposed_migration_makes_the_dataset(
    empty_database: Database, run: Run, tmp_path: Path
) -> None:
    path = tmp_path / "fills.csv"
    path.write_text(
        "Time,Fill Price,qty,maker\n"
        "2024-01-01T00:00:00Z,1.5,3,true\n2024-01-01T00:00:01Z,1.6,4,false\n"
    )
    propose = ("datasets", "propose", str(path), "--name", "fills")
    result = run(*propose)
    module: dict[str, Any] = {}
    exec(compile(result.stdout, "fills.py", "exec"), module)
    declared = module["FILLS"]
    assert declared.to_mapping() == json.loads(run(*propose, "--json").stdout)
    assert [(c.name, c.type) for c in declared.columns] == [
        ("fill_price", "float"),
        ("qty", "int"),
        ("maker", "bool"),
    ]
    assert "column 'Fill Price' is called fill_price" in result.stderr


# -- the database -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [("datasets",), ("series", "candles"), ("stats",), ("refresh",)]
)
def test_database_that_is_not_migrated_says_what_to_run(
    empty_database: Database, run: Run, command: tuple[str, ...]
) -> None:
    result = run(*command, dsn=empty_database.dsn, code=1)
    assert result.stderr.count("\n") == 1
    assert "is not migrated; run: toolkit migrate up" in result.stderr


def test_revision_that_is_ahead_says_to_upgrade_the_package(
    database: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin(database, f"UPDATE toolkit.{VERSION_TABLE} SET version_num = '9999'")
    assert "upgrade the package" in run("datasets", code=1).stderr
    assert "upgrade the package" in run("migrate", "up", code=1).stderr
    assert "does not know" in run("migrate", "status", code=1).stdout
    monkeypatch.setenv("TOOLKIT_DATABASE_ALLOW_NEWER_SCHEMA", "true")
    assert "candles" in run("datasets").stdout


def test_wrong_password_user_or_database_is_exit_code_3(database: Database, run: Run) -> None:
    refused = run("datasets", dsn=other(database.dsn, password="wr0ng"), code=3)
    assert "the server refused the connection" in refused.stderr
    for parts in ({"password": "wr0ng"}, {"user": "nobody_here"}, {"dbname": "no_such_db"}):
        for command in ("datasets", "migrate status"):
            result = run(*command.split(), dsn=other(database.dsn, **parts), code=3)
            assert result.stderr.count("\n") == 1
            assert "wr0ng" not in result.stderr


def test_server_that_is_down_or_unknown_is_exit_code_3(database: Database, run: Run) -> None:
    for parts in ({"port": 1}, {"host": "no-such-host.invalid"}):
        for command in ("datasets", "migrate status"):
            result = run(*command.split(), dsn=other(database.dsn, **parts), code=3)
            assert "cannot be reached" in result.stderr


def test_read_only_database_is_read_and_says_no_to_writes(
    database: Database, run: Run, bars: Path
) -> None:
    run(*load(bars))
    admin(database, f"ALTER DATABASE {database.name} SET default_transaction_read_only = on")
    assert "20,000 rows" in run("query", "candles", "2024-01-01", "2024-02-01").stdout
    for command in (
        load(bars),
        ("delete", "candles", "BTC-USD", "2024-01-01", "2024-01-02", "--yes"),
        ("label", "candles", "BTC-USD", "a=b"),
        ("refresh", "candles"),
        ("migrate", "down", "--yes"),
    ):
        assert "the server is read-only" in run(*command, code=1).stderr
    assert "checked, nothing stored" in run(*load(bars, "--dry-run")).stdout


@pytest.fixture
def full(database: Database) -> Iterator[Database]:
    """The database with new tables on a disk of 400 kB; needs the right to mount one."""
    account = choose_account(Path("/"))
    if os.geteuid() != 0 or sys.platform != "linux":
        give_up("mounting a small disk needs root")
    folder = Path(tempfile.mkdtemp(prefix="timeseries-toolkit-tests-disk-"))
    options = f"size=400k,uid={account.uid},gid={account.gid},mode=0700"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=False)
    if done.returncode:
        folder.rmdir()
        give_up("this machine lets nobody mount a small disk")
    name = f"small_{database.name}_{database.version}"
    try:
        admin(database, f"CREATE TABLESPACE {name} LOCATION '{folder}'")
        admin(database, f"GRANT CREATE ON TABLESPACE {name} TO PUBLIC")
        admin(database, f"ALTER DATABASE {database.name} SET default_tablespace = {name}")
        yield database
        admin(database, f"ALTER DATABASE {database.name} RESET default_tablespace")
        with psycopg.connect(database.admin_dsn, autocommit=True) as connection:
            connection.execute("DROP TABLE toolkit.candles CASCADE")
            connection.execute(f"DROP TABLESPACE {name}".encode())
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
        folder.rmdir()


def test_full_disk_is_said_and_nothing_is_half_loaded(full: Database, run: Run, bars: Path) -> None:
    result = run(*load(bars), code=1)
    assert "the server's disk is full; nothing was stored" in result.stderr
    assert admin(full, "SELECT count(*) FROM toolkit.candles") == [(0,)]


# -- the user -----------------------------------------------------------------------------------


def test_load_that_is_interrupted_stores_nothing_of_a_file_of_one_piece(
    database: Database, bars: Path
) -> None:
    code, said = interrupted(database, "candles", LATE, *load(bars))
    assert (code, said) == (130, "Error: interrupted; nothing was stored\n")
    assert admin(database, "SELECT count(*) FROM toolkit.candles") == [(0,)]
    left = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    assert admin(database, left) == [(0,)]


def test_load_that_is_interrupted_says_what_is_stored_and_can_be_run_again(
    database: Database, bars: Path, run: Run
) -> None:
    code, said = interrupted(database, "candles", LATE, *load(bars), before=in_pieces(150_000))
    assert code == 130
    ((stored,),) = admin(database, "SELECT count(*) FROM toolkit.candles")
    assert 0 < stored < 20_000
    assert f"the first {stored:,} of 20,000 rows are stored" in said
    assert f"{20_000 - stored:,} inserted" in run(*load(bars)).stdout
    assert admin(database, "SELECT count(*) FROM toolkit.candles") == [(20_000,)]


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("form", ["--json", "--csv"])
def test_reader_of_a_pipe_that_goes_away_gets_no_complaint(
    database: Database, bars: Path, run: Run, form: str, unbuffered: str
) -> None:
    run(*load(bars))
    command = [*TOOLKIT, "query", "candles", "2024-01-01", "2024-02-01", form]
    environment = {**os.environ, "TOOLKIT_DSN": database.dsn, "PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def closed(database: Database, shell: str) -> tuple[int, str, str]:
    """Run ``toolkit`` through a shell that closes streams; return code, output and errors."""
    command = ["sh", "-c", f'"$0" "$@" {shell}', *TOOLKIT, *DELETE]
    environment = {**os.environ, "TOOLKIT_DSN": database.dsn}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, done.stdout, done.stderr


def test_closed_stream_is_a_sentence_and_an_exit_code(
    database: Database, bars: Path, run: Run
) -> None:
    run(*load(bars))
    code, _, said = closed(database, ">&-")
    assert code == 1
    assert said.startswith("Error: standard output is closed")
    assert said.count("\n") == 1
    code, _, said = closed(database, "<&-")
    assert code == 1
    assert "nothing was done: give --yes" in said
    assert "RuntimeError" not in said
    assert closed(database, "--dry-run 2>&-") == (0, "1,440 points would be deleted\n", "")
    assert admin(database, "SELECT count(*) FROM toolkit.candles") == [(20_000,)]


def test_dataset_that_cannot_be_refreshed_keeps_no_other_from_it(
    run: Run, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresh = toolkit.Store.refresh
    names = [d["name"] for d in json.loads(run("datasets", "--json").stdout)]

    def broken(store: toolkit.Store, name: str, *rest: Any, **options: Any) -> Any:
        if name == names[0]:
            raise DatabaseError("by design")
        return refresh(store, name, *rest, **options)

    monkeypatch.setattr(toolkit.Store, "refresh", broken)
    with toolkit.connect(database.dsn) as store:
        for dataset in store.datasets():
            point = {"ts": ["2024-01-01T00:00Z"], "series": ["A"]}
            store.write(dataset.name, point | {c: [1.0] for c in dataset.names if c != "side"})
    result = run("refresh", code=1)
    assert f"refresh {names[0]}: by design" in result.stderr
    said = json.loads(run("refresh", "--json", code=1).stdout)
    assert said["failed"] == [f"refresh {names[0]}: by design"]
    assert f"refresh {names[1]}" not in said["done"]  # the run before has done that


def test_unexpected_error_is_a_sentence_and_debug_shows_the_traceback(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("by design")

    monkeypatch.setattr(toolkit.Store, "series", broken)
    command = ["--dsn", database.dsn, "series", "candles"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: this should not have happened: ZeroDivisionError: by design; "
        "the same command with --debug shows where\n"
    )
    result = CliRunner().invoke(main, [*command, "--debug"])
    assert "Traceback" in result.stderr
    assert str(conninfo_to_dict(database.dsn)["password"]) not in result.stderr


def test_settings_win_flag_over_variable_over_file(
    database: Database, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("toolkit.toml").write_text(f"[database]\ndsn = '{database.dsn}'\nschema = 'no_1'\n")
    result = CliRunner().invoke(main, ["datasets"])
    assert "'no_1'" in result.stderr
    monkeypatch.setenv("TOOLKIT_SCHEMA", "no_2")
    result = CliRunner().invoke(main, ["datasets"])
    assert "'no_2'" in result.stderr
    result = CliRunner().invoke(main, ["datasets", "--schema", "toolkit"])
    assert result.exit_code == 0, result.output
