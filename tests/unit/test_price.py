"""The prices of plans: what can answer is priced, the cheapest is taken, and explained."""

from __future__ import annotations

import itertools
import timeit
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fix_stores import READINGS
from hypothesis import given
from hypothesis import strategies as st
from points import ANCHORS, STEPS, ZONES

from toolkit.catalog import Entry, Rollup
from toolkit.cli.measuring import CLIENTS, NAMES, Case, fitted
from toolkit.config import load_settings
from toolkit.dataset import CANDLES, METRICS, TRADES, Dataset
from toolkit.errors import ConfigError, QueryError
from toolkit.options import Limits, Prices
from toolkit.query import build_query
from toolkit.reader import Explanation
from toolkit.strategy import Density, Plan, choose
from toolkit.strategy.price import PIECE
from toolkit.strategy.seen import Seen
from toolkit.timegrid import Grid, Span, Step, to_datetime, to_us

MINUTE = 60_000_000
YEAR = ("2023-01-01T00:00Z", "2024-01-01T00:00Z")
HOUR = 60 * MINUTE


def entry_of(dataset: Dataset, trusted: bool = True) -> Entry:
    steps = enumerate(dataset.ladder, 1)
    rollups = [Rollup(i, Grid(Step.parse(s)), f"{dataset.name}_{s}", trusted) for i, s in steps]
    return Entry(1, "toolkit", dataset, tuple(rollups))


def plan(
    dataset: Dataset = CANDLES,
    *,
    native: int | None = MINUTE,
    trusted: bool = True,
    span: tuple[str, str] = YEAR,
    series: int = 1,
    changed: float | None = None,
    kept: Any = None,
    prices: Prices | None = None,
    **options: Any,
) -> Plan:
    query = build_query(dataset.name, "a", *span, **options)
    return choose(
        query,
        entry_of(dataset, trusted),
        Limits(),
        prices or Prices(),
        native_step=native,
        series=series,
        changed=None if changed is None else lambda default, rollup: changed,
        kept=kept,
    )


def hours(count: int) -> tuple[str, str]:
    start = to_us(YEAR[0])
    return YEAR[0], to_datetime(start + count * HOUR).isoformat()


def price(strategy: str, **options: Any) -> float:
    return plan(strategy=strategy, **options).price_ms


# -- what is chosen -----------------------------------------------------------------------------


@given(
    st.sampled_from([CANDLES, METRICS, TRADES, READINGS]),
    st.sampled_from(ANCHORS),
    st.integers(1, 400 * 1440),
    st.sampled_from(STEPS[2:]),
    st.sampled_from(ZONES),
    st.sampled_from([None, MINUTE, HOUR]),
    st.booleans(),
    st.integers(0, 300),
)
def test_what_is_chosen_can_answer_and_every_other_plan_has_a_price_or_a_reason(
    dataset: Dataset,
    anchor: int,
    width: int,
    step: str,
    tz: str,
    native: int | None,
    trusted: bool,
    series: int,
) -> None:
    end = min(anchor + width * MINUTE, to_us("2100-01-01Z"))
    bounds = to_datetime(min(anchor, end - MINUTE)), to_datetime(end)
    query = build_query(dataset.name, "a", *bounds, step=step, tz=tz)
    entry = entry_of(dataset, trusted)
    found = choose(query, entry, Limits(), native_step=native, series=series)
    if found.rollup is not None:
        assert found.rollup.is_trusted
        assert found.grid is not None
        assert found.grid.is_on(found.rollup.grid, query.span)
    assert (found.strategy == "downsampled") == (found.rollup is not None)
    mine = found.strategy if found.rollup is None else f"downsampled from {found.rollup.grid.step}"
    rungs = {f"downsampled from {s}" for s in dataset.ladder}
    others = set(found.alternatives)
    assert mine not in others
    assert {"direct", "aggregated"} <= {mine, *others}
    assert rungs <= {mine, *others} or "downsampled" in others
    for said in found.alternatives.values():
        assert said if isinstance(said, str) else said > 0
    prices = [v for v in found.alternatives.values() if isinstance(v, float)]
    assert found.price_ms <= min(prices)


@given(st.lists(st.integers(1, 20_000), min_size=2, max_size=2), st.sampled_from(["1h", "7m"]))
def test_more_points_never_cost_less_and_never_bring_direct_back(
    counts: list[int], step: str
) -> None:
    few, many = sorted(counts)
    for strategy in ("direct", "aggregated", *(["downsampled"] if step == "1h" else [])):
        assert price(strategy, step=step, span=hours(few)) <= price(
            strategy, step=step, span=hours(many)
        )
    if step == "1h" and plan(step=step, span=hours(few)).strategy == "downsampled":
        assert plan(step=step, span=hours(many)).strategy == "downsampled"


def test_a_year_of_minutes_is_read_from_a_rollup_and_a_few_minutes_from_points() -> None:
    assert str(plan(step="1h")).startswith("downsampled from the 1h rollup")
    assert plan(step="1h", span=hours(1)).rollup is None
    assert plan(step="1h", where={"close": 1.0}).rollup is None
    assert plan(step="7m").rollup is None


