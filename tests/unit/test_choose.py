"""The choice between roads, and that it depends on nothing but cost."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from fix_stores import READINGS
from hypothesis import given
from hypothesis import strategies as st
from points import ANCHORS, STEPS, ZONES

from toolkit.catalog import Entry, Rollup
from toolkit.dataset import CANDLES, METRICS, TRADES, Dataset
from toolkit.errors import QueryError, UnknownName
from toolkit.options import Limits
from toolkit.query import build_query
from toolkit.strategy import Density, Plan, choose, outputs_of
from toolkit.strategy.params import rollup_params
from toolkit.timegrid import Grid, Span, Step, to_datetime, to_us

LIMITS = Limits(by="thresholds")
MINUTE = 60_000_000
YEAR = ("2023-01-01T00:00Z", "2024-01-01T00:00Z")


def entry_of(dataset: Dataset, trusted: bool = True) -> Entry:
    rollups = [
        Rollup(i, Grid(Step.parse(s)), f"{dataset.name}_{s}", trusted)
        for i, s in enumerate(dataset.ladder, 1)
    ]
    return Entry(1, "toolkit", dataset, tuple(rollups))


def plan(
    dataset: Dataset = METRICS,
    *,
    count: int | None = None,
    native: int | None = None,
    trusted: bool = True,
    span: tuple[str, str] = YEAR,
    **options: Any,
) -> Plan:
    query = build_query(dataset.name, "a", *span, **options)
    density = Density(count, query.span) if count is not None else None
    return choose(query, entry_of(dataset, trusted), LIMITS, native_step=native, density=density)


@pytest.mark.parametrize(
    ("count", "strategy"),
    [
        (0, "direct"),
        (1_000, "direct"),
        (1_001, "aggregated"),
        (10_000, "aggregated"),
        (10_001, "downsampled"),
    ],
)
def test_a_given_step_is_answered_by_the_cheapest_road(count: int, strategy: str) -> None:
    assert plan(step="1h", count=count).strategy == strategy


def test_the_native_step_stands_in_for_a_count() -> None:
    day = ("2023-01-01T00:00Z", "2023-01-02T00:00Z")
    assert plan(step="1h", native=5 * MINUTE, span=day).strategy == "direct"
    assert plan(step="1h", native=MINUTE, span=day).strategy == "aggregated"
    assert plan(step="1h", native=MINUTE).strategy == "downsampled"
    assert plan(step="1h").strategy == "downsampled"


@pytest.mark.parametrize(
    ("step", "tz", "rollup"),
    [
        ("5m", "UTC", "5m"),
        ("10m", "UTC", "5m"),
        ("1h", "UTC", "1h"),
        ("90m", "UTC", "5m"),
        ("1d", "UTC", "1d"),
        ("1w", "UTC", "1d"),
        ("1M", "UTC", "1d"),
        ("1y", "UTC", "1d"),
        ("1d", "Europe/Berlin", "1h"),
        ("1M", "Asia/Kathmandu", "5m"),
    ],
)
def test_the_coarsest_rollup_that_fits_answers(step: str, tz: str, rollup: str) -> None:
    found = plan(step=step, tz=tz).rollup
    assert found is not None
    assert str(found.grid.step) == rollup


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"step": "7m"}, "not made of whole ladder steps"),
        ({"step": "1m"}, "not made of whole ladder steps"),
        ({"step": "1h", "where": {"value": 1}}, "where tests points"),
        ({"step": "1h", "trusted": False}, "was restored"),
    ],
)
def test_without_a_fitting_rollup_the_points_answer_and_the_plan_says_why(
    options: dict[str, Any], says: str
) -> None:
    found = plan(**options)
    assert found.strategy == "aggregated"
    assert says in found.rejected["downsampled"]
    with pytest.raises(QueryError, match=says):
        plan(**options, strategy="downsampled")


def test_an_aggregate_the_rollups_do_not_keep_is_read_from_points() -> None:
    found = plan(CANDLES, step="1h", agg={"close": "min"})
    assert "do not keep min of close" in found.rejected["downsampled"]
    assert plan(CANDLES, step="1h", agg={"high": "max"}).strategy == "downsampled"


@given(st.sampled_from(["direct", "aggregated", "downsampled"]), st.integers(0, 10**9))
def test_a_forced_road_is_taken_whatever_it_costs(strategy: str, count: int) -> None:
    assert plan(step="1h", count=count, strategy=strategy).strategy == strategy


@given(st.integers(0, 10**9))
def test_the_choice_changes_the_road_and_nothing_else(count: int) -> None:
    found, other = plan(step="1h", count=count), plan(step="1h", strategy="direct")
    assert (found.grid, found.aggregates, found.states) == (
        other.grid,
        other.aggregates,
        other.states,
    )


@given(
    st.integers(0, 10**8),
    st.sampled_from(ANCHORS),
    st.integers(1, 50 * 365 * 1440),
    st.sampled_from(ZONES),
)
def test_auto_never_answers_with_more_than_its_buckets(
    count: int, anchor: int, width: int, tz: str
) -> None:
    end = min(anchor + width * MINUTE, to_us("2100-01-01Z"))
    extent = Span(min(anchor, end - MINUTE), end)
    query = build_query(
        "metrics", "a", to_datetime(extent.start), to_datetime(end), step="auto", tz=tz
    )
    found = choose(query, entry_of(METRICS), LIMITS, density=Density(count, extent))
    if count <= LIMITS.direct:
        assert found.step is None
        return
    assert found.grid is not None
    assert found.grid.count(extent) <= LIMITS.buckets
    # by local mean time days are not whole buckets of the ladder
    fits = found.grid.is_on(Grid(Step.parse("5m")), query.span)
    if count > LIMITS.aggregated and found.step in METRICS.ladder and fits:
        assert found.strategy == "downsampled"


def test_native_points_are_never_aggregated() -> None:
    assert plan().strategy == "direct"
    assert plan(columns=["value"]).columns == ("value",)
    with pytest.raises(UnknownName):
        plan(columns=["value_max"])


def test_a_picture_of_few_points_is_drawn_from_them_and_of_many_from_a_rollup() -> None:
    assert plan(points=500, count=1_000).strategy == "direct"
    found = plan(points=500, count=10**7)
    assert found.strategy == "downsampled"
    assert found.rollup is not None
    assert found.rollup.grid.count(found.span) >= 4 * 500
    assert plan(points=50_000, count=10**7).strategy == "direct"  # no rollup is fine enough


def test_a_picture_has_the_columns_of_points_or_is_drawn_from_them() -> None:
    found = plan(CANDLES, points=500, count=10**7)
    assert found.columns == CANDLES.names == tuple(a.name for a in found.aggregates)
    assert [a.name for a in found.drawn] == ["low", "high"]
    only = plan(CANDLES, points=500, count=10**7, columns=["volume"])
    assert (only.columns, only.drawn) == (("volume",), found.drawn)
    found = plan(TRADES, points=500, count=10**7)
    assert found.strategy == "direct"
    assert "keep no value of 'size'" in found.reason
    assert plan(TRADES, points=500, count=10**7, columns=["price"]).strategy == "downsampled"


def test_outputs_are_the_columns_asked_for_then_the_extra_ones() -> None:
    query = build_query(
        "candles",
        "a",
        *YEAR,
        step="1h",
        columns=["close"],
        agg={"close": ["last", "max"], "volume": "avg"},
    )
    assert [a.name for a in outputs_of(query, CANDLES)] == ["close", "close_max", "volume_avg"]
    query = build_query("trades", "a", *YEAR, step="1h")
    assert [a.name for a in outputs_of(query, TRADES)] == [a.name for a in TRADES.aggregates]


@given(
    st.sampled_from(STEPS[:11]),
    st.integers(-(10**15), 10**15),
    st.integers(0, 10**13),
)
def test_whole_and_cut_buckets_of_a_rollup_read_tile_the_range(
    step: str, start: int, width: int
) -> None:
    # TRAPS 20: no hole, no overlap
    grid, span = Grid(Step.parse(step)), Span(start, start + width)
    if grid.width is None:
        return
    params = rollup_params(Rollup(1, grid, "r"), span)
    inner = (to_us(params["inner_start"]), to_us(params["inner_end"]))
    cut = []
    for piece in params["cut"].strip("{}").split("),"):
        if piece:
            low, high = piece.strip("[)").split(",")
            cut.append((to_us(low), to_us(high)))
    for low, high in cut:
        assert grid.floor_one(low) == low
        assert grid.floor_one(high) == high
    parts = sorted((a, b) for a, b in [*cut, inner] if a < b)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(parts))
    if not span.is_empty:
        assert parts[0][0] == grid.floor_one(span.start)
        assert parts[-1][1] == grid.ceil_one(span.end)
        assert inner[0] >= span.start or inner[0] >= inner[1]
        assert inner[1] <= span.end or inner[0] >= inner[1]


def test_every_type_of_column_has_its_states() -> None:
    found = plan(READINGS, step="1h")
    assert found.strategy == "downsampled"
    assert {s.type for s in found.states} == {"float", "int", "bool", "category", "decimal(4)"}
