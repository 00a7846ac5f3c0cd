"""Checks of servers: slots, replicas that lag, checkpoints that come too often."""

from __future__ import annotations

from datetime import datetime
from math import inf
from typing import Any

from toolkit.errors import counted
from toolkit_maintenance.doctor.check import (
    STATISTICS,
    Answers,
    Check,
    altering,
    found,
    granting,
    hidden,
    unknown,
)
from toolkit_maintenance.doctor.finding import CRIT, OK, WARN, Finding, Thing, listed
from toolkit_maintenance.slots import Slot

_GB = 1 << 30


def judge_slots(answers: Answers) -> Finding:
    """Slots whose reader is gone keep the log until the disk is full."""
    limits, things, fixes, is_crit = answers.limits, [], [], False
    for slot in map(Slot.from_row, answers["slots"]):
        is_near = slot.is_lost or slot.state == "unreserved"
        if not (is_near or slot.is_idle or slot.kept >= limits.slot_bytes):
            continue
        is_crit |= is_near or slot.kept >= 10 * limits.slot_bytes
        figures = {
            "type": slot.kind,
            "is_active": slot.is_active,
            "kept_bytes": slot.kept,
            "state": slot.state,
        }
        things.append(Thing("slots", slot.name, slot.kept, figures))
        if not slot.is_active:
            fixes.append(slot.drop)
    said = listed([f"{t.name} keeps {t.weight / 1e6:,.0f} MB" for t in things])
    return found(
        "slots",
        things,
        f"{said} of the log for a reader that is gone or far behind, until the disk is full; "
        "max_slot_wal_keep_size bounds that",
        well="no slot keeps the log for nobody",
        fix=fixes,
        status=CRIT if is_crit else WARN,
    )


def judge_lag(answers: Answers) -> Finding:
    """How far replicas are behind, by position and by time, and which are gone."""
    limits, things, evidence = answers.limits, [], {}
    for node, why in answers.lost.items():
        things.append(Thing("nodes", node, 1e18, {"problem": why}))
    is_crit = bool(things)
    for node, bytes_behind, seconds, problems in answers["lag"]:
        evidence[node] = {"lag_bytes": bytes_behind, "lag_s": seconds}
        is_late = (seconds or 0.0) >= limits.lag_s or (
            seconds is None and (bytes_behind or 0) >= limits.lag_bytes
        )
        if is_late or problems:
            said = "; ".join(problems) or f"is {seconds or 0.0:,.0f} s behind"
            figures = {"lag_bytes": bytes_behind, "lag_s": seconds, "problem": said}
            things.append(Thing("nodes", node, bytes_behind or 0, figures))
    unseen = [n for n, b, s, _ in answers["lag"] if b is None and s is None]
    if not things and unseen:
        said_hidden = hidden(answers, [answers.primary])
        why = said_hidden or "its position could not be read"
        fix = granting(answers, STATISTICS) if said_hidden else ()
        return unknown("lag", f"{listed(unseen)}: how far behind is not known: {why}", fix)
    # on the replica, where alone it means something
    fixes = ["SELECT pg_wal_replay_resume()"] if _is_paused(things) else []
    return found(
        "lag",
        things,
        "; ".join(f"{t.name}: {t.figures['problem']}" for t in things[:3]),
        well="replicas keep up" if answers["lag"] else "there is no replica",
        fix=fixes,
        status=CRIT if is_crit else WARN,
        evidence=evidence,
    )


def _is_paused(things: list[Thing]) -> bool:
    return any("pg_wal_replay_resume" in str(t.figures.get("problem", "")) for t in things)


def judge_checkpoints(answers: Answers) -> Finding:
    """Checkpoints that come because the log is full, not by the clock, write the same pages again.

    PostgreSQL documentation, "WAL Configuration": they should come by the clock. The server does
    not say why one was requested: no more of them than the log had bytes for were for that reason.
    """
    limits = answers.limits
    timed, requested, since, size, each, written, written_since = answers["checkpoints"][0]
    both, full = timed + requested, min(requested, int(written / each))
    is_told = _apart_s(since, written_since) <= limits.checkpoints_apart_s
    evidence: dict[str, Any] = {
        "timed": timed,
        "requested": requested,
        "log_full": full if is_told else None,
        "since": since.isoformat() if since else None,
        "wal_bytes": round(written),
        "max_wal_size": size,
    }
    if both < limits.checkpoints:
        return unknown(
            "checkpoints",
            f"only {counted(both, 'checkpoints')} since the statistics were reset; "
            f"{limits.checkpoints} tell something",
            **evidence,
        )
    is_few = requested < limits.checkpoints_share * both
    if not is_few and not is_told:
        return unknown(
            "checkpoints",
            f"{requested} of {both} checkpoints were requested, and whether the log was full then "
            "cannot be told: what was written to it is counted since another time (pg_stat_wal)",
            **evidence,
        )
    if is_few or full < limits.checkpoints_share * both:
        well = f"{timed} of {both} checkpoints came by the clock"
        if requested and is_told:
            well += f", and at most {full} because the log was full; others were asked for"
        return Finding("checkpoints", OK, well, evidence)
    wanted = max(2 * size, 2 * _GB)
    return Finding(
        "checkpoints",
        WARN,
        f"{requested} of {both} checkpoints did not wait for the clock, and up to {full} of them "
        f"came because the log was full ({written / _GB:,.1f} GB were written to it): each writes "
        "whole pages anew; a larger max_wal_size lets the clock decide",
        evidence,
        altering("max_wal_size", f"{wanted >> 20}MB"),
    )


def _apart_s(one: datetime | None, other: datetime | None) -> float:
    """Return how far apart two resets are; None is never."""
    if one is None or other is None:
        return 0.0 if one is other else inf
    return abs((one - other).total_seconds())


CHECKS = (
    Check("slots", "replication slots", ("slots",), judge_slots),
    Check("lag", "replicas behind or gone", ("lag",), judge_lag),
    Check("checkpoints", "checkpoints by the clock", ("checkpoints",), judge_checkpoints),
)
