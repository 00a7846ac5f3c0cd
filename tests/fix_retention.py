"""A history of seventy days, what it answers, and whether two answers are the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import psycopg
import pytest

import toolkit
from toolkit import Retention
from toolkit.dataset import METRICS
from toolkit.drivers.direct import Direct
from toolkit_maintenance import runner
from toolkit_maintenance.job import Report

DAY = timedelta(days=1)
NOW = datetime.now(UTC)
END = NOW.replace(minute=0, second=0, microsecond=0)
START = (NOW - 70 * DAY).replace(hour=0, minute=0, second=0, microsecond=0)
TIMES = [START + timedelta(minutes=20 * n) for n in range(70 * 72)]
STEPS = ("20m", "1h", "2h", "1d", "2d", "1w")
TWIN = replace(METRICS, name="twins")  # the same points, for ever


def filled(store: toolkit.Store, *datasets: str) -> None:
    for dataset in datasets or ("metrics",):
        for number, series in enumerate("AB"):
            values = np.random.default_rng(number).normal(size=len(TIMES)).round(2)
            store.write(dataset, {"ts": TIMES, "value": values}, series=series)
        store.refresh(dataset)


def retained(store: toolkit.Store, **ages: Any) -> Report:
    """Keep metrics for so long, and no longer."""
    store.set_retention("metrics", Retention(**ages))
    return runner.run(store, "retention", ["metrics"])


def answers(store: toolkit.Store, dataset: str = "metrics", start: datetime = START) -> list[Any]:
    found = [
        store.read(dataset, ["A", "B"], start, END, step=step, tz=tz)
        for step in STEPS
        for tz in ("UTC", "Europe/Berlin")
        if start == START or step not in ("1d", "2d", "1w")
    ]
    found.append(store.read(dataset, None, start, END, step="1d", columns=["value_sum"]))
    return [cols.to_pandas() for cols in found]


def same(some: list[Any], others: list[Any]) -> bool:
    """Whether they are equal, sums up to the order they were added in."""
    for one, other in zip(some, others, strict=True):
        assert one.columns.tolist() == other.columns.tolist()
        for name in one.columns:
            left, right = one[name].to_numpy(), other[name].to_numpy()
            if left.dtype.kind == "f":
                np.testing.assert_allclose(left, right, rtol=0, atol=1e-9)
            else:
                assert (left == right).all()
    return True


def mark_of(sql: psycopg.Connection) -> datetime:
    text = "SELECT frozen_before FROM dataset WHERE name = 'metrics'"
    mark: datetime = sql.execute(text).fetchone()[0].astimezone(UTC)
    return mark


def tables(sql: psycopg.Connection, like: str = "metrics_p") -> int:
    text = "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND starts_with(relname, %s)"
    count: int = sql.execute(text, [like]).fetchone()[0]
    return count


class Killed(BaseException):
    """What a killed session ends a run with."""


@contextmanager
def killed_at(kind: bytes, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the job's session end before its first statement of a kind."""
    execute = Direct.execute

    def stop(self: Direct, statement: bytes, *args: Any, **options: Any) -> int:
        if statement.startswith(kind) and b"job_run" not in statement:
            self.close()
            raise Killed
        return execute(self, statement, *args, **options)

    with patch.context() as patched:
        patched.setattr(Direct, "execute", stop)
        yield
