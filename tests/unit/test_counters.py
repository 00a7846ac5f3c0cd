"""What a store counts: quantiles no further off than is said, each read where it belongs."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.counters import Counters, Times
from toolkit.strategy import Plan
from toolkit.timegrid import Span

WITHIN = 1.05
MS = st.floats(0.001, 1e6)


def plan(ms: float = 1.0, strategy: str = "direct", **sources: int) -> Plan:
    return Plan(strategy, "", Span(0, 1), (), sources=sources, elapsed_ms=ms)


@given(st.lists(MS, min_size=1, max_size=300), st.sampled_from([0.0, 0.5, 0.95, 0.99]))
def test_a_quantile_is_within_five_percent(values: list[float], share: float) -> None:
    times = Times()
    for ms in values:
        times.add(ms, 1)
    true = sorted(values)[min(len(values) - 1, int(share * len(values)))]
    assert true / WITHIN < times.quantile(share) < true * WITHIN
    assert times.mean == pytest.approx(np.mean(values))
    assert (times.count, times.returned) == (len(values), len(values))


@pytest.mark.parametrize("ms", [0.0, 1e-9, 0.001, 1e12])
def test_no_time_is_too_short_or_too_long(ms: float) -> None:
    times = Times()
    times.add(ms, 0)
    assert times.count == 1
    assert times.quantile(0.99) >= ms / WITHIN


@pytest.mark.parametrize(
    ("sources", "place"),
    [
        ({"memory": 5}, "cache"),
        ({"memory": 0}, "cache"),
        ({"redis": 5}, "redis"),
        ({"memory": 5, "redis": 0}, "redis"),
        ({"points": 0}, "database"),
        ({"memory": 5, "redis": 5, "points": 1}, "database"),
        ({"rollup": 5, "points": 0}, "database"),
        ({}, "database"),
    ],
    ids=str,
)
def test_a_read_counts_where_its_slowest_part_came_from(
    sources: dict[str, int], place: str
) -> None:
    counters = Counters()
    counters.add_read(plan(8.0, **sources), 5, "metrics")
    shown = counters.shown()
    assert {k for k in shown if k.endswith("_reads")} == {f"{place}_reads"}
    assert 8 / WITHIN < shown[f"{place}_read_ms_p50"] < 8 * WITHIN
    assert shown["read_ms_mean"] == 8.0


def test_strategies_and_rows_are_added_up_over_all_places() -> None:
    counters = Counters()
    assert counters.shown() == {}
    counters.add(rows_returned=7, streams=1)
    counters.add_read(plan(memory=10), 10, "metrics")
    counters.add_read(plan(redis=10), 10, "candles")
    counters.add_read(plan(points=30, memory=2, strategy="aggregated"), 3, "candles")
    shown = counters.shown()
    assert (shown["reads"], shown["reads_direct"], shown["reads_aggregated"]) == (3, 2, 1)
    assert (shown["rows_touched"], shown["rows_returned"], shown["streams"]) == (30, 30, 1)


def test_threads_lose_no_read() -> None:
    counters, held, fetched = Counters(), plan(memory=3), plan(points=3)

    def read() -> None:
        for _ in range(20_000):
            counters.add_read(held, 3, "metrics")
            counters.add_read(fetched, 3, "metrics")

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shown = counters.shown()
    assert (shown["cache_reads"], shown["database_reads"]) == (80_000, 80_000)
    assert (shown["rows_touched"], shown["rows_returned"]) == (240_000, 480_000)
