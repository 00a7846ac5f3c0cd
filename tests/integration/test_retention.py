"""Retention: points go, and every answer that a rollup knew stays what it was."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import psycopg

from toolkit import Retention
from toolkit_maintenance import runner

NOW = datetime.now(UTC)
DAY = timedelta(days=1)
START = (NOW - 70 * DAY).replace(hour=0, minute=0, second=0, microsecond=0)


def filled(store: Any, names: tuple[str, ...] = ("A", "B")) -> None:
    ts = [START + timedelta(minutes=20 * n) for n in range(70 * 72)]
    for number, name in enumerate(names):
        values = np.random.default_rng(number).normal(size=len(ts)).round(2)
        store.write("metrics", {"ts": ts, "value": values}, series=name)
    store.refresh("metrics")


def answers(store: Any, end: datetime, **options: Any) -> dict[str, Any]:
    steps = ("20m", "1h", "2h", "1d", "2d")
    return {s: store.read("metrics", ["A", "B"], START, end, step=s, **options) for s in steps}


def mark_of(sql: psycopg.Connection) -> datetime:
    text = "SELECT frozen_before FROM dataset WHERE name = 'metrics'"
    return sql.execute(text).fetchone()[0].astimezone(UTC)


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    for step, cols in one.items():
        assert cols.to_pandas().equals(other[step].to_pandas()), step


def test_every_bar_stays_when_its_points_go(store: Any, sql: psycopg.Connection) -> None:
    filled(store)
    end = NOW.replace(minute=0, second=0, microsecond=0)
    before = answers(store, end)
    native = store.read("metrics", "A", START, end)
    store.set_retention("metrics", Retention(rows="30d"))
    report = runner.run(store, "retention", ["metrics"])
    assert report.status == "done", report
    assert runner.run(store, "retention", ["metrics"]).status == "nothing"
    mark = mark_of(sql)
    assert NOW - 38 * DAY < mark <= NOW - 30 * DAY
    left = store.read("metrics", "A", START, end)
    assert len(left) < len(native)
    assert left.ts[0] == np.datetime64(mark.replace(tzinfo=None))
    same(before, answers(store, end))
