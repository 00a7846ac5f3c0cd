"""What a check is: a pure judgement over the rows that nodes have answered with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from psycopg.sql import SQL, Literal

from toolkit.config import Settings
from toolkit.dataset import Dataset
from toolkit.drivers import Rows
from toolkit.statements import name
from toolkit_maintenance.doctor.finding import (
    CRIT,
    OK,
    RELOAD,
    UNKNOWN,
    WARN,
    Finding,
    Thing,
    rolled,
)
from toolkit_maintenance.doctor.machine import Machine

STATISTICS = "pg_read_all_stats"
"""The right to see what other roles do."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From where on something is found. Times in seconds, sizes in bytes, ages in transactions.

    ``statistics_age`` is how old what the server has counted must be to tell that something is
    not used. Bloat of tables counts from twice the size on (the factor of pg_index_watch), of
    indexes where the job reindex is sure to act on it, and none in small things. ``partitions``:
    PostgreSQL's documentation promises good plans up to "a few thousand", and each costs memory in
    every session. ``xid_age``: autovacuum begins at 200 million, and the server stops at 2,100
    million.
    """

    statistics_age: float = 7 * 86_400.0
    unused_bytes: int = 1 << 20
    unindexed_bytes: int = 1 << 20
    bloat_share: float = 0.5
    bloat_bytes: int = 10 << 20
    scans: int = 100
    scanned_rows: int = 10_000
    hit_rate: float = 0.9
    hit_blocks: int = 100_000
    partitions: int = 1_000
    unvacuumed_rows: int = 10_000
    slow_s: float = 1.0
    slow_calls: int = 5
    slow_shift: float = 2.0
    shifted_s: float = 0.05
    transaction_s: float = 300.0
    idle_s: float = 60.0
    blocked_s: float = 5.0
    xmin_age: int = 10_000_000
    xid_age: int = 500_000_000
    xid_crit: int = 1_200_000_000
    slot_bytes: int = 1 << 30
    lag_s: float = 10.0
    lag_bytes: int = 64 << 20
    connections: float = 0.8
    connections_crit: float = 0.95
    checkpoints: int = 20
    checkpoints_share: float = 0.5
    checkpoints_apart_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Facts:
    """What a node says of itself; ``sees_all``: the role may see what other sessions do.

    ``counted_since`` is when its statistics were last reset; None: never, as far as it knows.
    """

    now: datetime
    version: int
    role: str
    database: str
    is_standby: bool
    sees_all: bool
    counted_since: datetime | None
    is_near: bool  # it sees us come from its own address, or no address at all
    statements: str | None  # the schema of pg_stat_statements; None: it is not there
    is_local: bool = False  # toolkit up made it, and configured it

    @property
    def counted_s(self) -> float | None:
        """For how many seconds the statistics have been collected; None: since ever."""
        if self.counted_since is None:
            return None
        return (self.now - self.counted_since).total_seconds()


@dataclass(frozen=True, slots=True)
class Answers:
    """What was asked of whom: rows by question and node, the primary's under its name.

    ``lost`` says why a node could not be asked, ``untold`` why a question has no answer.
    """

    settings: Settings
    datasets: tuple[Dataset, ...]
    primary: str
    facts: Mapping[str, Facts]
    rows: Mapping[str, Mapping[str, Rows]]
    lost: Mapping[str, str] = field(default_factory=dict)
    untold: Mapping[str, str] = field(default_factory=dict)
    limits: Thresholds = Thresholds()
    machine: Machine = Machine()
    is_described: bool = False  # somebody said what machine it is: asks for advice for it

    @property
    def of_primary(self) -> Facts:
        return self.facts[self.primary]

    def __getitem__(self, question: str) -> Rows:
        """Return the primary's answer."""
        return self.rows[question][self.primary]

    @property
    def schema(self) -> str:
        return self.settings.schema


Judge = Callable[[Answers], Finding]


@dataclass(frozen=True, slots=True)
class Check:
    """A check by its stable id: which questions it needs answered, and what it makes of them.

    What it ``may_ask`` helps, and is not needed.
    """

    id: str
    about: str
    asks: tuple[str, ...]
    judge: Judge
    may_ask: tuple[str, ...] = ()


def found(
    check: str,
    things: Iterable[Thing],
    reason: str,
    *,
    well: str,
    fix: Iterable[str] = (),
    status: str = WARN,
    evidence: Mapping[str, Any] | None = None,
) -> Finding:
    """Return what was found where there are ``things``, else that all is ``well``."""
    listed = list(things)
    known = dict(evidence or {})
    if not listed:
        return Finding(check, OK, well, known)
    return Finding(
        check, status, reason, {"count": len(listed), **known}, tuple(fix), rolled(listed)
    )


def unknown(check: str, reason: str, fix: Iterable[str] = (), /, **evidence: Any) -> Finding:
    """Return that a check cannot be judged, and what would change that."""
    return Finding(check, UNKNOWN, reason, evidence, tuple(fix))


def granting(answers: Answers, right: str) -> tuple[str, ...]:
    """Return what lets the role see what it may not."""
    text = SQL("GRANT {} TO {}").format(name(right), name(answers.of_primary.role))
    return (text.as_string(None),)


def altering(setting: str, *values: str, needs_restart: bool = False) -> tuple[str, ...]:
    """Return what changes a setting of the server: in the same words, whichever check wants it."""
    wanted = SQL(", ").join(map(Literal, values))
    text = SQL("ALTER SYSTEM SET {} = {}").format(name(setting), wanted).as_string(None)
    return (text,) if needs_restart else (text, RELOAD)


def hidden(answers: Answers, nodes: Iterable[str] | None = None) -> str | None:
    """Return why the role does not see other roles' sessions; None where it does."""
    asked = answers.facts if nodes is None else nodes
    if all(answers.facts[n].sees_all for n in asked):
        return None
    return f"role {answers.of_primary.role} sees its own sessions only: it lacks {STATISTICS}"


def settled(row: Sequence[Any]) -> list[Any]:
    """Return a row with its arrays as tuples.

    >>> settled(("a", ["b"]))
    ['a', ('b',)]
    """
    return [tuple(v) if isinstance(v, list) else v for v in row]


def worst(*statuses: str) -> str:
    """Return the worst of some statuses.

    >>> worst("ok", "unknown"), worst("warn", "crit", "unknown")
    ('unknown', 'crit')
    """
    return max(statuses, key=(OK, UNKNOWN, WARN, CRIT).index, default=OK)
