"""Integer sums that leave bigint: NULL in their own bucket, not missing from coarser ones."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from fix_servers import Database
from fix_stores import READINGS, create
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import toolkit
from toolkit.errors import QueryError

T0 = datetime(2024, 1, 1, tzinfo=UTC)
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
SPAN = (T0, T0 + DAY)
TOP = 2**63 - 1
STRATEGIES = ("direct", "aggregated", "downsampled")
# of the ladder 1m, 15m, 1h, 1d: its own steps, and those made of finer ones
STEPS = ("1m", "5m", "15m", "30m", "1h", "2h", "1d", "1w")


@pytest.fixture
def readings(database: Database) -> Database:
    create(database, READINGS)
    return database


def points(values: Sequence[int | None], every: timedelta = MINUTE / 4) -> dict[str, Any]:
    """Return points, four a minute: each minute's sum is that of four neighbours."""
    costs = [v if v is None else Decimal(v).scaleb(-4) for v in values]
    ts = [T0 + i * every for i in range(len(values))]
    return {"ts": ts, "hits": values, "cost": costs}


def sums(store: Any, step: str, strategy: str, column: str = "hits", **options: Any) -> list[Any]:
    """Return the sums of bars, unscaled; None for NULL."""
    aggregates = [f"{column}_sum", f"{column}_count"]
    named = {"series": "a"} | options
    series = named.pop("series")
    bars = store.read(
        "readings", series, *SPAN, columns=aggregates, step=step, strategy=strategy, **named
    )
    assert bars.plan.strategy == strategy
    found = bars[aggregates[0]]
    return [None if m else v for v, m in zip(found.data.tolist(), _mask(found), strict=True)]


def _mask(found: Any) -> list[bool]:
    import numpy as np

    return np.ma.getmaskarray(found).tolist()  # type: ignore[no-any-return]


def by_hand(values: Sequence[int | None], each: int) -> list[int | None]:
    """Return the exact sum of every ``each`` values: None without any, or beyond 64 bits."""
    result: list[int | None] = []
    for at in range(0, len(values), each):
        known = [v for v in values[at : at + each] if v is not None]
        total = sum(known)
        result.append(total if known and abs(total) <= TOP else None)
    return result


WIDE = [TOP, 1, None, None, -TOP, -1, 5, None, None, None, None, None, 7, 1, 1, 1]
MINUTES_OF_STEP = {"1m": 1, "5m": 5, "15m": 15, "30m": 30, "1h": 60, "2h": 120}


@pytest.mark.parametrize("column", ["hits", "cost"])
@pytest.mark.parametrize("refreshes", [0, 1], ids=["unfollowed", "followed"])
def test_a_sum_that_leaves_bigint_is_in_the_sums_of_coarser_bars(
    store: Any, readings: Database, refreshes: int, column: str
) -> None:
    store.write("readings", points(WIDE), series="a")
    for _ in range(refreshes):
        store.refresh("readings")
    for strategy in STRATEGIES:
        assert sums(store, "1m", strategy, column) == [None, -TOP + 4, None, 10]
        for step in STEPS[1:]:
            assert sums(store, step, strategy, column) == [15], (step, strategy)
            assert sums(store, step, strategy, column, series=["a"]) == [15]


def test_a_sum_that_is_just_no_bigint_is_not_taken_for_nothing(
    store: Any, readings: Database
) -> None:
    """-2^63 could be stored, and says NULL in an answer."""
    low = [-(2**62), -(2**62), None, None, 3]
    store.write("readings", points(low), series="a")
    for refreshed in (False, True):
        for strategy in STRATEGIES:
            assert sums(store, "1m", strategy) == [None, 3], (refreshed, strategy)
            assert sums(store, "1h", strategy) == [-TOP + 2], (refreshed, strategy)
            assert sums(store, "2h", strategy) == [-TOP + 2], (refreshed, strategy)
        store.refresh("readings")


def test_a_sum_that_came_back_into_bigint_is_from_the_rollup_again(
    store: Any, readings: Database, sql: psycopg.Connection
) -> None:
    store.write("readings", points(WIDE), series="a")
    store.refresh("readings")
    kept = "SELECT hits_sum, cost_sum FROM readings_1m ORDER BY ts"
    least = -(2**63)
    assert sql.execute(kept).fetchall() == [
        (least, least),
        (-TOP + 4, -TOP + 4),
        (None, None),
        (10, 10),
    ]
    store.write("readings", points([1]), series="a")
    store.refresh("readings")
    bars = store.read("readings", "a", *SPAN, columns=["hits_sum"], step="2h")
    assert bars["hits_sum"].tolist() == [-TOP + 16]
    bars = store.read(
        "readings", "a", *SPAN, columns=["hits_sum"], step="2h", strategy="downsampled"
    )
    assert bars.plan.sources == {"rollup": 1, "points": 0}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_group_with_a_sum_that_is_no_bigint_is_refused(
    store: Any, readings: Database, strategy: str
) -> None:
    for name, values in (("a", [TOP, 1]), ("b", [-TOP, 2]), ("c", [1, 2])):
        store.write("readings", points(values), series=name)
        store.label("readings", name, {"venue": "kraken"})
    for refreshed in (False, True):
        for step in ("1m", "2h"):
            with pytest.raises(QueryError, match=r"group_by: .* an integer sum leaves 64 bits"):
                sums(store, step, strategy, series=["a", "b", "c"], group_by="venue")
            # their total may leave them: that is NULL, as any sum's
            total = sums(store, step, strategy, series=["b", "c"], group_by="venue")
            assert total == [-TOP + 5], (refreshed, step)
        store.refresh("readings")


values = st.none() | st.integers(-TOP, TOP) | st.sampled_from([TOP, -TOP, 2**62, -(2**62), 1])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(values, min_size=1, max_size=80), st.lists(values, max_size=20))
@example([TOP, 1, None, None, -TOP], [])
def test_wide_sums_are_exact_on_every_road(
    readings: Database, blocking: toolkit.Store, first: list[int | None], late: list[int | None]
) -> None:
    """Points a minute and a half apart; some of them changed after the refresh."""
    every = 6 * MINUTE / 4
    blocking.delete("readings", "a", *SPAN) if blocking.series("readings") else None
    blocking.write("readings", points(first, every), series="a")
    blocking.refresh("readings")
    blocking.write("readings", points(late, every), series="a") if late else None
    now = late + first[len(late) :]
    for step, minutes in MINUTES_OF_STEP.items():
        if minutes % 3 and minutes != 5:
            continue
        expected = _grouped(now, minutes)
        for strategy in STRATEGIES:
            assert sums(blocking, step, strategy) == expected, (step, strategy)


def _grouped(values: Sequence[int | None], minutes: int) -> list[int | None]:
    """Return the sums of buckets of so many minutes, of points a minute and a half apart."""
    buckets: dict[int, list[int]] = {}
    for at, value in enumerate(values):
        found = buckets.setdefault(at * 90 // (minutes * 60), [])
        if value is not None:
            found.append(value)
    return [sum(known) if known and abs(sum(known)) <= TOP else None for known in buckets.values()]
