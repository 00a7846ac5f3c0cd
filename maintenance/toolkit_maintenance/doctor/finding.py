"""What the doctor finds: a status a check, with figures, the reason, and SQL that mends it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

OK, WARN, CRIT, UNKNOWN = "ok", "warn", "crit", "unknown"
SCHEMA_VERSION = 1
"""Of the JSON: it grows when a key changes its meaning or goes, not when one is added."""

RELOAD = "SELECT pg_reload_conf()"
"""What has settings taken up that need no restart."""

_WORST = 3
_POWERS = {"B": 0, "kB": 10, "MB": 20, "GB": 30, "TB": 40}
_SET_UP = ("ALTER SYSTEM ", "GRANT ", "CREATE EXTENSION ", RELOAD)


@dataclass(frozen=True, slots=True)
class Thing:
    """One table, index, session or slot that a check is about; ``weight`` says how bad it is."""

    parent: str
    name: str
    weight: float = 0.0
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Object:
    """What was found below one parent: how many, and the worst three by name."""

    name: str
    count: int
    worst: tuple[str, ...]
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check.

    ``evidence`` are figures, ``reason`` says what they mean and, of what is ``unknown``, why.
    ``fix`` are statements that can be run as they are, on the primary (of ``lag`` on the replica,
    of ``redis-…`` on that server), and mend it, or make it known; ``objects`` what it is about,
    rolled up per parent.
    """

    id: str
    status: str
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    fix: tuple[str, ...] = ()
    objects: tuple[Object, ...] = ()

    @property
    def is_bad(self) -> bool:
        return self.status in (WARN, CRIT)

    def to_mapping(self) -> dict[str, Any]:
        """Return the finding as JSON has it."""
        return {
            "id": self.id,
            "status": self.status,
            "reason": self.reason,
            "evidence": dict(self.evidence),
            "fix": list(self.fix),
            "objects": [
                {"name": o.name, "count": o.count, "worst": list(o.worst), **o.figures}
                for o in self.objects
            ],
        }


@dataclass(frozen=True, slots=True)
class Examination:
    """Every check's finding, at the server's time ``at``, over ``nodes`` (those that answered)."""

    at: datetime
    nodes: tuple[str, ...]
    findings: tuple[Finding, ...]
    seconds: float = 0.0

    @property
    def is_well(self) -> bool:
        """Whether nothing was found; what is unknown is not found."""
        return not any(f.is_bad for f in self.findings)

    def __getitem__(self, check: str) -> Finding:
        for finding in self.findings:
            if finding.id == check:
                return finding
        raise KeyError(check)

    def to_mapping(self) -> dict[str, Any]:
        """Return the examination as JSON has it."""
        counts = {s: sum(f.status == s for f in self.findings) for s in (OK, WARN, CRIT, UNKNOWN)}
        return {
            "schema_version": SCHEMA_VERSION,
            "at": self.at,
            "seconds": round(self.seconds, 3),
            "nodes": list(self.nodes),
            "counts": counts,
            "checks": [f.to_mapping() for f in self.findings],
        }


def sets_up_server(statement: str) -> bool:
    """Return whether a statement changes settings, rights or extensions: an administrator's.

    What needs a right over one session, slot or replica does not: it stands with its finding.

    >>> sets_up_server("SELECT pg_reload_conf()"), sets_up_server("SELECT pg_terminate_backend(1)")
    (True, False)
    """
    return statement.startswith(_SET_UP)


def for_administrator(findings: Iterable[Finding]) -> tuple[str, ...]:
    """Return what an administrator has to set up, of all fixes: each once, and the reload last.

    Where two checks want another value of a setting it is the larger, if they are sizes; else
    that of the later one.

    >>> a = Finding("a", WARN, "", fix=("ALTER SYSTEM SET x = '1'", RELOAD))
    >>> b = Finding("b", WARN, "", fix=("ALTER SYSTEM SET y = '2'", RELOAD, "DROP INDEX z"))
    >>> for_administrator([a, b, a])[1:]
    ("ALTER SYSTEM SET y = '2'", 'SELECT pg_reload_conf()')
    """
    found = [s for f in findings for s in f.fix if sets_up_server(s)]
    chosen: dict[str, str] = {}
    for statement in found:
        setting = statement.partition(" = ")[0]
        if _size(statement) >= _size(chosen.get(setting, "")):
            chosen[setting] = statement
    return (*(s for s in chosen.values() if s != RELOAD), *((RELOAD,) if RELOAD in found else ()))


def _size(statement: str) -> int:
    """Return the size that a statement sets something to, 0 if it is none.

    >>> _size("ALTER SYSTEM SET max_wal_size = '2GB'"), _size("ALTER SYSTEM SET x = 'on'")
    (2147483648, 0)
    """
    match = re.search(r" = '(\d+)([kMGT]?B)'$", statement)
    return int(match[1]) << _POWERS[match[2]] if match else 0


def rolled(things: Iterable[Thing]) -> tuple[Object, ...]:
    """Return one object for each parent, that with the worst thing first.

    Figures of its things that are numbers are added up.

    >>> [(o.name, o.count, o.worst) for o in rolled([Thing("a", "a1", 1), Thing("a", "a2", 2)])]
    [('a', 2, ('a2', 'a1'))]
    """
    groups: dict[str, list[Thing]] = {}
    for thing in sorted(things, key=lambda t: (-t.weight, t.name)):
        groups.setdefault(thing.parent, []).append(thing)
    return tuple(
        Object(parent, len(group), tuple(t.name for t in group[:_WORST]), _summed(group))
        for parent, group in groups.items()
    )


def _summed(things: Sequence[Thing]) -> dict[str, Any]:
    if len(things) == 1:
        return dict(things[0].figures)
    sums: dict[str, Any] = {}
    for thing in things:
        for key, value in thing.figures.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                sums[key] = sums.get(key, 0) + value
    return sums


def listed(names: Sequence[str], most: int = 3) -> str:
    """Return names for a sentence.

    >>> listed(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
