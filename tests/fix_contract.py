"""A database in which every maintenance job has something to do, and runs that are killed."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import psycopg
import pytest
from fix_servers import Database, Fleet, chosen_versions

import toolkit
from toolkit.retaining import Retention
from toolkit.store import Store

DAY = timedelta(days=1)
# of a run itself: its records, what its session is to be like, and what it measures
_OWN = re.compile(r"\b(job_run|looked_at|toolkit_sample)\b|set_config\([^()]*, false\)")
_CHANGES = re.compile(
    r"\b(INSERT INTO|MERGE INTO|UPDATE|DELETE FROM|LOCK|VACUUM|REINDEX|CREATE|ALTER|DROP|TRUNCATE"
    r"|set_config|pg_advisory_xact_lock(_shared)?|\w*_partitions(_v\d+)?\W*\()"
)


def begin(dsn: str) -> None:
    """Make work for every job: old rows, late ones over blocks, unfollowed changes, dead rows.

    Points that are past their age are of metrics, whose bars stay.
    """
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    with toolkit.connect(dsn) as store:
        for name in ("A", "B"):
            store.write("candles", bars(today - 400 * DAY, 12_000, 2_880), series=name)
        store.set_compress_after("candles", "300d")
        store.compress("candles")
        store.write("candles", bars(today - 390 * DAY, 50, 60), series="A")  # late
        store.write("candles", bars(today - 2 * DAY, 500, 60), series="B")  # unfollowed
        store.delete("candles", "B", today - 200 * DAY, today - 100 * DAY)
        hours = [today - 500 * DAY + n * DAY / 24 for n in range(24 * 60)]
        store.write("metrics", {"ts": hours, "value": np.arange(len(hours)) * 1.0}, series="M")
        store.refresh("metrics")
        store.set_retention("metrics", Retention(rows="1y", blocks="1y"))


def bars(start: datetime, count: int, seconds: int) -> dict[str, Any]:
    """Return so many candles, so many seconds apart."""
    ts = np.datetime64(start.replace(tzinfo=None), "us") + np.arange(count) * np.timedelta64(
        seconds, "s"
    )
    value = 100 + np.arange(count) % 17 / 8
    columns = dict.fromkeys(("open", "high", "low", "close"), value)
    return {"ts": ts, **columns, "volume": value}


def answers(store: Store) -> list[Any]:
    """Return what readers see of everything that no job may change."""
    found = []
    for step in (None, "1h", "1d"):
        columns = store.read("candles", ["A", "B"], "2000-01-01Z", "2100-01-01Z", step=step)
        found.append(columns.to_pandas())
    for step in ("1h", "1d"):
        found.append(
            store.read("metrics", "M", "2000-01-01Z", "2100-01-01Z", step=step).to_pandas()
        )
    return found


def statements_of(dsn: str, job: str) -> int:
    """Return how many statements a run of a job takes."""
    reading, writing = os.pipe()
    if not os.fork():
        os.close(reading)
        count = _counted(dsn, job, None)
        os.write(writing, str(count).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as line:
        said = line.read()
    os.wait()
    assert said, f"{job} has failed"
    return int(said)


def kill_at(dsn: str, job: str, statement: int, kind: bytes = b"") -> None:
    """Run a job in another process that is killed right after a statement of it, of a kind."""
    pid = os.fork()
    if not pid:
        _counted(dsn, job, statement, kind)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), f"{job} ended before its statement {statement}"


@contextmanager
def sent() -> Iterator[set[str]]:
    """Collect the statements of acts that are sent meanwhile and change or lock something."""
    found, execute = set[str](), psycopg.Cursor.execute

    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        statement = args[0].decode() if isinstance(args[0], bytes) else str(args[0])
        if _CHANGES.search(statement) and not _OWN.search(statement):
            found.add(statement)
        return execute(self, *args, **kwargs)

    psycopg.Cursor.execute = noted  # type: ignore[method-assign]
    try:
        yield found
    finally:
        psycopg.Cursor.execute = execute  # type: ignore[method-assign]


def check_is_sql(dsn: str, text: str) -> None:
    """Have the server say that it understands a statement; what it is sent later is $1."""
    assert "%(" not in text
    text = "\n".join(line for line in text.splitlines() if not line.startswith("--"))
    if text.split()[0] in ("SELECT", "WITH", "INSERT", "UPDATE", "DELETE"):
        with psycopg.connect(dsn) as session:
            session.execute(f"PREPARE it AS {text}".encode())


def is_shown(statement: str, shown: Iterable[str]) -> bool:
    """Return whether a statement, with whatever values, is among those that a dry run shows."""
    split = re.split(r"%\(\w+\)[sb]|(?<=')\d+(?='::xid8)", statement)
    parts = (re.escape(p.replace("%%", "%")) for p in split)
    pattern = re.compile("(?:--.*\n)*" + "(?s:.+)".join(parts))
    return any(pattern.fullmatch(text) for text in shown)


def _counted(dsn: str, job: str, last: int | None, kind: bytes = b"") -> int:
    from toolkit_maintenance.runner import run

    count, execute = 0, psycopg.Cursor.execute

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal count
        result = execute(self, *args, **kwargs)
        count += not kind or (isinstance(args[0], bytes) and args[0].startswith(kind))
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    psycopg.Cursor.execute = counted  # type: ignore[method-assign]
    try:
        with toolkit.connect(dsn) as store:
            report = run(store, job)
        assert not report.failed, report
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    return count


@pytest.fixture(scope="session", params=chosen_versions()[:1], ids="pg{}".format)
def worn(request: pytest.FixtureRequest, fleet: Fleet) -> Iterator[str]:
    """The name of a database with work for every job; nobody may stay connected."""
    server = fleet.server(request.param)
    made = server.database(server.template())
    begin(made.dsn)
    yield made.name
    server.drop(made)


@pytest.fixture
def worn_database(worn: str, fleet: Fleet) -> Iterator[Database]:
    """A copy of it for one test."""
    server = fleet.server(chosen_versions()[0])
    database = server.database(worn)
    yield database
    server.drop(database)
