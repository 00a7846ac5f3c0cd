"""Snapshots of what statements took and which indexes there were, to compare the next look with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta

from toolkit.config import Settings
from toolkit.drivers import Rows
from toolkit.drivers.direct import Direct
from toolkit.errors import DatabaseError
from toolkit.statements import compose, name
from toolkit_maintenance.doctor.check import Facts, Thresholds
from toolkit_maintenance.doctor.queries import SNAPSHOTS
from toolkit_maintenance.doctor.questions import NOT_READY, QUESTIONS, Context, Untold
from toolkit_maintenance.ground import Ground, texts
from toolkit_maintenance.job import Act, Counts

_EVERY = timedelta(days=1)


def keep_snapshot(direct: Direct, given: Settings) -> None:
    """Keep what statements took until now and which indexes there are, on the primary.

    Where statements are not counted there are the indexes alone. Kept are the newest 24, and one
    of each of 30 days, of 500 statements each.
    """
    facts = Facts(*direct.fetch(compose("doctor/look_at_node"))[0])
    told: dict[str, Rows] = {}
    for key in ("indexes", "statements_since", "statements"):
        try:
            told[key] = QUESTIONS[key].ask(direct, facts, Context(given, Thresholds()))
        except Untold:
            continue
        except DatabaseError as error:
            if error.sqlstate != NOT_READY:
                raise
    since = told.get("statements_since") or [(None, 0)]
    statements = {str(r[0]): [r[1], round(r[2], 3)] for r in told.get("statements", ())}
    params = {
        "counted_since": since[0][0],
        "statements": json.dumps(statements),
        "indexes": [row[0] for row in told["indexes"]],
    }
    add, trim = _statements(given.schema)
    with direct.transaction():
        direct.execute(add, params)
        direct.execute(trim)


def snapshot_at(direct: Direct, schema: str) -> datetime | None:
    """Return when the last snapshot was taken; None: never."""
    table = name(schema, SNAPSHOTS)
    rows = direct.fetch(compose("doctor/read_snapshot", snapshots=table))
    return rows[0][0] if rows else None


def snapshots(ground: Ground) -> Iterator[Act]:
    """Yield what keeps a snapshot, where the last one is a day old: a part of a job's plan."""
    last = snapshot_at(ground.direct, ground.schema)
    if last is not None and ground.now - last < _EVERY:
        return

    def do() -> Counts:
        keep_snapshot(ground.direct, ground.store.settings)
        return {"snapshots_kept": 1}

    add, trim = _statements(ground.schema)
    sql = ("BEGIN", *texts([add], {}), *texts([trim]), "COMMIT")  # measured as it is kept
    why = f"the last one is of {last:%Y-%m-%d %H:%M}" if last else "there is none"
    yield Act("keep a snapshot for the doctor", sql, f"ROW EXCLUSIVE on {SNAPSHOTS}", do, 0, why)


def _statements(schema: str) -> tuple[bytes, bytes]:
    table = name(schema, SNAPSHOTS)
    return (
        compose("doctor/add_snapshot", snapshots=table),
        compose("doctor/trim_snapshots", snapshots=table),
    )
