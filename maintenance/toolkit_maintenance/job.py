"""What a job is: a plan of acts, shown by a dry run or done, and a report of what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toolkit_maintenance.ground import Ground

Counts = Mapping[str, int]

# how a run ends
DONE, NOTHING, CUT, SKIPPED, FAILED = "done", "nothing", "cut", "skipped", "failed"
BUSY, KILLED, RUNNING, PLANNED = "busy", "killed", "running", "planned"
SUCCESSES = (DONE, NOTHING)


def told(about: str, text: str) -> str:
    """Return a text with what it is about before it, once.

    >>> told("warm", "warm: not set"), told("vacuum", "track_counts is off")
    ('warm: not set', 'vacuum: track_counts is off')
    """
    return text if text.startswith((f"{about}:", f"{about} ")) else f"{about}: {text}"


@dataclass(frozen=True, slots=True)
class Act:
    """One thing to be done: all or nothing, and small enough to end soon.

    ``what`` says it in words, ``why`` what speaks for it, ``sql`` in the exact statements that
    do it. ``lock`` is the strongest lock they take and on what, ``bytes`` the size of what they
    touch. ``do`` does it and returns what to count (``{"partitions_made": 3}``), or why it was
    passed over.
    """

    what: str
    sql: tuple[str, ...]
    lock: str
    do: Callable[[], Counts | Skip] = field(repr=False, compare=False)
    bytes: int = 0
    why: str = ""


@dataclass(frozen=True, slots=True)
class Skip:
    """Something a job cannot do or judge, and why: a missing right, statistics too young, a gap.

    A run with one has the status ``skipped``; not so where it ``is_warning`` only: the job did
    what it is for, and somebody should look at something. ``is_busy``: somebody else works on it;
    a run that did nothing for that reason is ``skipped``, too.
    """

    what: str
    why: str
    is_warning: bool = False
    is_busy: bool = False

    def __str__(self) -> str:
        return told(self.what, self.why)


@dataclass(frozen=True, slots=True)
class Job:
    """A kind of maintenance: ``plan`` yields what is to be done now, lazily.

    A plan looks at the server anew where an earlier act may have changed it; after all acts were
    done a second plan yields none. One that failed is passed over where it is yielded again in
    the same run, and the run ends where nothing else comes.
    How often it is due say the settings, ``[maintenance]``.
    """

    name: str
    about: str
    plan: Callable[[Ground], Iterator[Act | Skip]]


@dataclass(frozen=True, slots=True)
class Report:
    """What one run of a job did.

    ``status``: done, nothing (to be done), cut (its time was over; the next run goes on), busy
    (somebody else runs it), skipped (some or all of it cannot be done or judged here;
    ``skipped`` says why), failed (``failed`` says which acts, and why), planned (a dry run:
    ``planned`` has the acts, which were not done). ``counts`` adds up what acts did.
    """

    job: str
    status: str
    started_at: datetime | None = None
    seconds: float = 0.0
    counts: Counts = field(default_factory=dict)
    planned: tuple[Act, ...] = ()
    done: tuple[str, ...] = ()
    skipped: tuple[Skip, ...] = ()
    failed: tuple[str, ...] = ()

    @property
    def is_success(self) -> bool:
        return self.status in SUCCESSES

    def to_mapping(self) -> dict[str, object]:
        """Return the report as JSON has it."""
        began = self.started_at
        started = began and began.astimezone(UTC).isoformat(timespec="microseconds")
        return {
            "job": self.job,
            "status": self.status,
            "started_at": started and started.replace("+00:00", "Z"),
            "seconds": round(self.seconds, 3),
            "counts": dict(self.counts),
            "planned": [
                {"what": a.what, "why": a.why, "sql": list(a.sql), "lock": a.lock, "bytes": a.bytes}
                for a in self.planned
            ],
            "done": list(self.done),
            "skipped": [
                {
                    "what": s.what,
                    "why": s.why,
                    "is_warning": s.is_warning,
                    "is_busy": s.is_busy,
                }
                for s in self.skipped
            ],
            "failed": list(self.failed),
        }
