"""Checks of sessions: long transactions, who blocks whom, who holds vacuum up, how many."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg.sql import SQL, Literal

from toolkit.drivers.direct import command_of
from toolkit.errors import counted
from toolkit.statements import name
from toolkit_maintenance.doctor.check import (
    STATISTICS,
    Answers,
    Check,
    found,
    granting,
    hidden,
    settled,
    unknown,
    worst,
)
from toolkit_maintenance.doctor.finding import CRIT, OK, WARN, Finding, Thing, listed


@dataclass(frozen=True, slots=True)
class Session:
    """A client's session; None is what the role may not see, or what does not apply."""

    pid: int
    user: str | None
    application: str | None
    address: str | None
    state: str | None
    transaction_s: float | None
    state_s: float | None
    waited_s: float | None
    xmin_age: int | None
    blockers: tuple[int, ...]
    query: str | None

    @property
    def who(self) -> str:
        named = f" ({self.application})" if self.application else ""
        return f"{self.pid}{named}"


def _sessions(answers: Answers, node: str) -> list[Session]:
    rows = answers.rows["sessions"][node]
    return [Session(*settled((*row[:-1], command_of(row[-1])))) for row in rows]


def _end(pid: int) -> str:
    return SQL("SELECT pg_terminate_backend({})").format(Literal(pid)).as_string(None)


def _or_unknown(answers: Answers, finding: Finding) -> Finding:
    """Return a finding; unknown where all seemed well to a role that sees little."""
    said = hidden(answers)
    if finding.status != OK or not said:
        return finding
    return unknown(finding.id, said, granting(answers, STATISTICS))


def judge_transactions(answers: Answers) -> Finding:
    """Transactions that have been open for minutes, and sooner those that do nothing in it."""
    limits, things, fixes, is_crit = answers.limits, [], [], False
    for node in answers.facts:
        for s in _sessions(answers, node):
            seconds = s.transaction_s or 0.0
            is_idle = (s.state or "").startswith("idle in transaction")
            is_idle = is_idle and (s.state_s or 0.0) >= limits.idle_s
            if not is_idle and seconds < limits.transaction_s:
                continue
            is_crit |= seconds >= 12 * limits.transaction_s
            figures = {
                "node": node,
                "seconds": round(seconds),
                "state": s.state,
                "user": s.user,
                "statement": s.query,
            }
            things.append(Thing(node, s.who, seconds, figures))
            if node == answers.primary:
                fixes.append(_end(s.pid))
    said = listed([f"{t.name} {t.figures['state']}, {t.figures['seconds']:,} s" for t in things])
    finding = found(
        "long-transactions",
        things,
        f"{said}: what it has locked stays locked, and vacuum removes nothing that it may see",
        well="no transaction has been open for long",
        fix=fixes,
        status=CRIT if is_crit else WARN,
    )
    return _or_unknown(answers, finding)


def judge_blockers(answers: Answers) -> Finding:
    """Sessions that others have waited for; what ends it is the first of a chain."""
    least, node = answers.limits.blocked_s, answers.primary
    sessions = {s.pid: s for s in _sessions(answers, node)}
    waiting = [s for s in sessions.values() if s.blockers and (s.waited_s or 0.0) >= least]
    behind: dict[int, float] = {}
    for session in waiting:
        for pid in _heads(session.blockers, sessions):
            behind[pid] = max(behind.get(pid, 0.0), session.waited_s or 0.0)
    things = []
    for pid, seconds in behind.items():
        who = sessions.get(pid)
        figures = {
            "waited_s": round(seconds, 1),
            "state": who.state if who else None,
            "statement": who.query if who else None,
        }
        label = who.who if who else str(pid) if pid else _PREPARED
        things.append(Thing(node, label, seconds, figures))
    longest = max(behind.values(), default=0.0)
    finding = found(
        "blockers",
        things,
        f"{counted(len(waiting), 'sessions', 'wait')} for locks, the longest for {longest:,.0f} s, "
        f"behind {listed([t.name for t in things])}",
        well="nobody waits long for a lock",
        fix=[_end(pid) for pid in behind if pid],
        status=CRIT if longest >= 60 * least else WARN,
        evidence={"waiting": len(waiting)},
    )
    return _or_unknown(answers, finding)


_PREPARED = "a prepared transaction (see pg_prepared_xacts)"  # its pid is said to be 0


