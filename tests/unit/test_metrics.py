"""Metrics below any server: trends, limits, buckets, and the list itself."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit import errors
from toolkit.config import load_settings
from toolkit.counters import Times
from toolkit.errors import Unavailable
from toolkit.metrics import server
from toolkit.metrics.alerts import ALERTS, CALLERS
from toolkit.metrics.exposing import Looks
from toolkit.metrics.process import Trend, limit_bytes
from toolkit.metrics.server import Database, Figures
from toolkit.metrics.table import BOUNDS_S, COUNTER, METRICS, OTHER, Datasets

MIB = 1 << 20


def test_a_trend_is_of_the_last_hour_and_none_before_five_minutes() -> None:
    trend = Trend()
    for second in range(0, 290, 10):
        trend.add(float(second), 100.0 * MIB)
    assert math.isnan(trend.per_hour)
    for minute in range(5, 60):
        trend.add(60.0 * minute, (100 + minute) * MIB)
    assert trend.per_hour == pytest.approx(60 * MIB, rel=0.1)
    for minute in range(60, 130):  # the growth is over an hour ago
        trend.add(60.0 * minute, 160.0 * MIB)
    assert trend.per_hour == 0


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"proc/meminfo": "MemTotal: 2048 kB\nMemFree: 1 kB\n"}, 2 * MIB),
        ({"proc/meminfo": "MemTotal: 2048 kB\n", "sys/fs/cgroup/memory.max": "max\n"}, 2 * MIB),
        ({"proc/meminfo": "MemTotal: 2048 kB\n", "sys/fs/cgroup/memory.max": "1048576"}, MIB),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": "1048576"}, MIB),
    ],
)
def test_memory_is_limited_by_the_control_group_or_the_machine(
    files: dict[str, str], limit: float | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert limit_bytes(tmp_path) == limit


@given(st.lists(st.floats(0.001, 1e5), max_size=200))
def test_a_bucket_holds_what_is_below_its_bound_to_five_percent(values: list[float]) -> None:
    times = Times()
    for ms in values:
        times.add(ms, 0)
    below = times.below(b * 1000 for b in BOUNDS_S)
    assert below == sorted(below)
    for bound, count in zip(BOUNDS_S, below, strict=True):
        least = sum(ms < bound * 1000 / 1.05 for ms in values)
        assert least <= count <= sum(ms <= bound * 1000 * 1.05 for ms in values)


def test_names_are_those_of_the_field() -> None:
    assert len({m.name for m in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert not metric.name.endswith(("_total", "_count", "_sum", "_bucket")), metric.name
        assert not {"job", "instance", "le", "quantile"} & set(metric.labels), metric.name
        assert metric.help.endswith("."), metric.name
        assert not metric.unit or metric.unit in metric.name, metric.name
        assert not metric.is_by_node or metric.labels == ("node",), metric.name
    assert "series" not in {label for m in METRICS for label in m.labels}
    assert all(m.full_name.endswith("_total") for m in METRICS if m.kind == COUNTER)


def test_alerts_say_what_to_do_and_how_bad_it_is() -> None:
    for alert in ALERTS:
        assert alert.severity in ("info", "warning", "critical")
        assert len(alert.description) > 80
        assert alert.summary.endswith(".")
    known = {n for n, v in vars(errors).items() if isinstance(v, type)}
    assert set(CALLERS) <= known


def test_of_other_datasets_the_one_with_the_fewest_partitions_ahead_is_told() -> None:
    partitions = {f"d{n}": (10, n) for n in range(9)}
    values = server.values(
        Figures(Database(0, 1, None, 0, 0.0, 0.0), partitions=partitions), Datasets(5)
    )
    assert values["partitions"][OTHER,] == 40
    assert values["partitions_ahead"][OTHER,] == 5
    assert values["partitions_ahead"]["d4",] == 4
    assert len(values["partitions"]) == 6


def test_the_server_is_asked_no_more_often_than_was_said() -> None:
    now, asked = 0.0, 0

    def look(settings: object) -> Figures:
        nonlocal asked
        asked += 1
        if asked == 2:
            raise Unavailable("gone")
        return Figures(Database(1, 2, None, 0, 0.0, 0.0))

    looks = Looks(load_settings("host=nowhere"), 60.0, lambda: now, look)

    def told() -> bool:
        found = looks.is_told()
        if looks._thread is not None:
            looks._thread.join()
        return found

    told()
    assert told()
    assert told()
    assert asked == 1
    now = 61.0
    told()
    assert asked == 2
    assert told()
    assert looks.figures is None  # it is out, and that is what is told
