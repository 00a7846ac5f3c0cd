"""Runs jobs: one at a time under its lock, within its time, recorded."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime

from toolkit.drivers.direct import Direct
from toolkit.errors import (
    Busy,
    DatabaseError,
    QueryError,
    QueryTimeout,
    ToolkitError,
    Unavailable,
    UnknownName,
)
from toolkit.opening import primary_of
from toolkit.statements import compose
from toolkit.store import Store
from toolkit_maintenance import partitions, records
from toolkit_maintenance.ground import Ground, Say
from toolkit_maintenance.job import (
    BUSY,
    CUT,
    DONE,
    FAILED,
    NOTHING,
    PLANNED,
    SKIPPED,
    Act,
    Job,
    Report,
    Skip,
    told,
)
from toolkit_maintenance.records import JobState
from toolkit_maintenance.registry import JOBS

_log = logging.getLogger("toolkit_maintenance")
_NO_RIGHT = "42501"


@dataclass(frozen=True, slots=True)
class _Wish:
    """What somebody wants of a run; ``always``: due or not."""

    targets: tuple[str, ...] = ()
    always: bool = False
    is_dry: bool = False
    is_forced: bool = False
    max_runtime: float | None = None
    say: Say = lambda text: None


def run(
    store: Store,
    job: str,
    targets: Iterable[str] = (),
    *,
    is_dry: bool = False,
    is_forced: bool = False,
    max_runtime: float | None = None,
    say: Say = lambda text: None,
) -> Report:
    """Run one job now, due or not, for at most ``max_runtime`` seconds; return what it did.

    ``targets`` are the datasets it is for (vacuum and reindex: tables and indexes, too); none:
    all. With ``is_dry`` nothing is changed: the report has the acts that are planned.
    ``is_forced``: what is named is done, needed or not (vacuum and reindex).
    """
    wanted = _job(job)
    wish = _Wish(tuple(targets), True, is_dry, is_forced, max_runtime, say)
    with _session(store) as direct:
        report = _run(store, direct, wanted, wish)
    assert report is not None
    return report


def maintain(
    store: Store,
    jobs: Iterable[str] | None = None,
    *,
    always: bool = False,
    is_dry: bool = False,
    max_runtime: float | None = None,
    say: Say = lambda text: None,
) -> list[Report]:
    """Run what is due, one after the other, and return a report of each job that was.

    ``jobs`` are those that may be, by default all; ``always`` takes them due or not. A job that
    runs already is passed over (``busy``), and one that fails, or whose session is ended, does
    not keep the others from their turn. ``max_runtime`` seconds are for all of them together:
    what is left is due at once the next time. Where the server is lost between two jobs it ends
    with the reports that there are, and one of the job whose turn it was.
    """
    wanted = [_job(j) for j in jobs] if jobs is not None else list(JOBS.values())
    wish = _Wish(always=always, is_dry=is_dry, say=say)
    until = None if max_runtime is None else time.monotonic() + max_runtime
    if not always:
        with _session(store) as direct:
            wanted = _due(store, direct, wanted)
    reports = []
    for job in wanted:
        left = None if until is None else until - time.monotonic()
        if left is not None and left <= 0:
            reports.append(Report(job.name, CUT))
            continue
        with ExitStack() as stack:
            try:
                direct = stack.enter_context(_session(store))
            except ToolkitError as error:
                if not reports:
                    raise
                reports.append(Report(job.name, FAILED, failed=(_why(error),)))
                break  # the others would find no server, either
            try:
                report = _run(store, direct, job, replace(wish, max_runtime=left))
                reports += [report] if report is not None else []
            except ToolkitError as error:
                reports.append(Report(job.name, FAILED, failed=(_why(error),)))
            except Exception as error:
                _log.exception("%s: this should not have happened", job.name)
                reports.append(Report(job.name, FAILED, failed=(_why(error),)))
    return reports


def jobs(store: Store) -> list[JobState]:
    """Return how each job's runs went, and when it is due again."""
    return jobs_at(store)[0]


def jobs_at(store: Store) -> tuple[list[JobState], datetime]:
    """Return the same, and the server's time, by whose clock these times are."""
    with _session(store) as direct:
        states, now = records.read_states(direct, store.settings.schema, JOBS.values())
    options, found = store.settings.maintenance, []
    for state in states.values():
        every = options.every(state.job)
        next_at = None if every is None else state.due_at(every) or now
        step = getattr(options, state.job)
        found.append(replace(state, every=step, next_at=next_at))
    return found, now


def _due(store: Store, direct: Direct, wanted: list[Job]) -> list[Job]:
    """Return those that are due: who has missed the most turns first, so that none starves.

    Among those that have missed none it is their own order; without a partition writes wait.
    """
    options = store.settings.maintenance
    states, now = records.read_states(direct, store.settings.schema, wanted)
    found = []
    for job in wanted:
        every, state = options.every(job.name), states[job.name]
        if every is not None and state.is_due(every, now):
            found.append((job.name != partitions.JOB.name, -state.turns(every, now), job))
    return [job for *_, job in sorted(found, key=lambda f: f[:2])]


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


