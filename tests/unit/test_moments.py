"""Times of a frame: one floor to microseconds, no guessed zone, nothing implausible."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.dataset import CANDLES
from toolkit.errors import InputError, QueryError
from toolkit.ingest.frames import to_batch
from toolkit.timegrid import EARLIEST, LATEST


def instants(ts: object, **arguments: str) -> list[int]:
    return to_batch(CANDLES, {"ts": ts}, series="A", **arguments).ts.tolist()


FINE = np.array([-1, -999, -1000, -1001, 0, 999, 1000, 1999], dtype="M8[ns]")
FLOORED = [-1, -1, -1, -2, 0, 0, 1, 1]


@pytest.mark.parametrize(
    "ts",
    [
        FINE,
        pd.Series(FINE).dt.tz_localize("UTC"),
        pd.Series(FINE).dt.tz_localize("UTC").dt.tz_convert("Asia/Kathmandu"),
        pd.DatetimeIndex(FINE, tz="UTC"),
        pa.array(FINE, pa.timestamp("ns", "UTC")),
        pl.Series(FINE).dt.replace_time_zone("UTC"),
        pd.Series(pa.array(FINE, pa.timestamp("ns", "UTC")), dtype="timestamp[ns, UTC][pyarrow]"),
    ],
)
def test_trap_6_nanoseconds_are_floored_before_1970_too(ts: object) -> None:
    assert instants(ts) == FLOORED


def test_trap_6_integer_nanoseconds_are_floored() -> None:
    assert instants(FINE.astype(np.int64), time_unit="ns") == FLOORED


def test_trap_6_texts_are_floored() -> None:
    assert instants(["1970-01-01T00:00:00.0000019Z", "1970-01-01T00:00:00.123456999+00:00"]) == [
        1,
        123456,
    ]


@given(st.integers(EARLIEST, LATEST - 1), st.sampled_from(["s", "ms", "us", "ns"]))
def test_every_unit_agrees_with_integer_floor_division(us: int, unit: str) -> None:
    per_us = {"s": (10**6, 1), "ms": (10**3, 1), "us": (1, 1), "ns": (1, 1000)}[unit]
    count = us * per_us[1] // per_us[0]
    expected = [count * per_us[0] // per_us[1]]
    assert instants(np.array([count]), time_unit=unit) == expected
    assert instants(np.array([count]).view(f"M8[{unit}]")) == expected


@pytest.mark.parametrize("unit", ["Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns"])
def test_numpy_units_of_every_width_are_taken(unit: str) -> None:
    ts = np.array(["1960-01-01", "2024-02-29"], dtype="M8[D]").astype(f"M8[{unit}]")
    assert instants(ts) == ts.astype("M8[us]").astype(int).tolist()


@pytest.mark.parametrize("year", [1900, 1677, 2262])
def test_trap_8_years_beyond_nanoseconds_are_kept_in_microseconds(year: int) -> None:
    ts = np.array([f"{year}-01-01"], dtype="M8[s]")
    if year == 1900:
        assert instants(ts) == [EARLIEST]
    else:
        with pytest.raises(InputError, match=f"{year}-01-01.* is not between 1900 and 2100"):
            instants(ts)


@pytest.mark.parametrize(
    ("ts", "message"),
    [
        (np.array(["2024-01-01", "NaT", "NaT"], "M8[us]"), r"row 1: there is no time \(NaT\) \(2"),
        (pd.DatetimeIndex(["2024-01-01", None], tz="UTC"), "row 1: there is no time"),
        ([datetime(2024, 1, 1, tzinfo=UTC), None], "row 1: there is no time"),
        (np.array([0, 2**62], "M8[us]"), "row 1: .* is not between 1900 and 2100"),
        (np.array([0, 2**62], "M8[s]"), "row 1: .* is not between 1900 and 2100"),
        (np.array([0, -(2**62)], "M8[Y]"), "row 1: .* is not between 1900 and 2100"),
        (np.array(["1899-12-31T23:59:59.999999"], "M8[us]"), "row 0: 1899-12-31T23:59:59.999999"),
        (np.array(["2100-01-01"], "M8[us]"), "row 0: 2100-01-01T00:00:00.000000 is not"),
        ([datetime.max.replace(tzinfo=UTC)], "row 0: 9999-12-31T23:59:59.999999 is not"),
        (pa.array([None], pa.timestamp("us", "UTC")), "row 0: there is no time"),
    ],
)
def test_traps_7_and_9_instants_without_a_plausible_place_are_refused(
    ts: object, message: str
) -> None:
    with pytest.raises(InputError, match=f"column 'ts', {message}"):
        instants(ts)


def test_a_wrong_time_unit_is_suspected() -> None:
    with pytest.raises(InputError, match="are these really 's' since 1970"):
        instants([1_704_067_200_000], time_unit="s")


@pytest.mark.parametrize(
    ("ts", "message"),
    [
        ([1, 2], "integers need time_unit"),
        (np.array([1, 2], dtype=np.uint8), "integers need time_unit"),
        ([1.5], "type float64 are not times"),
        ([True], "type bool are not times"),
        ([float("nan")], "there is no time"),
        (["yesterday"], "row 0: 'yesterday' is not ISO 8601"),
        (["2024-01-01T00:00Z", "2024-01-01T00:00"], "row 1: .* has no time zone"),
        ([datetime(2024, 1, 1, tzinfo=UTC), 3], "row 1: expected a datetime"),
        (np.array([1], "m8[us]"), "timedelta64"),
    ],
)
def test_what_is_no_time_is_refused(ts: object, message: str) -> None:
    with pytest.raises(InputError, match=f"column 'ts'.*{message}"):
        instants(ts)


def test_an_unknown_time_unit_is_refused() -> None:
    with pytest.raises(InputError, match="time_unit 'minutes' is none of 's', 'ms'"):
        instants([1], time_unit="minutes")


LOCAL = [datetime(2024, 1, 15, 12), datetime(2024, 7, 15, 12)]
NAIVE = [
    LOCAL,
    pd.Series(LOCAL),
    pd.Series(LOCAL).astype(object),
    pd.Series(LOCAL, dtype="timestamp[us][pyarrow]"),
    pa.array(LOCAL),
    pl.Series(LOCAL),
]


@pytest.mark.parametrize("ts", NAIVE)
def test_naive_times_are_refused_without_a_zone(ts: object) -> None:
    with pytest.raises(InputError, match="no time zone: whose clock shows them"):
        instants(ts)


@pytest.mark.parametrize("ts", [*NAIVE, np.array(LOCAL, "M8[us]"), [str(d) for d in LOCAL]])
@pytest.mark.parametrize("tz", ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu"])
def test_naive_times_are_localised_in_the_zone_given(ts: object, tz: str) -> None:
    expected = [int(d.replace(tzinfo=ZoneInfo(tz)).timestamp()) * 10**6 for d in LOCAL]
    assert instants(ts, tz=tz) == expected


@pytest.mark.parametrize(
    ("local", "message"),
    [
        ("2024-03-31T02:30", "showed 2024-03-31T02:30:00.000000 never"),
        ("2024-10-27T02:30", "showed 2024-10-27T02:30:00.000000 twice"),
    ],
)
def test_trap_4_local_times_of_a_clock_change_are_refused_by_row(local: str, message: str) -> None:
    ts = pd.Series(np.array(["2024-01-01", local, local], "M8[us]"))
    with pytest.raises(InputError, match=rf"row 1: clocks in Europe/Berlin {message}.*\(2 such"):
        instants(ts, tz="Europe/Berlin")
    with pytest.raises(InputError, match=f"row 1.*: clocks in Europe/Berlin {message}"):
        instants(ts.tolist(), tz="Europe/Berlin")


@given(
    st.lists(st.datetimes(datetime(1900, 1, 2), datetime(2099, 12, 30)), min_size=1, max_size=5),
    st.sampled_from(
        ["Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Africa/Monrovia"]
    ),
)
def test_localising_undoes_what_clocks_show(moments: list[datetime], tz: str) -> None:
    there = ZoneInfo(tz)
    aware = [m.replace(tzinfo=UTC).astimezone(there) for m in moments]
    shown = [a.replace(tzinfo=None) for a in aware]
    twice = [
        m.replace(tzinfo=there, fold=0).utcoffset() != m.replace(tzinfo=there, fold=1).utcoffset()
        for m in shown
    ]
    if not any(twice):
        epoch = datetime(1970, 1, 1, tzinfo=UTC)
        expected = [(a - epoch) // timedelta(microseconds=1) for a in aware]
        assert instants(np.array([m.replace(fold=0) for m in shown], "M8[us]"), tz=tz) == expected


def test_aware_times_keep_their_instant_whatever_zone_is_given() -> None:
    moment = datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=5, minutes=45)))
    expected = [int(moment.timestamp()) * 10**6]
    for ts in ([moment], pd.Series([moment]), pa.array([moment]), [moment.isoformat()]):
        assert instants(ts) == instants(ts, tz="Europe/Berlin") == expected


@pytest.mark.parametrize(
    "ts", [[date(2024, 1, 1)], pa.array([date(2024, 1, 1)]), pl.Series([date(2024, 1, 1)])]
)
def test_dates_are_midnights_of_a_zone_that_must_be_given(ts: object) -> None:
    assert instants(ts, tz="Europe/Berlin") == [1_704_063_600_000_000]
    with pytest.raises(InputError, match="no time zone"):
        instants(ts)


def test_an_unknown_zone_is_named() -> None:
    with pytest.raises(QueryError, match="unknown time zone 'Mars'"):
        instants(pd.Series(LOCAL), tz="Mars")