def test_of_the_rollups_that_fit_the_cheapest_answers() -> None:
    whole = plan(step="1d")
    assert whole.rollup is not None
    assert str(whole.rollup.grid.step) == "1d"
    # a day and a half: the cut days would be read from points
    cut = plan(step="1d", span=("2023-01-01T12:00Z", "2023-01-31T12:00Z"), native=1_000_000)
    assert cut.rollup is not None
    assert str(cut.rollup.grid.step) != "1d"
    assert "downsampled from 1d" in cut.alternatives


def test_changes_that_were_seen_make_a_rollup_dearer() -> None:
    month = hours(24 * 30)
    assert plan(step="1h", span=month, changed=0.0).strategy == "downsampled"
    assert plan(step="1h", span=month, changed=1.0).strategy != "downsampled"
    prices = [price("downsampled", step="1h", span=month, changed=c) for c in (0.0, 0.01, 0.5, 1.0)]
    assert prices == sorted(prices)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"step": "7m"}, "not made of whole ladder steps"),
        ({"step": "1h", "where": {"close": 1}}, "where tests points"),
        ({"step": "1h", "trusted": False}, "was restored"),
        ({"step": "1h", "agg": {"close": "min"}}, "do not keep min of close"),
    ],
)
def test_where_no_rollup_can_answer_the_plan_says_why(options: dict[str, Any], says: str) -> None:
    found = plan(**options)
    assert says in str(found.alternatives["downsampled"])
    assert says in found.rejected["downsampled"]
    with pytest.raises(QueryError, match=says):
        plan(**options, strategy="downsampled")


@pytest.mark.parametrize("strategy", ["direct", "aggregated", "downsampled"])
def test_a_forced_road_is_taken_and_priced(strategy: str) -> None:
    found = plan(step="1h", strategy=strategy)
    assert (found.strategy, found.reason) == (strategy, "asked for")
    assert found.price_ms > 0


def test_more_series_and_more_statements_cost_more() -> None:
    day = hours(24)
    for strategy in ("direct", "aggregated", "downsampled"):
        one, many = (price(strategy, step="1h", span=day, series=s) for s in (1, 50))
        assert one < many
    minutes = PIECE // 60
    below, above = (price("direct", step="1h", span=hours(minutes + n)) for n in (-1, 2))
    assert above > below + Prices().statement / 1_000


def test_native_points_have_no_price() -> None:
    found = plan()
    assert (found.strategy, found.price_ms, dict(found.alternatives)) == ("direct", 0.0, {})


def test_a_resolution_of_its_own_is_priced_at_that_resolution() -> None:
    query = build_query("candles", "a", *YEAR, step="auto")
    density = Density(10_001, query.span)
    found = choose(query, entry_of(CANDLES), Limits(), native_step=MINUTE, density=density)
    assert found.step == "1d"
    assert found.strategy == "downsampled"
    assert "finest step" in found.reason
    assert {"direct", "aggregated"} <= set(found.alternatives)
    few = choose(query, entry_of(CANDLES), Limits(), density=Density(900, query.span))
    assert (few.step, few.price_ms) == (None, 0.0)


# -- what is remembered -------------------------------------------------------------------------


def test_what_is_held_is_preferred_and_what_can_be_held_to_what_cannot() -> None:
    day = hours(24)

    def held(strategy: str, rollup: Rollup | None) -> tuple[float, float] | None:
        if strategy == "aggregated":
            return None
        return (1_440.0, 0.0) if strategy == "direct" else (0.0, 2_000.0)

    def nothing(strategy: str, rollup: Rollup | None) -> tuple[float, float] | None:
        return None if strategy == "aggregated" else (0.0, 4_320.0)

    found = plan(step="1h", span=day, kept=held)
    assert found.strategy == "direct"
    assert found.price_ms < plan(step="1h", span=day).price_ms
    # unlike an answer of the database, points are there for the next one
    narrow = Prices(scanned=0.05, aggregated=0.01, ordered=0.0)
    step: dict[str, Any] = {"step": "7m", "span": hours(72), "prices": narrow}
    assert plan(**step).strategy == "aggregated"
    first = plan(**step, kept=nothing)
    assert first.strategy == "direct"
    assert "to be remembered" in first.reason


def test_nothing_is_weighed_where_the_very_buckets_are_remembered() -> None:
    asked: list[str] = []

    def held(strategy: str, rollup: Rollup | None) -> tuple[float, float] | None:
        asked.append(strategy)
        return 8_760.0, 0.0

    found = plan(step="1h", kept=held)
    assert str(found) == "downsampled from the 1h rollup, step 1h: all of it is remembered"
    assert asked == ["downsampled"]
    assert plan(step="1h", kept=held, strategy="direct").strategy == "direct"
    # made of others' buckets, or with a bucket cut off: weighed
    assert plan(step="2h", kept=held).alternatives
    cut = ("2023-01-01T00:30Z", "2023-01-03T00:00Z")
    assert plan(step="1h", span=cut, kept=held).alternatives


