"""The check of slow statements: those that take long, and those that have become slower."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from toolkit_maintenance.doctor.check import (
    STATISTICS,
    Answers,
    Check,
    Thresholds,
    found,
    granting,
    hidden,
    unknown,
)
from toolkit_maintenance.doctor.finding import OK, Finding, Thing, listed

SNAPSHOTS = "doctor_snapshot"
# maintenance and bulk loads take long by their nature
_READS_OR_WRITES = re.compile(
    r"^\W*(/\*.*?\*/\s*)*(select|with|insert|update|delete|merge)\b", re.I
)

Statements = Mapping[str, Sequence[float]]


def judge_slow(answers: Answers) -> Finding:
    """What takes long on the mean since the last snapshot, or much longer than before it."""
    limits = answers.limits
    since, forgotten = answers["statements_since"][0]
    snapshot = _usable(answers["snapshot"], since)
    before: Statements = snapshot[2] if snapshot else {}
    things = []
    for id_, calls, took, rows, hit, read, text in answers["statements"]:
        if not _READS_OR_WRITES.match(text or ""):
            continue
        figures = _paced(before.get(str(id_)), calls, took)
        if not _is_slow(figures, limits):
            continue
        blocks = hit + read
        figures |= {
            "rows": rows,
            "hit_rate": round(hit / blocks, 4) if blocks else None,
            "statement": text,
        }
        things.append(Thing(text[:60], str(id_), figures["calls"] * figures["mean_ms"], figures))
    evidence = {
        "since": (snapshot[0] if snapshot else since),
        "is_shift_known": bool(snapshot),
        "forgotten": forgotten,
    }
    said = listed([_told(t) for t in sorted(things, key=lambda t: -t.weight)])
    finding = found(
        "slow-queries",
        things,
        f"{said}; EXPLAIN (ANALYZE, BUFFERS) with real values shows where the time goes, toolkit "
        "explain that of the toolkit's reads; no statement mends it in general",
        well="no statement is slow, or slower than before the last snapshot",
        evidence=evidence,
    )
    if finding.status == OK:
        blind = hidden(answers, [answers.primary])
        if blind:
            return unknown("slow-queries", blind, granting(answers, STATISTICS), **evidence)
        if not snapshot:
            return unknown(
                "slow-queries",
                "no statement is slow, but whether one has become slower is not known: toolkit "
                "doctor --snapshot (maintain's cleanup does it daily) keeps what to compare with",
                **evidence,
            )
    return finding


def _usable(rows: Sequence[Any], since: Any) -> Any | None:
    """Return the newest snapshot, where the statements have been counted on since it."""
    return rows[0] if rows and rows[0][1] == since else None


def _paced(old: Sequence[float] | None, calls: int, took: float) -> dict[str, Any]:
    """Return calls and mean since the snapshot, and by which factor that has shifted.

    >>> _paced([10, 100.0], 20, 600.0)
    {'calls': 10, 'mean_ms': 50.0, 'shift': 5.0}
    """
    then_calls, then_took = old if old and old[0] <= calls else (0, 0.0)
    fresh = int(calls - then_calls)
    mean = (took - then_took) / fresh if fresh else 0.0
    before = then_took / then_calls if then_calls else 0.0
    shift = round(mean / before, 2) if before and fresh else None
    return {"calls": fresh, "mean_ms": round(mean, 3), "shift": shift}


def _is_slow(figures: Mapping[str, Any], limits: Thresholds) -> bool:
    if figures["calls"] < limits.slow_calls:
        return False
    if figures["mean_ms"] >= limits.slow_s * 1000:
        return True
    shift = figures["shift"]
    is_shifted = shift is not None and shift >= limits.slow_shift
    return is_shifted and bool(figures["mean_ms"] >= limits.shifted_s * 1000)


def _told(thing: Thing) -> str:
    shift = thing.figures["shift"]
    than = f" ({shift:g} times what it took)" if shift is not None else ""
    return f"{thing.parent!r} takes {thing.figures['mean_ms']:,.0f} ms{than}"


CHECKS = (
    Check(
        "slow-queries",
        "statements that take long, or longer than before",
        ("statements", "statements_since", "snapshot"),
        judge_slow,
    ),
)