def _run(store: Store, direct: Direct, job: Job, wish: _Wish) -> Report | None:
    """Run a job; None if it is not due any more, for somebody has just done so."""
    started = time.monotonic()
    is_standby, now = direct.fetch(compose("jobs/look_at_server"))[0]
    if is_standby:
        standby = Skip(job.name, f"{direct.node} is a standby: it takes no writes")
        return Report(job.name, SKIPPED, now, skipped=(standby,))
    ground = Ground(
        store,
        direct,
        now,
        store.settings.maintenance,
        wish.targets,
        until=None if wish.max_runtime is None else started + wish.max_runtime,
        is_dry=wish.is_dry,
        is_forced=wish.is_forced,
        is_by_hand=wish.always,
        say=wish.say,
    )
    name = f"job {ground.schema} {job.name}"
    if wish.is_dry:  # without the lock: it may be asked while the job runs
        direct.execute(b"SET default_transaction_read_only = on")
        return _Run(job, ground, now, started).planned()
    try:
        with direct.alone(name):
            if not wish.always and not _due(store, direct, [job]):
                return None
            try:
                number, began = records.begin(direct, ground.schema, job.name, wish.targets)
            except DatabaseError as error:
                if error.sqlstate != _NO_RIGHT:
                    raise
                return Report(job.name, SKIPPED, now, skipped=(Skip(job.name, str(error)),))
            this = _Run(job, ground, began, started)
            try:
                this.act()
            except KeyboardInterrupt:
                this.is_cut = True
                this.skipped.append(Skip(job.name, "interrupted", is_warning=True))
                raise
            except BaseException as error:
                this.failed.append(_why(error))
                raise
            finally:
                report = this.report()
                _record(direct, ground.schema, number, report)
            return report
    except Busy as error:
        why = str(error).removeprefix(f"{name}: ")
        return Report(job.name, BUSY, now, skipped=(Skip(job.name, why),))


@dataclass(slots=True)
class _Run:
    """One run as it goes: what came of the acts so far."""

    job: Job
    ground: Ground
    began: datetime
    started: float
    counts: Counter[str] = field(default_factory=Counter)
    acts: list[Act] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    is_cut: bool = False

    def planned(self) -> Report:
        """Go through the plan and do none of it."""
        self.act(is_dry=True)
        return self.report()

    def act(self, *, is_dry: bool = False) -> None:
        """Do the acts of the plan until it ends, or its time does; one that fails stops no other.

        What was asked for wrongly, and a server that is gone, end it; so does a plan that looks
        anew, and has come round with nothing but what failed: it would offer that for ever.
        """
        plan, again = self.job.plan(self.ground), set[str]()
        while not self.is_cut:
            found: Act | Skip | None = None
            try:
                found = next(plan, None)
                if found is None:
                    return
                if isinstance(found, Skip):
                    self.skipped.append(found)
                elif is_dry:
                    self.acts.append(found)
                elif self._is_over():
                    self.is_cut = True
                elif found.what in self.refused:
                    if found.what in again:
                        return
                    again.add(found.what)
                else:
                    again.clear()
                    self.ground.say(found.what)
                    came = found.do()
                    if isinstance(came, Skip):
                        self.skipped.append(came)
                    else:
                        self.counts.update(came)
                        self.done.append(found.what)
            except Unavailable:
                raise
            except (ToolkitError, OSError) as error:
                if found is None and isinstance(error, QueryError):
                    raise
                if found is not None:
                    self.refused.add(found.what)
                self._failed(found.what if found is not None else self.job.name, error)

    def _is_over(self) -> bool:
        return self.ground.left is not None and self.ground.left <= 0

    def _failed(self, what: str, error: ToolkitError | OSError) -> None:
        said = str(error).removeprefix(f"{self.ground.direct.node}: ")  # no job works elsewhere
        if isinstance(error, QueryTimeout) and self._is_over():
            self.is_cut = True
        elif isinstance(error, DatabaseError) and error.sqlstate == _NO_RIGHT:
            self.skipped.append(Skip(what, said))
        else:
            self.failed.append(said if what == self.job.name else told(what, said))

    def report(self) -> Report:
        return Report(
            self.job.name,
            self._status(),
            self.began,
            time.monotonic() - self.started,
            dict(self.counts),
            tuple(self.acts),
            tuple(self.done),
            tuple(self.skipped),
            tuple(self.failed),
        )

    def _status(self) -> str:
        if self.failed:
            return FAILED
        if self.is_cut:
            return CUT
        if any(not s.is_warning for s in self.skipped):  # what could not be judged is not well
            return SKIPPED
        if self.acts:
            return PLANNED
        if self.done:
            return DONE
        # who had to pass over all that there was to do had no success
        return SKIPPED if any(s.is_busy for s in self.skipped) else NOTHING


def _why(error: BaseException) -> str:
    if isinstance(error, ToolkitError):
        return f"ended by {error}"
    return f"ended by {type(error).__name__}: {error}, which should not have happened"


def _record(direct: Direct, schema: str, number: int, report: Report) -> None:
    for said in report.failed:
        _log.warning("%s", told(report.job, said))
    try:
        records.end(direct, schema, number, report)
    except ToolkitError as error:  # what was done is done; the next run says this one was killed
        _log.warning("the end of %s was not recorded: %s", report.job, error)
