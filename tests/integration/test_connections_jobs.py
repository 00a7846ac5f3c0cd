"""Jobs at the same time, each on a connection: one that fails, or an interrupt, ends the others."""

from __future__ import annotations

import asyncio
import signal
import threading
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from fix_servers import Database
from fix_stores import T0, minutes

import toolkit
from toolkit.drivers import drive
from toolkit.drivers.aio import AsyncDriver
from toolkit.drivers.blocking import BlockingDriver, BlockingTransaction
from toolkit.errors import DatabaseError
from toolkit.options import PoolOptions


def interrupt() -> None:
    thread = threading.main_thread().ident
    assert thread is not None
    signal.pthread_kill(thread, signal.SIGINT)


@pytest.mark.parametrize("is_interrupted", [False, True], ids=["error", "interrupt"])
def test_when_one_job_fails_the_running_ones_end_and_the_others_never_start(
    database: Database, is_interrupted: bool
) -> None:
    driver = BlockingDriver(database.dsn, PoolOptions(min_size=1, max_size=2))
    stop, running = threading.Event(), threading.Semaphore(0)
    said: list[str] = []

    async def go_on() -> None:
        running.release()
        for _ in range(200):  # short ones: a signal that comes just before a wait does not end it
            if stop.wait(0.05):
                break
        said.append("ended")

    async def fail() -> None:
        for _ in range(len(jobs) - 1):  # all others have begun
            running.acquire(timeout=10)
        if not is_interrupted:
            raise DatabaseError("no")
        interrupt()
        stop.wait(10)

    async def start_late() -> None:
        said.append("started")

    def on_error() -> None:
        said.append("told")
        stop.set()

    jobs = [go_on, fail, go_on] if is_interrupted else [go_on, fail]
    with pytest.raises(KeyboardInterrupt if is_interrupted else DatabaseError):
        drive(driver.gather(jobs, on_error=on_error))
    assert said == ["told", "ended"]
    assert drive(driver.gather([start_late])) == [None]
    drive(driver.close())


def test_when_one_task_fails_the_others_are_cancelled_and_the_caller_told_once(
    database: Database,
) -> None:
    said: list[str] = []

    async def go_on() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            said.append("ended")

    async def fail() -> None:
        raise DatabaseError("no")

    async def gather() -> None:
        driver = AsyncDriver(database.dsn, PoolOptions())
        await driver.gather([go_on, fail, go_on], on_error=lambda: said.append("told"))

    with pytest.raises(DatabaseError):
        asyncio.run(gather())
    assert said == ["told", "ended", "ended"]


def test_an_interrupted_read_leaves_no_statement_running(
    database: Database, blocking: toolkit.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolkit.fetcher.PIECE", 10)
    fetch, asked = BlockingTransaction.fetch, threading.Semaphore(5)
    question = ("metrics", "a", T0, T0 + timedelta(days=1))
    count = 0

    async def counted(self: BlockingTransaction, statement: bytes, params: Any = None) -> Any:
        nonlocal count
        count += 1
        if not asked.acquire(blocking=False):
            interrupt()
            await fetch(self, b"SELECT pg_sleep(0.1)")
        return await fetch(self, statement, params)

    blocking.write("metrics", minutes(1_000), series="a")
    monkeypatch.setattr(BlockingTransaction, "fetch", counted)
    with pytest.raises(KeyboardInterrupt):
        blocking.read(*question)
    done = count
    with psycopg.connect(database.admin_dsn) as admin:
        busy = admin.execute(
            "SELECT query FROM pg_stat_activity WHERE datname = current_database() "
            "AND application_name = 'toolkit' AND state <> 'idle'"
        ).fetchall()
    assert busy == []
    assert count == done < 20
    monkeypatch.undo()
    assert len(blocking.read(*question)) == 1_000
