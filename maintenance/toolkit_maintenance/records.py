"""Records of runs: when each job ran, how it ended, and when it is due again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from math import inf
from typing import Protocol

from toolkit.drivers import Params, Rows
from toolkit.drivers.direct import Direct
from toolkit.drivers.failures import MAINTAINERS
from toolkit.errors import DatabaseError
from toolkit.statements import compose, name
from toolkit_maintenance.job import CUT, FAILED, KILLED, RUNNING, Job, Report

_NO_RIGHT = "42501"
_AGAIN = timedelta(minutes=1)
_NEARLY = timedelta(minutes=1)  # at most


class Asks(Protocol):
    """Whoever runs a statement and returns its rows."""

    def fetch(self, statement: bytes, params: Params | None = None) -> Rows:
        """Run a statement and return its rows."""


@dataclass(frozen=True, slots=True)
class JobState:
    """How a job's runs went; times are the server's, ``seconds`` the median of those with work.

    ``status`` is that of the last run: ``killed`` if its session is gone. ``failures`` are those
    since the last success. ``every`` says how often it is due, as a step, and ``next_at`` when;
    empty and None where it never is by itself. Runs for something that was named do not count.
    """

    job: str
    status: str = ""
    started_at: datetime | None = None
    ended_at: datetime | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    said: tuple[str, ...] = ()
    success_at: datetime | None = None
    failures: int = 0
    seconds: float | None = None
    every: str = ""
    next_at: datetime | None = None

    def due_at(self, every: timedelta) -> datetime | None:
        """Return when it is due: at once (None) where it never ran, or was cut or killed.

        However many turns were missed, it is due once. After a failure it is due in a minute,
        after the next in two, in four and so on.

        >>> failed = JobState("vacuum", "failed", datetime(2026, 1, 1, 12), failures=3)
        >>> failed.due_at(timedelta(hours=1)).minute, failed.due_at(timedelta(minutes=3)).minute
        (4, 3)
        """
        if self.started_at is None or self.status in (CUT, RUNNING, KILLED):
            return None
        if self.status == FAILED:
            times = 1 << min(max(self.failures - 1, 0), 20)
            return self.started_at + min(every, _AGAIN * times)
        return self.started_at + every

    def is_due(self, every: timedelta, now: datetime) -> bool:
        """Return whether it is due, or nearly: or who looks every minute would run it every other.

        >>> state = JobState("refresh", "done", datetime(2026, 1, 1, 12, 0, 3))
        >>> state.is_due(timedelta(minutes=1), datetime(2026, 1, 1, 12, 1, 1))
        True
        """
        due = self.due_at(every)
        if due is None or self.started_at is None:
            return True
        return due - min((due - self.started_at) / 10, _NEARLY) <= now

    def turns(self, every: timedelta, now: datetime) -> float:
        """Return how many turns have passed since it ended last, at least 1; inf: it never ran.

        >>> ended = datetime(2026, 1, 1, 12)
        >>> state = JobState("refresh", "cut", ended - timedelta(hours=1), ended)
        >>> now = ended + timedelta(minutes=10)
        >>> state.turns(timedelta(minutes=1), now), state.turns(timedelta(days=1), now)
        (10, 1)
        """
        last = self.ended_at or self.started_at
        return inf if last is None else max(1, (now - last) // every)


def read_states(
    direct: Asks, schema: str, jobs: Iterable[Job]
) -> tuple[dict[str, JobState], datetime]:
    """Return every job's state by name, and the server's time."""
    names = [job.name for job in jobs]
    statement = compose("jobs/list_states", runs=name(schema, "job_run"))
    rows: Rows = direct.fetch(statement, {"jobs": names})
    found = {
        r[0]: JobState(r[0], r[1], r[2], r[3], r[4], tuple(r[5]), r[6], r[7], r[8]) for r in rows
    }
    now: datetime = direct.fetch(compose("jobs/look_at_server"))[0][1]
    return {n: found.get(n, JobState(n)) for n in names}, now


def begin(
    direct: Direct, schema: str, job: str, targets: Sequence[str] = ()
) -> tuple[int, datetime]:
    """Record that a job begins, and that runs of it which ended without a word were killed."""
    runs = name(schema, "job_run")
    try:
        direct.execute(compose("jobs/bury_runs", runs=runs), {"job": job})
    except DatabaseError as error:
        if error.sqlstate != _NO_RIGHT:
            raise
        said = f"the role lacks a privilege: it may not write to job_run; {MAINTAINERS}"
        raise DatabaseError(said, _NO_RIGHT) from error
    params = {"job": job, "targets": list(targets)}
    row = direct.fetch(compose("jobs/begin_run", runs=runs), params)[0]
    return row[0], row[1]


def end(direct: Direct, schema: str, run: int, report: Report) -> None:
    """Record how a run ended."""
    said = [*report.failed, *(str(s) for s in report.skipped)]
    params = {
        "id": run,
        "status": report.status,
        "counts": json.dumps(dict(report.counts)),
        "said": said[:50],
    }
    direct.execute(compose("jobs/end_run", runs=name(schema, "job_run")), params)
