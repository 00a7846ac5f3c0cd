"""Instants, spans and buckets: TRAPS 1 to 8, without a server."""

from __future__ import annotations

import itertools
from datetime import UTC, date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from oracle import EPOCH, bucket
from points import ANCHORS, EARLIEST, LATEST, STEPS, ZONES

from toolkit.errors import QueryError
from toolkit.timegrid import Grid, Span, Step, iso, to_datetime, to_us

HOUR = 3_600_000_000
DAY = 24 * HOUR
# where half an hour goes missing in the middle of the night, and a whole day
MORE_ZONES = (*ZONES, "America/Toronto", "Pacific/Kwajalein", "Africa/Monrovia", "Asia/Manila")

instants = st.one_of(
    st.integers(EARLIEST, LATEST - 1),
    st.builds(
        lambda a, d: min(max(a + d, EARLIEST), LATEST - 1),
        st.sampled_from(ANCHORS),
        st.one_of(st.integers(-3, 3), st.integers(-3 * DAY, 3 * DAY)),
    ),
)
grids = st.builds(
    lambda s, z: Grid(Step.parse(s), z), st.sampled_from(STEPS), st.sampled_from(MORE_ZONES)
)


# -- instants -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "us"),
    [
        ("1970-01-01T00:00Z", 0),
        ("1970-01-01Z", 0),
        ("1969-12-31T23:59:59.999999Z", -1),
        ("1970-01-01T01:00+01:00", 0),
        ("1970-01-01T00:00:00.0000019Z", 1),  # TRAPS 6: floored, not rounded
        ("1969-12-31T23:59:59.9999999Z", -1),
        (datetime(1970, 1, 1, tzinfo=UTC), 0),
        (datetime(1969, 12, 31, 19, tzinfo=timezone(-timedelta(hours=5))), 0),
        (np.datetime64("1969-12-31T23:59:59.999999999"), -1),
        (np.datetime64("1970-01-01T00:00:00.000001999"), 1),
        (np.datetime64("1960-02-29"), -310521600 * 1_000_000),
        (pd.Timestamp("1969-12-31T23:59:59.999999999Z"), -1),
        (pd.Timestamp("2024-01-01", tz="Europe/Berlin"), 1_704_063_600 * 1_000_000),
    ],
)
def test_a_moment_is_floored_to_the_microsecond(value: object, us: int) -> None:
    assert to_us(value) == us


@pytest.mark.parametrize(
    "value",
    [
        datetime(1970, 1, 1),
        "1970-01-01",
        "1970-01-01T00:00",
        pd.Timestamp("1970-01-01"),
        pd.NaT,
        np.datetime64("NaT"),
        date(1970, 1, 1),
        "now",
        0,
        None,
    ],
)
def test_a_moment_of_no_certain_meaning_is_refused(value: object) -> None:
    with pytest.raises(QueryError):
        to_us(value)


@given(instants)
@example(EARLIEST)
@example(-1)
def test_a_moment_survives_every_way_of_saying_it(us: int) -> None:
    assert to_us(to_datetime(us)) == us
    assert to_us(iso(us)) == us
    assert to_us(np.datetime64(us, "us")) == us
    assert to_us(to_datetime(us).astimezone(ZoneInfo("Asia/Kathmandu"))) == us


# -- spans (TRAPS 1) ------------------------------------------------------------------------------


def test_a_span_holds_its_start_and_not_its_end() -> None:
    span = Span(0, 10)
    assert 0 in span
    assert 9 in span
    assert 10 not in span
    assert Span(5, 5).is_empty


def test_a_span_that_ends_before_it_starts_is_refused() -> None:
    with pytest.raises(QueryError, match="is before start"):
        Span(1, 0)


@given(st.lists(instants, min_size=2, max_size=12).map(sorted))
def test_pieces_of_a_span_tile_it(bounds: list[int]) -> None:
    span = Span(bounds[0], bounds[-1])
    pieces = span.cut(np.array(bounds, dtype=np.int64))
    assert pieces[0].start == span.start
    assert pieces[-1].end == span.end
    assert all(a.end == b.start for a, b in itertools.pairwise(pieces))


@given(*[st.integers(-9, 9)] * 4)
def test_a_clipped_span_holds_what_both_hold(a: int, b: int, c: int, d: int) -> None:
    one, other = Span(min(a, b), max(a, b)), Span(min(c, d), max(c, d))
    both = one.clip(other)
    assert [t for t in range(-9, 9) if t in both] == [
        t for t in range(-9, 9) if t in one and t in other
    ]


# -- steps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "m", "0m", "-1m", "1.5h", "5 m", "1min", "1H", "１m", "1M1d"])
def test_a_step_is_a_number_and_a_unit(text: str) -> None:
    with pytest.raises(QueryError, match="for instance '5m'"):
        Step.parse(text)


@pytest.mark.parametrize(
    "text", ["1000y", "366000d", "52000w", "12000M", "700y", "101y", "100y", "5000w"]
)
@pytest.mark.parametrize("tz", ["UTC", "Europe/Berlin"])
def test_a_step_of_centuries_is_refused_or_works(text: str, tz: str) -> None:
    try:
        grid = Grid(Step.parse(text), tz)
    except QueryError:
        return
    for us in (EARLIEST, -1, 0, LATEST - 1):
        assert grid.floor_one(us) <= us


# -- buckets --------------------------------------------------------------------------------------