def _heads(pids: Iterable[int], sessions: dict[int, Session]) -> set[int]:
    """Return who of those in the way waits for nobody, and who stands at the end of each chain."""
    heads, seen, left = set(), set(), list(pids)
    while left:
        pid = left.pop()
        if pid in seen:
            continue
        seen.add(pid)
        further = sessions[pid].blockers if pid in sessions else ()
        if further:
            left += further
        else:
            heads.add(pid)
    return heads or set(pids)


_ENDS = {
    "session": "SELECT pg_terminate_backend({})",
    "slot": "SELECT pg_drop_replication_slot({})",
    "prepared": "ROLLBACK PREPARED {}",
}


def judge_holders(answers: Answers) -> Finding:
    """What keeps dead rows from being removed: by age in transactions, whatever holds it."""
    limit, things, fixes = answers.limits.xmin_age, [], []
    for kind, label, age, handle in answers["holders"]:
        if age is not None and age >= limit:
            things.append(Thing(kind, label, age, {"kind": kind, "age": age}))
            value: Any = int(handle) if kind == "session" else handle
            fixes.append(SQL(_ENDS[kind]).format(Literal(value)).as_string(None))
    said = listed(
        [
            f"{t.figures['kind']} {t.name}, {counted(round(t.weight), 'transactions')}"
            for t in things
        ]
    )
    finding = found(
        "xmin-holders",
        things,
        f"vacuum removes nothing that died since these began: {said}",
        well="nothing holds vacuum up",
        fix=fixes,
    )
    said_hidden = hidden(answers, [answers.primary])
    if finding.status == OK and said_hidden:
        return unknown("xmin-holders", said_hidden, granting(answers, STATISTICS))
    return finding


def judge_wraparound(answers: Answers) -> Finding:
    """How far databases and tables are from the age at which the server stops taking writes."""
    limits, things, oldest = answers.limits, [], 0
    for kind, root, label, age, multi in answers["ages"]:
        most = max(age or 0, multi or 0)
        oldest = max(oldest, most)
        if most >= limits.xid_age:
            things.append(Thing(root, label, most, {"kind": kind, "age": age, "multixacts": multi}))
    tables = dict.fromkeys(t.parent for t in things if t.figures["kind"] == "table")
    others = [t.name for t in things if t.figures["kind"] == "database"]
    fixes = []
    for table in tables:
        text = SQL("VACUUM (FREEZE) {}").format(name(answers.schema, table))
        fixes.append(text.as_string(None))
    if not tables and answers.of_primary.database in others:
        fixes.append("VACUUM (FREEZE)")
    return found(
        "wraparound",
        things,
        f"{listed([f'{t.name} {t.weight:,.0f}' for t in things])} transactions old; at 2,100 "
        "million the server takes no more writes. What holds vacuum up: xmin-holders",
        well=f"the oldest is {oldest:,} transactions old, of 2,100 million",
        fix=fixes,
        status=CRIT if oldest >= limits.xid_crit else WARN,
        evidence={"oldest": oldest},
    )


def judge_connections(answers: Answers) -> Finding:
    """Connections against what the server lets in; over all nodes."""
    limits, things, statuses = answers.limits, [], [OK]
    evidence: dict[str, Any] = {}
    for node in answers.facts:
        count, limit = _pair(answers.rows["connections"][node][0])
        evidence[node] = f"{count} of {limit}"
        share = count / limit if limit > 0 else 1.0
        if share >= limits.connections:
            statuses.append(CRIT if share >= limits.connections_crit else WARN)
            things.append(Thing(node, node, share, {"connections": count, "limit": limit}))
    said = listed([f"{t.name}: {t.figures['connections']} of {t.figures['limit']}" for t in things])
    return found(
        "connections",
        things,
        f"{said} connections are taken; smaller pools ([pool] max_size) or PgBouncer before the "
        "server (toolkit pgbouncer render) cost less than more connections, which need a restart, "
        "standbys first",
        well="there are connections to spare",
        status=worst(*statuses),
        evidence=evidence,
    )


def _pair(row: Sequence[Any]) -> tuple[int, int]:
    return int(row[0] or 0), int(row[1])


CHECKS = (
    Check("long-transactions", "transactions open for long", ("sessions",), judge_transactions),
    Check("blockers", "sessions others wait for", ("sessions",), judge_blockers),
    Check("xmin-holders", "what holds vacuum up", ("holders",), judge_holders),
    Check("wraparound", "age of the oldest transactions", ("ages",), judge_wraparound),
    Check("connections", "connections against the limit", ("connections",), judge_connections),
)
