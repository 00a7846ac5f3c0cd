"""Killed anywhere: every point is there once afterwards, and the next run finishes the job."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count

import psycopg
import pytest
from fix_blocks_truth import begin, look_at_all
from fix_blocks_work import finish, work
from fix_compressing import rows_and_blocks
from fix_local import Instances, pids
from fix_processes import started
from fix_servers import ON_ONE_VERSION, WHEEL, Database, system_bin
from fix_stores import COLOURS

import toolkit
from toolkit.local import LocalServers
from toolkit.migrate import upgrade

pytestmark = ON_ONE_VERSION
WRITERS = ("writes same", "writes tide", "writes ebb", "writes grow")
KILLS = pytest.mark.parametrize(
    "kills", [6, pytest.param(200, marks=[pytest.mark.soak, pytest.mark.timeout(3_600)])]
)


def check(dsn: str, number: int) -> None:
    """Look at everything; now and then finish the job first, and see that it was all."""
    with toolkit.connect(dsn) as store:
        look_at_all(store)
        if number % 3 == 2:
            finish(store)
            look_at_all(store)
            assert rows_and_blocks(dsn)[0] == 0
        if number % 6 == 5:
            packed = rows_and_blocks(dsn)[1]
            store.decompress("candles")
            assert rows_and_blocks(dsn) == (packed, 0)


def some_work(dsn: str, chance: random.Random, number: int) -> list[tuple[object, ...]]:
    """Return who works until the kill: one that moves points, one that writes them."""
    colour = COLOURS[number % 2]
    return [
        (work, role, colour, dsn, chance.randrange(1_000))
        for role in ("packs", WRITERS[number % len(WRITERS)])
    ]


@KILLS
def test_killed_workers_leave_every_point_once(
    database: Database, tell: Callable[[str], None], kills: int
) -> None:
    chance = random.Random(4)
    with toolkit.connect(database.dsn) as store:
        begin(store)
    for number in range(kills):
        with started(*some_work(database.dsn, chance, number)) as processes:
            time.sleep(chance.random())
            for process in processes:
                assert not process.line.poll(), process.hear().wrong
                process.kill()
        check(database.dsn, number)
        tell(f"workers killed: {number + 1} of {kills}")


@KILLS
def test_a_killed_server_keeps_every_point_once(
    make_servers: Instances, server_version: str, tell: Callable[[str], None], kills: int
) -> None:
    chance = random.Random(5)
    pg_bin = None if server_version == WHEEL else system_bin(server_version)
    # a commit waits for the disk: without that a killed server may lose the newest
    servers = make_servers(settings={"fsync": "off"}, pg_bin=pg_bin)
    dsn = servers.up().dsn
    upgrade(dsn)
    with toolkit.connect(dsn) as store:
        begin(store)
    for number in range(kills):
        with started(*some_work(dsn, chance, number)) as processes:
            time.sleep(chance.random())
            assert not any(process.line.poll() for process in processes)
            kill(servers, number)
            for process in processes:
                process.kill()
        dsn = servers.up().dsn
        wait_until_it_has_recovered(dsn)
        check(dsn, number)
        tell(f"server killed: {number + 1} of {kills}")


def kill(servers: LocalServers, number: int) -> None:
    """Kill the whole server, or one of its processes: then it ends all others, and recovers."""
    if number % 2 == 0:
        os.kill(pids(servers)[0], signal.SIGKILL)
        return
    with psycopg.connect(servers.up().dsn, autocommit=True) as sql:
        while True:
            row = sql.execute(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
                "AND backend_type = 'client backend' AND pid <> pg_backend_pid() "
                "ORDER BY state = 'active' DESC, random() LIMIT 1"
            ).fetchone()
            assert row is not None
            with suppress(ProcessLookupError):  # it has ended meanwhile: another one then
                os.kill(row[0], signal.SIGKILL)
                return


def wait_until_it_has_recovered(dsn: str) -> None:
    deadline = time.monotonic() + 60
    for _ in count():
        try:
            with psycopg.connect(dsn) as sql:
                sql.execute("SELECT count(*) FROM toolkit.candles")
                return
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