@given(grids, st.lists(instants, min_size=1, max_size=20))
def test_each_instant_lies_in_its_bucket_and_buckets_tile(grid: Grid, ts: list[int]) -> None:
    near = [t for t in ts if abs(t - ts[0]) < 500 * DAY]
    starts = grid.floor(np.array(near, dtype=np.int64)).tolist()
    for us, start in zip(near, starts, strict=True):
        edges = grid.edges(Span(us, us + 1)).tolist()
        assert edges[0] == start == grid.floor_one(us) <= us < edges[1]
        assert len(edges) == 2
        assert grid.floor_one(edges[1]) == edges[1]
        assert grid.floor_one(edges[1] - 1) == start
        assert grid.ceil_one(start) == start
        assert grid.ceil_one(edges[1] - 1) in (edges[1], start)


@given(st.sampled_from(STEPS), st.sampled_from(ZONES), instants)
def test_a_bucket_is_the_one_the_oracle_finds(step: str, tz: str, us: int) -> None:
    assert Grid(Step.parse(step), tz).floor_one(us) == bucket(us, step, tz)


@given(grids, instants, instants)
def test_edges_of_a_span_are_all_the_buckets_that_touch_it(grid: Grid, a: int, b: int) -> None:
    width = 300 * grid.step.approximate_us
    span = Span(min(a, b), min(max(a, b), min(a, b) + width, LATEST))
    edges = grid.edges(span)
    assert edges[0] <= span.start
    assert edges[-1] >= span.end
    assert (np.diff(edges) > 0).all()
    assert len(edges) == 2 or edges[1] > span.start
    assert len(edges) == 2 or edges[-2] < span.end
    walked = [int(edges[0])]
    while walked[-1] < span.end and len(walked) < 400:
        walked.append(int(grid.edges(Span(walked[-1], walked[-1] + 1))[1]))
    if not span.is_empty:
        assert walked == edges.tolist()


@pytest.mark.parametrize("year", [1960, 1969, 1999])
def test_buckets_before_the_origin_are_floored(year: int) -> None:
    # TRAPS 2
    last = to_us(f"{year}-12-31T23:59:59.999999Z")
    for step, start in (
        ("1h", f"{year}-12-31T23:00Z"),
        ("1d", f"{year}-12-31T00:00Z"),
        ("1M", f"{year}-12-01T00:00Z"),
        ("1y", f"{year}-01-01T00:00Z"),
    ):
        grid = Grid(Step.parse(step))
        assert grid.floor_one(last) == to_us(start)
        assert grid.floor_one(last + 1) == last + 1


def test_months_do_not_drift() -> None:
    # TRAPS 3
    edges = Grid(Step.parse("1M")).edges(Span(to_us("2024-01-31Z"), to_us("2024-04-30Z")))
    assert [iso(int(e))[:10] for e in edges] == [
        "2024-01-01",
        "2024-02-01",
        "2024-03-01",
        "2024-04-01",
        "2024-05-01",
    ]


@pytest.mark.parametrize(
    ("tz", "day", "hours"),
    [
        ("Europe/Berlin", "2023-03-26T12:00Z", 23),
        ("Europe/Berlin", "2023-10-29T12:00Z", 25),
        ("Australia/Lord_Howe", "2023-04-02T00:00Z", 24.5),
        ("Australia/Lord_Howe", "2023-09-30T16:00Z", 23.5),
        ("America/Sao_Paulo", "2018-11-04T12:00Z", 23),
        ("America/Sao_Paulo", "2018-02-17T12:00Z", 25),
        ("Asia/Kathmandu", "1986-01-01T00:00Z", 23.75),
        ("Pacific/Apia", "2011-12-30T09:00Z", 24),
        ("Europe/Berlin", "2023-07-01T12:00Z", 24),
    ],
)
def test_a_day_is_as_long_as_its_zone_makes_it(tz: str, day: str, hours: float) -> None:
    # TRAPS 4
    us = to_us(day)
    start, end = Grid(Step.parse("1d"), tz).edges(Span(us, us + 1)).tolist()
    assert (end - start) / HOUR == hours


def test_the_two_hours_of_a_fall_back_stay_apart() -> None:
    grid = Grid(Step.parse("1h"), "Europe/Berlin")
    first, second = to_us("2023-10-29T02:30+02:00"), to_us("2023-10-29T02:30+01:00")
    assert grid.floor_one(second) - grid.floor_one(first) == HOUR


def test_weeks_begin_on_monday() -> None:
    for tz in ZONES:
        start = Grid(Step.parse("1w"), tz).floor_one(to_us("2024-05-15T12:00Z"))
        local = (EPOCH + timedelta(microseconds=start)).astimezone(ZoneInfo(tz))
        assert (local.weekday(), local.hour, local.minute) == (0, 0, 0)


@pytest.mark.parametrize(
    ("coarse", "fine", "fits"),
    [
        (("1h", "UTC"), "5m", True),
        (("7m", "UTC"), "5m", False),
        (("1d", "Europe/Berlin"), "1h", True),
        (("1d", "Europe/Berlin"), "1d", False),
        (("1d", "Asia/Kathmandu"), "1h", False),
        (("1d", "Asia/Kathmandu"), "5m", True),
        (("1w", "UTC"), "1d", True),
        (("1w", "UTC"), "2d", False),
        (("1M", "UTC"), "1d", True),
        (("1M", "UTC"), "1w", False),
    ],
)
def test_a_grid_lies_on_a_finer_one_only_if_every_bucket_does(
    coarse: tuple[str, str], fine: str, fits: bool
) -> None:
    span = Span(to_us("2023-01-01Z"), to_us("2024-01-01Z"))
    grid = Grid(Step.parse(coarse[0]), coarse[1])
    assert grid.is_on(Grid(Step.parse(fine)), span) is fits


def test_a_range_of_too_many_calendar_buckets_is_refused_not_counted() -> None:
    with pytest.raises(QueryError, match="ask for less"):
        Grid(Step.parse("1s")).edges(Span(EARLIEST, LATEST))
