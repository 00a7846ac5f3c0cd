"""Fixtures: the command line, called in this process, and in another to press Ctrl-C in."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result
from fix_servers import Database

from toolkit.cli import main

Run = Callable[..., Result]
COMMAND = "from toolkit.cli import main; main(prog_name='toolkit')"


@pytest.fixture
def run(database: Database) -> Run:
    """Calls the command on the test's own database; it ends with ``code``, and a sentence."""

    def run(*arguments: str, code: int = 0, dsn: str = database.dsn, **options: Any) -> Result:
        result = CliRunner().invoke(main, ["--dsn", dsn, *arguments], **options)
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result

    return run


def on_terminal(dsn: str, columns: int, *arguments: str) -> list[str]:
    """Return the lines that a command prints on a terminal so wide, without what makes it bold."""
    terminal, there = os.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    hidden = ("COLUMNS", "LINES", "NO_COLOR")
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments],
        env={k: v for k, v in os.environ.items() if k not in hidden}
        | {"TOOLKIT_DSN": dsn, "TERM": "xterm"},
        stdin=there,
        stdout=there,
        stderr=subprocess.DEVNULL,
    )
    os.close(there)
    shown = b""
    with open(terminal, "rb", 0) as screen, suppress(OSError):  # nobody is left at the other end
        while said := screen.read(10_000):
            shown += said
    assert process.wait(timeout=30) in (0, 1)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode()).splitlines()


def write_bars(path: Path, count: int, lines: dict[int, str] | None = None) -> Path:
    """Write a CSV of minute bars from 2024-01-01, perhaps with lines of one's own in it."""
    start = datetime(2024, 1, 1, tzinfo=UTC)
    text = ["ts,open,high,low,close,volume"]
    for i in range(count):
        ts = start + timedelta(minutes=i)
        text.append(f"{ts:%Y-%m-%dT%H:%M:%SZ},{i},{i + 1},{i - 1},{i + 0.5},{i % 7}")
    for number, line in (lines or {}).items():
        text[number - 1] = line
    path.write_text("\n".join(text) + "\n", "utf-8")
    return path


def in_pieces(size: int) -> str:
    """Return what to run before a command so that it reads CSV in pieces of so many bytes."""
    return (
        "from toolkit.cli.loading.delimited import DelimitedFile as F\n"
        f"F.__init__.__defaults__ = (',', {size})"
    )


def interrupted(
    database: Database, table: str, when: str, *arguments: str, before: str = ""
) -> tuple[int, str]:
    """Press Ctrl-C in a command that waits to store what is so in a table; return how it ended."""
    with psycopg.connect(database.admin_dsn, autocommit=True) as admin:
        admin.execute(
            "CREATE FUNCTION public.wait() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN PERFORM pg_advisory_xact_lock(42); RETURN NULL; END'"
        )
        admin.execute(
            f"CREATE TRIGGER wait AFTER INSERT ON toolkit.{table} FOR EACH ROW "
            f"WHEN ({when}) EXECUTE FUNCTION public.wait()".encode()
        )
        admin.execute("SELECT pg_advisory_lock(42)")
        process = subprocess.Popen(
            [sys.executable, "-c", f"{before}\n{COMMAND}", *arguments],
            env={**os.environ, "TOOLKIT_DSN": database.dsn},
            stderr=subprocess.PIPE,
        )
        _wait_for_a_lock(admin, database)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=30)[1].decode()
        admin.execute("SELECT pg_advisory_unlock(42)")
        admin.execute(f"DROP TRIGGER wait ON toolkit.{table}".encode())
    return process.returncode, said


def _wait_for_a_lock(admin: psycopg.Connection[Any], database: Database) -> None:
    for _ in range(1_500):
        found = admin.execute(
            "SELECT count(*), pg_sleep(0.02) FROM pg_stat_activity "
            "WHERE datname = %s AND wait_event_type = 'Lock'",
            [database.name],
        ).fetchone()
        if found is not None and found[0]:
            return
    raise AssertionError("no command ever waited")