# -- what was seen ------------------------------------------------------------------------------


def test_what_was_seen_counts_for_ranges_of_its_kind_and_for_a_minute() -> None:
    now = 0.0
    seen = Seen(lambda: now)
    rollup, other = entry_of(CANDLES).rollups[:2]
    newest, year = Span(364 * 24 * HOUR, 365 * 24 * HOUR), Span(0, 365 * 24 * HOUR)
    seen.learn((1,), rollup, newest, 1.0)
    assert seen.share((1,), newest, 0.01, rollup) == 1.0
    assert seen.share((1,), year, 0.01, rollup) == 0.01
    half = Span(newest.start + 12 * HOUR, newest.end + 12 * HOUR)
    assert seen.share((1,), half, 0.0, rollup) == 0.5
    assert seen.share((2,), newest, 0.01, rollup) == 0.01
    assert seen.share((1,), newest, 0.01, other) == 1.0  # better than nothing
    seen.learn((1,), other, newest, 0.2)
    assert seen.share((1,), newest, 0.01, rollup) == 1.0
    now = 61.0
    assert seen.share((1,), newest, 0.01, rollup) == 0.01
    seen.learn((1,), rollup, newest, 0.5)
    seen.forget()
    assert seen.share((1,), newest, 0.01, rollup) == 0.01


# -- settings, and what is shown ----------------------------------------------------------------


def test_prices_and_the_chooser_come_from_settings(tmp_path: Path) -> None:
    file = tmp_path / "toolkit.toml"
    prices = Prices(**{f.name: 0.5 + n for n, f in enumerate(fields(Prices))})
    lines = [f"{f.name} = {getattr(prices, f.name)}" for f in fields(Prices)]
    file.write_text("\n".join(["[chooser]", 'by = "thresholds"', "[prices]", *lines]), "utf-8")
    settings = load_settings(file, environ={"TOOLKIT_PRICES_ROW": "7"})
    assert settings.prices == replace(prices, row=7.0)
    assert settings.limits == Limits(by="thresholds")
    assert settings.shown()["prices.row"] == "7.0"
    with pytest.raises(ConfigError, match=r"chooser\.by.*luck.* is none of"):
        load_settings(environ={"TOOLKIT_CHOOSER_BY": "luck"})
    with pytest.raises(ConfigError, match="too small"):
        load_settings(environ={"TOOLKIT_PRICES_ROW": "-1"})


def test_an_explanation_shows_the_alternatives_with_their_prices() -> None:
    text = str(Explanation(plan(step="1h"), "SELECT", "Index Scan"))
    assert "not direct: about " in text
    assert "not downsampled from 1d: 1h buckets in UTC are not whole 1d buckets" in text
    assert text.endswith("Index Scan")


def test_pricing_costs_little() -> None:
    query = build_query("candles", "a", *YEAR, step="1h")
    entry, limits, prices = entry_of(CANDLES), Limits(), Prices()
    took = timeit.repeat(
        lambda: choose(query, entry, limits, prices, native_step=MINUTE), number=500, repeat=7
    )
    assert min(took) / 500 < 60e-6  # 15 µs where nothing else runs


# -- calibrating --------------------------------------------------------------------------------


def test_prices_are_found_again_from_the_times_they_explain() -> None:
    random = np.random.default_rng(5)
    truth = np.array([getattr(Prices(), n) for n in NAMES])
    is_server = np.array([n not in CLIENTS for n in NAMES])
    truth = np.where(is_server, truth * random.uniform(0.5, 3.0, len(NAMES)), truth)
    cases = []
    for _ in range(300):
        amounts = (
            random.uniform(0, 1, len(NAMES)) * 1_000 / truth * (random.random(len(NAMES)) < 0.5)
        )
        amounts[0] = 1.0
        us = float(amounts @ truth) * random.uniform(0.95, 1.05)
        cases.append(Case(lambda: pytest.fail("not asked"), amounts, [us]))
    prices, error = fitted(cases)
    assert error < 0.06
    for name, value in zip(NAMES, truth, strict=True):
        assert getattr(prices, name) == pytest.approx(value, rel=0.25), name


def test_what_no_read_could_tell_stays_as_it_is() -> None:
    statement = np.array([float(n == "statement") for n in NAMES])
    read = np.array([float(n == "read") for n in NAMES])
    cases = [Case(lambda: pytest.fail("not asked"), statement + read, [2_100.0])] * 20
    prices, _ = fitted(cases)
    assert prices.statement == pytest.approx(2_000.0, rel=0.01)
    rest = [n for n in NAMES if n != "statement"]
    assert all(getattr(prices, n) == pytest.approx(getattr(Prices(), n)) for n in rest)
    assert all(v >= 0 for v in itertools.chain(getattr(prices, n) for n in NAMES))
