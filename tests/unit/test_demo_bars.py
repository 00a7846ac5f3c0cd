"""The demo's bars: the real daily ones, and the minutes made from them."""

from __future__ import annotations

from importlib.machinery import ModuleSpec

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from toolkit.demo import bars, minutes
from toolkit.demo.bars import DailyBars, read_daily
from toolkit.errors import MissingExtra


@pytest.fixture(scope="module")
def daily() -> dict[str, DailyBars]:
    return read_daily()


@pytest.fixture(scope="module")
def chunk(daily: dict[str, DailyBars]) -> minutes.Chunk:
    return minutes.chunks({"AAPL": daily["AAPL"]}, "2008", "2009")[0]


@pytest.fixture(scope="module")
def frame(chunk: minutes.Chunk) -> pd.DataFrame:
    return minutes.minute_bars(chunk)


def by_day(frame: pd.DataFrame, column: str) -> npt.NDArray[np.float64]:
    return frame[column].to_numpy(np.float64).reshape(-1, minutes.SESSION)


def test_there_are_five_shares_with_whole_daily_bars(daily: dict[str, DailyBars]) -> None:
    assert list(daily) == ["AAPL", "FB", "GOOG", "IBM", "MSFT"] == list(bars.VENUES)
    assert sum(map(len, daily.values())) == 12_154
    for one in daily.values():
        assert (np.diff(one.days) > np.timedelta64(0, "D")).all()
        assert (one.high >= np.maximum(one.open, one.close)).all()
        assert (one.low <= np.minimum(one.open, one.close)).all()


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(name: str) -> ModuleSpec | None:
        return None

    monkeypatch.setattr(bars, "find_spec", nowhere)
    with pytest.raises(MissingExtra, match=r"timeseries-toolkit\[local\]"):
        read_daily()


def test_the_same_seed_gives_the_same_bars(chunk: minutes.Chunk, frame: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(frame, minutes.minute_bars(chunk))
    other = minutes.minute_bars(chunk, seed=minutes.SEED + 1)
    assert (other["close"].to_numpy() != frame["close"].to_numpy()).mean() > 0.5


def test_a_chunk_does_not_depend_on_those_before_it(daily: dict[str, DailyBars]) -> None:
    parts = minutes.chunks({"IBM": daily["IBM"]}, "2010", "2012")
    assert [p.year for p in parts] == [2010, 2011]
    *_, last = minutes.frames(parts)
    pd.testing.assert_frame_equal(last, minutes.minute_bars(parts[1]))


def test_minutes_add_up_to_their_day(daily: dict[str, DailyBars]) -> None:
    for part in minutes.chunks(daily, "2011-06", "2012-07"):
        frame, day = minutes.minute_bars(part), part.daily
        assert len(frame) == part.rows
        np.testing.assert_array_equal(by_day(frame, "open")[:, 0], day.open)
        np.testing.assert_array_equal(by_day(frame, "high").max(axis=1), day.high)
        np.testing.assert_array_equal(by_day(frame, "low").min(axis=1), day.low)
        np.testing.assert_array_equal(by_day(frame, "close")[:, -1], day.close)
        np.testing.assert_array_equal(by_day(frame, "volume").sum(axis=1), day.volume)


def test_each_minute_is_a_bar_and_opens_where_the_last_one_closed(frame: pd.DataFrame) -> None:
    body = frame[["open", "close"]]
    assert (frame["high"] >= body.max(axis=1)).all()
    assert (frame["low"] <= body.min(axis=1)).all()
    assert (frame["volume"] >= 0).all()
    assert (by_day(frame, "open")[:, 1:] == by_day(frame, "close")[:, :-1]).all()
    assert (np.diff(by_day(frame, "close")) != 0).mean() > 0.5  # they move


def test_sessions_are_half_past_nine_to_four_in_new_york(
    chunk: minutes.Chunk, frame: pd.DataFrame
) -> None:
    ts = frame["ts"]
    assert (ts.diff().dropna() > pd.Timedelta(0)).all()
    local = ts.dt.tz_convert("America/New_York").dt.strftime("%H:%M").to_numpy()
    local = local.reshape(-1, minutes.SESSION)
    assert set(local[:, 0]) == {"09:30"}
    assert set(local[:, -1]) == {"15:59"}
    # 2008 has both: 14:30 UTC in winter, 13:30 in summer
    assert set(ts.dt.strftime("%H:%M").to_numpy().reshape(local.shape)[:, 0]) == {"14:30", "13:30"}
    assert chunk.last == ts.iloc[-1].tz_localize(None).to_datetime64()
