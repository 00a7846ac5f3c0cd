"""Processes that share Redis see nothing older than they were promised, and fetch a span once.

TRAPS 33, 41, 42.
"""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from fix_cache import DAY, Counter, minutes
from fix_cache_servers import CacheServer
from fix_processes import Seen, ask, count_up, started, watch
from fix_servers import ON_ONE_VERSION, Database, Fleet
from fix_stores import COLOURS, cached

import toolkit
from toolkit.options import CacheOptions

pytestmark = ON_ONE_VERSION
MAX_AGE = CacheOptions().max_age
PATIENT = 5.0  # no fault is meant, and none may come from a busy machine
BATCH = 50  # rounds until the reader tells what it saw
ROUNDS = 250  # commits beside which somebody read, of each of eight tests
PATIENCE = 60.0
LEASE = 2.0
SOON = 1.5  # a busy machine's "at once"
CALLERS = 16
_POINTS = b'FROM "toolkit"."metrics" AS t'
TOTAL = float(np.arange(1440).sum())


# -- a read that overlaps a write ---------------------------------------------------------------


def stale(counters: list[Counter], seen: list[Seen], who: int | None) -> list[Any]:
    """Return every read that missed what it was promised, or saw what nobody had written."""
    wrong = []
    for one in seen:
        for counter, value in zip(counters, one.values, strict=True):
            is_own = who is not None and counter.who == who
            bound = 0.0 if one.fresh == "strong" or is_own else MAX_AGE
            least = counter.floor(one.called - bound)
            if not least <= value <= counter.floor(one.answered) + 1:
                wrong.append((one.fresh, counter.minute, value, least))
    return wrong


def overlapped(counters: list[Counter], seen: list[Seen], fresh: str | None) -> set[float]:
    """Return the commits within a millisecond of which a read ran."""
    near = [c.near(s.called, s.answered) for s in seen if s.fresh == fresh for c in counters]
    return {commit for commits in near for commit in commits}


@pytest.mark.parametrize(
    "rounds", [ROUNDS, pytest.param(2_000, marks=[pytest.mark.soak, pytest.mark.timeout(1_200)])]
)
@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("colour", COLOURS)
def test_trap_reads_of_one_process_that_overlap_writes_of_another_are_never_stale(
    database: Database, cache_server: CacheServer, protocol: int, colour: str, rounds: int
) -> None:
    url = f"{cache_server.url}?protocol={protocol}"
    settings = cached(database.dsn, redis=url, redis_timeout=PATIENT)
    with toolkit.connect(database.dsn) as store:
        store.write("metrics", minutes(1, 0.0), series="a")
    near: dict[str | None, set[float]] = {"strong": set(), None: set()}
    wrong: list[Any] = []
    with started((watch, colour, settings), (count_up, settings, rounds)) as (reader, writer):
        until = time.monotonic() + PATIENCE * rounds / ROUNDS
        while len(near["strong"]) < rounds and not wrong and time.monotonic() < until:
            reader.say(BATCH)
            seen, stats = reader.hear()
            writer.say("tell")
            counters, own, written = writer.hear()
            wrong += stale(counters, seen, who=None) + stale(counters, own, who=1)
            for fresh in near:
                near[fresh] |= overlapped(counters, seen, fresh)
        clients = [c for c in cache_server.admin.client_list() if c["name"] == "toolkit"]
    assert wrong == []
    assert len(near["strong"]) >= rounds
    assert len(near[None]) >= rounds // 10  # most of these take microseconds
    assert {c["resp"] for c in clients} == {str(protocol)}
    assert [s["redis_outages"] for s in (*stats, written)] == [0, 0, 0]
    assert stats[0]["redis_hits"] > 0


# -- many callers of one span -------------------------------------------------------------------


class Log:
    """The statements that a server was sent by one database's clients, as it wrote them down."""

    def __init__(self, fleet: Fleet, database: Database) -> None:
        server = fleet.server(database.version)
        self._path: Path = server.local.layout.logs / "postgres.log"
        server.admin.execute(
            f"ALTER ROLE toolkit IN DATABASE {database.name} SET log_statement = 'all'"
        )
        self._from = self._path.stat().st_size

    def begin(self) -> None:
        """Forget what was said until now."""
        self._from = self._path.stat().st_size

    def fetches(self) -> int:
        """How many times points were asked for."""
        with self._path.open("rb") as file:
            file.seek(self._from)
            said = re.split(rb"\n(?=\d{4}-\d\d-\d\d )", file.read())
        # LOG, not STATEMENT: that is what an error was about, as that a client has gone
        return sum(b"LOG:  " in entry and _POINTS in entry for entry in said)


@pytest.fixture
def log(fleet: Fleet, database: Database) -> Log:
    with toolkit.connect(database.dsn) as store:
        store.write("metrics", minutes(1), series="a")
    return Log(fleet, database)


def askers(dsn: str, url: str) -> list[tuple[Any, ...]]:
    """Four processes, two of each colour, that the server can tell from each other."""
    roles = []
    for number, colour in enumerate(COLOURS * 2):
        settings = cached(dsn, redis=url, redis_timeout=PATIENT)
        pool = replace(settings.pool, application_name=f"asker {number}")
        roles.append((ask, colour, replace(settings, pool=pool), CALLERS, DAY))
    return roles


def test_64_callers_in_4_processes_cost_one_query(
    database: Database, cache_server: CacheServer, log: Log
) -> None:
    with started(*askers(database.dsn, cache_server.url)) as processes:
        log.begin()
        for process in processes:
            process.say("go")
        found = [value for process in processes for value in process.hear()]
    assert found == [TOTAL] * 4 * CALLERS
    assert log.fetches() == 1


def waiting(sql: psycopg.Connection) -> list[str]:
    """Who waits for a lock, in order of asking."""
    rows = sql.execute(
        "SELECT application_name FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        " AND datname = current_database() ORDER BY query_start"
    )
    return [str(name) for (name,) in rows]


def until_waiting(sql: psycopg.Connection, many: int) -> list[str]:
    deadline = time.monotonic() + PATIENCE
    while len(found := waiting(sql)) < many:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return found


@pytest.mark.parametrize("colour", COLOURS)
def test_a_killed_holder_of_a_lease_costs_one_more_query(
    database: Database, cache_server: CacheServer, log: Log, colour: str
) -> None:
    first = COLOURS.index(colour)
    with (
        started(*askers(database.dsn, cache_server.url)) as processes,
        psycopg.connect(database.admin_dsn, autocommit=True) as sql,
        psycopg.connect(database.admin_dsn) as lock,
    ):
        log.begin()
        lock.execute("LOCK TABLE toolkit.metrics IN ACCESS EXCLUSIVE MODE")
        processes[first].say("go")
        assert until_waiting(sql, 1) == [f"asker {first}"]
        others = [p for p in processes if p is not processes[first]]
        for process in others:
            process.say("go")
        processes[first].kill()
        killed = time.monotonic()
        assert len(until_waiting(sql, 2)) == 2
        assert time.monotonic() - killed < LEASE + SOON
        lock.rollback()
        freed = time.monotonic()
        found = [value for process in others for value in process.hear()]
        assert time.monotonic() - freed < SOON
    assert found == [TOTAL] * 3 * CALLERS
    assert log.fetches() == 2
