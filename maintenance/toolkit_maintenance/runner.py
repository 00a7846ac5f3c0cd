"""Runs jobs: one at a time under its lock, within its time, recorded."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime

from toolkit.drivers.direct import Direct
from toolkit.errors import Busy, DatabaseError, ToolkitError, Unavailable, UnknownName
from toolkit.opening import primary_of
from toolkit.statements import compose
from toolkit.store import Store
from toolkit_maintenance import records
from toolkit_maintenance.ground import Ground, Say
from toolkit_maintenance.job import (
    BUSY,
    CUT,
    DONE,
    FAILED,
    NOTHING,
    SKIPPED,
    Act,
    Job,
    Report,
    Skip,
)
from toolkit_maintenance.registry import JOBS

_log = logging.getLogger("toolkit_maintenance")
_NO_RIGHT = "42501"


def run(
    store: Store,
    job: str,
    targets: Iterable[str] = (),
    *,
    is_dry: bool = False,
    max_runtime: float | None = None,
    say: Say = lambda text: None,
) -> Report:
    """Run one job now, due or not, for at most ``max_runtime`` seconds; return what it did.

    ``targets`` are the datasets it is for (vacuum and reindex: tables and indexes, too); none:
    all. With ``is_dry`` nothing is changed: the report has the acts that are planned.
    """
    wanted = _job(job)
    with _session(store) as direct:
        return _run(store, direct, wanted, tuple(targets), is_dry, max_runtime, say)


def maintain(
    store: Store,
    jobs: Iterable[str] | None = None,
    *,
    is_dry: bool = False,
    max_runtime: float | None = None,
    say: Say = lambda text: None,
) -> list[Report]:
    """Run what is due, one after the other, and return a report of each job that was.

    ``jobs`` are those that may be; by default all. A job that runs already is passed over
    (``busy``), and one that fails does not keep the others from their turn. ``max_runtime``
    seconds are for all of them together: what is left is due at once the next time.
    """
    wanted = [_job(j) for j in jobs] if jobs is not None else list(JOBS.values())
    reports = []
    until = None if max_runtime is None else time.monotonic() + max_runtime
    with _session(store) as direct:
        states, now = records.read_states(direct, store.settings.schema, wanted)
        for job in wanted:
            every = store.settings.maintenance.every(job.name)
            if every is None or not states[job.name].is_due(every, now):
                continue
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                reports.append(Report(job.name, CUT))
                continue
            reports.append(_run(store, direct, job, (), is_dry, left, say))
    return reports


def _job(name: str) -> Job:
    try:
        return JOBS[name]
    except KeyError:
        raise UnknownName("job", name, JOBS) from None


@contextmanager
def _session(store: Store) -> Iterator[Direct]:
    settings = store.settings
    options = replace(settings.pool, application_name="toolkit maintain")
    with Direct(primary_of(settings), options) as direct:
        yield direct


def _run(
    store: Store,
    direct: Direct,
    job: Job,
    targets: tuple[str, ...],
    is_dry: bool,
    max_runtime: float | None,
    say: Say,
) -> Report:
    schema, started = store.settings.schema, time.monotonic()
    is_standby, now = direct.fetch(compose("jobs/look_at_server"))[0]
    if is_standby:
        standby = Skip(job.name, f"{direct.node} is a standby: it takes no writes")
        return Report(job.name, SKIPPED, now, skipped=(standby,))
    until = None if max_runtime is None else started + max_runtime
    options = store.settings.maintenance
    ground = Ground(store, direct, now, options, targets, until, is_dry, say)
    try:
        with direct.alone(f"job {schema} {job.name}"):
            if is_dry:
                return _planned(job, ground)
            number, began = records.begin(direct, schema, job.name)
            try:
                report = _acted(job, ground, began, started)
            except BaseException as error:
                why = str(error) or type(error).__name__
                report = Report(job.name, FAILED, began, failed=(f"ended by {why}",))
                _record(direct, schema, number, report, started)
                raise
            return _record(direct, schema, number, report, started)
    except Busy as error:
        return Report(job.name, BUSY, now, skipped=(Skip(job.name, str(error)),))


def _planned(job: Job, ground: Ground) -> Report:
    found = list(job.plan(ground))
    acts = tuple(f for f in found if isinstance(f, Act))
    skipped = tuple(f for f in found if isinstance(f, Skip))
    status = _status(False, [], list(acts), [s for s in skipped if not s.is_warning])
    return Report(job.name, status, ground.now, planned=acts, skipped=skipped)


def _acted(job: Job, ground: Ground, began: datetime, started: float) -> Report:
    """Do the acts of a plan until it ends, or its time does; one that fails stops no other."""
    counts: Counter[str] = Counter()
    done, skipped, failed = [], [], []
    is_cut = False
    for found in job.plan(ground):
        if isinstance(found, Skip):
            skipped.append(found)
            continue
        if ground.left is not None and ground.left <= 0:
            is_cut = True
            break
        ground.say(found.what)
        try:
            counts.update(found.do())
            done.append(found.what)
        except Unavailable:
            raise
        except DatabaseError as error:
            if error.sqlstate == _NO_RIGHT:
                skipped.append(Skip(found.what, f"{error}; toolkit check --grants says what lacks"))
                continue
            failed.append(f"{found.what}: {error}")
        except ToolkitError as error:
            failed.append(f"{found.what}: {error}")
    status = _status(is_cut, failed, done, [s for s in skipped if not s.is_warning])
    seconds = time.monotonic() - started
    return Report(
        job.name,
        status,
        began,
        seconds,
        dict(counts),
        (),
        tuple(done),
        tuple(skipped),
        tuple(failed),
    )


def _status(
    is_cut: bool, failed: Sequence[str], done: Sequence[object], skipped: Sequence[Skip]
) -> str:
    if failed:
        return FAILED
    if is_cut:
        return CUT
    if skipped:  # what could not be judged is not well
        return SKIPPED
    return DONE if done else NOTHING


def _record(direct: Direct, schema: str, number: int, report: Report, started: float) -> Report:
    report = replace(report, seconds=time.monotonic() - started)
    for said in report.failed:
        _log.warning("%s: %s", report.job, said)
    try:
        records.end(direct, schema, number, report)
    except ToolkitError as error:  # what was done is done; the next run says this one was killed
        _log.warning("the end of %s was not recorded: %s", report.job, error)
    return report
